"""Division by square roots of shared values, for optimizers that divide by the size of gradients.

A value is brought into [1/4, 1) by secret powers of four, found by comparisons with public powers; there a polynomial
and two of Newton's iterations give the inverse root, and the secret powers of two are multiplied back.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.comparison import is_negative
from keras_private.encrypted.protocol.functions import GUARDED, polynomial, with_fraction
from keras_private.encrypted.protocol.products import multiply
from keras_private.encrypted.shared import Shared, add_public
from keras_private.errors import ConfigurationError

_LARGEST_TOP = 60
_NEWTON_STEPS = 2


def divided_by_root(numerator: Shared, value: Shared, low: float, high: float) -> Shared:
    """numerator / sqrt(value), elementwise.

    1. With N the ring value, N < 2^top: for each of a few even shifts s, halving, a shared bit tells whether
       N < 2^(top - s), and N is multiplied by 2^s if so, exactly. At the end N is in [2^(top-2), 2^top).
    2. y = 1 / sqrt(N / 2^top) by `_inverse_root_of_normal`.
    3. numerator * y is multiplied by 2^(s / 2) for each bit that was set, exactly.

    Relative error below 2^-18, and one unit of the numerator's fraction times 1 / sqrt(value).

    Args:
        numerator: Of any size for which numerator / sqrt(low) fits the ring, with its own fraction or with GUARDED
            bits after the point, whichever is more.
        value: With low <= value < high; outside, the result is meaningless.
        low: Above 0, public.
        high: Public.

    Raises:
        ConfigurationError: The bounds are not 0 < low < high, or high does not fit the ring.
    """
    if not 0 < low < high < math.inf:
        raise ConfigurationError(f"bounds {low} and {high}", expected="0 < low < high", remedy="give the interval")
    top = math.ceil(math.log2(high)) + value.fraction
    # The power of two that is left over must have a whole root.
    top += (top - value.fraction) % 2
    if top > _LARGEST_TOP:
        raise ConfigurationError(
            f"a root of values up to {high} with {value.fraction} bits after the point",
            expected=f"less than {2.0 ** (_LARGEST_TOP - value.fraction)}",
            remedy="use fewer bits after the point",
        )
    lowest = math.floor(math.log2(low)) + value.fraction
    if lowest < 0:
        raise ConfigurationError(
            f"a root of values down to {low}", expected=f"at least {2.0**-value.fraction}", remedy="use more bits"
        )
    with tf.name_scope("root"):
        scaled = value
        bits: list[tuple[Shared, int]] = []
        for shift in shifts(top - lowest):
            bit = is_negative(add_public(scaled, -(2 ** (top - shift))))
            scaled = scaled + multiply(bit, scaled).times_integer(2**shift - 1)
            bits.append((bit, shift))
        normal = with_fraction(Shared(value.session, scaled.pairs, top), GUARDED)
        result = multiply(with_fraction(numerator, max(GUARDED, numerator.fraction)), _inverse_root_of_normal(normal))
        for bit, shift in bits:
            result = result + multiply(bit, result).times_integer(2 ** (shift // 2) - 1)
        return result.scaled_by_power((value.fraction - top) // 2)


def shifts(span: int) -> list[int]:
    """Even shifts, in order, after which every N in [2^(top - span), 2^top) is in [2^(top - 2), 2^top).

    Shift s is taken where N < 2^(top - s). It is right if all the shifts from it on sum to 2 s - 2 at least.
    """
    found: list[int] = []
    while sum(found) < span - 2:
        # Doubling covers most; the last one added covers what is left.
        needed = span - 2 - sum(found)
        found.insert(0, min(2 * (found[0] if found else 1), needed + needed % 2))
    return sorted(found, reverse=True)


def _inverse_root_of_normal(value: Shared) -> Shared:
    """1 / sqrt(x) for 1/4 <= x < 1: a parabola, then y <- y (3 - x y^2) / 2."""
    result = polynomial(value, _first_guess())
    for _ in range(_NEWTON_STEPS):
        # Halving moves the point.
        result = multiply(result, 3.0 - multiply(multiply(value, result), result)).scaled_by_power(-1)
    return result


@functools.lru_cache(maxsize=1)
def _first_guess() -> list[float]:
    """Chebyshev's interpolation of degree 2: relative error below 0.04, after two iterations below 2^-18."""
    series = np.polynomial.Chebyshev.interpolate(lambda x: 1 / np.sqrt(x), 2, domain=[0.25, 1.0])
    return [float(c) for c in series.convert(kind=np.polynomial.Polynomial).coef]
