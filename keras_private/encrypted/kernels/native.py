"""The kernels as C++ TensorFlow operations (native/src/ring_*.cc)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_private import native
from keras_private.encrypted.kernels.portable import PortableKernels
from keras_private.errors import BackendError

_CONTAINERS = {64: tf.int64, 32: tf.int32, 16: tf.int16, 8: tf.int8, 4: tf.int8, 2: tf.int8}


class NativeKernels(PortableKernels):
    """One operation a kernel, on all threads of the process's CPU pool, with no temporary as large as a tensor.

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


def _sizes(shape: Any) -> tf.Tensor:
    sizes = tf.convert_to_tensor(shape)
    # An empty list arrives as floats.
    return sizes if sizes.dtype in (tf.int32, tf.int64) else tf.cast(sizes, tf.int32)
