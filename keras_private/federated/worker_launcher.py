"""Starts one worker, and is its only door. A script of the standard library alone, run as a process of its own.

    python -I worker_launcher.py BINARY SOCKET PARENT CPUS ALLOW_OPEN

BINARY listens on all interfaces of its host, without asking who comes. So it gets a network of its own that has no
interface but a loopback, and this process carries bytes between it and SOCKET, a Unix socket that only its user can
reach. Where the system grants no such network, BINARY is not started, unless ALLOW_OPEN is "1": then it listens as it
will. The first line of output says which: "isolated" or "open" and BINARY's process id, or "refused".

It ends, and the worker with it, when PARENT ends in whatever way, when standard input is closed, or when the worker
ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_DEATH_SIGNAL = 1
_UP, _GET_FLAGS, _SET_FLAGS = 0x1, 0x8913, 0x8914
_CHUNK = 1 << 20
START_SECONDS = 60.0


def isolate() -> bool:
    """Moves this process into a network without interfaces, and raises its loopback; False if not allowed."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if library.unshare(_NEW_NETWORK) != 0:
        if library.unshare(_NEW_USER | _NEW_NETWORK) != 0:
            return False
        with contextlib.suppress(OSError):
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
    try:
        raise_loopback()
    except OSError as error:
        # The network is gone already, and without a loopback nothing can be reached.
        raise SystemExit(f"no loopback in the worker's network: {error}") from error
    return True


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(handle, _GET_FLAGS, request))[1]
        fcntl.ioctl(handle, _SET_FLAGS, struct.pack("16sh", b"lo", flags | _UP))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(binary: str, port: int, cpus: str) -> subprocess.Popen[bytes]:
    own = os.getpid()
    chosen = {int(each) for each in cpus.split(",") if each}

    def before() -> None:
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != own:
                os._exit(1)
        if chosen:
            os.sched_setaffinity(0, chosen)

    nothing = subprocess.DEVNULL
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [binary, f"--port={port}"],
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
        env=environment,
        preexec_fn=before,
        close_fds=True,
    )


def carry(source: socket.socket, target: socket.socket) -> None:
    """Bytes from one to the other until one of them ends; then both do."""
    buffer = memoryview(bytearray(_CHUNK))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            target.sendall(buffer[:count])
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def join(one: socket.socket, other: socket.socket) -> None:
    """Carries bytes both ways, on two threads."""
    for pair in ((one, other), (other, one)):
        threading.Thread(target=carry, args=pair, daemon=True).start()


def connect(port: int, process: subprocess.Popen[bytes], seconds: float) -> socket.socket:
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = socket.create_connection(("127.0.0.1", port), timeout=5)
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the worker did not start") from None
            time.sleep(0.02)
            continue
        found.settimeout(None)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found


def main(binary: str, path: str, parent: int, cpus: str, allow_open: bool) -> None:
    # The terminal's interrupt is for the parent, which decides what becomes of the worker.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    isolated = isolate()
    if not isolated and not allow_open:
        print("refused", flush=True)
        return
    port = 10000 if isolated else free_port()
    process = start(binary, port, cpus)

    def end(*_: object) -> None:
        process.kill()
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    try:
        connect(port, process, START_SECONDS).close()
        door = socket.socket(socket.AF_UNIX)
        old = os.umask(0o177)
        door.bind(path)
        os.umask(old)
        door.listen()
        print("isolated" if isolated else "open", process.pid, flush=True)
        while process.poll() is None and os.getppid() == parent:
            ready, _, _ = select.select([door, sys.stdin], [], [], 0.5)
            if sys.stdin in ready and not os.read(0, 1):
                break
            if door in ready:
                come, _ = door.accept()
                threading.Thread(target=_serve, args=(come, port, process), daemon=True).start()
    finally:
        process.kill()
        process.wait()
        for remove, place in ((os.unlink, path), (os.rmdir, os.path.dirname(path))):
            # PARENT, who made the folder, may be gone without having removed it.
            with contextlib.suppress(OSError):
                remove(place)
        # Threads that carry bytes have nothing left to carry.
        sys.stdout.flush()
        os._exit(0)


def _serve(come: socket.socket, port: int, process: subprocess.Popen[bytes]) -> None:
    try:
        join(come, connect(port, process, 5))
    except SystemExit:
        come.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "1")
