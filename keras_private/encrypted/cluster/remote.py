"""The tensor chain's runtime for three party processes."""

from __future__ import annotations

import collections
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_private.chain import Form, Pair, Runtime, Stored
from keras_private.encrypted.cluster.cluster import Cluster, at_all
from keras_private.encrypted.cluster.vault import stored_facts, stored_of_facts
from keras_private.encrypted.cluster.wire import Frame, Wire, arrays_of
from keras_private.encrypted.custody import source_history
from keras_private.encrypted.kernels import choose
from keras_private.encrypted.operations import OPEN, Call
from keras_private.errors import PartiesError
from keras_private.random import secure_source

SECONDS = 60.0
_GRACE = 5.0


class ClusterRuntime(Runtime):
    """One client of a cluster, for the tensor chain. One connection to each party; calls are made one after the other.

    The parties keep what was sent and computed for as long as these connections live: when this process ends, or
    `close` is called, they overwrite it.

    Args:
        cluster: The parties.
        name: In this client's certificate.
        seconds: The longest that a call may take.
    """

    def __init__(self, cluster: Cluster, name: str, seconds: float = SECONDS) -> None:
        self.cluster, self.name, self.seconds = cluster, name, seconds
        self.parties = cluster.parties
        self.simulated = cluster.simulated
        self.place = cluster.config
        self._wires: dict[str, Wire] = {}
        self._lock = threading.RLock()
        self._forgotten: collections.deque[str] = collections.deque()
        self._native = choose().name == "native" and secure_source().name == "native"

    def location(self, party: str) -> str:
        address = self.cluster.config.party(party)
        return f"{address.host}:{address.port}"

    def put(self, pairs: Sequence[Pair], form: Form, readers: Sequence[str]) -> Stored:
        value_id = secrets.token_hex(16)
        stored = Stored(value_id, form, (self.name,), tuple(readers), source_history(self.name, value_id))
        facts = {"call": "put", "id": value_id, "form": form.facts(), "readers": list(readers), "seconds": self.seconds}
        return self._agreed(self._all(facts, pairs), stored)

    def compute(self, operation: str, options: Mapping[str, Any], inputs: Sequence[Stored]) -> Stored:
        # Refused here already, before anything is asked of the parties.
        form = Call.of(operation, options, [each.form for each in inputs]).result()
        with self._lock:
            stored = self._plan(operation, options, inputs)
            if stored.form != form:
                raise _disagreement(f"{stored.form}", f"{form}")
            self._all({"call": "compute", "output": stored.id, "seconds": self.seconds})
        return stored

    def open(self, value: Stored) -> list[np.ndarray]:
        with self._lock:
            stored = self._plan(OPEN, {}, [value])
            if stored.form != value.form:
                raise _disagreement(f"{stored.form}", f"{value.form}")
            replies = self._all({"call": "open", "output": stored.id, "seconds": self.seconds})
        spec = [("int64", value.form.shape)]
        return [arrays_of(reply.payload, spec, party)[0] for party, reply in zip(self.parties, replies)]

    def _plan(self, operation: str, options: Mapping[str, Any], inputs: Sequence[Stored]) -> Stored:
        """Has each party trace its program; all three must have traced the same three."""
        output = secrets.token_hex(16)
        facts = {
            "call": "plan",
            "operation": operation,
            "options": dict(options),
            "inputs": [each.id for each in inputs],
            "output": output,
            "native": self._native,
        }
        replies = self._all(facts)
        if any(each.facts["digests"] != replies[0].facts["digests"] for each in replies[1:]):
            raise _disagreement("different programs", "the same versions of keras_private and TensorFlow")
        return self._agreed(replies)

    def release(self, value: Stored, names: Sequence[str]) -> Stored:
        return self._agreed(self._all({"call": "release", "id": value.id, "names": list(names)}))

    def look(self, value_id: str) -> Stored:
        return self._agreed(self._all({"call": "look", "id": value_id}))

    def drop(self, ids: Sequence[str]) -> None:
        self._all({"call": "drop", "ids": list(ids)})

    def forget(self, value_id: str) -> None:
        self._forgotten.append(value_id)

    def _agreed(self, replies: Sequence[Frame], expected: Stored | None = None) -> Stored:
        found = [each.facts["stored"] for each in replies]
        if any(each != found[0] for each in found[1:]):
            raise _disagreement("different facts of one value", "the same")
        if expected is not None and found[0] != stored_facts(expected):
            raise _disagreement("other facts than were sent", "those that were sent")
        return stored_of_facts(found[0])

    def _all(self, facts: dict[str, Any], pairs: Sequence[Pair] | None = None) -> list[Frame]:
        with self._lock:
            deadline = time.monotonic() + self.seconds + _GRACE
            if not all(party in self._wires and self._wires[party].usable for party in self.parties):
                # Values are kept with the connections that brought them: those of the old ones are lost.
                self.close()
                self._forgotten.clear()
                for party in self.parties:
                    self._wires[party] = self.cluster.dial(self.name, party, deadline)
            forget = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
            whole = {**facts, **({"forget": forget} if forget else {})}

            def ask(party: str) -> Frame:
                arrays = () if pairs is None else pairs[self.parties.index(party)]
                return self._wires[party].call(whole, arrays, deadline)

            return at_all(self.parties, ask)

    def close(self) -> None:
        """Ends the connections; the parties overwrite what they kept for them."""
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            wire.close()


def runtime_of(cluster: Cluster, name: str) -> ClusterRuntime:
    """The cluster's runtime for that name, made at the first call and closed with the cluster."""
    if name not in cluster.runtimes:
        cluster.runtimes[name] = ClusterRuntime(cluster, name)
    return cluster.runtimes[name]


def _disagreement(found: str, expected: str) -> PartiesError:
    return PartiesError(
        f"the parties say {found}", expected=expected, remedy="install the same versions at all parties and here"
    )
