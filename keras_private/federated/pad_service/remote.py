"""The pad parties as their coordinator sees them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from ...encrypted.cluster.certificates import Identity
from ...encrypted.cluster.config import check_fingerprint
from ...encrypted.cluster.links import dial
from ...encrypted.cluster.wire import Frame, after, arrays_of
from ...errors import TransportError
from ...report.facts import this_machine
from ..aggregators.masking.parties import Party, Request
from ..checks import is_number, is_whole, require
from . import messages
from .config import COORDINATOR, PARTIES, SECONDS, PadsConfig, masters_here


class RemotePadParty(Party):
    """A pad party that is a process of its own, under mutual TLS 1.3.

    Guarantees:
        - It holds no key of a pad: what it has is the coordinator's certificate.
        - Every call ends by its deadline, with a result or a typed error; an answer of another length than was asked
          for is refused.
        - Nothing is sent to who cannot prove the party's name.

    Not guaranteed:
        - That nobody at this end can read the party's memory or files: `simulated` names what this process can see
          of that. Whether the party's host is somebody else's is for its owners to see to.

    Args:
        config: Of both parties.
        name: "party0" or "party1".
        identity: The coordinator's certificate and key.
        seconds: That a call may take.
        simulated: Says why this party protects from nobody; called each time.

    Raises:
        ConfigurationError: The name is no party's, the certificate is another authority's, or `seconds` is no
            positive number.
    """

    def __init__(
        self,
        config: PadsConfig,
        name: str,
        identity: Identity,
        seconds: float = SECONDS,
        simulated: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        check_fingerprint(config, identity)
        require(is_number(seconds) and seconds > 0, "seconds", seconds, "a positive number")
        self.address = config.party(name)
        self._config, self._identity, self._seconds, self._simulated = config, identity, float(seconds), simulated

    @property
    def simulated(self) -> tuple[str, ...]:
        """What of this party this process can read, as far as it can see; empty if nothing."""
        return tuple(self._simulated())

    @property
    def min_clients(self) -> int:
        """The fewest clients that it answers for; asked of it each time.

        Raises:
            TransportError: The party cannot be reached, came too late, is somebody else, or says no number.
        """
        found: Any = self._ask({"call": "ping"}, (), 0).facts.get("min_clients")
        if not is_whole(found) or found < 2:
            raise TransportError(
                f"{self.address.name} says that it answers for {found!r} clients.",
                expected="a whole number, at least 2",
                remedy="check versions",
            )
        return int(found)

    def propose(self, request: Request) -> bytes:
        """A proof for the other party of what this one was asked: 32 bytes.

        Raises:
            TransportError: The party cannot be reached, came too late, or is somebody else.
            AggregationError: It refuses.
        """
        frame = self._call("propose", request, b"", messages.PROOF_BYTES)
        return arrays_of(frame.payload, [("uint8", [messages.PROOF_BYTES])], self.address.name)[0].tobytes()

    def answer(self, request: Request, proof: bytes) -> np.ndarray:
        """The negated sum of the pads, and noise if asked for: int64 [request.answered].

        Raises:
            TransportError: The party cannot be reached, came too late, or is somebody else; the round is lost.
            AggregationError: It refuses; nothing was answered.
            LedgerError: Its journal cannot be written; nothing was answered.
        """
        frame = self._call("answer", request, proof, 8 * request.answered)
        return arrays_of(frame.payload, [("int64", [request.answered])], self.address.name)[0]

    def _call(self, call: str, request: Request, proof: bytes, most: int) -> Frame:
        return self._ask(*messages.to_frame(call, request, proof), most)

    def _ask(self, facts: dict[str, Any], arrays: Sequence[np.ndarray], most: int) -> Frame:
        deadline = after(self._seconds)
        # A connection for each call: a party that was started again is found, and none is held between rounds.
        wire = dial(self._config, self._identity, self.address.name, deadline)
        try:
            return wire.call(facts, arrays, deadline, most)
        finally:
            wire.close()

    def __repr__(self) -> str:
        return f"<RemotePadParty {self.address.name} at {self.address.host}:{self.address.port}>"


def pad_parties(path: Any, folder: Any = None, *, seconds: float = SECONDS) -> tuple[RemotePadParty, RemotePadParty]:
    """The two parties of a pads.json, for `SecureAggregation(parties=..., keys=...)`.

    Args:
        path: pads.json, as `keras-private pads init` writes it.
        folder: With the coordinator's certificate and key; by default coordinator/ beside pads.json.
        seconds: That a call may take.

    Raises:
        ConfigurationError: The file is missing or malformed, or the certificate is of another authority.
        TransportError: The certificate is missing, expired or not good.
    """
    place = pathlib.Path(path)
    config = PadsConfig.load(place)
    identity = Identity.load(pathlib.Path(folder) if folder is not None else place.parent / COORDINATOR, COORDINATOR)

    def seen(name: str) -> Callable[[], Sequence[str]]:
        def found() -> list[str]:
            here = [each for each in masters_here(place.parent) if each.parent.name == name]
            keys = [f"the master key of {name} can be read by this process, at {each}" for each in here]
            host = config.party(name).host
            return [*([f"{name} is on this machine, at {host}"] if this_machine(host) else []), *keys]

        return found

    first, second = (RemotePadParty(config, name, identity, seconds, seen(name)) for name in PARTIES)
    return first, second
