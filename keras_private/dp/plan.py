"""Finds, in the traced step, every operation that uses a trainable variable on the way to the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from .._backends import graph as tf_graph
from ..errors import UnsupportedModelError, UnsupportedOpError
from .outside import differentiable_ancestors, refuse_outside_reads
from .proof import Fact, StepProof, remedy_for
from .rules import OP_RULES

ALIASES = ("Identity", "Cast", "Reshape", "Snapshot")
ACCEPTED = "MatMul, BiasAdd, Conv2D, or a broadcasting product or sum with data of one example per row"


@dataclass(frozen=True)
class VariableUse:
    """A covered use: `op` combines `variable`, in input `slot`, with data."""

    variable: tf.Variable
    op: tf.Operation
    slot: int


@dataclass(frozen=True)
class Plan:
    """All uses of all trainable variables that reach the per-example losses."""

    uses: tuple[VariableUse, ...]

    def of(self, variable: tf.Variable) -> tuple[VariableUse, ...]:
        return tuple(use for use in self.uses if use.variable is variable)


def make_plan(proof: StepProof, losses: Sequence[tf.Tensor], variables: Sequence[tf.Variable]) -> Plan:
    """Lists the uses of `variables` on differentiable paths to `losses`.

    Raises:
        UnsupportedOpError: A variable is used by an operation without a rule, inside a nested function, or
            to compute a value that has no batch axis but reaches the per-example losses.
        UnsupportedModelError: A variable is read outside the loop or function that the losses are in.
    """
    refuse_outside_reads(proof.graph, losses, variables)
    reaching = {op.name for op in differentiable_ancestors(losses)}
    uses: list[VariableUse] = []
    for variable in variables:
        handle = tf_graph.resource_inside(proof.graph, variable.handle)
        if handle is None:
            continue
        for reader in handle.consumers():
            if reader.name not in reaching:
                continue
            if reader.type != "ReadVariableOp":
                raise _unsupported(variable, reader, "reads the variable without a rule")
            uses.extend(_uses_of(proof, variable, reader.outputs[0], reaching))
    return Plan(tuple(uses))


def _uses_of(proof: StepProof, variable: tf.Variable, value: tf.Tensor, reaching: set[str]) -> list[VariableUse]:
    uses = []
    waiting, followed = [value], {value.name}
    while waiting:
        tensor = waiting.pop()
        for op in tensor.consumers():
            if op.name not in reaching:
                continue
            slots = [slot for slot, source in enumerate(op.inputs) if source is tensor]
            if op.type in ALIASES and slots == [0]:
                if op.outputs[0].name not in followed:
                    followed.add(op.outputs[0].name)
                    waiting.append(op.outputs[0])
                continue
            uses.append(_covered(proof, variable, op, slots))
    return uses


def _covered(proof: StepProof, variable: tf.Variable, op: tf.Operation, slots: list[int]) -> VariableUse:
    rule = OP_RULES.get(op.type)
    if rule is None or len(slots) != 1 or slots[0] not in rule.slots:
        raise _unsupported(variable, op, "has no per-example rule")
    data = proof.fact(op.inputs[1 - slots[0]])
    if data.is_mixed:
        raise UnsupportedModelError(
            f"trainable variable '{variable.name}' meets, in {_place(op)}, data in which examples are already "
            f"mixed: {data.reason}.",
            expected="data of one example per row in front of every trainable variable",
            remedy=remedy_for(data.reason),
        )
    if not (data.is_row and data.axis == 0):
        raise _unsupported(variable, op, f"combines it with a {data.kind.value} value instead of rows of data")
    return VariableUse(variable, op, slots[0])


def _place(op: tf.Operation) -> str:
    layer = op.name.rsplit("/", 1)[0] if "/" in op.name else "the training step"
    return f"layer '{layer}', operation '{op.name}' ({op.type})"


def _unsupported(variable: tf.Variable, op: tf.Operation, why: str) -> UnsupportedOpError:
    if tf_graph.is_function_call(op):
        why = "hides what it does with the variable in a nested function"
        remedy = "Use keras_private.make_private, which inlines tf.functions while tracing, or remove the "
        remedy += "@tf.function decorator; unroll recurrent layers (unroll=True)."
    else:
        remedy = remedy_for(op.type, "")
        remedy = remedy or f"Freeze the variable (layer.trainable = False) or express the layer with {ACCEPTED}."
    return UnsupportedOpError(
        f"trainable variable '{variable.name}' is used in {_place(op)}, which {why}.",
        expected=ACCEPTED,
        remedy=remedy,
    )


def require_row(fact: Fact, what: str, op: tf.Operation) -> Fact:
    """Raises UnsupportedModelError unless `fact` says rows on axis 0."""
    if fact.is_row and fact.axis == 0:
        return fact
    cause = fact.reason or f"it is {fact.kind.value} with the batch on axis {fact.axis}"
    raise UnsupportedModelError(
        f"{what} of {_place(op)} does not keep examples apart: {cause}.",
        expected="rows of single examples on axis 0",
        remedy=remedy_for(cause),
    )
