"""Products of shared values (Mohassel and Rindal 2018, section 3.2.2), followed by truncation where there is a point.

Of x y = (x_0 + x_1 + x_2)(y_0 + y_1 + y_2), party i computes z_i = x_i (y_i + y_{i+1}) + x_{i+1} y_i, in one pass of a
kernel. A product of integers adds a sharing of zero and passes z_i on to party i-1: one word a number and party. A
product of numbers with a point goes to the truncation, which masks z_i itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.sharing import reshare
from keras_private.encrypted.protocol.truncation import truncate, truncate_summands
from keras_private.encrypted.shared import Shared
from keras_private.errors import ConfigurationError

Kernel = Callable[..., tf.Tensor]
Four = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]


def multiply(left: Shared, right: Shared, truncated: bool = True, fraction: int | None = None) -> Shared:
    """Elementwise product, with broadcasting; masks have the product's shape.

    Args:
        left: A factor.
        right: Another.
        truncated: Whether to truncate, to the larger fraction of both.
        fraction: Bits after the point to truncate to, instead.
    """
    shape = _broadcast(left, right)

    def run(kernels: Any, four: Four, mask: tf.Tensor) -> tf.Tensor:
        wide = [each if each.shape == mask.shape else tf.broadcast_to(each, tf.shape(mask)) for each in four]
        return kernels.product(*wide, mask)

    return _bilinear("multiply", left, right, run, shape, truncated, fraction)


def sum_of_products(
    left: Shared, right: Shared, axes: Sequence[int], truncated: bool = True, fraction: int | None = None
) -> Shared:
    """Of the elementwise product, with broadcasting, along axes, which are kept with size 1.

    Each party sums before it sends: only the sums are masked and truncated. Arguments as of `multiply`.
    """
    whole = tf.broadcast_static_shape(left.shape, right.shape)
    kept = [1 if axis in axes else size for axis, size in enumerate(whole.as_list())]

    def run(kernels: Any, four: Four, mask: tf.Tensor) -> tf.Tensor:
        wide = [each if each.shape == whole else tf.broadcast_to(each, whole) for each in four]
        return tf.reduce_sum(kernels.product(*wide, tf.zeros_like(wide[0])), axes, keepdims=True) + mask

    return _bilinear("sum_of_products", left, right, run, lambda a, b: tf.constant(kept), truncated, fraction)


def square(value: Shared) -> Shared:
    return multiply(value, value)


def matmul(
    left: Shared, right: Shared, transpose_a: bool = False, transpose_b: bool = False, truncated: bool = True
) -> Shared:
    """Matrix product of rank 2; untruncated, it has the fractions of both factors together."""
    if left.shape.rank != 2 or right.shape.rank != 2:
        raise ConfigurationError(
            f"matmul of shapes {left.shape} and {right.shape}", expected="two matrices", remedy="reshape to rank 2"
        )

    def shape(a: tf.Tensor, b: tf.Tensor) -> Any:
        return tf.stack([tf.shape(a)[1 if transpose_a else 0], tf.shape(b)[0 if transpose_b else 1]])

    def run(kernels: Any, four: Four, mask: tf.Tensor) -> tf.Tensor:
        return kernels.matmul(*four, mask, transpose_a, transpose_b)

    return _bilinear("matmul", left, right, run, shape, truncated)


def convolution(
    name: str, left: Shared, right: Shared, shape: Callable[..., Any], truncated: bool = True, **geometry: Any
) -> Shared:
    """One of the kernels' convolutions: conv2d, conv2d_input, conv2d_filter, depthwise, depthwise_input, ..._filter.

    Args:
        name: The kernel.
        left: Its first factor.
        right: Its second.
        shape: From the first shares of both to the shape of the result.
        truncated: Whether to truncate to the larger fraction of both.
        **geometry: strides, padding, dilations and sizes, as the kernel takes them.
    """

    def run(kernels: Any, four: Four, mask: tf.Tensor) -> tf.Tensor:
        return getattr(kernels, name)(*four, mask, **geometry)

    return _bilinear(name, left, right, run, shape, truncated)


def _bilinear(
    name: str,
    left: Shared,
    right: Shared,
    run: Callable[[Any, Four, tf.Tensor], tf.Tensor],
    shape: Callable[[tf.Tensor, tf.Tensor], Any],
    truncated: bool = True,
    kept: int | None = None,
) -> Shared:
    session = left.session
    if right.session is not session:
        raise ConfigurationError("a product of values of two sessions", expected="one run", remedy="share both in one")
    fraction = left.fraction + right.fraction
    surplus = fraction - (max(left.fraction, right.fraction) if kept is None else kept) if truncated else 0
    with tf.name_scope(name):
        nonce = None if surplus else session.nonce()
        summands = []
        for party in range(3):
            with session.at(party):
                four = (*left.pairs[party], *right.pairs[party])
                size = shape(four[0], four[2])
                mask = tf.zeros(size, tf.int64) if nonce is None else session.zero_mask(party, size, nonce)
                summands.append(run(session.kernels, four, mask))
        if surplus:
            return truncate_summands(session, summands, surplus, fraction - surplus)
        return Shared(session, reshare(session, summands), fraction)


def scale(value: Shared, factor: Any) -> Shared:
    """Product with public numbers: a Python number, or a float tensor that every party has.

    Powers of two and integers cost nothing but range; other numbers cost a truncation.
    """
    session = value.session
    fixed_point = session.fixed_point
    if isinstance(factor, (int, float)):
        bits = fixed_point.factor_bits(factor, value.fraction)
        if not bits:
            return value.times_integer(int(factor))
        product = value.times_integer(fixed_point.integer_of(float(factor), "a public factor", fraction=bits))
        return truncate(Shared(session, product.pairs, value.fraction + bits), bits)
    return scale_by_tensor(value, factor)


def scale_by_tensor(value: Shared, factor: tf.Tensor) -> Shared:
    """Product with a public float tensor, which each party encodes for itself."""
    session = value.session
    pairs = []
    for party in range(3):
        with session.at(party):
            encoded = session.fixed_point.encode(tf.identity(factor), "a public factor")
            pairs.append(tuple(share * encoded for share in value.pairs[party]))
    wide = Shared(session, tuple(pairs), value.fraction + session.fixed_point.fraction)
    return truncate(wide, session.fixed_point.fraction)


def scale_by_constants(value: Shared, factors: np.ndarray, bits: int = 20) -> Shared:
    """Product with public numbers, as whole numbers of so many bits: relative error below 2^-bits of the largest.

    Integers cost nothing but range.
    """
    largest = float(np.max(np.abs(factors), initial=0.0))
    if largest <= 2.0**20 and np.all(np.equal(factors, np.rint(factors))):
        whole = np.asarray(np.rint(factors), np.int64)
        return value.local(lambda share: share * tf.constant(whole, tf.int64))
    after = int(np.clip(bits - np.ceil(np.log2(max(largest, 2.0**-20))), 1, 40))
    integers = np.rint(np.asarray(factors, np.float64) * 2.0**after).astype(np.int64)
    wide = value.local(lambda share: share * tf.constant(integers, tf.int64))
    return truncate(Shared(value.session, wide.pairs, value.fraction + after), after)


def _broadcast(left: Shared, right: Shared) -> Callable[[tf.Tensor, tf.Tensor], Any]:
    try:
        static = tf.broadcast_static_shape(left.shape, right.shape)
    except ValueError as error:
        raise ConfigurationError(
            f"a product of shapes {left.shape} and {right.shape}",
            expected="shapes that broadcast",
            remedy="reshape one",
        ) from error
    if static.is_fully_defined():
        return lambda a, b: tf.constant(static.as_list(), tf.int32)
    return lambda a, b: tf.broadcast_dynamic_shape(tf.shape(a), tf.shape(b))
