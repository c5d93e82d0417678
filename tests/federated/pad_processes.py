"""Two pad parties as their owners start them, each with its own host's folder, and a coordinator with another."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import time
from typing import Any, Optional

import numpy as np
import psutil

from keras_private.encrypted.cluster.certificates import issue, server_hostname
from keras_private.encrypted.cluster.wire import Wire
from keras_private.federated.aggregators.masking import keys
from keras_private.federated.aggregators.masking.parties import Request
from keras_private.federated.pad_service.config import PARTIES, PadsConfig
from keras_private.federated.pad_service.remote import RemotePadParty, pad_parties
from tests.federated.test_masking import of_openssl

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAMES = ("anna", "bert", "carl")


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "keras_private", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def free_ports(count: int) -> list[int]:
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in found]
    for each in found:
        each.close()
    return ports


def gone(pid: int, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)
                continue
        return True
    return False


class Hosts:
    """What `pads init` made, each part in a folder that stands for a host."""

    def __init__(self, folder: pathlib.Path, *options: Any) -> None:
        self.folder, made = folder, folder / "made"
        self.processes: dict[str, subprocess.Popen[str]] = {}
        arguments = ["--dir", made, "--ports", *free_ports(2), "--clients", *NAMES, *options]
        done = subprocess.run(
            command("pads", "init", *arguments), env=environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout
        for host in (*PARTIES, "coordinator", "clients", "authority"):
            (folder / f"host-{host}").mkdir()
            (made / host).rename(folder / f"host-{host}" / host)
            shutil.copy(made / "pads.json", folder / f"host-{host}" / "pads.json")
        shutil.rmtree(made)
        self.config_path = folder / "host-coordinator" / "pads.json"
        self.config = PadsConfig.load(self.config_path)

    def start(self, *names: str) -> None:
        for name in names:
            arguments = ["--name", name, "--config", self.folder / f"host-{name}" / "pads.json"]
            with (self.folder / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    command("pads", "party", *arguments),
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        for name in names:
            line = self.processes[name].stdout.readline()
            assert f"{name} serves at 127.0.0.1:" in line, self.said(name)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait(30)
        process.stdout.close()

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def parties(self, seconds: float = 60.0) -> tuple[RemotePadParty, RemotePadParty]:
        return pad_parties(self.config_path, seconds=seconds)

    def masters(self) -> list[bytes]:
        return [(self.folder / f"host-{name}" / name / "master.key").read_bytes() for name in PARTIES]

    def expected(self, request: Request, party: int) -> np.ndarray:
        """A party's answer, by another implementation of the pads."""
        session, master = bytes.fromhex(request.session), self.masters()[party]
        with np.errstate(over="ignore"):
            return -sum(
                of_openssl(keys.client_key(master, party, name), session, request.number, nonce, request.words)
                for name, nonce in request.clients
            )

    def said(self, name: str) -> str:
        """What a party has logged."""
        return (self.folder / f"{name}.log").read_text()

    def context(self, name: str, days: float = 1.0, authority: Optional[pathlib.Path] = None) -> ssl.SSLContext:
        """Of somebody who does not look at its own certificate."""
        place = self.folder / f"certificate-{os.urandom(4).hex()}"
        issue(authority or self.folder / "host-authority" / "authority", name, place, days)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.folder / "host-coordinator" / "coordinator" / "ca.crt")
        context.load_cert_chain(place / f"{name}.crt", place / f"{name}.key")
        return context

    def wire(self, name: str, party: str = "party0", context: Optional[ssl.SSLContext] = None) -> Wire:
        """A connection as `name`, to send whatever on."""
        address = self.config.party(party)
        plain = socket.create_connection((address.host, address.port), 10)
        secured = (context or self.context(name)).wrap_socket(plain, server_hostname=server_hostname(party))
        return Wire(secured, party)


def request(names: Any = NAMES, number: int = 1, session: Optional[str] = None, **changed: Any) -> Request:
    """One with nonces that were never used, in a session of its own unless one is given."""
    found = {
        "session": session or os.urandom(16).hex(),
        "number": number,
        "words": 9,
        "clients": tuple((name, os.urandom(16)) for name in names),
        "answered": 9,
        **changed,
    }
    return Request(**found)


def answers(parties: Any, asked: Request) -> list[np.ndarray]:
    proofs = [party.propose(asked) for party in parties]
    return [party.answer(asked, proofs[1 - index]) for index, party in enumerate(parties)]
