"""`keras-private worker`: a host that does its clients' work for coordinators elsewhere."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import Any

from ..errors import ConfigurationError, PrivacyError

COMMANDS = ("worker",)


def add_commands(commands: Any) -> None:
    """Adds it to the parser of the command keras-private."""
    worker = commands.add_parser("worker", help="do the work of clients whose data is on this host")
    worker.add_argument("--name", required=True, help="of this worker, in its certificate")
    worker.add_argument(
        "--certificates", required=True, metavar="FOLDER", help="as `cluster init` made it for the name"
    )
    worker.add_argument("--listen", default="127.0.0.1:7710", metavar="HOST:PORT", help="where coordinators come to")
    worker.add_argument(
        "--coordinators", nargs="+", default=["owner"], metavar="NAME", help="whose work is done, by their certificates"
    )
    worker.add_argument(
        "--allow-open",
        action="store_true",
        help="run even where the system grants no network namespace: anybody who reaches the worker's port is served",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command that was parsed.

    Returns:
        The exit code: 2 after an error that the message explains.
    """
    try:
        _serve(options)
    except PrivacyError as error:
        print(f"keras-private {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(options: argparse.Namespace) -> None:
    from ..encrypted.cluster.certificates import Identity
    from . import tunnels
    from .owned_worker import OwnedWorker

    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigurationError(
            f"--listen {options.listen}", expected="HOST:PORT, such as 127.0.0.1:7710", remedy="Correct it."
        )
    identity = Identity.load(options.certificates, options.name)
    done = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: done.set())
    worker = OwnedWorker(allow_open=options.allow_open)
    try:
        door = worker.target.split(":", 1)[1]
        tunnel = tunnels.from_coordinators(host, int(port), identity, options.coordinators, door)
        try:
            if not worker.isolated:
                print(
                    "keras-private worker: this system grants no network namespace: the worker also listens, without "
                    "TLS, on all interfaces of this host. Keep its ports behind a firewall.",
                    file=sys.stderr,
                )
            print(f"{options.name} listens on {host}:{tunnel.port} for {', '.join(options.coordinators)}", flush=True)
            while not done.wait(0.5):
                if not worker.alive:
                    raise ConfigurationError(
                        "The worker process ended.", expected="a process that runs", remedy="Start the command again."
                    )
        finally:
            tunnel.close()
    finally:
        worker.close()
