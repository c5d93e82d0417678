"""The service of one pad party: the coordinator asks it, and the other party compares lists with it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ...encrypted.cluster.certificates import Identity
from ...encrypted.cluster.config import check_fingerprint
from ...encrypted.cluster.door import Door, bound
from ...encrypted.cluster.links import dial
from ...encrypted.cluster.wire import REFUSAL, REPLY, Frame, Wire, after, chosen, refusal
from ...errors import AggregationError, LedgerError, PrivacyError, TransportError
from ..aggregators.masking.parties import PadParty, Request
from . import messages
from .config import COORDINATOR, FILE, PARTIES, PadsConfig

LOG = logging.getLogger("keras_private.pads")
_IDLE_SECONDS = 60.0
"""After which a connection on which nothing comes is closed, and in which a frame must be whole."""
_REPLY_SECONDS = 60.0
_COMPARE_SECONDS = 10.0
_MOST_CONNECTIONS = 64
_MOST_OF_ONE = 16

Reply = tuple[dict[str, Any], Sequence[np.ndarray]]


class PadService:
    """Serves one party until it is closed.

    Guarantees, each locked by tests/federated/test_pad_service.py:
        - Whoever connects proves a name by a certificate of the authority in pads.json. The coordinator may propose and
          be answered, the other party may compare, and nobody may do anything else.
        - Before it answers, it has asked the other party, over a connection on which that one has proved its name,
          whether it was asked the same; that comes besides the proof of `PadParty`.
        - The length of a frame is checked before memory is taken for it.

    Args:
        config: Of both parties.
        identity: This party's certificate and key.
        party: What it serves.
        listening: A socket that is bound; by default one is bound to the address in `config`.

    Raises:
        ConfigurationError: The certificate is of another authority, or of no party.
        TransportError: It cannot listen there.
    """

    def __init__(
        self, config: PadsConfig, identity: Identity, party: PadParty, listening: Optional[socket.socket] = None
    ) -> None:
        check_fingerprint(config, identity)
        address = config.party(identity.name)
        self.config, self.identity, self.party = config, identity, party
        self.other = PARTIES[1 - PARTIES.index(identity.name)]
        listening = listening or bound(address, FILE)
        self._door = Door(identity, listening, self._admit, self._converse, LOG, _MOST_CONNECTIONS)

    def serve(self) -> None:
        """Accepts connections until `close`."""
        self._door.serve()

    def stop(self) -> None:
        """Has `serve` return."""
        self._door.close()

    def close(self) -> None:
        """Accepts no more, ends connections and closes the journal."""
        self._door.close()
        self._door.end_all()
        self.party.close()

    def _admit(self, peer: str, here: list[str]) -> None:
        if here.count(peer) >= _MOST_OF_ONE:
            raise TransportError(
                f"{peer} has {here.count(peer)} connections", expected=f"at most {_MOST_OF_ONE}", remedy="close some"
            )

    def _converse(self, wire: Wire) -> None:
        calls = self._calls(wire.peer)
        while True:
            try:
                frame = wire.receive(messages.limit, after(_IDLE_SECONDS))
            except TransportError as error:
                # Perhaps it still reads; what it sent is left unread.
                wire.send(REFUSAL, refusal(error), deadline=after(1.0))
                raise
            try:
                facts, arrays = chosen(calls, frame, wire.peer)(frame)
            except PrivacyError as error:
                LOG.warning("%s was refused: %s", wire.peer, error.problem)
                wire.send(REFUSAL, refusal(error), deadline=after(_REPLY_SECONDS))
            except (OSError, MemoryError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
                LOG.exception("a call of %s failed", wire.peer)
                wire.send(REFUSAL, refusal(error), deadline=after(_REPLY_SECONDS))
            else:
                wire.send(REPLY, facts, arrays, deadline=after(_REPLY_SECONDS))

    def _calls(self, peer: str) -> dict[str, Callable[[Frame], Reply]]:
        """What this peer may call."""
        if peer == COORDINATOR:
            return {"ping": self._ping, "propose": self._propose, "answer": self._answer}
        return {"compare": self._compare} if peer == self.other else {}

    def _ping(self, frame: Frame) -> Reply:
        return {"party": self.identity.name, "min_clients": self.party.min_clients}, ()

    def _propose(self, frame: Frame) -> Reply:
        request, _ = messages.from_frame(frame, COORDINATOR, 0)
        return {}, [np.frombuffer(self.party.propose(request), np.uint8)]

    def _answer(self, frame: Frame) -> Reply:
        request, proof = messages.from_frame(frame, COORDINATOR, messages.PROOF_BYTES)
        self._ask_other(request)
        try:
            return {}, [self.party.answer(request, proof)]
        except OSError as error:
            if isinstance(error, PrivacyError):
                raise
            LOG.exception("the journal")
            raise LedgerError(
                f"the journal cannot be written ({type(error).__name__}); nothing was answered",
                expected="a disk with room, and a folder that the party may write",
                remedy="Look at the party's log, and start it again.",
            ) from error

    def _ask_other(self, request: Request) -> None:
        deadline = after(_COMPARE_SECONDS)
        facts = {"call": "compare", "session": request.session, "round": request.number}
        wire = dial(self.config, self.identity, self.other, deadline)
        try:
            reply = wire.call({**facts, "digest": request.digest().hex()}, deadline=deadline, most=0)
        finally:
            wire.close()
        if reply.facts.get("same") is not True:
            raise AggregationError(
                f"{self.other} was not asked the same for round {request.number}.",
                expected="one list for both parties",
                remedy="Begin another round; masks are used once.",
            )

    def _compare(self, frame: Frame) -> Reply:
        session, number, digest = (frame.facts.get(field) for field in ("session", "round", "digest"))
        if not isinstance(session, str) or type(number) is not int or not isinstance(digest, str):
            raise TransportError(f"{self.other} sent no digest", expected="one of a list", remedy="check versions")
        return {"same": self.party.agrees(session, number, bytes.fromhex(digest))}, ()
