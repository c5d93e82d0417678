"""Parties of a cut function as threads that exchange frames as party processes do, without a network."""

from __future__ import annotations

import threading
import time

import numpy as np
import tensorflow as tf

from keras_private._backends.party_cuts import cut
from keras_private.encrypted.cluster.running import Arrivals, PartyProgram
from keras_private.encrypted.session import SERVERS
from tests.encrypted.harness import OWNER

EVERYONE = (*SERVERS, OWNER)
KEY = b"k" * 16


class Apart:
    """A traced function, cut; `frames` are those of the last run, by (sender, receiver, number)."""

    def __init__(self, concrete, parties=EVERYONE):
        self.concrete, self.parties = concrete, parties
        self.graphs = cut(concrete, parties)
        self.programs = {
            party: PartyProgram(graph, concrete.captured_inputs) for party, graph in self.graphs.items() if graph.stages
        }
        self.frames = {}

    def __call__(self, *inputs, seconds=240.0, meddle=None):
        self.frames = {}
        arrivals = {party: Arrivals(lambda: 1 << 30) for party in self.parties}
        deadline = time.monotonic() + seconds
        outputs, errors = {}, {}

        class Sender:
            def __init__(sender, name):
                sender.name = name

            def data(sender, target, key, number, arrays, deadline):
                payload = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
                self.frames[sender.name, target, number] = payload
                if meddle is not None:
                    payload = meddle(sender.name, target, number, payload)
                if payload is not None:
                    arrivals[target].put(key, sender.name, number, memoryview(payload))

        def work(party):
            program = self.programs[party]
            try:
                arrivals[party].open(KEY, program.sizes)
                given = {place: tf.constant(inputs[place]) for place in program.graph.inputs}
                outputs.update(program.run(KEY, given, arrivals[party], Sender(party), deadline))
            except Exception as error:
                errors[party] = error
                for other in arrivals.values():
                    other.fail(KEY, f"{party}: {error}")

        threads = [threading.Thread(target=work, args=(party,)) for party in self.parties]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 30)
        if errors:
            raise next(iter(errors.values()))
        return [outputs[place] for place in sorted(outputs)]
