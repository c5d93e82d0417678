"""One worker, wherever it is, and the connection to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

from .._backends import tff_runtime
from ..errors import WorkerError
from ..report.facts import this_machine
from .owned_worker import OwnedWorker
from .remote_worker import RemoteWorker, split


class Place:
    """One worker, started or started again when it is needed. It does one computation at a time."""

    def __init__(
        self, at: Union[str, RemoteWorker, None] = None, cpus: Sequence[int] = (), allow_open: bool = False
    ) -> None:
        self._at, self._cpus, self._allow_open = at, cpus, allow_open
        self._worker: Optional[OwnedWorker] = None
        self._link: Any = None
        self._connection: Optional[tff_runtime.Connection] = None
        self._turn, self._lock = threading.Lock(), threading.Lock()

    @property
    def name(self) -> str:
        if self._at is None:
            return f"local worker {self._worker.pid if self._worker else '(not started)'}"
        return self._at if isinstance(self._at, str) else f"{self._at.name} at {self._at.address}"

    @property
    def worker(self) -> Optional[OwnedWorker]:
        return self._worker

    @property
    def apart(self) -> bool:
        """It is on another host, as far as its address tells."""
        return isinstance(self._at, RemoteWorker) and not this_machine(split(self._at.address)[0])

    def start(self) -> None:
        """Starts or reaches the worker, if it was not yet.

        Raises:
            WorkerError: A process could not be started.
            TransportError: The worker is not there, or cannot prove its name.
        """
        with self._lock:
            self._connected()

    def run(self, computation: Callable[..., Any], arguments: Sequence[Any], deadline: float) -> Any:
        # Who waits for its turn has not begun: the deadline is of the work, and the worker may be another one then.
        with self._turn:
            return self._run(computation, arguments, deadline)

    def _run(self, computation: Callable[..., Any], arguments: Sequence[Any], deadline: float) -> Any:
        with self._lock:
            connection, name = self._connected(), self.name
        try:
            return connection.run(computation, arguments, deadline)
        except tff_runtime.LostWorker as error:
            with self._lock:
                self._drop(connection)
            raise WorkerError(
                f"{name} was lost in the middle of its work: {error}",
                expected=f"an answer within {deadline:g} seconds",
                remedy="Look at the worker's memory and log; run fit again from `initial_epoch`, or with more workers.",
            ) from error
        except tff_runtime.FailedWork as error:
            raise WorkerError(
                f"The work failed at {name}: {error}",
                expected="a client's examples that its model and files can serve",
                remedy="The message names the operation. Files of clients must be readable by the worker.",
            ) from error
        except Exception:
            raise
        except BaseException:
            # An interrupt: the worker would go on with what nobody wants, and the next computation wait for it.
            with self._lock:
                self._drop(connection)
            raise

    def _connected(self) -> tff_runtime.Connection:
        if self._worker is not None and not self._worker.alive and self._connection is not None:
            self._drop(self._connection)
        if self._connection is None:
            if self._at is None:
                self._worker = OwnedWorker(self._cpus, self._allow_open)
                target = self._worker.target
            elif isinstance(self._at, str):
                target = self._at
            else:
                self._link = self._at.link()
                target = self._link.target
            self._connection = tff_runtime.Connection(target)
        return self._connection

    def _drop(self, connection: tff_runtime.Connection) -> None:
        if self._connection is not connection:
            return
        connection.close()
        self._connection = None
        for each in (self._worker, self._link):
            if each is not None:
                each.close()
        self._worker = self._link = None

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._drop(self._connection)
