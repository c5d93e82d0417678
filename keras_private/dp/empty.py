"""Batches that may be empty: TensorFlow's oneDNN convolutions give wrong shapes for no rows."""

from __future__ import annotations

import math
from typing import Any, Optional

import tensorflow as tf

from .._backends.graph import declare_rows

NEGLIGIBLE = 1e-12


def may_be_empty(num_examples: int, sampling_probability: float) -> bool:
    """Whether a Poisson draw is empty with a probability that matters."""
    if sampling_probability >= 1.0:
        return False
    return num_examples * math.log1p(-sampling_probability) > math.log(NEGLIGIBLE)


def with_a_row(x: Any, y: Any, sample_weight: Optional[Any]) -> tuple[Any, Any, Any]:
    """Gives an empty batch one row of zeros with weight 0, and leaves any other batch as it is.

    The added row belongs to no example and its loss is multiplied by 0, so that the clipped sum of an empty batch
    stays exactly 0. The rows of the result are declared to the proof: they are those of the batch.

    Args:
        x, y, sample_weight: A batch as Keras passes it; without weights every example gets weight 1.
    """
    rows = tf.shape(tf.nest.flatten(x)[0])[0]
    missing = tf.cast(tf.equal(rows, 0), tf.int32)
    if sample_weight is None:
        sample_weight = tf.ones([rows], tf.keras.backend.floatx())

    def padded(tensor: tf.Tensor) -> tf.Tensor:
        result = tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1))
        result.set_shape([None, *tensor.shape[1:]])
        return declare_rows(result)

    x, y, sample_weight = tf.nest.map_structure(padded, (x, y, sample_weight))
    return x, y, sample_weight
