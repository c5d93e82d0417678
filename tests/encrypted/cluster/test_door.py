"""Doors that many come to at once."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from keras_private.encrypted.cluster.certificates import Identity, authority, client_context, issue, server_hostname
from keras_private.encrypted.cluster.door import Door
from keras_private.encrypted.cluster.wire import REPLY, Wire, after

ROOT = pathlib.Path(__file__).resolve().parents[3]

LITTLE_ROOM = """
import logging, os, resource, socket, sys
from keras_private.encrypted.cluster.certificates import Identity
from keras_private.encrypted.cluster.door import Door
from keras_private.encrypted.cluster.wire import REPLY, after

def greet(wire):
    wire.send(REPLY, {"name": wire.peer}, deadline=after(10))

listening = socket.create_server(("127.0.0.1", 0))
door = Door(Identity.load(sys.argv[1], "server0"), listening, lambda peer, here: None, greet, logging.getLogger())
room = len(os.listdir("/proc/self/fd")) + 12
resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
print(listening.getsockname()[1], flush=True)
door.serve()
"""


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority(folder / "authority")
    for name in ("server0", "anna"):
        issue(folder / "authority", name, folder / name)
    return folder


def greeted(pki, port: int) -> str:
    """The name under which a good connection was let in."""
    context = client_context(Identity.load(pki / "anna", "anna"))
    plain = socket.create_connection(("127.0.0.1", port), 10)
    wire = Wire(context.wrap_socket(plain, server_hostname=server_hostname("server0")), "server0")
    with contextlib.closing(wire):
        frame = wire.receive(lambda header: 0, after(10))
    assert frame.header.kind == REPLY
    return frame.facts["name"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_who_opens_many_connections_does_not_end_who_listens(pki):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LITTLE_ROOM, str(pki / "server0")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        port = int(process.stdout.readline())
        assert greeted(pki, port) == "anna"
        with contextlib.ExitStack() as stack:
            # Nobody of these proves a name, and there is no room for all.
            for _ in range(40):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            while "Too many open files" not in process.stderr.readline():
                assert process.poll() is None
        assert greeted(pki, port) == "anna"
    finally:
        process.kill()
        process.communicate()


def test_a_place_is_free_again_when_no_thread_can_be_started(pki, monkeypatch):
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    door = Door(
        Identity.load(pki / "server0", "server0"),
        listening,
        lambda peer, here: None,
        lambda wire: wire.send(REPLY, {"name": wire.peer}, deadline=after(10)),
        logging.getLogger("test"),
        most=1,
    )
    serving = threading.Thread(target=door.serve)
    serving.start()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no thread")))
            with socket.create_connection(("127.0.0.1", port), 10) as link:
                assert link.recv(1) == b"", "it is closed"
        end = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                assert greeted(pki, port) == "anna"
                break
            assert time.monotonic() < end
    finally:
        door.close()
        serving.join(10)
    assert not serving.is_alive()
