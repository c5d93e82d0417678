"""Products and activations that a client hands to three parties, who see neither factors nor results.

The client is the process that runs the Keras model. It scales each factor by a power of two that it keeps to itself, so
that the sum of products fills the ring without leaving it: nothing can overflow, about 26 bits of each factor count,
and no truncation is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_private.encrypted import parties as known_parties
from keras_private.encrypted.protocol.products import convolution, matmul
from keras_private.encrypted.protocol.sharing import reveal, reveal_integers, share
from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import Shared
from keras_private.errors import EncodingError

CLIENT = "client"
_PRODUCT_BITS = 62
_SMALLEST = 2.0**-100

Terms = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@functools.cache
def product(name: str, geometry: tuple[tuple[str, Any], ...], parties: str, layer: str) -> Callable[..., tf.Tensor]:
    """A traced function (left, right) -> product of two float tensors, computed by the parties.

    Args:
        name: "matmul", or a convolution of the kernels.
        geometry: Its keyword arguments; for those with a filter gradient, filter_size.
        parties: Their name.
        layer: Name for error messages.

    Returns:
        A function whose result has the dtype of `left`. It raises tf.errors.InvalidArgumentError, with the text of an
        EncodingError, when a factor is not finite.
    """
    options = dict(geometry)

    @tf.function(autograph=False, reduce_retracing=True)
    def run(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        session = known_parties.parties_named(parties).session()
        with session.at(CLIENT):
            bits = (_PRODUCT_BITS - _log2_up(_terms(name, options, left, right))) // 2
            left_words, left_exponent = _scaled(left, bits, f"the first factor of {name} in {layer}")
            right_words, right_exponent = _scaled(right, bits, f"the second factor of {name} in {layer}")
        shared = (
            share(session, left_words, CLIENT, f"{layer}: left", fraction=0),
            share(session, right_words, CLIENT, f"{layer}: right", fraction=0),
        )
        opened = reveal_integers(_bilinear(name, *shared, options), CLIENT)
        with session.at(CLIENT):
            result = tf.cast(opened, tf.float64) * tf.pow(tf.constant(2.0, tf.float64), -left_exponent - right_exponent)
            return tf.cast(result, left.dtype)

    return run


@functools.cache
def elementwise(function: Callable[[Shared], Shared], parties: str, layer: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """A traced function x -> function(x) of a float tensor, computed by the parties in fixed point."""

    @tf.function(autograph=False, reduce_retracing=True)
    def run(x: tf.Tensor) -> tf.Tensor:
        session: Session = known_parties.parties_named(parties).session()
        with session.at(CLIENT):
            wide = tf.cast(x, tf.float64)
        opened = reveal(function(share(session, wide, CLIENT, f"the input of {layer}")), CLIENT)
        with session.at(CLIENT):
            return tf.cast(opened, x.dtype)

    return run


def once_differentiable(tensor: tf.Tensor, layer: str) -> tf.Tensor:
    """Refuses derivatives of a gradient, which would come out as zero."""
    return tf.raw_ops.PreventGradient(input=tensor, message=f"{layer} has first derivatives only")


def _bilinear(name: str, left: Shared, right: Shared, options: dict[str, Any]) -> Shared:
    if name == "matmul":
        return matmul(left, right, **options)

    def shape(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        return _result_shape(name, options, a, b)

    return convolution(name, left, right, shape, **options)


def _terms(name: str, options: dict[str, Any], left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """How many products are summed into one number, at most."""
    if name == "matmul":
        return tf.shape(left)[0 if options.get("transpose_a") else 1]
    if name.endswith("_filter"):
        return tf.reduce_prod(tf.shape(right)[:3])
    kernel = tf.shape(left if name.endswith("_input") else right)
    if name == "conv2d":
        return tf.reduce_prod(kernel[:3])
    if name == "depthwise":
        return kernel[0] * kernel[1]
    return kernel[0] * kernel[1] * kernel[3]


def _result_shape(name: str, options: dict[str, Any], left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    if name.endswith("_input"):
        return tf.stack([tf.shape(right)[0], *options["input_size"], tf.shape(left)[2]])
    if name.endswith("_filter"):
        channels, out = tf.shape(left)[3], tf.shape(right)[3]
        return tf.stack([*options["filter_size"], channels, out if name.startswith("conv2d") else out // channels])
    sizes = []
    for axis in range(2):
        before, after = options["padding"][axis]
        reach = (tf.shape(right)[axis] - 1) * options["dilations"][axis] + 1
        sizes.append((tf.shape(left)[1 + axis] + before + after - reach) // options["strides"][axis] + 1)
    channels = tf.shape(right)[3] if name == "conv2d" else tf.shape(right)[2] * tf.shape(right)[3]
    return tf.stack([tf.shape(left)[0], *sizes, channels])


def _log2_up(count: tf.Tensor) -> tf.Tensor:
    """The least k with 2^k >= count, int32; exact for counts below 2^31."""
    powers = tf.constant([2**k for k in range(31)], tf.int64)
    return tf.reduce_sum(tf.cast(powers < tf.cast(count, tf.int64), tf.int32))


def _scaled(value: tf.Tensor, bits: tf.Tensor, what: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Integers of at most 2^bits in absolute value, and the exponent of the power of two that they were scaled by."""
    wide = tf.cast(value, tf.float64)
    largest = tf.reduce_max(tf.concat([tf.reshape(tf.abs(wide), [-1]), tf.constant([_SMALLEST], tf.float64)], 0))
    refused = EncodingError(
        f"{what} holds NaN or an infinity", expected="finite numbers", remedy="check the inputs and the learning rate"
    )
    # One NaN is enough to fail this; a maximum may overlook it.
    check = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(wide)), [str(refused)], summarize=1)
    with tf.control_dependencies([check]):
        exponent = tf.cast(bits, tf.float64) - tf.math.ceil(
            tf.math.log(largest) / tf.math.log(tf.constant(2.0, tf.float64))
        )
    words = tf.cast(tf.round(wide * tf.pow(tf.constant(2.0, tf.float64), exponent)), tf.int64)
    return words, exponent
