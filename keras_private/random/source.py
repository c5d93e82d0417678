"""The interface of a secure source, and the checks that both sources share."""

from __future__ import annotations

import abc
import math
from typing import Any, final

import tensorflow as tf

from keras_private.errors import ConfigurationError

CELLS_PER_SIGMA = 2**20
"""A Gaussian draw is an integer number of cells; one standard deviation is this many cells."""

TOTAL_VARIATION_PER_DRAW = 2.0**-60
"""Bound on the distance of one draw of `gaussian_cells` from its ideal law; docs/guarantees/randomness.md."""

INTEGER_DTYPES = (tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64)
_SMALLEST_CELL = 2.0**-125


class SecureSource(abc.ABC):
    """Draws for secrets: noise, masks, keys. Works eagerly and inside tf.function, loops included.

    Guarantees, each locked by tests/contracts/secure_source.py for every source:
      * Every draw is unpredictable to anyone who does not read this process's memory: its only input is the
        operating system's generator, expanded by AES-256-CTR or ChaCha20. There is no seed argument.
      * A traced draw is fresh at each execution: it is neither folded, merged nor hoisted by grappler.
      * No state is in any checkpoint, SavedModel or graph; forks, threads and processes never share a stream.
      * A draw that cannot be secure raises; nothing weaker is handed out.
      * Integer laws are exact. The Gaussian is within TOTAL_VARIATION_PER_DRAW of its ideal law, and is
        released on a grid, so that no bit of a float betrays the value under it (Mironov 2012, "On
        significance of the least significant bits for differential privacy").
    """

    name: str = ""

    @final
    def uniform_full(self, shape: Any, dtype: Any) -> tf.Tensor:
        """Uniform integers over the whole range of `dtype`.

        Args:
            shape: Sequence of ints, or an integer tensor of rank 1.
            dtype: One of the eight integer dtypes.

        Raises:
            ConfigurationError: `dtype` or `shape` cannot be used.
        """
        return self._uniform_full(_checked_shape(shape), _checked_integer_dtype(dtype))

    @final
    def uniform(self, shape: Any, minval: Any, maxval: Any, dtype: Any = tf.int64) -> tf.Tensor:
        """Uniform integers in [minval, maxval), without modulo bias.

        Args:
            shape: Sequence of ints, or an integer tensor of rank 1.
            minval: Python int, or scalar tensor of `dtype`.
            maxval: Likewise; as a Python int it may be one past the dtype's largest value.
            dtype: One of the eight integer dtypes.

        Raises:
            ConfigurationError: An argument cannot be used, or Python bounds are empty.
            tf.errors.InvalidArgumentError: Tensor bounds are empty when run.
        """
        dtype = _checked_integer_dtype(dtype)
        shape = _checked_shape(shape)
        if not isinstance(minval, int) or not isinstance(maxval, int):
            return self._uniform(shape, _checked_bound(minval, dtype), _checked_bound(maxval, dtype), dtype)
        if not dtype.min <= minval < maxval <= dtype.max + 1:
            raise ConfigurationError(
                f"the range [{minval}, {maxval}) cannot be drawn from as {dtype.name}",
                expected=f"{dtype.min} <= minval < maxval <= {dtype.max + 1}",
                remedy="correct the bounds, or choose a wider dtype",
            )
        if maxval <= dtype.max:
            return self._uniform(shape, tf.constant(minval, dtype), tf.constant(maxval, dtype), dtype)
        if minval == dtype.min:
            return self._uniform_full(shape, dtype)
        # The excluded end is not a value of the dtype: draw one lower and shift.
        below = self._uniform(shape, tf.constant(minval - 1, dtype), tf.constant(maxval - 1, dtype), dtype)
        return below + tf.constant(1, dtype)

    @final
    def gaussian_cells(self, shape: Any) -> tf.Tensor:
        """int64 draws of floor(CELLS_PER_SIGMA * Z), Z standard normal.

        k + floor(c Z) = floor(k + c Z) for an integer k: a release of integers with this noise is
        post-processing of the continuous Gaussian mechanism, whose guarantee it inherits under every
        accountant.

        Args:
            shape: Sequence of ints, or an integer tensor of rank 1.
        """
        return self._gaussian_cells(_checked_shape(shape))

    @final
    def gaussian(self, shape: Any, stddev: Any = 1.0, dtype: Any = tf.float32) -> tf.Tensor:
        """Normal draws rounded to the middles of cells of stddev / CELLS_PER_SIGMA.

        Not for adding to a real-valued secret: `add_gaussian_noise` rounds the secret to the same grid.

        Args:
            shape: Sequence of ints, or an integer tensor of rank 1.
            stddev: Python number or floating scalar tensor.
            dtype: tf.float32 or tf.float64.
        """
        dtype = _checked_dtype(dtype, (tf.float32, tf.float64))
        cells = tf.cast(self.gaussian_cells(shape), tf.float64)
        return tf.cast((cells + 0.5) * (_checked_double(stddev, "stddev") / CELLS_PER_SIGMA), dtype)

    @final
    def add_gaussian_noise(self, x: Any, cell: Any, scale: Any = 1.0) -> tf.Tensor:
        """Rounds x once to the grid of `cell`, adds Gaussian cells, and scales.

        With k the integer nearest to x / cell (ties to even, computed in float64, clamped to +-2^52, NaN
        gives 0), the result is float32((k + floor(2^20 Z) + 1/2) * (cell * scale)): noise of standard
        deviation 2^20 * cell before scaling. What follows the integer addition is post-processing.

        Args:
            x: float32 tensor of any shape.
            cell: Finite, at least 2^-125; Python number or floating scalar tensor.
            scale: Finite, as is cell * scale; Python number or floating scalar tensor.

        Raises:
            ConfigurationError: x is not float32, or a Python number is out of range.
            tf.errors.InvalidArgumentError: A tensor `cell` or `scale` is out of range when run.
        """
        x = tf.convert_to_tensor(x)
        if x.dtype != tf.float32:
            raise ConfigurationError(
                f"add_gaussian_noise got {x.dtype.name}",
                expected="float32",
                remedy="cast the tensor before adding noise",
            )
        if isinstance(cell, (int, float)) and not (math.isfinite(cell) and cell >= _SMALLEST_CELL):
            raise ConfigurationError(
                f"cell is {cell}",
                expected="a finite number of at least 2^-125",
                remedy="check the noise's stddev",
            )
        if isinstance(scale, (int, float)) and not math.isfinite(scale):
            raise ConfigurationError(
                f"scale is {scale}", expected="a finite number", remedy="check the divisor"
            )
        return self._add_gaussian_noise(x, _checked_double(cell, "cell"), _checked_double(scale, "scale"))

    @final
    def expand(self, key: Any, num_bytes: Any, nonce: Any, counter: Any = 0) -> tf.Tensor:
        """ChaCha20 keystream (RFC 8439, 2.4): deterministic, the same bytes from every source.

        Hand keys in as run-time tensors: a constant key would be written into the graph.

        Args:
            key: uint8 tensor of shape [32].
            num_bytes: Python int or integer scalar tensor; shape of the result.
            nonce: uint8 tensor of shape [12]. Never use one twice under one key.
            counter: First block, 0 to 2^32 - 1.

        Returns:
            uint8 tensor of shape [num_bytes].

        Raises:
            ConfigurationError: A static shape, dtype or number is wrong.
            tf.errors.InvalidArgumentError: The stream would pass block 2^32, or a value is wrong when run.
        """
        key, nonce = _checked_bytes(key, 32, "key"), _checked_bytes(nonce, 12, "nonce")
        sizes = [tf.cast(tf.convert_to_tensor(value), tf.int64) for value in (counter, num_bytes)]
        return self._expand(key, nonce, *sizes)

    @abc.abstractmethod
    def _uniform_full(self, shape: tf.Tensor, dtype: tf.DType) -> tf.Tensor: ...

    @abc.abstractmethod
    def _uniform(
        self, shape: tf.Tensor, minval: tf.Tensor, maxval: tf.Tensor, dtype: tf.DType
    ) -> tf.Tensor: ...

    @abc.abstractmethod
    def _gaussian_cells(self, shape: tf.Tensor) -> tf.Tensor: ...

    @abc.abstractmethod
    def _add_gaussian_noise(self, x: tf.Tensor, cell: tf.Tensor, scale: tf.Tensor) -> tf.Tensor: ...

    @abc.abstractmethod
    def _expand(
        self, key: tf.Tensor, nonce: tf.Tensor, counter: tf.Tensor, num_bytes: tf.Tensor
    ) -> tf.Tensor: ...


def _checked_dtype(dtype: Any, allowed: tuple[tf.DType, ...]) -> tf.DType:
    try:
        found = tf.as_dtype(dtype)
    except TypeError:
        found = None
    if found not in allowed:
        raise ConfigurationError(
            f"dtype {dtype!r} cannot be drawn",
            expected=", ".join(each.name for each in allowed),
            remedy="draw one of these and cast",
        )
    return found


def _checked_integer_dtype(dtype: Any) -> tf.DType:
    return _checked_dtype(dtype, INTEGER_DTYPES)


def _checked_shape(shape: Any) -> tf.Tensor:
    expected, remedy = (
        "a sequence of non-negative ints, or an int32 or int64 tensor of rank 1",
        "give a known shape",
    )
    if isinstance(shape, tf.TensorShape):
        if not shape.is_fully_defined():
            raise ConfigurationError(
                f"shape {shape} is not fully known", expected=expected, remedy="use tf.shape(x)"
            )
        shape = shape.as_list()
    if isinstance(shape, (list, tuple)) and not shape:
        return tf.zeros([0], tf.int32)
    try:
        tensor = tf.convert_to_tensor(shape)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"shape {shape!r} cannot be used", expected=expected, remedy=remedy
        ) from error
    if tensor.dtype not in (tf.int32, tf.int64) or tensor.shape.rank not in (1, None):
        raise ConfigurationError(f"shape {shape!r} cannot be used", expected=expected, remedy=remedy)
    static = tf.get_static_value(tensor)
    if static is not None and (static < 0).any():
        raise ConfigurationError(f"shape {shape!r} has a negative size", expected=expected, remedy=remedy)
    return tensor


def _checked_bound(value: Any, dtype: tf.DType) -> tf.Tensor:
    try:
        tensor = tf.convert_to_tensor(value, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"bound {value!r} is no {dtype.name}",
            expected=f"an int or a {dtype.name} scalar",
            remedy="cast the bound",
        ) from error
    if tensor.shape.rank not in (0, None):
        raise ConfigurationError(
            f"a bound has shape {tensor.shape}",
            expected="a scalar",
            remedy="draw once for each pair of bounds",
        )
    return tensor


def _checked_double(value: Any, label: str) -> tf.Tensor:
    tensor = (
        tf.convert_to_tensor(value, tf.float64) if not tf.is_tensor(value) else tf.convert_to_tensor(value)
    )
    if not tensor.dtype.is_floating or tensor.shape.rank not in (0, None):
        raise ConfigurationError(
            f"{label} is {tensor.dtype.name} of shape {tensor.shape}",
            expected="a floating scalar",
            remedy="cast it",
        )
    return tf.cast(tensor, tf.float64)


def _checked_bytes(value: Any, size: int, label: str) -> tf.Tensor:
    tensor = tf.convert_to_tensor(value)
    if tensor.dtype != tf.uint8 or not tensor.shape.is_compatible_with([size]):
        raise ConfigurationError(
            f"{label} is {tensor.dtype.name} of shape {tensor.shape}",
            expected=f"uint8 of shape [{size}]",
            remedy="hand in raw bytes, such as tf.io.decode_raw(data, tf.uint8)",
        )
    return tensor
