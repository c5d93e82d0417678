"""Processes that do the clients' work."""

from __future__ import annotations

import atexit
import collections
import concurrent.futures
import contextlib
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Union

from ..errors import ConfigurationError, TransportError, WorkerError
from .owned_worker import LocalWorkers, OwnedWorker
from .remote_worker import RemoteWorker, split
from .worker_place import Place

DEADLINE = 600.0
"""Seconds that a worker has for one computation."""
ATTEMPTS = 3
"""Times that one share of the clients is tried before the failure is the caller's."""
SHARE = 32
"""Clients of a share: what a worker holds at a time, and what its loss costs."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Workers:
    """The workers of one `fit` or evaluation.

    Guarantees:
        - A share of clients counts once: what a lost worker may have done is thrown away, and the share is done
          again, by another worker or by one started anew; `ATTEMPTS` times in all, or once by each worker if they are
          more.
        - A call ends, with its whole result or with an error: each attempt has a deadline.

    Attributes:
        names: Of the workers, for messages.
    """

    def __init__(self, places: Sequence[Place], deadline: float) -> None:
        self._places, self._deadline = list(places), deadline

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(place.name for place in self._places)

    @property
    def apart(self) -> bool:
        """All are on other hosts than this one, as far as their addresses tell."""
        return all(place.apart for place in self._places)

    @property
    def owned(self) -> tuple[OwnedWorker, ...]:
        """Worker processes of this process that have been started."""
        return tuple(place.worker for place in self._places if place.worker is not None)

    @property
    def open(self) -> bool:
        """A worker of this process, of those that have been started, can be reached by others than this user."""
        return any(not worker.isolated for worker in self.owned)

    def __len__(self) -> int:
        return len(self._places)

    def run(self, computation: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a computation on the first worker.

        Raises:
            WorkerError: The worker was lost, or the computation failed.
        """
        return self._places[0].run(computation, arguments, self._deadline)

    def spread(
        self,
        computation: Callable[..., Any],
        sent: Any,
        clients: Sequence[Any],
        begins: Optional[Callable[[Sequence[int]], None]] = None,
    ) -> list[tuple[list[int], Any]]:
        """Runs a computation (sent, some clients) on all workers, each with a share of the clients at a time.

        Args:
            computation: Of a value at the server and one at each client.
            sent: The value at the server.
            clients: The values at the clients; each is asked for when its share begins.
            begins: Called with the positions of a share before each attempt at it.

        Returns:
            For each share the positions of its clients, and the computation's result.

        Raises:
            WorkerError: A share could not be done.

        Warns:
            UserWarning: A worker failed, or could not prove its name, and its share was done again.
        """
        if not clients:
            return []
        # As many shares for each worker, and none much smaller than the others.
        size = -(-len(clients) // (len(self._places) * -(-len(clients) // (SHARE * len(self._places)))))
        shares = [list(range(first, min(first + size, len(clients)))) for first in range(0, len(clients), size)]
        waiting = collections.deque(range(len(shares)))
        done: dict[int, Any] = {}
        failures: list[BaseException] = []
        attempts = collections.Counter[int]()
        most = max(ATTEMPTS, len(self._places))
        tried: list[set[Place]] = [set() for _ in shares]
        failed: dict[str, None] = {}
        lock = threading.Lock()

        def next_of(place: Place) -> Optional[int]:
            # A share goes to each worker before it goes to one again: a dead one fails faster than a live one works.
            with lock:
                for index in waiting:
                    if place not in tried[index] or len(tried[index]) == len(self._places):
                        waiting.remove(index)
                        tried[index].add(place)
                        return index
            return None

        def work(place: Place) -> None:
            while not failures:
                index = next_of(place)
                if index is None:
                    return
                try:
                    if begins is not None:
                        begins(shares[index])
                    own = [clients[position] for position in shares[index]]
                    done[index] = place.run(computation, (sent, own), self._deadline)
                except (WorkerError, TransportError) as error:
                    with lock:
                        failed[error.problem] = None
                        attempts[index] += 1
                        if attempts[index] >= most:
                            failures.append(error)
                        # At the end: shares that nobody has tried are not held up by one that was lost.
                        waiting.append(index)
                except BaseException as error:
                    # Not the worker's: nobody else would do better, and nobody shall go on.
                    failures.append(error)

        if len(self._places) == 1 or len(shares) == 1:
            # Without a thread of its own, so that an interrupt reaches the caller.
            while waiting and not failures:
                for place in self._places:
                    work(place)
        else:
            with concurrent.futures.ThreadPoolExecutor(len(self._places)) as pool:
                try:
                    # Again, if a share was lost when the others had gone.
                    while waiting and not failures:
                        concurrent.futures.wait([pool.submit(work, place) for place in self._places])
                except BaseException as error:
                    # An interrupt does not wait for what nobody wants any more.
                    failures.append(error)
                    self.close()
        if failures:
            raise failures[0]
        for problem in failed:
            warnings.warn(f"Some clients' work failed at one worker and was done again: {problem}", stacklevel=2)
        return [(share, done[index]) for index, share in enumerate(shares)]

    def close(self) -> None:
        for place in self._places:
            place.close()


Hosts = Union[None, int, LocalWorkers, Sequence[Union[str, RemoteWorker]], Workers]
_kept: dict[int, Place] = {}
_kept_lock = threading.Lock()


@contextlib.contextmanager
def use(hosts: Hosts = None, deadline: float = DEADLINE, pin: bool = False) -> Iterator[Workers]:
    """Workers to run clients' work on.

    Args:
        hosts: None for one process of this process, which later uses share and which ends with it; a number of
            them or LocalWorkers, which end with this use; RemoteWorkers, or addresses "host:port" of this host; or
            Workers of another use, which that one ends.
        deadline: Seconds for one computation, from when the worker begins it.
        pin: Give each of a number of local workers a core of its own.

    Raises:
        ConfigurationError: Something else.
        WorkerError: A process could not be started.
    """
    if isinstance(hosts, Workers):
        yield hosts
        return
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)) or not 0 < deadline < math.inf:
        raise ConfigurationError(
            f"The deadline of workers is {deadline!r}.", expected="seconds, more than 0", remedy="Leave it out."
        )
    if pin and (isinstance(hosts, bool) or not isinstance(hosts, int)):
        raise ConfigurationError(
            f"Processors are asked for, and workers is {hosts!r}.",
            expected="a number of local processes",
            remedy="Leave out pin.",
        )
    if hosts is None:
        yield Workers([_shared()], deadline)
        return
    found = Workers(_places(hosts, pin), deadline)
    try:
        if isinstance(hosts, LocalWorkers) and hosts.allow_open:
            # Now, so that whether they are open is known before they get anything.
            for place in found._places:
                place.start()
        yield found
    finally:
        found.close()


def _places(hosts: Any, pin: bool) -> list[Place]:
    local = LocalWorkers(hosts) if isinstance(hosts, int) and not isinstance(hosts, bool) and hosts > 0 else hosts
    if isinstance(local, LocalWorkers):
        cores = sorted(os.sched_getaffinity(0)) if pin else []
        return [
            Place(cpus=cores[n % len(cores) :][:1] if pin else (), allow_open=local.allow_open)
            for n in range(local.count)
        ]
    if not isinstance(hosts, (list, tuple)) or not hosts:
        raise ConfigurationError(
            f"workers is {hosts!r}.",
            expected="None, a number of local processes, LocalWorkers, or a list of RemoteWorkers or addresses "
            "'host:port'",
            remedy="Leave it out for one local process.",
        )
    return [Place(_checked(address)) for address in hosts]


def _shared() -> Place:
    with _kept_lock:
        # A forked process has its own: a connection does not survive a fork.
        own = os.getpid()
        if own not in _kept:
            _kept.clear()
            _kept[own] = Place()
        return _kept[own]


def close() -> None:
    """Ends the worker that uses without `workers` share; the next use starts another."""
    with _kept_lock:
        found = _kept.pop(os.getpid(), None)
    if found is not None:
        found.close()


def _unlock() -> None:
    # Whoever held the lock when the process was forked is not in the fork.
    global _kept_lock
    _kept_lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)
atexit.register(close)


def _checked(given: Any) -> Union[str, RemoteWorker]:
    if isinstance(given, RemoteWorker):
        split(given.address)
        return given
    address: str = given
    host, _ = split(address)
    if host not in _LOOPBACK:
        raise ConfigurationError(
            f"The worker {address!r} is on another host, and its link would carry updates in the clear.",
            expected="a loopback address, or a RemoteWorker, whose link is mutual TLS",
            remedy="Run `keras-private worker` there, and give kp.federated.RemoteWorker(name, address, certificates).",
        )
    return address
