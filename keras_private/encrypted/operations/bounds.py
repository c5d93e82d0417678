"""What keeps values in the ring: bounds, scales and shapes that operations share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_private.chain import DEFAULT_FRACTION, Form
from keras_private.encrypted.fixed_point import TRUNCATION_BITS
from keras_private.encrypted.protocol.functions import with_fraction
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.shared import Shared
from keras_private.errors import ConfigurationError, OverflowPreflightError

VALUE_BITS = 61
"""Kept values stay below 2^61 in the ring: the difference of two of them has the right sign, and is truncated right."""
_RELATIVE_BITS = 20

Forms = Sequence[Form]
Options = Mapping[str, Any]


def within(what: str, magnitude: float, fraction: int, bits: int = VALUE_BITS) -> float:
    """magnitude, if it stays below 2^bits in the ring.

    Raises:
        OverflowPreflightError: It does not.
    """
    if not magnitude < 2.0 ** (bits - fraction):
        raise OverflowPreflightError(
            f"{what} could reach {magnitude:.3g} in absolute value",
            expected=f"less than {2.0 ** (bits - fraction):.3g}, by the bounds of its operands",
            remedy="encrypt with a smaller bound=, or with fewer bits after the point",
        )
    return magnitude


def unit(fraction: int) -> float:
    return 2.0**-fraction


def product_bound(what: str, magnitude: float, left: int, right: int) -> float:
    """The bound on a sum of products after its truncation; FixedPoint.product_bound where both fractions are equal."""
    surplus = min(left, right)
    within(f"{what}, before truncation,", magnitude, left + right, TRUNCATION_BITS if surplus else VALUE_BITS)
    return within(what, magnitude + (unit(max(left, right)) if surplus else 0.0), max(left, right))


def _factor(number: float) -> tuple[int, int]:
    """number = k 2^-bits: exactly for integers and short binary fractions, else within 2^-20 of it."""
    if not number or float(number).is_integer():
        return int(number), 0
    bits = max(1, min(40, _RELATIVE_BITS - math.ceil(math.log2(abs(number)))))
    whole = round(number * 2.0**bits)
    while whole and whole % 2 == 0 and bits:
        whole, bits = whole // 2, bits - 1
    return whole, bits


def scaled_form(what: str, form: Form, number: float) -> Form:
    whole, bits = _factor(number)
    fraction = (form.fraction or DEFAULT_FRACTION) if bits else form.fraction
    magnitude = form.bound * abs(whole)
    within(f"{what}, before truncation,", magnitude, fraction, TRUNCATION_BITS if bits else VALUE_BITS)
    bound = magnitude * 2.0**-bits + (unit(fraction) if bits else 0.0)
    return Form(form.shape, fraction, within(what, bound, fraction))


def scaled(value: Shared, number: float) -> Shared:
    whole, bits = _factor(number)
    if not bits:
        return value.times_integer(whole)
    value = with_point(value)
    wide = value.times_integer(whole)
    return truncate(Shared(value.session, wide.pairs, value.fraction + bits), bits)


def with_point(value: Shared) -> Shared:
    """Integers get bits after the point."""
    return value if value.fraction else with_fraction(value, DEFAULT_FRACTION)


def aligned(values: Sequence[Shared]) -> list[Shared]:
    fraction = max(each.fraction for each in values)
    return [with_fraction(each, fraction) for each in values]


def broadcast(what: str, forms: Forms) -> tuple[int, ...]:
    try:
        return tuple(np.broadcast_shapes(*(each.shape for each in forms)))
    except ValueError as error:
        shapes = " and ".join(str(each.shape) for each in forms)
        raise ConfigurationError(
            f"{what} of shapes {shapes}", expected="shapes that broadcast", remedy="reshape"
        ) from error


def number_of(options: Options) -> float:
    number = options["number"]
    if type(number) not in (int, float) or not math.isfinite(number):
        raise ConfigurationError(f"the number {number!r}", expected="a finite number", remedy="check it")
    return float(number)
