"""Requests at one party: which are complete, checked with the other parties, and waiting to be run."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_private.errors import PrivacyError, TransportError

_KEPT = 4096


class Request:
    """One client's rows at one party.

    Attributes:
        key: Chosen by the client; 16 bytes.
        client: Name in the client's certificate.
        publication: Of the model.
        rows: Number of rows.
        pairs: For each input the party's two shares.
        deadline: On time.monotonic().
    """

    def __init__(
        self, key: bytes, client: str, publication: str, rows: int, pairs: Sequence[Any], deadline: float
    ) -> None:
        self.key, self.client, self.publication, self.rows = key, client, publication, rows
        self.pairs, self.deadline = list(pairs), deadline
        self.outputs: list[np.ndarray] | None = None
        self.error: PrivacyError | None = None
        self._done = threading.Event()

    def finish(self, outputs: list[np.ndarray]) -> None:
        """Its part of the result is there."""
        self.outputs = outputs
        self._done.set()

    def fail(self, error: PrivacyError) -> None:
        """It will have no result."""
        if not self._done.is_set():
            self.error = error
            self._done.set()

    @property
    def over(self) -> bool:
        return self._done.is_set()

    def wait(self) -> list[np.ndarray]:
        """
        Raises:
            PrivacyError: It failed, or its deadline passed.
        """
        self._done.wait(max(self.deadline - time.monotonic(), 0))
        if self.error is not None:
            raise self.error
        if self.outputs is None:
            raise TransportError(
                "the request was not computed in time",
                expected="the same request at all three parties, before its deadline",
                remedy="send it to all of them, or allow more time",
            )
        return self.outputs

    def digest(self, place: int) -> bytes:
        """SHA-256 of one of the two shares, to be compared with the other party that was given it."""
        found = hashlib.sha256(b"%d %s" % (self.rows, self.publication.encode()))
        for pair in self.pairs:
            found.update(np.ascontiguousarray(pair[place]).data.cast("B"))
        return found.digest()


class Board:
    """Requests that are waiting here.

    A request is checked when the party before this one has sent the same digest of the share that both were given: a
    client cannot give two parties different numbers for one share.

    Args:
        on_checked: Called with each request that is here and checked.
        on_unequal: Called with the key of one that is not, and the error to give it up with; by default `fail`.
    """

    def __init__(
        self,
        on_checked: Callable[[Request], None],
        on_unequal: Callable[[bytes, PrivacyError], Any] | None = None,
    ) -> None:
        self._on_checked, self._on_unequal = on_checked, on_unequal or self.fail
        self._lock = threading.Lock()
        self._requests: dict[bytes, Request] = {}
        self._digests: dict[bytes, tuple[str, bytes]] = {}
        self._refused: dict[bytes, PrivacyError] = {}
        self._seen: dict[bytes, None] = {}

    def add(self, request: Request) -> None:
        """
        Raises:
            TransportError: Its key was used before.
            PrivacyError: Another party has refused it already.
        """
        with self._lock:
            if request.key in self._seen:
                raise TransportError(
                    "a request with a key that was used before",
                    expected="a new key",
                    remedy="draw one for each request",
                )
            _keep(self._seen, request.key, None)
            if request.key in self._refused:
                raise self._refused.pop(request.key)
            self._requests[request.key] = request
            digest = self._digests.pop(request.key, None)
        if digest is not None:
            self._check(request, *digest)

    def digest(self, key: bytes, client: str, digest: bytes) -> None:
        """What the party before this one found for the share that both have."""
        with self._lock:
            request = self._requests.get(key)
            if request is None:
                if key not in self._seen:
                    _keep(self._digests, key, (client, digest))
                return
        self._check(request, client, digest)

    def _check(self, request: Request, client: str, digest: bytes) -> None:
        if client != request.client or not hmac.compare_digest(digest, request.digest(0)):
            self._on_unequal(
                request.key,
                TransportError(
                    "two parties were given different shares of one request",
                    expected="the same share at both of its holders",
                    remedy="send each request as kp.Client does",
                ),
            )
            return
        self._on_checked(request)

    def find(self, key: bytes, client: str, rows: int, publication: str) -> Request:
        """The request that another party speaks of.

        Raises:
            TransportError: It is not here, or another.
        """
        with self._lock:
            found = self._requests.get(key)
        if found is None or (found.client, found.rows, found.publication) != (client, rows, publication):
            raise TransportError(
                "an order names a request that is not here", expected="one that is waiting", remedy="send it again"
            )
        return found

    def fail(self, key: bytes, error: PrivacyError) -> Request | None:
        """Gives a request up, also one that has not come yet."""
        with self._lock:
            request = self._requests.pop(key, None)
            if request is None and key not in self._seen:
                _keep(self._refused, key, error)
        if request is not None:
            request.fail(error)
        return request

    def fail_all(self, error: PrivacyError, publication: str | None = None) -> None:
        """Gives every waiting request up, or those of one publication."""
        with self._lock:
            found = [each for each in self._requests.values() if publication in (None, each.publication)]
        for request in found:
            self.fail(request.key, error)

    def remove(self, request: Request) -> None:
        """It is over."""
        with self._lock:
            self._requests.pop(request.key, None)

    def __len__(self) -> int:
        return len(self._requests)


def _keep(found: dict[bytes, Any], key: bytes, value: Any) -> None:
    found[key] = value
    while len(found) > _KEPT:
        found.pop(next(iter(found)))
