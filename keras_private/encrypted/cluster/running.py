"""A party's part of a program, run: stage after stage, waiting for the frames that each of them needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from keras_private._backends.party_functions import stage_function, tensor_of
from keras_private._backends.party_graphs import Message, PartyGraph
from keras_private.encrypted.cluster.wire import Layout
from keras_private.errors import TransportError

_EARLY_RUNS = 64
_EARLY_BYTES = 1 << 28
_ENDED = 4096


class Sender(Protocol):
    """How a run sends: to one of the other parties."""

    def data(self, target: str, key: bytes, number: int, arrays: Sequence[np.ndarray], deadline: float) -> None:
        """Sends frame `number` of the run `key`."""


class PartyProgram:
    """One party's part, ready to run any number of times, at once too.

    Args:
        graph: Its part of a traced function.
        captured: Captured inputs of that function in this process.
    """

    def __init__(self, graph: PartyGraph, captured: Sequence[Any]) -> None:
        self.graph = graph
        self.digest = graph.digest()
        self._functions = [stage_function(graph, stage, captured) for stage in graph.stages]
        self._frames = {
            (source, number): _Incoming(frame)
            for source, frames in graph.receives.items()
            for number, frame in enumerate(frames)
        }
        self.sizes = {place: frame.layout.size for place, frame in self._frames.items()}
        self._last_use = _last_uses(graph)

    @property
    def bytes_sent(self) -> int:
        """Of one run, without headers."""
        return sum(message.bytes for frames in self.graph.sends.values() for frame in frames for message in frame)

    def run(
        self, key: bytes, inputs: dict[int, Any], arrivals: Arrivals, sender: Sender, deadline: float
    ) -> dict[int, Any]:
        """One run.

        Args:
            key: Of the run; the same at all parties.
            inputs: This party's, by number.
            arrivals: What the other parties send; the run must be open there.
            sender: To the other parties.
            deadline: On time.monotonic().

        Returns:
            This party's outputs, by number.

        Raises:
            TransportError: A frame did not come in time, or the run was broken off.
        """
        graph = self.graph
        values: dict[str, Any] = {f"input {place}": tensor for place, tensor in inputs.items()}
        for place, (stage, function) in enumerate(zip(graph.stages, self._functions)):
            for source, number in stage.frames_in:
                payload = arrivals.take(key, source, number, deadline)
                values.update(self._frames[source, number].tensors(payload, source))
            found = function([values[each] for each in stage.needs])
            values.update(zip((each for each in stage.gives if each not in stage.needs), found))
            for target, number in stage.frames_out:
                arrays = [values[graph.sources[message.number]].numpy() for message in graph.sends[target][number]]
                sender.data(target, key, number, arrays, deadline)
            for each in self._last_use[place]:
                values.pop(each, None)
        return {place: values[name] for place, name in graph.outputs}


class _Incoming:
    """A frame that another party sends in each run."""

    def __init__(self, frame: Sequence[Message]) -> None:
        self.layout = Layout([(message.dtype.name, message.shape) for message in frame])
        self._keys = [f"message {message.number}" for message in frame]

    def tensors(self, payload: memoryview, source: str) -> dict[str, Any]:
        """By the keys of their messages."""
        return dict(zip(self._keys, map(tensor_of, self.layout.arrays(payload, source))))


def _last_uses(graph: PartyGraph) -> list[list[str]]:
    """For each stage the keys that no later one needs."""
    last: dict[str, int] = {}
    for place, stage in enumerate(graph.stages):
        sent = [
            graph.sources[each.number] for target, number in stage.frames_out for each in graph.sends[target][number]
        ]
        for key in (*stage.needs, *stage.gives, *sent):
            last[key] = place
    for _, key in graph.outputs:
        last.pop(key, None)
    found: list[list[str]] = [[] for _ in graph.stages]
    for key, place in last.items():
        found[place].append(key)
    return found


class Arrivals:
    """Frames from the other parties, by run: each sender's in order, each of the size that the program says.

    A frame may come before this party has heard of its run: such frames are kept, up to a limit.
    """

    def __init__(self, largest: Callable[[], int]) -> None:
        self._largest = largest
        self._changed = threading.Condition()
        self._runs: dict[bytes, _Run] = {}
        self._ended: dict[bytes, str] = {}

    def open(self, key: bytes, sizes: dict[tuple[str, int], int]) -> None:
        """Expects the frames of a run.

        Raises:
            TransportError: The run is over already: it was broken off elsewhere, or its key was used before.
        """
        with self._changed:
            if key in self._ended:
                raise _broken(self._ended[key])
            run = self._runs.setdefault(key, _Run())
            run.sizes = sizes
            for place, payload in run.frames.items():
                if sizes.get(place) != len(payload):
                    run.failure = run.failure or f"frame {place[1]} of {place[0]} had {len(payload)} bytes"

    def close(self, key: bytes, reason: str = "it is over") -> None:
        """Forgets a run; what comes of it later is dropped."""
        with self._changed:
            self._runs.pop(key, None)
            self._end(key, reason)
            self._changed.notify_all()

    def fail(self, key: bytes, reason: str) -> None:
        """Breaks a run off."""
        with self._changed:
            if key in self._runs:
                self._runs[key].failure = self._runs[key].failure or reason
                if self._runs[key].sizes is None:
                    self._runs.pop(key)
                    self._end(key, reason)
            elif key not in self._ended:
                self._end(key, reason)
            self._changed.notify_all()

    def fail_all(self, reason: str) -> None:
        """Breaks every open run off."""
        with self._changed:
            for run in self._runs.values():
                run.failure = run.failure or reason
            self._changed.notify_all()

    def limit(self, key: bytes, source: str, number: int) -> int:
        """The most bytes that this frame may have."""
        with self._changed:
            run = self._runs.get(key)
            if run is None or run.sizes is None:
                early = sum(len(payload) for each in self._runs.values() for payload in each.frames.values())
                return min(self._largest(), max(_EARLY_BYTES - early, 0))
            return run.sizes.get((source, number), 0)

    def put(self, key: bytes, source: str, number: int, payload: memoryview) -> None:
        """A frame came."""
        with self._changed:
            if key in self._ended:
                return
            run = self._runs.get(key)
            if run is None:
                if sum(each.sizes is None for each in self._runs.values()) >= _EARLY_RUNS:
                    self._end(key, "too many runs that nobody ordered")
                    return
                run = self._runs[key] = _Run()
            expected = run.next.get(source, 0)
            if number != expected:
                run.failure = run.failure or f"{source} sent frame {number} in place of {expected}"
            elif run.sizes is not None and run.sizes.get((source, number)) != len(payload):
                run.failure = run.failure or f"frame {number} of {source} had {len(payload)} bytes"
            else:
                run.frames[source, number] = payload
                run.next[source] = number + 1
            self._changed.notify_all()

    def take(self, key: bytes, source: str, number: int, deadline: float) -> memoryview:
        """Waits for a frame.

        Raises:
            TransportError: It did not come in time, or the run was broken off.
        """
        with self._changed:
            while True:
                run = self._runs.get(key)
                if run is None or run.failure:
                    raise _broken(run.failure if run else "it is not open")
                if (source, number) in run.frames:
                    return run.frames.pop((source, number))
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TransportError(
                        f"{source} did not send frame {number} in time",
                        expected="three parties that compute the same run",
                        remedy="look at the log of each party, and try again",
                    )
                self._changed.wait(left)

    def _end(self, key: bytes, reason: str) -> None:
        self._ended[key] = reason
        while len(self._ended) > _ENDED:
            self._ended.pop(next(iter(self._ended)))


class _Run:
    def __init__(self) -> None:
        self.frames: dict[tuple[str, int], memoryview] = {}
        self.next: dict[str, int] = {}
        self.sizes: dict[tuple[str, int], int] | None = None
        self.failure = ""


def _broken(reason: str) -> TransportError:
    return TransportError(
        f"the run was broken off: {reason}", expected="three parties that finish it", remedy="send the request again"
    )
