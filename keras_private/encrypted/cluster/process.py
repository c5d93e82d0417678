"""The process of one party: `keras-private party`, and what Cluster.local starts."""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import select
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from keras_private.errors import PrivacyError

if TYPE_CHECKING:
    from keras_private.encrypted.cluster.config import Address


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `keras-private party`."""
    parser.add_argument("--name", required=True, help="which party this is: server0, server1 or server2")
    parser.add_argument("--config", required=True, help="cluster.json")
    parser.add_argument("--folder", help="of its certificate and key; by default its name's, beside cluster.json")
    parser.add_argument("--delay", type=float, default=0.002, help="seconds that a request waits for others")
    parser.add_argument("--seconds", type=float, default=60.0, help="the longest that a run may take")
    parser.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--while-input", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--temporary", action="store_true", help=argparse.SUPPRESS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a party until it is told to end."""
    parser = argparse.ArgumentParser(prog="keras-private party")
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """
    Returns:
        The exit code: 2 when the party cannot start.
    """
    place = begin(options)
    # A thread that waits for a frame shall not wait for the interpreter as well.
    sys.setswitchinterval(1e-4)
    from keras_private.encrypted.cluster.certificates import Identity
    from keras_private.encrypted.cluster.config import ClusterConfig
    from keras_private.encrypted.cluster.party import Party

    try:
        config = ClusterConfig.load(place)
        identity = Identity.load(pathlib.Path(options.folder or place.parent / options.name), options.name)
        listening = None if options.socket is None else socket.socket(fileno=options.socket)
        party = Party(config, identity, listening, delay=options.delay, seconds=options.seconds)
    except PrivacyError as error:
        print(f"keras-private party: {error}", file=sys.stderr)
        return 2
    serve(party, party.close, config.party(options.name), announce=not options.while_input)
    return 0


class Serving(Protocol):
    """What a party's process holds."""

    def serve(self) -> None:
        """Until it is stopped or closed."""

    def close(self) -> None:
        """Gives everything back; also after it was stopped."""


def begin(options: argparse.Namespace) -> pathlib.Path:
    """Sets what concerns the whole process: what it logs, and that it ends with the one that started it.

    Returns:
        The configuration's path.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    place = pathlib.Path(options.config)
    if options.while_input:
        end_with_owner(place.parent if options.temporary else None)
    return place


def serve(party: Serving, stop: Callable[[], None], address: Address, announce: bool) -> None:
    """Serves until a signal, and closes.

    Args:
        party: That serves.
        stop: Called by the handler of SIGTERM and SIGINT.
        address: The party's.
        announce: Whether to say that it serves.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
    if announce:
        print(f"{address.name} serves at {address.host}:{address.port}", flush=True)
    party.serve()
    party.close()


def end_with_owner(temporary: pathlib.Path | None) -> None:
    """Ends this process when the one that started it ends, however that is.

    That one holds the other end of the standard input. A fork of it might hold that longer: so its number is looked at
    as well.

    Args:
        temporary: A folder to remove then.
    """
    owner = os.getppid()

    def watch() -> None:
        while os.getppid() == owner:
            if select.select([0], [], [], 0.5)[0] and not os.read(0, 4096):
                break
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=watch, name="owner", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
