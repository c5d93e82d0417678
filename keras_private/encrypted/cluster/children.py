"""Party processes of this process, bound to loopback."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from keras_private.encrypted.cluster.config import Address
from keras_private.encrypted.cluster.wire import Wire
from keras_private.errors import TransportError

LOCAL = "127.0.0.1"


def listening(host: str, port: int = 0) -> socket.socket:
    """A socket for a child, which refuses nobody while the child starts."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Its connections inherit this: a party that is started again finds its port free of them.
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((host, port))
    found.listen(64)
    return found


class Child:
    """One party's process. It ends when the pipe to its input closes: with this process, however that ends.

    Args:
        module: That runs a party, with the options of cluster/process.py.
        config: The configuration; its folder is removed when this process is killed.
        address: The party's.
        options: More of them.
    """

    def __init__(self, module: str, config: pathlib.Path, address: Address, options: Sequence[str]) -> None:
        self._module, self._config, self._address, self._options = module, config, address, list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = config.parent / address.name / "log.txt"

    def start(self, open_socket: socket.socket | None, descriptors: Sequence[int] = ()) -> None:
        """
        Args:
            open_socket: From `listening`; None for a new one at the same address.
            descriptors: Files that the child is to have as well.
        """
        if open_socket is None:
            with listening(self._address.host, self._address.port) as fresh:
                self._spawn(fresh, descriptors)
        else:
            self._spawn(open_socket, descriptors)

    def _spawn(self, open_socket: socket.socket, descriptors: Sequence[int]) -> None:
        command = [sys.executable, "-m", self._module]
        command += ["--name", self._address.name, "--config", str(self._config)]
        command += ["--socket", str(open_socket.fileno()), "--while-input", "--temporary", *self._options]
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[open_socket.fileno(), *descriptors],
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def last_words(self) -> str:
        try:
            return self._log.read_text(errors="replace").strip().splitlines()[-1]
        except (OSError, IndexError):
            return "nothing was said"

    def stop(self) -> None:
        if self._process is None:
            return
        # Before its input closes: that would have it remove the folder.
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def wait_for(party: str, dial: Callable[[float], Wire], process: Child | None, deadline: float) -> None:
    """Until a party answers.

    Args:
        party: Its name.
        dial: Makes a connection to it, until a deadline.
        process: The party's, if this process has started it.
        deadline: On time.monotonic().

    Raises:
        TransportError: It has ended, or does not answer in time.
    """
    while True:
        try:
            wire = dial(min(deadline, time.monotonic() + 5.0))
            try:
                wire.call({"call": "ping"}, deadline=min(deadline, time.monotonic() + 60.0))
            finally:
                wire.close()
            return
        except TransportError:
            if process is not None and not process.alive:
                raise TransportError(
                    f"{party} ended while it started: {process.last_words()}",
                    expected="a process that serves",
                    remedy="look at what it says; `keras-private doctor` checks the installation",
                ) from None
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def end(processes: Mapping[str, Child], folder: pathlib.Path) -> None:
    """Ends them all and removes their folder."""
    threads = [threading.Thread(target=process.stop) for process in processes.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(folder, ignore_errors=True)
