"""A traced function cut by party: for each its own operations, in stages between the messages that it waits for.

What a stage computes is as late as it can be without delaying a message: masks are made where they are used, and are
not kept. Variables are assigned in the last stage: a run that is broken off leaves them as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_private._backends.graph_edges import cross_edges
from keras_private._backends.labels import party_of
from keras_private._backends.party_graphs import Message, PartyGraph, Stage
from keras_private._backends.stage_graphs import graph_of, with_sources
from keras_private.errors import ConfigurationError

_ASSIGNMENTS = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")
_CONTROL = ("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile", "If", "StatelessIf", "Case")


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
                with_sources(tensor.op, constants)
            elif made.get(tensor.op.name) != place:
                outside[tensor.name] = tensor
        for tensor in draft.wanted:
            if tensor.op.name in reading.constant:
                with_sources(tensor.op, constants)
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
                graph=graph_of(constants_first, here, keys, reading.versions, reading.library),
                resources=tuple(
                    sorted((key, int(key.split()[1])) for key in keys.values() if key.startswith("resource "))
                ),
            )
        )
    return stages
