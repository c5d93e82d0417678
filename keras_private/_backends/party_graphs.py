"""A traced function cut by party: for each its own operations, in stages between the messages that it waits for.

What a stage computes is as late as it can be without delaying a message: masks are made where they are used, and are
not kept. Variables are assigned in the last stage: a run that is broken off leaves them as they were.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef

from keras_private._backends.graph_edges import cross_edges
from keras_private._backends.labels import party_of
from keras_private.errors import ConfigurationError

_ASSIGNMENTS = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")
_CONTROL = ("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If", "StatelessIf", "Case")


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


def cut(concrete: Any, parties: Sequence[str]) -> dict[str, PartyGraph]:
    """Cuts a traced function.

    Args:
        concrete: Its concrete function. Inputs belong to whoever reads them, outputs to whoever computes them.
        parties: All labels that occur.

    Raises:
        ConfigurationError: An operation has no party or a foreign one, reads another party's tensor other than through
            a message; a message has a shape that is known in the run only, or is sent in a loop.
    """
    cross_edges(concrete)
    reading = _Reading(concrete, parties)
    return {party: _cut_one(reading, party) for party in parties}


class _Reading:
    """Operations, their parties and levels: the longest chain of messages before each of them."""

    def __init__(self, concrete: Any, parties: Sequence[str]) -> None:
        graph = concrete.graph
        self.graph, self.parties = graph, tuple(parties)
        definition = graph.as_graph_def()
        self.versions, self.library = definition.versions, definition.library
        self.operations = graph.get_operations()
        captured = len(concrete.captured_inputs)
        given = len(graph.inputs) - captured
        self.inputs = {tensor.name: place for place, tensor in enumerate(graph.inputs[:given])}
        self.captured = {tensor.name: place for place, tensor in enumerate(graph.inputs[given:])}
        self.party = {operation.name: self._party(operation) for operation in self.operations}
        self.messages: dict[str, Message] = {}
        self.level: dict[str, int] = {}
        self.constant: set[str] = set()
        for operation in self.operations:
            self._read(operation)
        self.outputs = [(place, self._origin(tensor)) for place, tensor in enumerate(graph.outputs)]

    def _party(self, operation: Any) -> str | None:
        party = party_of(operation)
        if party is None and operation.type in _CONTROL:
            raise ConfigurationError(
                f"{operation.name} ({operation.type}) belongs to no party and cannot be cut",
                expected="calls and loops of one party, or operations written out",
                remedy="trace without nested functions, unroll loops over messages",
            )
        if party is not None and party not in self.parties:
            raise ConfigurationError(
                f"{operation.name} belongs to {party!r}", expected=f"one of {self.parties}", remedy="name the party"
            )
        return party

    def _read(self, operation: Any) -> None:
        party = self.party[operation.name]
        level, constant = 0, not operation.op_def.is_stateful and operation.type not in ("Placeholder", "NoOp")
        for tensor in operation.inputs:
            source = tensor.op
            level = max(level, self.level[source.name])
            constant = constant and source.name in self.constant
            if party is not None and self.party[source.name] not in (None, party):
                self._message(operation, tensor, party)
                level = max(level, self.level[source.name] + 1)
                constant = False
        for control in operation.control_inputs:
            if party is not None and self.party[control.name] == party:
                level = max(level, self.level[control.name])
            constant = False
        self.level[operation.name] = level
        if constant:
            self.constant.add(operation.name)

    def _message(self, operation: Any, tensor: Any, party: str) -> None:
        if not tensor.shape.is_fully_defined():
            raise ConfigurationError(
                f"the message {operation.name} has the shape {tensor.shape}",
                expected="sizes that are known while tracing, for its receiver to check",
                remedy="trace the function for one batch size",
            )
        source = self.party[tensor.op.name]
        assert source is not None
        number = len(self.messages)
        self.messages[operation.name] = Message(number, source, party, tensor.dtype, tuple(tensor.shape.as_list()))

    def _origin(self, tensor: Any) -> Any:
        while self.party[tensor.op.name] is None and tensor.op.type == "Identity":
            tensor = tensor.op.inputs[0]
        return tensor


def _cut_one(reading: _Reading, party: str) -> PartyGraph:
    own = _wanted(reading, party)
    last = 1 + max((reading.level[each.name] for each in own), default=0)
    at = _places(reading, party, own, last)
    levels = sorted({*at.values(), last})
    sends, numbers_out = _frames(reading, party, levels, outgoing=True)
    receives, numbers_in = _frames(reading, party, levels, outgoing=False)
    values = _Values(reading, party)
    stages: list[_Draft] = [_Draft(level) for level in levels]
    place_of = {level: place for place, level in enumerate(levels)}
    for operation in own:
        if operation.name in reading.messages or operation.name in reading.constant:
            continue
        stages[place_of[at[operation.name]]].operations.append(operation)
    outputs = [(place, tensor) for place, tensor in reading.outputs if reading.party[tensor.op.name] == party]
    stages[-1].wanted.extend(tensor for _, tensor in outputs)
    sources = {}
    for operation_name, message in reading.messages.items():
        if message.source == party:
            tensor = reading.graph.get_operation_by_name(operation_name).inputs[0]
            sources[message.number] = values.key(tensor)
            stages[place_of[_send_level(reading, tensor, last)]].wanted.append(tensor)
            stages[place_of[_send_level(reading, tensor, last)]].frames.add(numbers_out[message.number])
    finished = _finish(reading, values, stages, numbers_in)
    inputs = sorted({int(key.split()[1]) for stage in finished for key in stage.needs if key.startswith("input ")})
    return PartyGraph(
        party=party,
        stages=tuple(finished),
        inputs=tuple(inputs),
        outputs=tuple((place, values.key(tensor)) for place, tensor in outputs),
        sends=sends,
        receives=receives,
        sources=sources,
        specs=values.specs,
    )


def _wanted(reading: _Reading, party: str) -> list[Any]:
    """The party's operations that end in a message, an output or an effect."""
    graph = reading.graph
    ends = [graph.get_operation_by_name(name).inputs[0].op for name in reading.messages]
    ends += [tensor.op for _, tensor in reading.outputs]
    ends += [each for each in reading.operations if each.op_def.is_stateful and each.type != "ReadVariableOp"]
    found: set[str] = set()
    open_ends = [each for each in ends if reading.party[each.name] == party]
    while open_ends:
        operation = open_ends.pop()
        if operation.name in found:
            continue
        found.add(operation.name)
        before = [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
        open_ends.extend(each for each in before if reading.party[each.name] == party)
    given = {name.rsplit(":", 1)[0] for name in (*reading.inputs, *reading.captured)}
    return [each for each in reading.operations if each.name in found - given]


class _Values:
    """The keys by which values are passed between stages and parties."""

    def __init__(self, reading: _Reading, party: str) -> None:
        self.reading, self.party = reading, party
        self.specs: dict[str, tf.TensorSpec] = {}

    def key(self, tensor: Any) -> str:
        reading = self.reading
        if tensor.op.name in reading.messages:
            key = f"message {reading.messages[tensor.op.name].number}"
        elif tensor.name in reading.inputs:
            key = f"input {reading.inputs[tensor.name]}"
        elif tensor.name in reading.captured:
            return f"resource {reading.captured[tensor.name]}"
        elif reading.party[tensor.op.name] is None:
            raise ConfigurationError(
                f"{tensor.name} ({tensor.op.type}) belongs to no party", expected="a label", remedy="use Session.at"
            )
        else:
            key = tensor.name
        self.specs[key] = tf.TensorSpec(tensor.shape, tensor.dtype)
        return key


class _Draft:
    def __init__(self, level: int) -> None:
        self.level = level
        self.operations: list[Any] = []
        self.wanted: list[Any] = []
        self.frames: set[tuple[str, int]] = set()


def _send_level(reading: _Reading, tensor: Any, last: int) -> int:
    return last if tensor.op.name in reading.constant else reading.level[tensor.op.name]


def _places(reading: _Reading, party: str, own: Sequence[Any], last: int) -> dict[str, int]:
    """For each operation the level of the stage that runs it: that of the earliest message that needs it."""
    at: dict[str, int] = {}

    def needed(operation: Any, level: int) -> None:
        at[operation.name] = min(at.get(operation.name, last), level)

    for operation_name, message in reading.messages.items():
        if message.source == party:
            tensor = reading.graph.get_operation_by_name(operation_name).inputs[0]
            needed(tensor.op, _send_level(reading, tensor, last))
    for operation in reversed(own):
        level = at.setdefault(operation.name, last)
        if operation.type in _ASSIGNMENTS and level != last:
            raise ConfigurationError(
                f"a message depends on the assignment {operation.name}",
                expected="variables that are assigned last",
                remedy="send the value, not the variable",
            )
        for before in [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]:
            if reading.party[before.name] == party:
                needed(before, level)
    return {name: level for name, level in at.items() if name not in reading.constant and name not in reading.messages}


def _frames(
    reading: _Reading, party: str, levels: Sequence[int], outgoing: bool
) -> tuple[dict[str, tuple[tuple[Message, ...], ...]], dict[int, tuple[str, int]]]:
    """Messages between two parties grouped by the level at which they are sent, and where each message is."""
    groups: dict[str, dict[int, list[Message]]] = {}
    for operation_name, message in reading.messages.items():
        if party != (message.source if outgoing else message.target):
            continue
        tensor = reading.graph.get_operation_by_name(operation_name).inputs[0]
        other = message.target if outgoing else message.source
        level = reading.level[tensor.op.name]
        if tensor.op.name in reading.constant:
            raise ConfigurationError(
                f"the message {operation_name} is a constant", expected="a value", remedy="let the receiver make it"
            )
        groups.setdefault(other, {}).setdefault(level, []).append(message)
    frames: dict[str, tuple[tuple[Message, ...], ...]] = {}
    numbers: dict[int, tuple[str, int]] = {}
    for other, by_level in sorted(groups.items()):
        ordered = [tuple(by_level[level]) for level in sorted(by_level)]
        frames[other] = tuple(ordered)
        for number, frame in enumerate(ordered):
            numbers.update({message.number: (other, number) for message in frame})
    return frames, numbers


def _finish(
    reading: _Reading, values: _Values, drafts: Sequence[_Draft], numbers_in: dict[int, tuple[str, int]]
) -> list[Stage]:
    made: dict[str, int] = {}
    for place, draft in enumerate(drafts):
        made.update({operation.name: place for operation in draft.operations})
    # Which values each stage takes from outside of it, and so which ones earlier stages must hand over.
    entering: list[dict[str, Any]] = []
    copied: list[dict[str, Any]] = []
    for place, draft in enumerate(drafts):
        constants: dict[str, Any] = {}
        outside: dict[str, Any] = {}
        for tensor in (each for operation in draft.operations for each in operation.inputs):
            if tensor.op.name in reading.constant:
                _with_sources(tensor.op, constants)
            elif made.get(tensor.op.name) != place:
                outside[tensor.name] = tensor
        for tensor in draft.wanted:
            if tensor.op.name in reading.constant:
                _with_sources(tensor.op, constants)
        entering.append(outside)
        copied.append(constants)
    handed = {name for outside in entering for name in outside}
    handed |= {tensor.name for draft in drafts for tensor in draft.wanted}
    stages: list[Stage] = []
    awaited: set[tuple[str, int]] = set()
    for draft, outside, constants in zip(drafts, entering, copied):
        keys = {name: values.key(tensor) for name, tensor in outside.items()}
        here = {operation.name for operation in draft.operations} | set(constants)
        gives = [t for operation in draft.operations for t in operation.outputs if t.name in handed]
        given = {tensor.name: tensor for tensor in [*gives, *draft.wanted] if tensor.op.name in here}
        passed_on = [values.key(tensor) for tensor in draft.wanted]
        wanted = [numbers_in[int(key.split()[1])] for key in [*keys.values(), *passed_on] if key.startswith("message ")]
        # Frames of one sender arrive in their order: those before a wanted one are taken with it.
        frames_in = {(other, earlier) for other, frame in wanted for earlier in range(frame + 1)} - awaited
        awaited |= frames_in
        constants_first = [*constants.values(), *draft.operations]
        stages.append(
            Stage(
                frames_in=tuple(sorted(frames_in)),
                frames_out=tuple(sorted(draft.frames)),
                needs=tuple(sorted(key for key in keys.values() if not key.startswith("resource "))),
                gives=tuple(sorted(values.key(tensor) for tensor in given.values())),
                graph=_graph(reading, constants_first, here, keys),
                resources=tuple(
                    sorted((key, int(key.split()[1])) for key in keys.values() if key.startswith("resource "))
                ),
            )
        )
    return stages


def _with_sources(operation: Any, found: dict[str, Any]) -> None:
    if operation.name in found:
        return
    for tensor in operation.inputs:
        _with_sources(tensor.op, found)
    found[operation.name] = operation


def _graph(reading: _Reading, operations: Iterable[Any], here: set[str], keys: dict[str, str]) -> GraphDef:
    """The operations as a graph; what comes from outside is named by its key."""
    graph = GraphDef()
    graph.versions.CopyFrom(reading.versions)
    for operation in operations:
        node = graph.node.add()
        node.CopyFrom(operation.node_def)
        del node.input[:]
        for tensor in operation.inputs:
            node.input.append(tensor.name if tensor.op.name in here else outside_name(keys[tensor.name]))
        for control in operation.control_inputs:
            if control.name in here:
                node.input.append(f"^{control.name}")
    _with_functions(graph, reading.library)
    return graph


def _with_functions(graph: GraphDef, library: Any) -> None:
    """Adds the functions that the nodes call, named by their content: the same wherever the program is traced."""
    known = {function.signature.name: function for function in library.function}
    named: dict[str, str] = {}

    def rename(nodes: Iterable[Any]) -> None:
        for node in nodes:
            if node.op in known:
                node.op = add(node.op)
            for attribute in sorted(node.attr):
                value = node.attr[attribute]
                for called in [value.func] if value.HasField("func") else value.list.func:
                    if called.name in known:
                        called.name = add(called.name)

    def add(name: str) -> str:
        if name not in named:
            copy = FunctionDef()
            copy.CopyFrom(known[name])
            copy.signature.name = ""
            rename(copy.node_def)
            content = copy.SerializeToString(deterministic=True)
            copy.signature.name = named[name] = f"keras_private_{hashlib.sha256(content).hexdigest()[:32]}"
            graph.library.function.append(copy)
        return named[name]

    rename(graph.node)


def outside_name(key: str) -> str:
    """What a value that enters a stage is called in its graph."""
    return "outside/" + key.replace(" ", "_").replace(":", "_") + ":0"


def _message(message: Message) -> list[Any]:
    return [message.number, message.source, message.target, message.dtype.name, list(message.shape)]


def _frame_text(frame: Sequence[Message]) -> str:
    return ", ".join(f"{each.number} {each.dtype.name}{list(each.shape)}" for each in frame)
