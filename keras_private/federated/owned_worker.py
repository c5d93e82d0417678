"""A worker process of this process."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from .._backends import tff_runtime
from ..errors import WorkerError

_LAUNCHER = pathlib.Path(__file__).with_name("worker_launcher.py")


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

    Attributes:
        isolated: As above.
        pid: Of the worker.
    """

    def __init__(self, cpus: Sequence[int] = ()) -> None:
        binary = tff_runtime.binary()
        self._folder = tempfile.mkdtemp(prefix="keras-private-")
        path = os.path.join(self._folder, "door")
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
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        self._process.stdout.close()
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
