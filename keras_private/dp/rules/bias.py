"""BiasAdd."""

from __future__ import annotations

import tensorflow as tf

from .registry import Contribution, Instantiated, Use, op_rule


@op_rule("BiasAdd", slots=(1,))
def bias_add(use: Use) -> Contribution:
    """y = x + b, so b_i is the sum of g[i] over every axis but the channels."""
    gradient = use.by_example(use.output_gradient)
    rank = gradient.shape.rank
    channel = 2 if use.op.get_attr("data_format") == b"NCHW" else rank - 1
    axes = [axis for axis in range(1, rank) if axis != channel]
    return Instantiated(tf.reduce_sum(gradient, axis=axes))
