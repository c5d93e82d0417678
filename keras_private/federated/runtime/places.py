"""Where work can be done: a worker of this process, started when it is needed, or one that is reached."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Callable, Optional

from ..._backends import tff_runtime
from ...errors import WorkerError
from .owned import OwnedWorker


class Place:
    """One worker, started or started again when it is needed. It does one call at a time.

    Args:
        name: For messages; None: of a worker that this process starts.
        target: Address as gRPC takes it; None: as above.
        cpus: Those of a worker that this process starts; empty: all.
    """

    def __init__(self, name: Optional[str] = None, target: Optional[str] = None, cpus: Sequence[int] = ()) -> None:
        self._name, self._target, self._cpus = name, target, cpus
        self._worker: Optional[OwnedWorker] = None
        self._connection: Optional[tff_runtime.Connection] = None
        self._turn, self._lock = threading.Lock(), threading.Lock()

    @property
    def name(self) -> str:
        return self._name or f"local worker {self._worker.pid if self._worker else '(not started)'}"

    @property
    def worker(self) -> Optional[OwnedWorker]:
        return self._worker

    def run(self, computation: Callable[..., Any], arguments: Sequence[Any], deadline: float) -> Any:
        """Runs a computation here.

        Raises:
            WorkerError: The worker was lost, or the computation failed.
        """
        # Whoever waits for its turn has not begun: the deadline is of the work, and the worker may be a new one then.
        with self._turn:
            connection = self.connection(deadline)
            try:
                return connection.run(computation, arguments, deadline)
            except (tff_runtime.LostWorker, tff_runtime.FailedWork) as error:
                found = explained(self.name, error, deadline)
                if isinstance(error, tff_runtime.LostWorker):
                    self._drop(connection)
                raise found from error
            except Exception:
                raise
            except BaseException:
                # An interrupt: the worker would go on, and the next call would wait for it.
                self._drop(connection)
                raise

    def connection(self, deadline: float) -> tff_runtime.Connection:
        """To the worker, which is started if need be.

        Raises:
            WorkerError: It could not be started.
        """
        with self._lock:
            if self._worker is not None and not self._worker.alive:
                self._forget()
            if self._connection is None:
                target = self._target
                if target is None:
                    self._worker = OwnedWorker(self._cpus)
                    target = self._worker.target
                self._connection = tff_runtime.Connection(target, deadline)
            return self._connection

    def _drop(self, connection: tff_runtime.Connection) -> None:
        with self._lock:
            if self._connection is connection:
                self._forget()

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        worker, self._worker = self._worker, None
        if connection is not None:
            connection.close()
        if worker is not None:
            worker.close()

    def close(self) -> None:
        """Ends the worker if it is this process's; a call that is under way fails. The next call starts another."""
        with self._lock:
            self._forget()


def explained(name: str, error: Exception, deadline: float) -> WorkerError:
    """The error of this package for one of a connection."""
    if isinstance(error, tff_runtime.LostWorker):
        return WorkerError(
            f"{name} was lost in the middle of its work: {error}",
            expected=f"an answer within {deadline:g} seconds",
            remedy="Look at the worker's memory and log; run fit again from `initial_epoch`, or with more workers.",
        )
    return WorkerError(
        f"The work failed at {name}: {error}",
        expected="a client's examples that its model and files can serve",
        remedy="The message names the operation. Files of clients must be readable by the worker.",
    )


def slices(count: int) -> list[tuple[int, ...]]:
    """This process's processors, dealt out to some workers: each has its own, as far as there are enough."""
    found = sorted(os.sched_getaffinity(0))
    if count >= len(found):
        return [(found[index % len(found)],) for index in range(count)]
    size, more = divmod(len(found), count)
    starts = [index * size + min(index, more) for index in range(count + 1)]
    return [tuple(found[begin:end]) for begin, end in zip(starts, starts[1:])]
