"""Weights that enter the traced step by value: back-propagation ends there, and no gradient would say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf

from .._backends import graph as tf_graph
from ..errors import UnsupportedModelError

READERS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")


def differentiable_ancestors(tensors: Sequence[tf.Tensor]) -> Iterator[tf.Operation]:
    """The operations of one graph from which gradient can flow to `tensors`."""
    seen: set[str] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        yield op
        if op.type == "StopGradient":
            continue
        for tensor in op.inputs:
            carries = tensor.dtype.is_floating or tensor.dtype.is_complex
            if carries or tensor.dtype in (tf.resource, tf.variant):
                waiting.append(tensor.op)


def refuse_outside_reads(graph: tf.Graph, losses: Sequence[tf.Tensor], variables: Sequence[tf.Variable]) -> None:
    """Follows what the graph of the losses captures by value, outwards through every enclosing graph.

    Raises:
        UnsupportedModelError: One of `variables` is read there; names it.
    """
    captures = tf_graph.captures_by_placeholder(graph)
    outer: dict[int, list[tf.Tensor]] = {}
    for op in differentiable_ancestors(losses):
        external = captures.get(op.outputs[0].name) if op.type == "Placeholder" else None
        if external is None or tf_graph.is_concrete(external) or external.dtype in (tf.resource, tf.variant):
            continue
        outer.setdefault(id(external.graph), []).append(external)
    for captured in outer.values():
        around = captured[0].graph
        for op in differentiable_ancestors(captured):
            if op.type in READERS:
                _refuse_reader(op, around, variables)
        refuse_outside_reads(around, captured, variables)


def _refuse_reader(op: tf.Operation, graph: tf.Graph, variables: Sequence[tf.Variable]) -> None:
    for variable in variables:
        if tf_graph.resource_inside(graph, variable.handle) is op.inputs[0]:
            raise UnsupportedModelError(
                f"trainable variable '{variable.name}' is read by '{op.name}' ({op.type}) outside the loop that the "
                "loss is in, so that no gradient of this use would reach it.",
                expected="weights that are read where the loss is computed",
                remedy="Read the variable inside the body of tf.while_loop, after its last tf.convert_to_tensor or "
                "tf.identity outside was removed.",
            )
