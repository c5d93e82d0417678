"""Models that this party has been given: its programs, pinned by digest, and its shares of the weights."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_private.encrypted.cluster.descriptions import Description, trace
from keras_private.encrypted.cluster.running import PartyProgram
from keras_private.encrypted.ranges import declared_ranges
from keras_private.errors import ConfigurationError, PartiesError


class Publication:
    """One model at one party.

    Guarantees, locked by tests/encrypted/cluster:
      * Its programs were traced here, from the architecture alone, and are never exchanged afterwards.
      * It holds this party's pair of shares of each weight, and no other.

    Attributes:
        key: Drawn by the owner for this publication; the same at all parties.
        model: The name that clients ask for.
        owner: Name in the owner's certificate.
        programs: By number of rows.
    """

    def __init__(
        self, party: str, place: int, key: str, model: str, owner: str, description: Description, ranges: Any
    ) -> None:
        self.key, self.model, self.owner, self.description = key, model, owner, description
        traced = trace(description)
        self.inputs, self.outputs, self.last = traced.inputs, traced.outputs, traced.last
        self.input_ranges = declared_ranges(ranges, len(self.inputs))
        self._pairs = {name: variable.pairs[place] for name, variable in traced.weights.items()}
        self.programs = {
            rows: PartyProgram(graphs[party], traced.captured[rows]) for rows, graphs in traced.graphs.items()
        }
        self.active = False
        self.runs = self.requests = self.rows = 0
        self.lock = threading.Lock()

    @property
    def digests(self) -> dict[str, str]:
        """Of this party's program, by number of rows."""
        return {str(rows): program.digest for rows, program in self.programs.items()}

    def weight_specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Of the tensors that `put_weights` takes: a pair for each weight, in the order of the architecture."""
        return [("int64", tuple(variable.shape)) for pair in self._pairs.values() for variable in pair]

    def put_weights(self, arrays: Sequence[np.ndarray]) -> None:
        """This party's shares."""
        places = [variable for pair in self._pairs.values() for variable in pair]
        for variable, array in zip(places, arrays):
            variable.assign(array)
        self.active = True

    def wipe(self) -> None:
        """Overwrites the shares of the weights."""
        self.active = False
        for pair in self._pairs.values():
            for variable in pair:
                variable.assign(np.zeros(variable.shape, np.int64))

    def input_specs(self, rows: int) -> list[tuple[str, tuple[int, ...]]]:
        """Of the tensors of a request: a pair for each input."""
        return [("int64", each.shares(rows)) for each in self.inputs for _ in range(2)]

    def facts(self) -> dict[str, Any]:
        """What clients need to know."""
        return {
            "model": self.model,
            "publication": self.key,
            "owner": self.owner,
            "fraction": self.description.fraction,
            "integer": self.description.integer,
            "batches": list(self.description.batches),
            "input_ranges": [list(each) for each in self.input_ranges],
            "inputs": [[list(each.shape), each.depth, each.fraction] for each in self.inputs],
            "last": self.last,
            "outputs": [[list(shape), fraction] for shape, fraction in self.outputs],
        }

    def program_for(self, rows: int) -> tuple[int, PartyProgram]:
        """The smallest program for so many rows."""
        for size, program in self.programs.items():
            if rows <= size:
                return size, program
        raise ConfigurationError(
            f"{rows} rows in one request", expected=f"at most {max(self.programs)}", remedy="split the request"
        )


class Publications:
    """Those of one party, by name."""

    def __init__(self) -> None:
        self._by_model: dict[str, Publication] = {}
        self._lock = threading.Lock()

    def add(self, publication: Publication) -> None:
        """
        Raises:
            ConfigurationError: A model of that name is published.
        """
        with self._lock:
            if publication.model in self._by_model:
                raise ConfigurationError(
                    f"a model named {publication.model!r} is published already",
                    expected="another name",
                    remedy="stop the other one, or choose a name",
                )
            self._by_model[publication.model] = publication

    def remove(self, publication: Publication) -> None:
        """Forgets it, and its shares."""
        with self._lock:
            if self._by_model.get(publication.model) is publication:
                self._by_model.pop(publication.model)
        publication.wipe()

    def active(self, model: str, key: str | None = None) -> Publication:
        """
        Raises:
            PartiesError: No such model is published here, or it was published anew.
        """
        found = self._by_model.get(model)
        if found is None or not found.active or key not in (None, found.key):
            raise PartiesError(
                f"no model {model!r} is published here" if found is None else f"model {model!r} was published anew",
                expected=f"one of {sorted(self._by_model)}" if self._by_model else "a published model",
                remedy="publish it with kp.serve; after a party was restarted, publish again",
            )
        return found

    def all(self) -> list[Publication]:
        with self._lock:
            return list(self._by_model.values())

    def largest_frame(self) -> int:
        """Of all programs."""
        sizes = [size for each in self.all() for program in each.programs.values() for size in program.sizes.values()]
        return max(sizes, default=0)

    def largest_request(self) -> int:
        """Bytes of shares in the largest request that any model takes."""
        specs = [each.input_specs(max(each.programs)) for each in self.all()]
        return max((sum(8 * math.prod(shape) for _, shape in each) for each in specs), default=0)
