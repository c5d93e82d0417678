"""A worker process that this process starts, and that ends with it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from ..._backends import tff_runtime
from ...errors import WorkerError

_LAUNCHER = pathlib.Path(__file__).parent.parent / "worker_launcher.py"
_END_SECONDS = 10.0


class OwnedWorker:
    """A worker process of this process.

    Guarantees:
        - It ends when this process ends, in whatever way: its launcher watches this process and a pipe from it.
        - It holds none of this process's pipes or files.
        - Where `isolated`, nobody but this user reaches it: it has a network of its own, and a Unix socket in a
          folder of mode 0700 is the only way in.

    Not guaranteed:
        - Where not `isolated` (the system grants no network namespaces), the worker listens on all interfaces of the
          host, as TensorFlow Federated made it, and runs whatever anybody who reaches the port sends.

    Args:
        cpus: Those that the worker may use; empty: those of this process.

    Attributes:
        isolated: As above.
        pid: Of the worker.
        target: Its address as gRPC takes it.
        door: Path of the Unix socket.

    Raises:
        WorkerError: It did not start.
    """

    def __init__(self, cpus: Sequence[int] = ()) -> None:
        binary = tff_runtime.binary()
        self._owner = os.getpid()
        self._folder = tempfile.mkdtemp(prefix="keras-private-")
        self.door = os.path.join(self._folder, "door")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_LAUNCHER), str(binary), self.door, str(os.getpid()), _list(cpus)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        try:
            words = self._first_line()
        except BaseException:
            self.close()
            raise
        self.isolated = words[0] == b"isolated"
        self.pid = int(words[1])
        self.target = f"unix:{self.door}"

    def _first_line(self) -> list[bytes]:
        assert self._process.stdout is not None
        # The launcher ends, and this with it, if the worker does not listen in time.
        with self._process.stdout as output:
            words = output.readline().split()
        if len(words) != 2:
            raise WorkerError(
                "A worker process did not start.",
                expected="the worker of tensorflow-federated, which listens within a minute",
                remedy="Run `keras-private doctor`; look for a full disk or too little memory.",
            )
        return words

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def listens_on(self) -> str:
        """ "loopback", of a network that only the worker and its launcher are in; or "all interfaces" of the host."""
        return "loopback" if self.isolated else "all interfaces"

    def close(self) -> None:
        """Ends the worker. In a process forked from its owner, nothing happens."""
        if os.getpid() != self._owner:
            return
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _list(cpus: Sequence[int]) -> str:
    return ",".join(map(str, cpus))
