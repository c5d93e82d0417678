"""Broadcasting products and sums: scale and offset of Layer- and GroupNormalization, custom layers."""

from __future__ import annotations

import tensorflow as tf

from .registry import Contribution, Instantiated, Use, op_rule


@op_rule("Mul", "AddV2", "Sub", slots=(0, 1))
def broadcasting(use: Use) -> Contribution:
    """y = x * v (or x + v, x - v): v_i is g[i] (times x[i]), summed over the axes that v was spread along."""
    op, gradient = use.op, use.output_gradient
    variable = op.inputs[use.slot]
    if op.type == "Mul":
        gradient = gradient * op.inputs[1 - use.slot]
    elif op.type == "Sub" and use.slot == 1:
        gradient = -gradient
    gradient = use.by_example(gradient)
    # by_example adds an axis after the batch; the variable's own batch position, where it has one, is 1 there.
    rank, own_rank = gradient.shape.rank, variable.shape.rank
    spread = [1]
    for axis in range(2, rank):
        own_axis = axis - 1 - (rank - 1 - own_rank)
        if own_axis < 0 or variable.shape[own_axis] == 1:
            spread.append(axis)
    summed = tf.reduce_sum(gradient, axis=spread)
    return Instantiated(tf.reshape(summed, tf.concat([[use.batch], tf.shape(variable)], axis=0)))
