"""The kernels as C++ TensorFlow operations (native/src/ring_*.cc)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_private import native
from keras_private.encrypted.kernels.interface import Kernels, Padding, Pair
from keras_private.errors import BackendError


class NativeKernels(Kernels):
    """One operation a kernel, on all threads of the process's CPU pool.

    Nothing as large as a tensor is written out besides the result, but images with their zeros around them. In a graph
    the result takes the place of a mask that no one else reads.

    Guarantees, besides those of `Kernels`, locked by tests/encrypted/kernels/test_kernels.py:
      * Shapes that do not fit are an error, while tracing as far as they are known then, else when run.
      * Static shapes are inferred as far as the inputs' are known.

    Raises:
        BackendError: The native library cannot be used here, or was built from sources without these operations.
    """

    name = "native"

    def __init__(self) -> None:
        self._ops = native.load()
        if not hasattr(self._ops, "keras_private_ring_matmul"):
            raise BackendError(
                "the native library has no kernels for encrypted training",
                remedy="build it again with: python -m keras_private.native.build",
            )

    def keystream(self, key: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType = tf.int64) -> tf.Tensor:
        return self._ops.keras_private_ring_keystream(key, nonce, _sizes(shape), dtype=dtype)

    def zero_mask(
        self, key_a: tf.Tensor, key_b: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType = tf.int64
    ) -> tf.Tensor:
        return self._ops.keras_private_ring_zero_mask(key_a, key_b, nonce, _sizes(shape), dtype=dtype, bits=False)

    def zero_mask_bits(
        self, key_a: tf.Tensor, key_b: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType
    ) -> tf.Tensor:
        return self._ops.keras_private_ring_zero_mask(key_a, key_b, nonce, _sizes(shape), dtype=dtype, bits=True)

    def product(self, x0: tf.Tensor, x1: tf.Tensor, y0: tf.Tensor, y1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_ring_product(x0, x1, y0, y1, mask)

    def matmul(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        y0: tf.Tensor,
        y1: tf.Tensor,
        mask: tf.Tensor,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> tf.Tensor:
        return self._matmul([x0, x1], [y0, y1], [mask], transpose_a, transpose_b)

    def matmul_public(
        self, x: tf.Tensor, y: tf.Tensor, transpose_a: bool = False, transpose_b: bool = False
    ) -> tf.Tensor:
        return self._matmul([x], [y], [], transpose_a, transpose_b)

    def conv2d(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        w0: tf.Tensor,
        w1: tf.Tensor,
        mask: tf.Tensor,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        window = _window(strides, padding, dilations)
        return self._ops.keras_private_ring_conv2d([x0, x1], [w0, w1], [mask], **window)

    def conv2d_public(self, x: tf.Tensor, w: tf.Tensor, strides: Pair, padding: Padding, dilations: Pair) -> tf.Tensor:
        return self._ops.keras_private_ring_conv2d([x], [w], [], **_window(strides, padding, dilations))

    def conv2d_input(
        self,
        w0: tf.Tensor,
        w1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        input_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        window = _window(strides, padding, dilations, input_size)
        return self._ops.keras_private_ring_conv2d_input([w0, w1], [g0, g1], [mask], **window)

    def conv2d_filter(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        filter_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        window = _window(strides, padding, dilations, filter_size)
        return self._ops.keras_private_ring_conv2d_filter([x0, x1], [g0, g1], [mask], **window)

    def depthwise(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        w0: tf.Tensor,
        w1: tf.Tensor,
        mask: tf.Tensor,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        window = _window(strides, padding, dilations)
        return self._ops.keras_private_ring_depthwise([x0, x1], [w0, w1], [mask], **window)

    def depthwise_public(
        self, x: tf.Tensor, w: tf.Tensor, strides: Pair, padding: Padding, dilations: Pair
    ) -> tf.Tensor:
        return self._ops.keras_private_ring_depthwise([x], [w], [], **_window(strides, padding, dilations))

    def depthwise_input(
        self,
        w0: tf.Tensor,
        w1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        input_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        window = _window(strides, padding, dilations, input_size)
        return self._ops.keras_private_ring_depthwise_input([w0, w1], [g0, g1], [mask], **window)

    def depthwise_filter(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        filter_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        window = _window(strides, padding, dilations, filter_size)
        return self._ops.keras_private_ring_depthwise_filter([x0, x1], [g0, g1], [mask], **window)

    def and_words(self, x0: tf.Tensor, x1: tf.Tensor, y0: tf.Tensor, y1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_ring_and_words(x0, x1, y0, y1, mask)

    def carry_leaf(
        self, a0: tf.Tensor, a1: tf.Tensor, b0: tf.Tensor, b1: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return tuple(self._ops.keras_private_ring_carry_leaf(a0, a1, b0, b1, mask))

    def carry_level(self, width: int, x0: tf.Tensor, x1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_ring_carry_level(x0, x1, mask, width=width)

    def trunc_dealer(
        self, key0: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor, shape: Any, bits: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(self._ops.keras_private_ring_trunc_dealer(key0, key2, nonce, _sizes(shape), bits=bits))

    def trunc_mask(self, z2: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_ring_trunc_mask(key2, nonce, z2)

    def trunc_open0(self, z0: tf.Tensor, z2m: tf.Tensor, key0: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_ring_trunc_open0(key0, nonce, z2m, z0)

    def trunc_open1(self, z1: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_ring_trunc_open1(key2, nonce, z1)

    def trunc_close0(self, c0: tf.Tensor, c1: tf.Tensor, key0: tf.Tensor, nonce: tf.Tensor, bits: int) -> tf.Tensor:
        return self._ops.keras_private_ring_trunc_close0(key0, nonce, c0, c1, bits=bits)

    def trunc_close1(
        self,
        c0: tf.Tensor,
        c1: tf.Tensor,
        a1: tf.Tensor,
        m1: tf.Tensor,
        key2: tf.Tensor,
        nonce: tf.Tensor,
        bits: int,
    ) -> tf.Tensor:
        del bits
        return self._ops.keras_private_ring_trunc_close1(key2, nonce, c0, c1, a1, m1)

    def _matmul(
        self,
        x: Sequence[tf.Tensor],
        y: Sequence[tf.Tensor],
        mask: Sequence[tf.Tensor],
        transpose_a: bool,
        transpose_b: bool,
    ) -> tf.Tensor:
        return self._ops.keras_private_ring_matmul(x, y, mask, transpose_a=transpose_a, transpose_b=transpose_b)


def _window(strides: Pair, padding: Padding, dilations: Pair, sizes: Pair | None = None) -> dict[str, list[int]]:
    attributes = {"strides": list(strides), "padding": [*padding[0], *padding[1]], "dilations": list(dilations)}
    return attributes if sizes is None else {**attributes, "sizes": list(sizes)}


def _sizes(shape: Any) -> tf.Tensor:
    sizes = tf.convert_to_tensor(shape)
    # An empty list arrives as floats.
    return sizes if sizes.dtype in (tf.int32, tf.int64) else tf.cast(sizes, tf.int32)
