"""The tensor chain's runtime for three parties inside this process: a simulation."""

from __future__ import annotations

import collections
import functools
import secrets
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.chain import Form, Pair, Runtime, Stored
from keras_private.encrypted.custody import Shelf, source_history
from keras_private.encrypted.kernels import choose
from keras_private.encrypted.operations import OPEN, Call
from keras_private.encrypted.parties import EmbeddedParties, parties_named
from keras_private.random import secure_source

_KEPT = 128


class EmbeddedShelves:
    """A shelf for each of three embedded parties, and the functions that were traced for them.

    Each party has a store of its own and applies its rules to it, as if it were apart; whoever can read this process's
    memory sees all three.
    """

    def __init__(self, parties: EmbeddedParties) -> None:
        self.parties = parties
        self.shelves = [Shelf(lifetime=float("inf")) for _ in parties.servers]
        self._traced: collections.OrderedDict[Call, Any] = collections.OrderedDict()
        # TensorFlow's functions cannot be freed when the interpreter has begun to end.
        weakref.finalize(self, self._traced.clear)
        self._forgotten: collections.deque[tuple[str, str]] = collections.deque()
        self._lock = threading.RLock()

    def put(self, pairs: Sequence[Sequence[np.ndarray]], form: Form, owner: str, readers: Sequence[str]) -> Stored:
        """Gives each party its pair."""
        self._sweep()
        value_id = secrets.token_hex(16)
        stored = Stored(value_id, form, (owner,), tuple(readers), source_history(owner, value_id))
        for shelf, pair in zip(self.shelves, pairs):
            shelf.keep(stored, pair, owner)
        return stored

    def run(
        self, caller: str, name: str, options: Mapping[str, Any], inputs: Sequence[str]
    ) -> tuple[Stored, list[Any]]:
        """Runs a function; each party's input is what its own shelf has."""
        self._sweep()
        result = secrets.token_hex(16)
        planned = [shelf.planned(name, dict(options), inputs, result, caller) for shelf in self.shelves]
        call, stored = planned[0]
        pairs = []
        for shelf in self.shelves:
            with shelf.using(inputs) as found:
                pairs.append([tuple(tf.constant(share) for share in pair) for pair in found])
        with self._lock:
            program = call.program
            traced = self._traced.pop(program, None) or program.trace(choose(), secure_source(), self.parties.servers)
            self._traced[program] = traced
            while len(self._traced) > _KEPT:
                self._traced.popitem(last=False)
        flat = [share for place in range(len(inputs)) for party in range(3) for share in pairs[party][place]]
        return stored, tf.nest.flatten(traced(*flat))

    def compute(self, caller: str, name: str, options: Mapping[str, Any], inputs: Sequence[str]) -> Stored:
        stored, found = self.run(caller, name, options, inputs)
        for place, shelf in enumerate(self.shelves):
            shelf.keep(stored, [share.numpy() for share in found[2 * place : 2 * place + 2]], caller)
        return stored

    def forget(self, value_id: str, caller: str) -> None:
        """At the next call: this one may come from the garbage collector, in any thread."""
        self._forgotten.append((value_id, caller))

    def _sweep(self) -> None:
        for value_id, caller in [self._forgotten.popleft() for _ in range(len(self._forgotten))]:
            for shelf in self.shelves:
                shelf.drop([value_id], caller)


class EmbeddedRuntime(Runtime):
    """One name that speaks to embedded parties. Nothing proves the name: all of it is one process.

    Args:
        shelves: Of the parties.
        name: On whose behalf.
    """

    simulated = True

    def __init__(self, shelves: EmbeddedShelves, name: str) -> None:
        self.shelves, self.name = shelves, name
        self.parties = shelves.parties.servers
        self.place = shelves

    def location(self, party: str) -> str:
        return "this process"

    def put(self, pairs: Sequence[Pair], form: Form, readers: Sequence[str]) -> Stored:
        return self.shelves.put(pairs, form, self.name, readers)

    def compute(self, operation: str, options: Mapping[str, Any], inputs: Sequence[Stored]) -> Stored:
        return self.shelves.compute(self.name, operation, options, [each.id for each in inputs])

    def open(self, value: Stored) -> list[np.ndarray]:
        _, summands = self.shelves.run(self.name, OPEN, {}, [value.id])
        return [each.numpy() for each in summands]

    def release(self, value: Stored, names: Sequence[str]) -> Stored:
        released = [shelf.release(value.id, self.name, names) for shelf in self.shelves.shelves]
        return released[0]

    def look(self, value_id: str) -> Stored:
        return self.shelves.shelves[0].look(value_id)

    def drop(self, ids: Sequence[str]) -> None:
        for shelf in self.shelves.shelves:
            shelf.drop(ids, self.name)

    def forget(self, value_id: str) -> None:
        self.shelves.forget(value_id, self.name)


@functools.cache
def shelves_of(parties: str) -> EmbeddedShelves:
    """Of the embedded parties of that name, made at the first call."""
    return EmbeddedShelves(parties_named(parties))
