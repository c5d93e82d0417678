"""What each party has of a function that was cut: its own operations, in stages between the messages it waits for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef


@dataclasses.dataclass(frozen=True)
class Message:
    """One tensor from one party to another.

    Attributes:
        number: In the order of the traced graph; the same for all parties.
        source: Sender.
        target: Receiver.
        dtype: Of the tensor.
        shape: Of the tensor; fully known.
    """

    number: int
    source: str
    target: str
    dtype: tf.DType
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.size


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a party computes between two waits. Values are known by keys: "message 3", "input 0", "name:0".

    Attributes:
        frames_in: (party, number of the frame) that must have arrived.
        frames_out: (party, number of the frame) that are sent afterwards.
        needs: Keys of the values that enter.
        gives: Keys of the values that leave.
        graph: The operations.
        resources: (key of a resource, number among the captured inputs of the traced function).
    """

    frames_in: tuple[tuple[str, int], ...]
    frames_out: tuple[tuple[str, int], ...]
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    graph: GraphDef
    resources: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class PartyGraph:
    """One party's part of a traced function.

    Attributes:
        party: Whose.
        stages: In order.
        inputs: Numbers of the function's inputs that this party is given.
        outputs: (number of the function's output, key) of those that this party has in the end.
        sends: For each receiver the frames: each a tuple of messages.
        receives: For each sender likewise.
        sources: For each message that it sends, by number, the key of its value.
        specs: dtype and shape of each key that enters or leaves a stage.
    """

    party: str
    stages: tuple[Stage, ...]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, str], ...]
    sends: dict[str, tuple[tuple[Message, ...], ...]]
    receives: dict[str, tuple[tuple[Message, ...], ...]]
    sources: dict[int, str]
    specs: dict[str, tf.TensorSpec]

    def text(self) -> str:
        """What this party runs, to be read: its stages, what they wait for, compute and send."""
        lines = [f"{self.party}: {len(self.stages)} stages"]
        for number, stage in enumerate(self.stages):
            for party, frame in stage.frames_in:
                lines.append(f"{number}: await {_frame_text(self.receives[party][frame])} from {party}")
            for node in stage.graph.node:
                if node.op != "Const":
                    lines.append(f"{number}:   {node.name} = {node.op}({', '.join(node.input)})")
            for party, frame in stage.frames_out:
                lines.append(f"{number}: send {_frame_text(self.sends[party][frame])} to {party}")
        for place, key in self.outputs:
            lines.append(f"output {place}: {key}")
        return "\n".join(lines)

    def digest(self) -> str:
        """SHA-256 of everything that this party does: operations, attributes, constants, messages and their order."""
        found = hashlib.sha256()
        public = {
            "party": self.party,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "sends": {party: [[_message(each) for each in frame] for frame in f] for party, f in self.sends.items()},
            "sources": self.sources,
            "receives": {p: [[_message(each) for each in frame] for frame in f] for p, f in self.receives.items()},
        }
        found.update(json.dumps(public, sort_keys=True).encode())
        for stage in self.stages:
            orders = [stage.frames_in, stage.frames_out, stage.needs, stage.gives, stage.resources]
            found.update(json.dumps(orders).encode())
            found.update(stage.graph.SerializeToString(deterministic=True))
        return found.hexdigest()


def outside_name(key: str) -> str:
    """What a value that enters a stage is called in its graph."""
    return "outside/" + key.replace(" ", "_").replace(":", "_") + ":0"


def _message(message: Message) -> list[Any]:
    return [message.number, message.source, message.target, message.dtype.name, list(message.shape)]


def _frame_text(frame: Sequence[Message]) -> str:
    return ", ".join(f"{each.number} {each.dtype.name}{list(each.shape)}" for each in frame)
