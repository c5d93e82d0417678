"""The tensor chain's values at one party: what its clients may have it keep, compute and open."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private._backends.party_cuts import cut
from keras_private.chain import Form, Stored
from keras_private.encrypted.cluster.descriptions import means
from keras_private.encrypted.cluster.links import Links
from keras_private.encrypted.cluster.requests import Board, Request
from keras_private.encrypted.cluster.running import Arrivals, PartyProgram
from keras_private.encrypted.cluster.wire import Frame, arrays_of
from keras_private.encrypted.custody import LIFETIME, LIMIT, Shelf, source_history
from keras_private.encrypted.operations import OPEN, Call
from keras_private.encrypted.session import SERVERS
from keras_private.errors import ConfigurationError, PrivacyError, TransportError

LOG = logging.getLogger("keras_private.party")
MOST_SECONDS = 600.0
_ID = re.compile(r"[0-9a-f]{32}\Z")
_PROGRAMS = 64
_PLANS = 16
_NOTED = 4096
_MOST_READERS = 64
_SWEEP_SECONDS = 10.0

Reply = tuple[dict[str, Any], Sequence[np.ndarray]]


def stored_facts(stored: Stored) -> dict[str, Any]:
    """As JSON."""
    return {
        "id": stored.id,
        "form": stored.form.facts(),
        "owners": list(stored.owners),
        "readers": list(stored.readers),
        "history": stored.history,
    }


def stored_of_facts(facts: Any) -> Stored:
    """The inverse."""
    owners, readers = tuple(map(str, facts["owners"])), tuple(map(str, facts["readers"]))
    return Stored(checked_id(facts["id"]), Form.of_facts(facts["form"]), owners, readers, str(facts["history"]))


def checked_id(value_id: Any) -> str:
    """
    Raises:
        ConfigurationError: It is none.
    """
    if not isinstance(value_id, str) or not _ID.match(value_id):
        raise ConfigurationError("a malformed id", expected="32 hexadecimal digits", remedy="use kp.encrypt")
    return value_id


@dataclasses.dataclass(frozen=True)
class _Program:
    """A call's part of this party, and the digests of all three parts."""

    own: PartyProgram
    digests: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """A run that was prepared here, and has not begun."""

    key: bytes
    call: Call
    inputs: tuple[str, ...]
    stored: Stored
    program: _Program


class Tenant:
    """One connection of a client: what was put and computed over it is dropped when it ends.

    Attributes:
        peer: Name in the client's certificate.
        plans: Runs that it has prepared, by the id of their result.
    """

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.plans: collections.OrderedDict[str, _Plan] = collections.OrderedDict()


class Vault:
    """Answers the calls put, plan, compute, open, release, look and drop.

    Guarantees, each locked by tests/encrypted/cluster/test_remote.py:
      * It keeps this party's pair of shares of a value, once the party before it in the ring has found the same digest
        of the share that both have, of the value's form and of its readers.
      * It computes what it has traced and cut itself from the name of an operation. The key of a run is a hash of the
        call, of what this party knows of its inputs, and of the caller's name; no frame is sent before both other
        parties have prepared the run of the same key.
      * A masked summand of a value goes to its readers, by the name in their certificate, and to nobody else.
      * Shares are overwritten when the connection that brought them ends, and when their time is over.

    Args:
        name: Of this party.
        links: To the others.
        arrivals: Their frames.
        tell: As Party.tell.
        seconds: The longest that a run may take.
        limit: Bytes of shares.
        lifetime: Seconds that a value is kept.
    """

    def __init__(
        self,
        name: str,
        links: Links,
        arrivals: Arrivals,
        tell: Callable[[str, bytes, PrivacyError], None],
        seconds: float,
        limit: int = LIMIT,
        lifetime: float = LIFETIME,
    ) -> None:
        self.name, self.place = name, SERVERS.index(name)
        self.next = SERVERS[(self.place + 1) % 3]
        self.links, self.arrivals, self.seconds = links, arrivals, seconds
        self.shelf = Shelf(limit, lifetime)
        self.board = Board(lambda request: request.finish([]))
        self._tell = tell
        self._programs: collections.OrderedDict[tuple[Call, bool], _Program] = collections.OrderedDict()
        self._tracing = threading.Lock()
        self._changed = threading.Condition()
        self._planned: collections.OrderedDict[bytes, set[str]] = collections.OrderedDict()
        self._largest = 0
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()

    def calls(self, tenant: Tenant) -> dict[str, Callable[[Frame], Reply]]:
        """What a client may call."""
        found = {
            "put": self._put,
            "plan": self._plan,
            "compute": self._compute,
            "open": self._open,
            "release": self._release,
            "look": self._look,
            "drop": self._drop,
        }
        return {name: self._answering(call, tenant) for name, call in found.items()}

    def _answering(self, call: Callable[[Tenant, Frame], Reply], tenant: Tenant) -> Callable[[Frame], Reply]:
        def answer(frame: Frame) -> Reply:
            self.shelf.drop([str(each) for each in frame.facts.get("forget", ())], tenant)
            return call(tenant, frame)

        return answer

    @property
    def room(self) -> int:
        """The most bytes that a client may send in one call."""
        return self.shelf.room

    def largest_frame(self) -> int:
        """Of every run that was prepared here."""
        return self._largest

    def leave(self, tenant: Tenant) -> None:
        """A connection has ended."""
        for plan in tenant.plans.values():
            self.arrivals.close(plan.key, "its client has left")
        tenant.plans.clear()
        self.shelf.leave(tenant)

    def close(self) -> None:
        """Overwrites everything."""
        self._closed.set()
        self.shelf.clear()

    def _sweep(self) -> None:
        while not self._closed.wait(_SWEEP_SECONDS):
            self.shelf.sweep()

    # What the other parties say.

    def on_notice(self, party: str, facts: dict[str, Any]) -> bool:
        """Takes a notice of another party, if it is one of these; returns whether it was."""
        kind = facts.get("notice")
        if kind not in ("share", "unshared", "planned"):
            return False
        key = bytes.fromhex(facts["key"])
        if kind == "share":
            self.board.digest(key, str(facts["client"]), bytes.fromhex(facts["digest"]))
        elif kind == "unshared":
            problem = f"{party}: {facts['problem']}"
            error = TransportError(problem, expected="a value that all parties take", remedy=str(facts["remedy"]))
            self.board.fail(key, error)
        else:
            with self._changed:
                self._planned.setdefault(key, set()).add(party)
                while len(self._planned) > _NOTED:
                    self._planned.popitem(last=False)
                self._changed.notify_all()
        return True

    def on_loss(self, error: PrivacyError) -> None:
        """A connection to another party is gone."""
        self.board.fail_all(error)

    # Calls.

    def _put(self, tenant: Tenant, frame: Frame) -> Reply:
        facts = frame.facts
        value_id, form = checked_id(facts["id"]), Form.of_facts(facts["form"])
        readers = facts["readers"]
        valid = isinstance(readers, list) and all(isinstance(each, str) for each in readers)
        if not valid or len(readers) > _MOST_READERS:
            raise ConfigurationError("malformed readers", expected=f"at most {_MOST_READERS} names", remedy="check it")
        self.shelf.check_room(form)
        pair = arrays_of(frame.payload, [("int64", form.shape)] * 2, tenant.peer)
        stored = Stored(value_id, form, (tenant.peer,), tuple(readers), source_history(tenant.peer, value_id))
        deadline = time.monotonic() + min(_seconds(facts), self.seconds)
        # Its digest covers the share that two parties have, and all that is public.
        what = json.dumps(stored_facts(stored), sort_keys=True)
        request = Request(bytes.fromhex(value_id), tenant.peer, what, 0, [tuple(pair)], deadline)
        try:
            self.board.add(request)
            digest = {"notice": "share", "key": value_id, "client": tenant.peer}
            self.links.notice(self.next, {**digest, "digest": request.digest(1).hex()})
            request.wait()
            self.shelf.keep(stored, pair, tenant)
        except PrivacyError as error:
            self._tell("unshared", request.key, error)
            raise
        finally:
            self.board.remove(request)
        return {"stored": stored_facts(stored)}, ()

    def _plan(self, tenant: Tenant, frame: Frame) -> Reply:
        facts = frame.facts
        inputs = tuple(checked_id(each) for each in facts["inputs"])
        output, native, options = checked_id(facts["output"]), facts["native"], facts["options"]
        if type(native) is not bool or not isinstance(options, dict) or not isinstance(facts["operation"], str):
            raise ConfigurationError("a malformed operation", expected="its name and options", remedy="check versions")
        call, stored = self.shelf.planned(facts["operation"], options, inputs, output, tenant.peer)
        program = self._program(call.program, native)
        whole = [call.name, call.options, list(inputs), native, stored_facts(stored), program.digests, tenant.peer]
        key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).digest()[:16]
        self.arrivals.open(key, program.own.sizes)
        tenant.plans[output] = _Plan(key, call, inputs, stored, program)
        while len(tenant.plans) > _PLANS:
            self.arrivals.close(tenant.plans.popitem(last=False)[1].key, "too many runs were prepared")
        for other in self.links.others:
            self.links.notice(other, {"notice": "planned", "key": key.hex()})
        return {"stored": stored_facts(stored), "digests": program.digests}, ()

    def _program(self, call: Call, native: bool) -> _Program:
        with self._tracing:
            found = self._programs.pop((call, native), None)
            if found is None:
                concrete = call.trace(*means(native))
                graphs = cut(concrete, SERVERS)
                own = PartyProgram(graphs[self.name], concrete.captured_inputs)
                found = _Program(own, {party: graph.digest() for party, graph in graphs.items()})
            self._programs[call, native] = found
            while len(self._programs) > _PROGRAMS:
                self._programs.popitem(last=False)
            self._largest = max(self._largest, max(found.own.sizes.values(), default=0))
        return found

    def _compute(self, tenant: Tenant, frame: Frame) -> Reply:
        plan, found = self._run(tenant, frame, opening=False)
        self.shelf.keep(plan.stored, found, tenant)
        return {}, ()

    def _open(self, tenant: Tenant, frame: Frame) -> Reply:
        return {}, self._run(tenant, frame, opening=True)[1]

    def _run(self, tenant: Tenant, frame: Frame, opening: bool) -> tuple[_Plan, list[np.ndarray]]:
        plan = tenant.plans.get(checked_id(frame.facts["output"]))
        if plan is None or (plan.call.name == OPEN) is not opening:
            raise ConfigurationError("a run that was not prepared", expected="plan first", remedy="check versions")
        deadline = time.monotonic() + min(_seconds(frame.facts), self.seconds)
        del tenant.plans[plan.stored.id]
        try:
            if opening:
                # Again: readers are those of now.
                self.shelf.check_reader(self.shelf.look(plan.inputs[0]), tenant.peer)
            self._await(plan.key, deadline)
            program = plan.program.own
            with self.shelf.using(plan.inputs) as pairs:
                given = {
                    6 * place + 2 * self.place + half: tf.constant(pair[half])
                    for place, pair in enumerate(pairs)
                    for half in range(2)
                }
                needed = {at: given[at] for at in program.graph.inputs}
                found = program.run(plan.key, needed, self.arrivals, self.links, deadline)
            return plan, [found[at].numpy() for at in sorted(found)]
        except PrivacyError as error:
            self._tell("broken", plan.key, error)
            raise
        except (tf.errors.OpError, MemoryError, RuntimeError) as error:
            LOG.exception("a run of %s failed", plan.call.name)
            broken = TransportError(f"an internal {type(error).__name__}", expected="a result", remedy="see the log")
            self._tell("broken", plan.key, broken)
            raise broken from error
        finally:
            self.arrivals.close(plan.key)
            with self._changed:
                self._planned.pop(plan.key, None)

    def _await(self, key: bytes, deadline: float) -> None:
        """Until both other parties have prepared the same run: before, nothing may be sent to them."""
        with self._changed:
            while not self._planned.get(key, set()) >= set(self.links.others):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TransportError(
                        "the other parties were not asked for the same run",
                        expected="one call, one id and one caller at all three",
                        remedy="compute as PrivateTensor does",
                    )
                self._changed.wait(left)

    def _release(self, tenant: Tenant, frame: Frame) -> Reply:
        names = frame.facts["names"]
        valid = isinstance(names, list) and all(isinstance(each, str) for each in names)
        if not valid or not len(names) <= _MOST_READERS:
            raise ConfigurationError("malformed names", expected=f"at most {_MOST_READERS} names", remedy="check it")
        return {"stored": stored_facts(self.shelf.release(checked_id(frame.facts["id"]), tenant.peer, names))}, ()

    def _look(self, tenant: Tenant, frame: Frame) -> Reply:
        return {"stored": stored_facts(self.shelf.look(checked_id(frame.facts["id"])))}, ()

    def _drop(self, tenant: Tenant, frame: Frame) -> Reply:
        self.shelf.drop([checked_id(each) for each in frame.facts["ids"]], tenant)
        return {}, ()


def _seconds(facts: dict[str, Any]) -> float:
    seconds = facts["seconds"]
    if type(seconds) not in (int, float) or not 0 < seconds <= MOST_SECONDS:
        raise ConfigurationError("malformed seconds", expected=f"at most {MOST_SECONDS}", remedy="check it")
    return float(seconds)
