"""Smooth functions of shared values, from products and signs.

Every function states the interval on which it is right, and its largest error there beside the rounding of about one
unit in the last place for each product; tests/encrypted/protocol/test_functions.py measures both.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.comparison import choose, clip, is_negative, largest
from keras_private.encrypted.protocol.products import multiply, scale, square
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.shared import Shared, local
from keras_private.errors import ConfigurationError

EXPONENT_FLOOR = -14.0
"""exp takes smaller arguments as this one: e^-14 is less than a tenth of a unit at 16 bits after the point."""

GUARDED = 24
"""Bits after the point inside these functions, whose numbers are small: their errors vanish below 16."""

_HALVINGS = 4
_LINE_UP_TO = 500.0
_RECIPROCAL_BITS = 4
_POLYNOMIAL_UP_TO = 16.0


def with_fraction(value: Shared, fraction: int) -> Shared:
    """The same number with more bits after the point, which is free, or with fewer, which is a truncation."""
    if fraction >= value.fraction:
        wider = value.times_integer(2 ** (fraction - value.fraction))
        return Shared(value.session, wider.pairs, fraction)
    return truncate(value, value.fraction - fraction)


def polynomial(value: Shared, coefficients: list[float]) -> Shared:
    """sum_k coefficients[k] * value^k by Horner's rule."""
    result = scale(value, coefficients[-1]) + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        result = multiply(result, value) + coefficient
    return result


def exp_of_nonpositive(value: Shared, clipped: bool = True) -> Shared:
    """e^x for x <= 0: a polynomial of degree 5 at x / 16, squared four times.

    Args:
        value: At most 0 (up to one unit).
        clipped: False when x >= EXPONENT_FLOOR is known.

    Returns:
        Numbers with GUARDED bits after the point.
    """
    if clipped:
        value = clip(value, low=EXPONENT_FLOOR)
    # Dividing by 16 only moves the point.
    small = with_fraction(value.scaled_by_power(-_HALVINGS), GUARDED)
    result = polynomial(small, _exp_coefficients())
    for _ in range(_HALVINGS):
        result = square(result)
    return result


def reciprocal(value: Shared, low: float, high: float) -> Shared:
    """1 / x for low <= x <= high, public bounds, by Newton's iteration y <- y (2 - x y).

    The first guess is the line whose largest relative error on the interval is least; on a long interval, where that
    line falls below the rounding of its end, 1 / high.

    Raises:
        ConfigurationError: The bounds are not 0 < low <= high, or 1 / high is less than 16 units in the last place.
    """
    most = 2.0 ** (value.fraction - _RECIPROCAL_BITS)
    if not 0 < low <= high or high > max(most, _LINE_UP_TO * low):
        raise ConfigurationError(
            f"bounds {low} and {high}",
            expected=f"0 < low <= high <= {most:.0f}",
            remedy="give the interval of x",
        )
    # 1 - x (a - b x) is a parabola; equal errors at both ends and at the middle give a and b.
    middle = (low + high) / 2
    curvature = (high - low) ** 2 / 4
    b = 2 / (2 * middle * middle - curvature)
    a, error = 2 * middle * b, curvature * b / 2
    if high <= _LINE_UP_TO * low:
        guess = a - scale(value, b)
    else:
        error = 1 - low / high
        guess = value.times_integer(0) + 1 / high
    while error > 2.0**-22:
        guess = multiply(guess, 2.0 - multiply(value, guess))
        error *= error
    return guess


def sigmoid(value: Shared) -> Shared:
    """1 / (1 + e^-x) for every x."""
    below = is_negative(value)
    minus_magnitude = multiply(below.times_integer(2) - 1, value)
    positive = reciprocal(exp_of_nonpositive(minus_magnitude) + 1.0, 1.0, 2.0)
    return with_fraction(choose(below, 1.0 - positive, positive), value.fraction)


def tanh(value: Shared) -> Shared:
    """2 sigmoid(2 x) - 1."""
    return sigmoid(value.times_integer(2)).times_integer(2) - 1.0


def softmax(logits: Shared) -> Shared:
    """Along the last axis, of any number of classes, one included."""
    exponentials, total = _exponentials(logits)
    product = multiply(exponentials, reciprocal(total, 1.0, float(logits.shape[-1])))
    return with_fraction(product, logits.fraction)


def log_sum_exp(logits: Shared) -> Shared:
    """log sum_k e^x_k along the last axis, kept as size 1."""
    top, _ = largest(logits, one_hot=False)
    _, total = _exponentials(logits, top)
    logarithm_of_total = with_fraction(logarithm(total, float(logits.shape[-1])), logits.fraction)
    return logarithm_of_total + top.local(lambda share: share[..., None])


def logarithm(value: Shared, high: float) -> Shared:
    """log x for 1 <= x <= high, a public bound.

    Up to _POLYNOMIAL_UP_TO, a polynomial in x moved to [-1, 1], of error below 2^-22. Above, Newton's iteration
    y <- y - 1 + x e^-y, from its chord; the error of e^-y, a few units of its GUARDED bits, counts x times.
    """
    if high <= 1:
        return value - 1.0
    if high <= _POLYNOMIAL_UP_TO:
        middle, half = (1.0 + high) / 2, (high - 1.0) / 2
        return polynomial(scale(value - middle, 1.0 / half), _log_coefficients(high))
    slope = math.log(high) / (high - 1.0)
    # log x is above its chord by 0 to `gap`: start in the middle. An error e becomes e^e - 1 - e, above the root.
    gap = -math.log(slope) + slope - 1.0
    guess = scale(value - 1.0, slope) + gap / 2
    error = gap / 2
    above = False
    while error > 2.0**-22:
        error = math.exp(-error) - 1 + error if above else math.expm1(error) - error
        above = True
        guess = guess - 1.0 + multiply(value, exp_of_nonpositive(-guess, clipped=False))
    return guess


def _log_coefficients(high: float) -> list[float]:
    """Of the interpolation in Chebyshev's points whose degree is the least with an error below 2^-22."""
    middle, half = (1.0 + high) / 2, (high - 1.0) / 2
    points = np.linspace(-1.0, 1.0, 1001)
    for degree in range(2, 40):
        series = np.polynomial.Chebyshev.interpolate(lambda u: np.log(middle + half * u), degree)
        if np.max(np.abs(series(points) - np.log(middle + half * points))) < 2.0**-22:
            return [float(c) for c in series.convert(kind=np.polynomial.Polynomial).coef]
    raise ConfigurationError(f"log up to {high}", expected=f"{_POLYNOMIAL_UP_TO}", remedy="use Newton's iteration")


def _exponentials(logits: Shared, top: Shared | None = None) -> tuple[Shared, Shared]:
    """e^(x - max) and its sum along the last axis, size 1 kept: between 1 and the number of classes."""
    if top is None:
        top, _ = largest(logits, one_hot=False)
    shifted = local(lambda share, best: share - best[..., None], logits, top)
    exponentials = exp_of_nonpositive(shifted)
    return exponentials, reduce_sum(exponentials, -1, keepdims=True)


def reduce_sum(value: Shared, axis: int | list[int], keepdims: bool = False) -> Shared:
    return value.local(lambda share: tf.reduce_sum(share, axis, keepdims))


def _exp_coefficients() -> list[float]:
    """Least squares on Chebyshev nodes of [-0.9, 0], degree 5: error below 2e-8."""
    nodes = -0.45 + 0.45 * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    return [float(c) for c in np.polynomial.Polynomial.fit(nodes, np.exp(nodes), 5).convert().coef]
