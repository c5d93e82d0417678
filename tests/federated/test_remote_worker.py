"""Workers of other hosts: who is let in, what is on the wire, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted.cluster.certificates import authority, issue
from keras_private.errors import TransportError, WorkerError
from keras_private.federated import Clients, RemoteWorker, workers
from keras_private.federated.owned_worker import OwnedWorker
from tests.federated.test_model import LOSS, dense, difference, examples
from tests.federated.test_workers import gone

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


class Wire:
    """A link between a TCP port of loopback and another place, with all that was carried."""

    def __init__(self, connect) -> None:
        self.carried: list[bytes] = []
        self._connect = connect
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                come, _ = self._door.accept()
            except OSError:
                return
            there = self._connect()
            for pair in ((come, there), (there, come)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target) -> None:
        try:
            while data := source.recv(1 << 16):
                self.carried.append(data)
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def saw(self, what: bytes) -> bool:
        return what in b"".join(self.carried)

    def close(self) -> None:
        self._door.close()


def door_of(worker: OwnedWorker) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    found.connect(worker.target.split(":", 1)[1])
    return found


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority(folder / "authority")
    for name in ("hospital", "owner", "stranger"):
        issue(folder / "authority", name, folder / name)
    return folder


@pytest.fixture(scope="module")
def served(pki):
    code = "import sys; from keras_private.cli import main; sys.exit(main())"
    command = [sys.executable, "-W", "ignore", "-c", code, "worker", "--name", "hospital"]
    command += ["--certificates", str(pki / "hospital"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert "hospital listens on" in line
    yield line.split()[3]
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    launched = [int(pid) for pid in children]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stdout.close()
    assert launched
    assert all(gone(pid) for pid in launched)


def marked(count: int, seed: int):
    x, y = examples(count, seed)
    x[1] = np.frombuffer(b"patient-4711-has-flu-now", np.float32)
    return x, y


def fitted(clients, hosts, seed=0):
    fed = kp.FederatedModel(dense(seed))
    fed.compile("sgd", loss=LOSS)
    fed.fit(clients, epochs=2, batch_size=4, shuffle=False, verbose=0, workers=hosts)
    return fed.model


def test_names_and_paths_travel_and_examples_do_not(tmp_path):
    clients = {"anna": marked(6, 1), "bert": marked(9, 2)}
    Clients.from_arrays(clients).write_directory(tmp_path / "data")
    worker = OwnedWorker()

    try:
        sent, kept = Wire(lambda: door_of(worker)), Wire(lambda: door_of(worker))
        by_value = fitted(clients, [sent.address])
        by_path = fitted(tmp_path / "data", [kept.address])
    finally:
        worker.close()
    assert difference(by_value, by_path) < 1e-6
    # What would be seen if examples travelled is seen where they do.
    assert sent.saw(b"patient-4711-has-flu-now")
    assert not kept.saw(b"patient-4711-has-flu-now")
    assert not any(kept.saw(row.tobytes()) for x, _ in clients.values() for row in x)
    assert kept.saw(b"anna")
    assert kept.saw(str(tmp_path / "data").encode())
    for each in (sent, kept):
        each.close()


def test_a_fit_through_mutual_tls_shows_nothing_on_the_wire(pki, served):
    host, port = served.rsplit(":", 1)
    wire = Wire(lambda: socket.create_connection((host, int(port))))
    clients = {"anna": marked(6, 1), "bert": marked(9, 2)}
    found = fitted(clients, [RemoteWorker("hospital", wire.address, pki / "owner")])
    assert difference(found, fitted(clients, None)) < 1e-6
    assert sum(map(len, wire.carried)) > 10_000
    assert not wire.saw(b"patient-4711-has-flu-now")
    assert not wire.saw(b"anna")
    wire.close()


def test_one_remote_and_one_local_address_share_the_clients(pki, served):
    clients = {str(index): examples(5 + index, index) for index in range(5)}
    here = OwnedWorker()

    wire = Wire(lambda: door_of(here))
    try:
        found = fitted(clients, [RemoteWorker("hospital", served, pki / "owner"), wire.address])
    finally:
        here.close()
        wire.close()
    assert wire.carried
    assert difference(found, fitted(clients, None)) < 1e-6


def test_who_is_not_admitted_gets_nothing(pki, served):
    with (
        workers.use([RemoteWorker("hospital", served, pki / "stranger", "stranger")], deadline=20.0) as found,
        pytest.raises(WorkerError, match="lost"),
    ):
        found.run(_one())


def _one():
    from keras_private._backends import tff_learning

    @tff_learning.package().tensorflow.computation
    def one():
        return tf.constant(1)

    return one


def test_a_worker_that_cannot_prove_its_name_gets_nothing(pki, served, tmp_path):
    unproven = [RemoteWorker("clinic", served, pki / "owner")]
    with workers.use(unproven) as found, pytest.raises(TransportError, match="'clinic'"):
        found.run(_one())
    authority(tmp_path / "authority")
    issue(tmp_path / "authority", "owner", tmp_path / "owner")
    foreign = [RemoteWorker("hospital", served, tmp_path / "owner")]
    with workers.use(foreign) as found, pytest.raises(TransportError, match="is not who it should be"):
        found.run(_one())


def test_an_impostor_among_others_gets_nothing_and_does_not_go_unnoticed(pki, served):
    clients = {str(index): examples(5 + index, index) for index in range(workers.SHARE + 1)}
    here = OwnedWorker()
    honest, impostor = Wire(lambda: door_of(here)), served.rsplit(":", 1)
    watched = Wire(lambda: socket.create_connection((impostor[0], int(impostor[1]))))
    try:
        with pytest.warns(UserWarning, match=r"was done again: Who answers as the worker 'clinic'"):
            found = fitted(clients, [RemoteWorker("clinic", watched.address, pki / "owner"), honest.address])
    finally:
        here.close()
        honest.close()
        watched.close()
    assert difference(found, fitted(clients, None)) < 1e-6
    assert len(b"".join(watched.carried)) < 20_000, "handshakes alone"


def test_a_silent_connection_is_asked_whether_it_is_still_there(pki, served):
    """On both sides of a tunnel: a host that was switched off says nothing."""
    link = RemoteWorker("hospital", served, pki / "owner").link()
    port = int(served.rsplit(":", 1)[1])
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(link.target.split(":", 1)[1])
            until, found = time.monotonic() + 20, []
            while len(found) < 2 and time.monotonic() < until:
                time.sleep(0.1)
                found = timers(port)
    finally:
        link.close()
    # 2 is the timer of a connection that is asked, and 30 seconds the wait for the first question.
    assert len(found) == 2 and all(kind == 2 and 0 < left <= 30 for kind, left in found), found


def timers(port: int) -> list[tuple[int, float]]:
    """Kind and seconds left of the timers of both ends of connections to a port of loopback."""
    found = []
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, _, timer, *_ = line.split()
        kind, left = timer.split(":")
        if state == "01" and f"{port:04X}" in (local.split(":")[1], remote.split(":")[1]):
            found.append((int(kind, 16), int(left, 16) / os.sysconf("SC_CLK_TCK")))
    return found


def test_a_stranger_without_a_certificate_is_not_served(served):
    host, port = served.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as link:
        link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        link.settimeout(20)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if not link.recv(100):
                    break
            except OSError:
                break
        else:
            pytest.fail("the link stays open")


def test_a_command_that_cannot_be(pki, capsys):
    from keras_private import cli

    assert cli.main(["worker", "--name", "hospital", "--certificates", str(pki / "owner")]) == 2
    assert "certificate of 'hospital'" in capsys.readouterr().err
    certificates = ["--name", "hospital", "--certificates", str(pki / "hospital")]
    assert cli.main(["worker", *certificates, "--listen", "nowhere"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err
