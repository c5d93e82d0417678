"""Which requests are computed together: the first party gathers those that all three have, up to a size and a delay."""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable

from keras_private.encrypted.cluster.requests import Request


@dataclasses.dataclass
class _Waiting:
    request: Request
    ready: set[str]
    since: float = 0.0


class Scheduler:
    """Gathers requests for one model after the other.

    Args:
        others: The parties that must have a request besides this one.
        largest: From a publication's key to the most rows of one run.
        start: Called, in a thread of its own, with requests of one publication that are to run together.
        delay: Seconds that the first request of a run waits for company, while more may come.
        connected: Names the clients that are here, one for each connection.
        at_once: Runs that may be under way together.
    """

    def __init__(
        self,
        others: tuple[str, ...],
        largest: Callable[[str], int],
        start: Callable[[list[Request]], None],
        delay: float,
        connected: Callable[[], Iterable[str]],
        at_once: int,
    ) -> None:
        self._others, self._largest, self._start = frozenset(others), largest, start
        self._delay, self._connected = delay, connected
        self._changed = threading.Condition()
        self._waiting: dict[bytes, _Waiting] = {}
        self._early: dict[bytes, set[str]] = {}
        self._under_way: list[Request] = []
        self._free = at_once
        self._closed = False
        self._thread = threading.Thread(target=self._gather, name="scheduler", daemon=True)
        self._thread.start()

    def here(self, request: Request) -> None:
        """This party has the request, and has checked it."""
        with self._changed:
            ready = self._early.pop(request.key, set())
            self._waiting[request.key] = _Waiting(request, ready)
            self._note(request.key)

    def there(self, party: str, key: bytes) -> None:
        """Another party has it."""
        with self._changed:
            if key in self._waiting:
                self._waiting[key].ready.add(party)
                self._note(key)
            else:
                self._early.setdefault(key, set()).add(party)
                while len(self._early) > 4096:
                    self._early.pop(next(iter(self._early)))

    def _note(self, key: bytes) -> None:
        waiting = self._waiting[key]
        if waiting.ready >= self._others and not waiting.since:
            waiting.since = time.monotonic()
            self._changed.notify_all()

    def forget(self, key: bytes) -> None:
        """It failed."""
        with self._changed:
            self._waiting.pop(key, None)

    def _gather(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                chosen, wait = self._choose()
                if not chosen:
                    self._changed.wait(wait)
                    continue
                for each in chosen:
                    self._waiting.pop(each.key)
                self._under_way += chosen
                self._free -= 1
            threading.Thread(target=self._run, args=(chosen,), name="run", daemon=True).start()

    def _choose(self) -> tuple[list[Request], float | None]:
        """Requests to start now, or how long to wait for more."""
        for each in [each for each in self._waiting.values() if each.request.over]:
            self._waiting.pop(each.request.key)
        complete = sorted((each for each in self._waiting.values() if each.since), key=lambda each: each.since)
        if not complete or not self._free:
            # Wakes up now and then, to drop requests whose time is over.
            return [], 1.0 if self._waiting else None
        first = complete[0]
        most = self._largest(first.request.publication)
        chosen: list[Request] = []
        rows = 0
        for each in complete:
            if each.request.publication == first.request.publication and rows + each.request.rows <= most:
                chosen.append(each.request)
                rows += each.request.rows
        left = first.since + self._delay - time.monotonic()
        if rows < most and left > 0 and self._more_may_come([each.request for each in complete]):
            return [], left
        return chosen, None

    def _more_may_come(self, complete: list[Request]) -> bool:
        """Whether a client is connected that waits for no answer: it could ask, or its request is still on its way.

        An answered request keeps nobody waiting, though its run may not have ended yet.
        """
        served = (each.client for each in [*complete, *self._under_way] if not each.over)
        return bool(collections.Counter(self._connected()) - collections.Counter(served))

    def _run(self, chosen: list[Request]) -> None:
        try:
            self._start(chosen)
        finally:
            with self._changed:
                self._under_way = [each for each in self._under_way if each not in chosen]
                self._free += 1
                self._changed.notify_all()

    def close(self) -> None:
        """Starts nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
