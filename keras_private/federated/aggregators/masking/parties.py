"""The two parties that know the pads: each answers the negated sum of its own, once for each round."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import math
import re
import secrets
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from ....errors import AggregationError, ConfigurationError, OverflowPreflightError
from ....random import CELLS_PER_SIGMA, secure_source
from . import keys, pads
from .journal import Journal

_SESSION = re.compile(r"[0-9a-f]{32}\Z")
LARGEST_MULTIPLE = CELLS_PER_SIGMA // 8
"""Above, the coarse part of the noise would show through the fine one."""
_KEPT = 4096
"""Rounds that were proposed, or answered, that a party keeps in memory. What it forgets is asked anew, or lost."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What the coordinator asks both parties about a round.

    Attributes:
        session: Of the fit, 32 hexadecimal digits.
        number: Of the round.
        words: Length of a pad.
        clients: Name and nonce of each client that reported.
        answered: Words that are answered, from the first; the others stay masked.
        noise: Standard deviation of the noise to add, in units of the ring; 0 for none.
    """

    session: str
    number: int
    words: int
    clients: tuple[tuple[str, bytes], ...]
    answered: int
    noise: float = 0.0

    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        clients = [[name, nonce.hex()] for name, nonce in self.clients]
        text = json.dumps([self.session, self.number, self.words, clients, self.answered, self.noise.hex()])
        return hashlib.sha256(text.encode()).digest()


class Party(Protocol):
    """One of two parties, in this process or elsewhere.

    Attributes:
        simulated: Why it protects from nobody: what of it the coordinator's process can read. Empty if nothing. A party
            that does not say is taken for a simulation.
    """

    @property
    def simulated(self) -> Sequence[str]: ...

    def propose(self, request: Request) -> bytes:
        """A proof for the other party of what this one was asked."""

    def answer(self, request: Request, proof: bytes) -> np.ndarray:
        """The negated sum of the pads, and noise if asked for: int64 [request.answered]."""


class PadParty:
    """A party: it knows the pads of all clients, and never sees an update, masked or not.

    Guarantees:
        - It answers one list of clients for each (session, round), once; no nonce twice; none below the minimum
          cohort; and remembers so before it answers, across restarts with a journal.
        - It answers only what it was asked first for this (session, round), and only what the other party was asked as
          well: `proof` is that party's, by a key of the two. After thousands of other proposals, or a restart, it takes
          what comes next for the first; what it has answered it never forgets.
        - It adds no less noise than `min_noise`, whatever it is asked for.
        - With noise it answers the words that carry it and no others.

    Args:
        index: 0 or 1.
        master: Its key, 32 bytes.
        between: A key of the two parties, 32 bytes, which nobody else has.
        min_clients: No sum over fewer is opened; at least 2.
        journal: Path of its journal; None keeps it in memory, and forgets it when the process ends.
        head: Path of the file that knows how long the journal is; by default beside it.
        min_noise: Standard deviation, in units of the ring, below which requests are refused.

    Raises:
        ConfigurationError: An argument is out of range.
        LedgerError: The journal is in use or was altered.
    """

    def __init__(
        self,
        index: int,
        master: bytes,
        between: bytes,
        min_clients: int = 2,
        *,
        journal: Any,
        head: Any = None,
        min_noise: float = 0.0,
    ) -> None:
        if index not in (0, 1) or len(master) != 32 or len(between) != 32 or min_clients < 2:
            raise ConfigurationError(
                f"Party {index} with keys of {len(master)} and {len(between)} bytes, {min_clients} clients at least.",
                expected="party 0 or 1, keys of 32 bytes, at least 2 clients",
                remedy="Correct it.",
            )
        self._index, self._master, self._between, self._min_clients = index, master, between, min_clients
        self._min_noise = float(min_noise)
        self._journal = Journal(journal, head)
        self._proposed: dict[tuple[str, int], bytes] = {}
        self._answered: dict[tuple[str, int], bytes] = {}
        # Between the look into the journal and the line in it nobody else may pass.
        self._turn = threading.Lock()

    @property
    def min_clients(self) -> int:
        """It answers for no fewer."""
        return self._min_clients

    @property
    def simulated(self) -> tuple[str, ...]:
        """Where this object is, its master is as well."""
        return (f"party {self._index} and its master key are in this process",)

    def propose(self, request: Request) -> bytes:
        """What the other party must show to get this request answered.

        Raises:
            AggregationError: This party would not answer it.
        """
        with self._turn:
            self._check(request)
            _keep(self._proposed, request)
            return self._proof(self._index, request)

    def answer(self, request: Request, proof: bytes) -> np.ndarray:
        """The negated sum of the pads of the request's clients, with noise if asked for.

        Raises:
            AggregationError: The request is refused; nothing was answered.
            OSError: The journal cannot be written; nothing was answered.
        """
        with self._turn:
            return self._answer(request, proof)

    def agrees(self, session: str, number: int, digest: bytes) -> bool:
        """Whether that is the digest of what this party was asked for the round, since it was made."""
        # Not in turn: the other party waits for it while this one may be at a long answer.
        key = (session, number)
        found = self._proposed.get(key) or self._answered.get(key)
        return found is not None and hmac.compare_digest(found, digest)

    def close(self) -> None:
        """Nothing that a journal on disk is needed for is answered afterwards."""
        with self._turn:
            self._journal.close()

    def _answer(self, request: Request, proof: bytes) -> np.ndarray:
        self._check(request)
        if (request.session, request.number) not in self._proposed:
            raise _refused(f"round {request.number} was not proposed", "propose, then answer")
        if not hmac.compare_digest(proof, self._proof(1 - self._index, request)):
            raise _refused(f"the other party was not asked the same for round {request.number}", "one list for both")
        noise = noise_of(request.noise, request.answered)
        self._journal.record(request.session, request.number, [nonce for _, nonce in request.clients])
        _keep(self._answered, request)
        del self._proposed[(request.session, request.number)]
        source = secure_source()
        session = tf.constant(list(bytes.fromhex(request.session)), tf.uint8)
        total = np.zeros(request.answered, np.int64)
        with np.errstate(over="ignore"):
            for name, nonce in request.clients:
                key = keys.client_key(self._master, self._index, name)
                each = pads.pad(source, _bytes(key), session, request.number, _bytes(nonce), request.words)
                total -= each.numpy()[: request.answered]
            return total + noise

    def _proof(self, index: int, request: Request) -> bytes:
        return hmac.new(self._between, bytes([index]) + request.digest(), "sha256").digest()

    def _check(self, request: Request) -> None:
        names = [name for name, _ in request.clients]
        nonces = [nonce for _, nonce in request.clients]
        if not _SESSION.match(request.session) or request.number < 0 or not 1 <= request.answered <= request.words:
            raise _refused("the request is malformed", "a session of 32 digits, a round, and a length")
        if len(names) < self._min_clients:
            raise _refused(
                f"{len(names)} clients are fewer than {self._min_clients}", "a cohort that hides each of its clients"
            )
        if len(set(names)) != len(names) or len(set(nonces)) != len(nonces):
            raise _refused("a client or a nonce is named twice", "each client once")
        if any(len(nonce) != pads.NONCE_BYTES for nonce in nonces):
            raise _refused("a nonce has another length", f"{pads.NONCE_BYTES} bytes")
        if not request.noise >= self._min_noise:
            raise _refused(f"noise of {request.noise:g} is asked for", f"at least {self._min_noise:g}")
        if self._proposed.get((request.session, request.number), request.digest()) != request.digest():
            raise _refused(f"round {request.number} was asked with another list", "one list for each round")
        if self._journal.has_round(request.session, request.number):
            raise _refused(f"round {request.number} of this session was answered", "one answer for each round")
        if any(self._journal.has_nonce(nonce) for nonce in nonces):
            raise _refused("a nonce was used in an earlier answer", "fresh masks")


def _keep(found: dict[tuple[str, int], bytes], request: Request) -> None:
    found[(request.session, request.number)] = request.digest()
    while len(found) > _KEPT:
        found.pop(next(iter(found)))


def noise_of(stddev: float, words: int) -> np.ndarray:
    """Integer Gaussian noise: at least this standard deviation, in units of 1.

    Made of two draws of floor(K Z), K cells to a standard deviation: M times one, plus another, with M the least whole
    number for which K sqrt(M^2 + 1) is enough. M floor(K Z1) + floor(K Z2) is, but for aliases of relative size
    exp(-2 pi^2 K^2 / M^2), floor(G - M U) with G normal of that deviation and U uniform on [0, 1), independent of all
    data (Poisson summation): so a whole number with this noise is a function of the continuous Gaussian mechanism. With
    M at most K / 8 the aliases are below e^-1263. The same holds for the sum of several parties' noise.

    Raises:
        OverflowPreflightError: The noise is finer than the ring, or too coarse for the construction.
    """
    if stddev == 0.0:
        return np.zeros(words, np.int64)
    multiple = multiple_of(stddev)
    source = secure_source()
    coarse, fine = (source.gaussian_cells([words]).numpy() for _ in range(2))
    found: np.ndarray = multiple * coarse + fine
    return found


def multiple_of(stddev: float) -> int:
    """M of `noise_of`.

    Raises:
        OverflowPreflightError: The noise is finer than the ring, or too coarse for the construction.
    """
    if not math.isfinite(stddev) or stddev < CELLS_PER_SIGMA or stddev > CELLS_PER_SIGMA * LARGEST_MULTIPLE:
        raise OverflowPreflightError(
            f"Noise of {stddev:g} units of the ring",
            expected=f"a standard deviation from {CELLS_PER_SIGMA:g} to {CELLS_PER_SIGMA * LARGEST_MULTIPLE:g}",
            remedy="SecureAggregation(fraction_bits=...): more for too fine noise, fewer for too coarse.",
        )
    return math.ceil(math.sqrt(max((stddev / CELLS_PER_SIGMA) ** 2 - 1.0, 0.0)))


def simulated_parties(min_clients: int) -> tuple[tuple[PadParty, PadParty], tuple[bytes, bytes]]:
    """Both parties in this process, with their masters: a simulation, which protects from nobody in it."""
    masters = keys.new_master(), keys.new_master()
    between = secrets.token_bytes(32)
    first, second = (PadParty(index, masters[index], between, min_clients, journal=None) for index in (0, 1))
    return (first, second), masters


def _bytes(value: bytes) -> tf.Tensor:
    return tf.constant(list(value), tf.uint8)


def _refused(problem: str, expected: str) -> AggregationError:
    return AggregationError(
        f"A party refuses: {problem}.", expected=expected, remedy="Begin another round; masks are used once."
    )
