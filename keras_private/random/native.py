"""The native source: stateful ops over one AES-256-CTR stream per thread (native/src/generator.h)."""

from __future__ import annotations

import tensorflow as tf

from keras_private import native
from keras_private.random.source import SecureSource


class NativeSource(SecureSource):
    """Secure draws by the package's own C++ ops, several times as fast as tf.random.normal.

    Raises:
        BackendError: The native library cannot be used here.
    """

    name = "native"

    def __init__(self) -> None:
        self._ops = native.load()

    def _uniform_full(self, shape: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return self._ops.keras_private_uniform_full(shape, dtype=dtype)

    def _uniform(self, shape: tf.Tensor, minval: tf.Tensor, maxval: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return self._ops.keras_private_uniform_int(shape, minval, maxval)

    def _gaussian_cells(self, shape: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_gaussian_cells(shape)

    def _add_gaussian_noise(self, x: tf.Tensor, cell: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        return self._ops.keras_private_add_gaussian_noise(x, cell, scale)

    def _expand(
        self, key: tf.Tensor, nonce: tf.Tensor, counter: tf.Tensor, num_bytes: tf.Tensor
    ) -> tf.Tensor:
        return self._ops.keras_private_expand(key, nonce, counter, num_bytes)
