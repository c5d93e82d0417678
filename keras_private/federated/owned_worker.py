"""Worker processes of this process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from .._backends import tff_runtime
from ..errors import ConfigurationError, WorkerError
from ..files import SOCKET_NAME, folder_for_socket
from .checks import is_whole, require

_LAUNCHER = pathlib.Path(__file__).with_name("worker_launcher.py")


@dataclasses.dataclass(frozen=True)
class LocalWorkers:
    """Worker processes of this process, for `workers=`.

    Attributes:
        count: How many.
        allow_open: Also where the system grants no network of its own: then they listen on all interfaces of this
            host, without TLS, and run whatever anybody who reaches their ports sends, with this user's rights. Reports
            say so.

    Raises:
        ConfigurationError: `count` is no positive whole number.
    """

    count: int = 1
    allow_open: bool = False

    def __post_init__(self) -> None:
        require(is_whole(self.count) and self.count >= 1, "count", self.count, "a whole number, at least 1")
        require(isinstance(self.allow_open, bool), "allow_open", self.allow_open, "True or False")


class OwnedWorker:
    """A worker process of this process.

    Guarantees:
        - It ends when this process ends, in whatever way: its launcher watches this process and a pipe from it.
        - It holds none of this process's pipes or files.
        - Where `isolated`, nobody but this user reaches it: it has a network of its own, and a Unix socket in a
          folder of mode 0700 is the only way in. It is not started otherwise, unless `allow_open`.

    Not guaranteed:
        - With `allow_open`, where the system grants no network of its own: the worker listens on all interfaces of the
          host, as TensorFlow Federated made it, and runs whatever anybody who reaches the port sends.

    Args:
        cpus: Processors that it may use; all if none are named.
        allow_open: Start it also where it cannot be isolated.

    Attributes:
        isolated: As above.
        pid: Of the worker.

    Raises:
        ConfigurationError: It cannot be isolated, and may not be open.
        WorkerError: It did not start.
    """

    def __init__(self, cpus: Sequence[int] = (), allow_open: bool = False) -> None:
        binary = tff_runtime.binary()
        self._folder = folder_for_socket()
        path = os.path.join(self._folder, SOCKET_NAME)
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(_LAUNCHER),
                str(binary),
                path,
                str(os.getpid()),
                ",".join(map(str, cpus)),
                "1" if allow_open else "0",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        self._process.stdout.close()
        if words == [b"refused"]:
            self.close()
            raise ConfigurationError(
                "This system grants the worker no network of its own, and without one it would listen on all "
                "interfaces of this host and run whatever anybody sends.",
                expected="a system that grants network namespaces (unshare -rn works)",
                remedy="Allow user namespaces, or run in a container that does. Behind a firewall: workers="
                "keras_private.federated.LocalWorkers(allow_open=True), or `keras-private worker --allow-open`.",
            )
        if len(words) != 2:
            self.close()
            raise WorkerError(
                "A worker process did not start.",
                expected="the worker of tensorflow-federated, which listens within a minute",
                remedy="Run `keras-private doctor`; look for a full disk or too little memory.",
            )
        self.isolated = words[0] == b"isolated"
        self.pid = int(words[1])
        self.target = f"unix:{path}"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the worker. In a process forked from its owner, nothing happens."""
        if os.getpid() != self._owner:
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
