"""Batches that may be empty: TensorFlow's oneDNN convolutions give wrong shapes for no rows."""

from __future__ import annotations

import functools
import math
from typing import Any, Optional

import tensorflow as tf

from .._backends import keras_fit
from .._backends.graph import declare_rows, declared_rows
from ..errors import ConfigurationError
from .sampling import PoissonSampler

NEGLIGIBLE = 1e-12
CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative")


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


def refuse_empty_batches(graph: tf.Graph) -> None:
    """Refuses, in a fit on Poisson draws that may be empty, a step whose convolutions break on an empty batch.

    Not where `with_a_row` gave empty batches a row, as make_private does, nor where TensorFlow's convolutions take
    them as they are.

    Raises:
        ConfigurationError: The step would fail at the first empty draw.
    """
    fit = keras_fit.running_fit()
    sampler = None if fit is None else fit.data
    if not isinstance(sampler, PoissonSampler) or declared_rows(graph):
        return
    if not may_be_empty(sampler.num_examples, sampler.sampling_probability):
        return
    convolution = next((op for op in graph.get_operations() if op.type in CONVOLUTIONS), None)
    if convolution is not None and _empty_batches_break():
        raise ConfigurationError(
            f"a draw of {sampler.num_examples} examples at probability {sampler.sampling_probability:.2g} may be "
            f"empty, and TensorFlow's '{convolution.name}' ({convolution.type}) gives an empty batch a wrong shape.",
            expected="draws that are empty with a probability below 1e-12, or a model without convolutions",
            remedy="Use keras_private.make_private, which gives empty batches a row of nobody, or a larger batch_size.",
        )


@functools.lru_cache(maxsize=1)
def _empty_batches_break() -> bool:
    """Whether convolutions give an empty batch the shape of their input, as oneDNN's do."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, 4, 4, 1])])
    def shape(images: tf.Tensor) -> tf.Tensor:
        # The result itself: its shape, asked for in the graph, would be worked out before it runs.
        return tf.nn.conv2d(images, tf.ones([2, 2, 1, 3]), 2, "VALID")

    with tf.init_scope():
        return tuple(shape(tf.zeros([0, 4, 4, 1])).shape) != (0, 2, 2, 3)
