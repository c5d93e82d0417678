"""What one peer may call over its connection to a party, by the role that its certificate proves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_private.encrypted.cluster.descriptions import Description
from keras_private.encrypted.cluster.publications import Publication
from keras_private.encrypted.cluster.requests import Request
from keras_private.encrypted.cluster.vault import Tenant
from keras_private.encrypted.cluster.wire import REFUSAL, REPLY, Frame, Wire, arrays_of, chosen, refusal
from keras_private.errors import PartiesError, PrivacyError, TransportError

if TYPE_CHECKING:
    from keras_private.encrypted.cluster.party import Party

LOG = logging.getLogger("keras_private.party")
_OWNER_LIMIT = 1 << 33
_MOST_SECONDS = 600.0


class Conversation:
    """Calls on one connection, one after the other."""

    def __init__(self, party: Party, wire: Wire) -> None:
        self.party, self.wire = party, wire
        self._published: list[Publication] = []
        self._tenant = Tenant(wire.peer)

    def hold(self) -> None:
        """Until the connection ends; models that were published over it are withdrawn then."""
        calls = self._calls()
        try:
            while True:
                frame = self.wire.receive(lambda header: self._limit())
                try:
                    reply = chosen(calls, frame, self.wire.peer)(frame)
                except PrivacyError as error:
                    self.wire.send(REFUSAL, refusal(error))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    LOG.exception("a malformed call of %s", self.wire.peer)
                    self.wire.send(REFUSAL, refusal(error))
                else:
                    if reply is not None:
                        facts, arrays = reply
                        self.wire.send(REPLY, facts, arrays)
        finally:
            for publication in self._published:
                self._withdraw(publication)
            self.party.vault.leave(self._tenant)

    def _limit(self) -> int:
        """The most bytes of tensors that this peer may send in one call."""
        config, peer = self.party.config, self.wire.peer
        if peer in config.owners:
            return _OWNER_LIMIT
        most = max(self.party.publications.largest_request(), self.party.vault.room)
        return most if peer in config.clients else 0

    def _calls(self) -> dict[str, Callable[[Frame], tuple[dict[str, Any], Sequence[np.ndarray]] | None]]:
        """What this peer may call."""
        config, peer = self.party.config, self.wire.peer
        if peer in self.party.links.others:
            return {"link": self._link}
        calls: dict[str, Any] = {}
        if peer in config.owners or peer in config.clients:
            calls.update({"ping": self._ping, "models": self._models})
        if peer in config.owners:
            calls.update({"prepare": self._prepare, "weights": self._weights, "program": self._program})
        if peer in config.clients:
            calls.update({"predict": self._predict, **self.party.vault.calls(self._tenant)})
        return calls

    def _link(self, frame: Frame) -> None:
        self.wire.send(REPLY, {})
        self.party.links.receive(self.wire)
        raise TransportError("the link ended", expected="", remedy="")

    def _ping(self, frame: Frame) -> Any:
        found = [
            {**each.facts(), "runs": each.runs, "requests": each.requests, "rows": each.rows}
            for each in self.party.publications.all()
        ]
        facts = {"party": self.party.name, "bytes_sent": self.party.links.bytes_sent, "waiting": len(self.party.board)}
        return {**facts, "models": found}, ()

    def _models(self, frame: Frame) -> Any:
        return self.party.publications.active(str(frame.facts["model"])).facts(), ()

    def _prepare(self, frame: Frame) -> Any:
        facts = frame.facts
        description = Description.of_facts(facts["description"])
        party = self.party
        key, model, ranges = str(facts["publication"]), str(facts["model"]), facts["input_ranges"]
        publication = Publication(party.name, party.place, key, model, self.wire.peer, description, ranges)
        party.publications.add(publication)
        self._published.append(publication)
        costs = {str(rows): program.bytes_sent for rows, program in publication.programs.items()}
        return {"digests": publication.digests, "bytes_sent": costs}, ()

    def _own(self, key: Any) -> Publication:
        for publication in self._published:
            if publication.key == key:
                return publication
        raise PartiesError(f"publication {key!r} is not of this connection", expected="prepare first", remedy="do so")

    def _weights(self, frame: Frame) -> Any:
        publication = self._own(frame.facts["publication"])
        publication.put_weights(arrays_of(frame.payload, publication.weight_specs(), self.wire.peer))
        return {}, ()

    def _program(self, frame: Frame) -> Any:
        publication = self._own(frame.facts["publication"])
        return {"text": publication.programs[int(frame.facts["rows"])].graph.text()}, ()

    def _predict(self, frame: Frame) -> Any:
        facts, party = frame.facts, self.party
        key = bytes.fromhex(facts["request"])
        rows, seconds = facts["rows"], float(facts["seconds"])
        if len(key) != 16 or type(rows) is not int or rows < 1 or not 0 < seconds <= _MOST_SECONDS:
            raise TransportError("a malformed request", expected="a key of 16 bytes, rows and seconds", remedy="check")
        try:
            publication = party.publications.active(str(facts["model"]), str(facts["publication"]))
            publication.program_for(rows)
            arrays = arrays_of(frame.payload, publication.input_specs(rows), self.wire.peer)
            pairs = [(arrays[at], arrays[at + 1]) for at in range(0, len(arrays), 2)]
            request = Request(key, self.wire.peer, publication.key, rows, pairs, time.monotonic() + seconds)
        except PrivacyError as error:
            party.tell("refused", key, error)
            raise
        try:
            party.take(request)
            outputs = request.wait()
        finally:
            party.board.remove(request)
        return {"rows": rows}, outputs

    def _withdraw(self, publication: Publication) -> None:
        party = self.party
        party.publications.remove(publication)
        error = PartiesError(
            f"model {publication.model!r} was withdrawn", expected="a published model", remedy="publish it again"
        )
        party.board.fail_all(error, publication.key)
