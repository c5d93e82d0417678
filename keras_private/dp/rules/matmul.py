"""MatMul, 2-D and over time."""

from __future__ import annotations

import tensorflow as tf

from ...errors import UnsupportedOpError
from .registry import Contribution, Factored, Use, op_rule


def over_time(tensor: tf.Tensor) -> tf.Tensor:
    """[batch, ..., d] to [batch, positions, d]."""
    shape = tf.shape(tensor)
    positions = tf.reduce_prod(shape[1:-1])
    result = tf.reshape(tensor, tf.stack([shape[0], positions, shape[-1]]))
    static = tensor.shape[1:-1].num_elements()
    result.set_shape([None, static, tensor.shape[-1]])
    return result


@op_rule("MatMul", "BatchMatMulV2", slots=(1,))
def matmul(use: Use) -> Contribution:
    """y = a W, so W_i = sum_t a[i, t] outer g[i, t] (Goodfellow 2015, "Efficient per-example gradients")."""
    op = use.op
    prefix = "adj" if op.type == "BatchMatMulV2" else "transpose"
    first, second = ("x", "y") if op.type == "BatchMatMulV2" else ("a", "b")
    data, weight = op.inputs
    if op.get_attr(f"{prefix}_{first}") or weight.shape.rank != 2:
        raise UnsupportedOpError(
            f"operation '{op.name}' ({op.type}) multiplies by a weight of rank {weight.shape.rank}"
            f"{' with its data transposed' if op.get_attr(f'{prefix}_{first}') else ''}.",
            expected="data [batch, ..., d] times a weight [d, p]",
            remedy="Write the product as a Dense layer.",
        )
    left, right = over_time(use.by_example(data)), over_time(use.by_example(use.output_gradient))
    if op.get_attr(f"{prefix}_{second}"):
        left, right = right, left
    return Factored(left, right)
