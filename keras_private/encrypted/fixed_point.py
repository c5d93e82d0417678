"""Fixed point in the ring of integers modulo 2^64: real numbers as integers, in units of 2^-fraction."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import tensorflow as tf

from keras_private.errors import ConfigurationError, EncodingError

RING_BITS = 64
TRUNCATION_BITS = 62
"""Truncation is exact to one unit for |value| < 2^62 (protocol/truncation.py)."""


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """How real numbers stand in the ring.

    Attributes:
        fraction: Bits after the point; a unit in the last place is 2^-fraction.
        integer: Bits before the point that an encoded input may use: |x| < 2^integer is accepted.

    A product has 2 * fraction bits after the point until it is truncated, and must stay below 2^62 in the ring:
    `product_bound` in real numbers.
    """

    fraction: int = 16
    integer: int = 24

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, int) and isinstance(self.integer, int)):
            raise ConfigurationError(
                f"fraction is {self.fraction!r}, integer is {self.integer!r}",
                expected="two ints",
                remedy="use FixedPoint()",
            )
        if not (1 <= self.fraction <= 28 and self.integer >= 1 and self.fraction + self.integer <= 52):
            raise ConfigurationError(
                f"a fixed point of {self.integer} + {self.fraction} bits does not fit the ring of {RING_BITS} bits",
                expected="1 <= fraction <= 28, integer >= 1, fraction + integer <= 52",
                remedy="use FixedPoint(), or fewer bits",
            )

    @property
    def unit(self) -> float:
        return 2.0**-self.fraction

    @property
    def input_bound(self) -> float:
        """Encoded inputs must lie strictly below this in absolute value."""
        return 2.0**self.integer

    @property
    def product_bound(self) -> float:
        """A sum of products, before truncation, must stay strictly below this in absolute value."""
        return 2.0 ** (TRUNCATION_BITS - 2 * self.fraction)

    def integer_of(self, value: float, what: str = "a public number", fraction: int | None = None) -> int:
        """The ring element of one public Python number, with `fraction` bits after the point (default: self's).

        Raises:
            EncodingError: It is NaN, infinite, or as large as the ring. The bound on inputs is none on such numbers.
        """
        bits = self.fraction if fraction is None else fraction
        if not math.isfinite(value) or abs(value) * 2.0**bits >= 2.0**TRUNCATION_BITS:
            raise EncodingError(
                f"{what} is {value}, which cannot be encoded with {bits} bits after the point",
                expected=f"a finite number below 2^{TRUNCATION_BITS - bits} in absolute value",
                remedy="use a smaller number, or fewer bits after the point",
            )
        return round(value * 2.0**bits)

    def factor_bits(self, factor: float, fraction: int) -> int:
        """Bits after the point of a public factor, for a value with `fraction` of them: 0 for a small integer.

        A small factor keeps its precision: more bits, as many as are truncated again. A fixed point of few bits leaves
        room for no more than its own.
        """
        if float(factor).is_integer() and abs(factor) < 2**20:
            return 0
        bits = max(self.fraction, fraction)
        while abs(factor) * 2.0**bits < 2.0 ** min(12, self.fraction - 1) and bits < 60:
            bits += 1
        return bits

    def encode(self, value: Any, name: str) -> tf.Tensor:
        """Encodes a float tensor, inside a traced function or eagerly, rounding to nearest.

        Args:
            value: float32 or float64 tensor of any shape.
            name: What the error message calls it.

        Returns:
            int64 tensor of the same shape.

        Raises:
            ConfigurationError: The dtype is not floating.
            EncodingError: Eagerly, or as tf.errors.InvalidArgumentError when run in a graph: a value is NaN, infinite,
                or not below `input_bound`.
        """
        tensor = tf.convert_to_tensor(value)
        if tensor.dtype not in (tf.float32, tf.float64):
            raise ConfigurationError(
                f"{name} is {tensor.dtype.name}", expected="float32 or float64", remedy="cast it before it is shared"
            )
        wide = tf.cast(tensor, tf.float64)
        # NaN fails every comparison, so it fails this one.
        fits = tf.reduce_all(tf.abs(wide) < self.input_bound)
        if tf.executing_eagerly():
            if not bool(fits):
                largest = float(
                    tf.reduce_max(tf.where(tf.math.is_nan(wide), tf.constant(math.inf, tf.float64), abs(wide)))
                )
                raise _refused(name, f"NaN, or a value of size {largest}", self)
            return tf.cast(tf.round(wide * 2.0**self.fraction), tf.int64)
        refused = _refused(name, "NaN, an infinity or a value too large", self)
        with tf.control_dependencies([tf.debugging.Assert(fits, [str(refused)], summarize=1)]):
            return tf.cast(tf.round(tf.identity(wide) * 2.0**self.fraction), tf.int64)

    def decode(self, value: tf.Tensor, fraction: int | None = None) -> tf.Tensor:
        """float64 numbers of ring elements with `fraction` bits after the point."""
        return tf.cast(value, tf.float64) * 2.0 ** -(self.fraction if fraction is None else fraction)


def _refused(name: str, found: str, fixed_point: FixedPoint) -> EncodingError:
    return EncodingError(
        f"{name} holds {found}, which cannot be encoded",
        expected=f"finite numbers below 2^{fixed_point.integer} in absolute value",
        remedy=f"scale or clean {name}, or widen FixedPoint(integer=...)",
    )
