"""Transfer rules of operations that bring values into the step: constants, variables, data, fresh noise."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ..._backends import graph as tf_graph
from .facts import SINGLE, Fact, Kind
from .registry import Context, all_mixed, first_mixed, transfer, without_rows
from .shapes import filled

FRESH_NOISE = (
    "ParameterizedTruncatedNormal RandomStandardNormal RandomUniform RandomUniformInt "
    "TruncatedNormal"
).split()
KEYED_NOISE = (
    "StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformV2 "
    "StatelessTruncatedNormal StatelessTruncatedNormalV2"
).split()


def data_rows(tensor: tf.Tensor, context: Context) -> Fact:
    """One component of what the data pipeline yields: axis 0 is the example."""
    if tensor.dtype in (tf.resource, tf.variant):
        return Fact(Kind.PUBLIC)
    if not tensor.shape.rank:
        return Fact(
            Kind.MIXED, reason=f"data component '{tensor.name}' has no batch axis (shape {tensor.shape})"
        )
    return context.row(tensor, 0, SINGLE)


@transfer("IteratorGetNext", "IteratorGetNextSync")
def data_element(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    return [data_rows(output, context) for output in op.outputs]


@transfer("Const")
def constant(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    output = op.outputs[0]
    array = np.asarray(tf.get_static_value(output))
    uniform = array.size > 0 and bool(np.all(array == array.flat[0]))
    return [Fact(Kind.PUBLIC, dims=context.static_dims(output), positionless=uniform)]


@transfer("ReadVariableOp")
def read_variable(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    if tf_graph.made_by_keras_metric(op):
        return all_mixed(op, "reads what a Keras metric keeps of the data")
    return public_state(op, facts, context)


@transfer("VarHandleOp", "VariableShape", "VarIsInitializedOp", "NoOp")
def public_state(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    tainted = first_mixed(facts)
    if tainted is not None:
        return [tainted for _ in op.outputs]
    return [Fact(Kind.PUBLIC, dims=context.static_dims(output)) for output in op.outputs]


@transfer("ResourceGather")
def resource_gather(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    indices = facts[1]
    if not indices.is_row or op.get_attr("batch_dims") != 0:
        return all_mixed(op, "looks up by examples and others at once")
    return [context.row(op.outputs[0], indices.axis, indices.share)]


@transfer("RngReadAndSkip", "StatelessRandomGetAlg", "StatelessRandomGetKeyCounter")
def generator_state(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    return without_rows(op, facts, context) or all_mixed(op, "seeds a generator with examples")


def _advances_each_run(op: tf.Operation) -> bool:
    """Whether a keyed draw takes its key from a generator that advances, not from a fixed seed."""
    seen: set[str] = set()
    waiting = [tensor.op for tensor in op.inputs[1:]]
    while waiting:
        current = waiting.pop()
        if current.type in ("RngReadAndSkip", *FRESH_NOISE):
            return True
        if current.name not in seen:
            seen.add(current.name)
            waiting.extend(tensor.op for tensor in current.inputs)
    return False


@transfer(*FRESH_NOISE, *KEYED_NOISE)
def noise(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    """Fresh noise is independent entry by entry: removing an example leaves the law of the rest as it was."""
    tainted = first_mixed(facts)
    steady = all(fact.is_public for fact in facts[1:])
    if tainted is not None or facts[0].is_row or not steady:
        return all_mixed(op, "draws noise with parameters that depend on examples")
    if op.type in KEYED_NOISE and not _advances_each_run(op):
        return all_mixed(op, "repeats one mask by position in the batch, because its seed is fixed")
    shape = facts[0]
    if shape.value is None:
        return all_mixed(op, "draws noise of a shape that is not known while tracing")
    return [filled(op, shape.value, context)]
