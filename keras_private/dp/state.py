"""Refuses steps that keep anything of the data besides the private gradient and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf

from .._backends import graph as tf_graph
from ..errors import UnsupportedModelError
from .proof import StepProof, remedy_for

READERS = ("ReadVariableOp", "VariableShape", "VarIsInitializedOp", "ResourceGather", "ResourceGatherNd")
PIPELINE = ("Iterator", "Optional", "Dataset")


def refuse_data_dependent_state(proof: StepProof, losses: Sequence[tf.Tensor]) -> None:
    """Checks every operation of the step that writes to a variable, table or other resource.

    Raises:
        UnsupportedModelError: Something but a Keras metric is assigned a value that depends on examples, or
            the loss reads what a metric keeps.
    """
    kept_by_metrics: set[str] = set()
    for op in _writers(proof.graph):
        resources = [tensor for tensor in op.inputs if tensor.dtype == tf.resource]
        values = [tensor for tensor in op.inputs if tensor.dtype not in (tf.resource, tf.variant)]
        if not any(proof.fact(tensor).kind.value != "Public" for tensor in values):
            continue
        if tf_graph.made_by_keras_metric(op):
            kept_by_metrics.update(tensor.name for tensor in resources)
            continue
        raise UnsupportedModelError(
            f"operation '{op.name}' ({op.type}) stores a value that depends on examples, outside the noise: "
            f"a moving statistic, an adapted state or a running sum.",
            expected="a training step that assigns nothing of the data but metrics",
            remedy=remedy_for(
                op.name, "Freeze the layer, or compute the statistic on public data beforehand."
            ),
        )
    for op in _ancestors(losses):
        if op.type == "ReadVariableOp" and op.inputs[0].name in kept_by_metrics:
            raise UnsupportedModelError(
                f"operation '{op.name}' lets the loss read what a metric keeps of the data.",
                expected="a loss that reads model weights and the batch only",
                remedy="Compute the loss without metric values.",
            )


def _writers(graph: tf.Graph) -> Iterator[tf.Operation]:
    for op in graph.get_operations():
        if op.type in READERS or any(name in op.type for name in PIPELINE):
            continue
        if any(tensor.dtype == tf.resource for tensor in op.inputs) or op.type == "EagerPyFunc":
            yield op


def _ancestors(tensors: Sequence[tf.Tensor]) -> Iterator[tf.Operation]:
    seen: set[str] = set()
    waiting = [tensor.op for tensor in tensors]
    while waiting:
        op = waiting.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        yield op
        waiting.extend(tensor.op for tensor in op.inputs)
