"""The portable source: ChaCha20 in stock TensorFlow ops, keyed by the operating system at every draw."""

from __future__ import annotations

import os

import tensorflow as tf

from keras_private.errors import RandomnessError
from keras_private.random import entropy, laws
from keras_private.random.source import SecureSource


class PortableSource(SecureSource):
    """Secure draws where the native library cannot be loaded. Slower, never weaker.

    Each draw reads one 256-bit key from the operating system when it runs; its words are ChaCha20's keystream
    under that key, one nonce for each use. So there is no state, and nothing to repeat after a fork or a
    restored checkpoint.

    Args:
        stock_ops_only: The graph will run elsewhere, such as in a static worker: use no Python functions.

    Raises:
        RandomnessError: The operating system's generator cannot be reached in the way asked for.
    """

    name = "portable"

    def __init__(self, *, stock_ops_only: bool = False) -> None:
        self._path: str | None = entropy.UUID_PATH
        try:
            entropy.require_kernel_source(entropy.UUID_PATH)
        except RandomnessError:
            if stock_ops_only:
                raise
            self._path = None
            _require_urandom()

    def _key(self) -> tf.Tensor:
        return entropy.python_key() if self._path is None else entropy.kernel_key(self._path)

    def _uniform_full(self, shape: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return _shaped(laws.uniform_full(self._key(), _count(shape), dtype), shape)

    def _uniform(self, shape: tf.Tensor, minval: tf.Tensor, maxval: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return _shaped(laws.uniform(self._key(), _count(shape), minval, maxval), shape)

    def _gaussian_cells(self, shape: tf.Tensor) -> tf.Tensor:
        return _shaped(laws.gaussian_cells(self._key(), _count(shape)), shape)

    def _add_gaussian_noise(self, x: tf.Tensor, cell: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        noise = tf.reshape(laws.gaussian_cells(self._key(), tf.size(x, tf.int64)), tf.shape(x))
        noisy = laws.round_and_add(x, noise, cell, scale)
        noisy.set_shape(x.shape)
        return noisy

    def _expand(
        self, key: tf.Tensor, nonce: tf.Tensor, counter: tf.Tensor, num_bytes: tf.Tensor
    ) -> tf.Tensor:
        static = tf.get_static_value(num_bytes)
        stream = laws.expand(key, nonce, counter, num_bytes)
        stream.set_shape([None if static is None else int(static)])
        return stream


def _require_urandom() -> None:
    try:
        os.urandom(1)
    except (NotImplementedError, OSError) as error:
        raise RandomnessError(
            f"the operating system gives no randomness: {error}",
            expected="a working os.urandom",
            remedy="use a supported operating system",
        ) from error


def _count(shape: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.cast(shape, tf.int64))


def _shaped(flat: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    return tf.reshape(flat, shape)
