"""What a layer's results can be at most, by interval arithmetic on weights and the declared range of inputs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from keras_private.encrypted.fixed_point import TRUNCATION_BITS, FixedPoint
from keras_private.errors import ConfigurationError, OverflowPreflightError


@dataclasses.dataclass(frozen=True)
class Range:
    """Every element of a tensor lies in [low, high]."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))

    def __or__(self, other: Range) -> Range:
        return Range(min(self.low, other.low), max(self.high, other.high))

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Range) -> Range:
        return Range(self.low - other.high, self.high - other.low)

    def __mul__(self, other: Range) -> Range:
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Range(min(corners), max(corners))

    def scaled(self, factor: float) -> Range:
        return self * Range(factor, factor)


def symmetric(magnitude: float) -> Range:
    return Range(-magnitude, magnitude)


def of(values: np.ndarray) -> Range:
    return Range(float(np.min(values, initial=0.0)), float(np.max(values, initial=0.0)))


def affine(inputs: Range, columns: np.ndarray, offset: np.ndarray | float = 0.0) -> Range:
    """Of sum_k columns[k, j] x_k + offset[i], each x_k in `inputs`, over all j, i and all subsets of the terms.

    Subsets, since zero padding may replace any x_k by 0. Any offset with any column, since training checks that sums of
    columns and offsets stay below their largest, and not which of them are large together.
    """
    low, high = min(inputs.low, 0.0), max(inputs.high, 0.0)
    positive, negative = np.maximum(columns, 0).sum(0), np.minimum(columns, 0).sum(0)
    tops, bottoms = positive * high + negative * low, positive * low + negative * high
    most, least = float(np.max(tops, initial=0.0)), float(np.min(bottoms, initial=0.0))
    return Range(least + min(float(np.min(offset)), 0.0), most + max(float(np.max(offset)), 0.0))


class Preflight:
    """Collects bounds, layer by layer, and refuses what could wrap.

    Attributes:
        found: (layer, what, bound, limit) of each check, in order.
        gradients: Bound on the gradient of each parameter, by "layer/name".
        outputs: Bound on what leaves the model, or on what enters its last softmax or sigmoid.
        batch: Rows that gradients are summed over.
    """

    def __init__(self, fixed_point: FixedPoint) -> None:
        self.fixed_point = fixed_point
        self.found: list[tuple[str, str, float, float]] = []
        self.gradients: dict[str, float] = {}
        self.outputs = 0.0
        self.batch = 1

    def gradients_of(self, rows: int) -> dict[str, float]:
        """Bounds on the gradients of a batch of so many rows, at most `batch`."""
        return {name: bound * rows / self.batch for name, bound in self.gradients.items()}

    def product(self, layer: str, what: str, magnitude: float) -> None:
        """A sum of products of two numbers with a point, before its truncation."""
        self.require(layer, what, magnitude, self.fixed_point.product_bound)

    def gradient(self, layer: str, name: str, magnitude: float) -> None:
        """The gradient of a parameter, summed over the batch, from one call of the layer; calls add up."""
        full = f"{layer}/{name}"
        self.gradients[full] = self.gradients.get(full, 0.0) + magnitude
        self.product(layer, f"the gradient of the {name}", self.gradients[full])

    def scaled(self, layer: str, what: str, magnitude: float, factor: float) -> None:
        """A number times a public one (products.scale), before its truncation."""
        bits = self.fixed_point.factor_bits(factor, self.fixed_point.fraction)
        integer = abs(factor) * 2.0**bits + 0.5
        self.require(layer, what, magnitude, 2.0 ** (TRUNCATION_BITS - self.fixed_point.fraction) / integer)

    def value(self, layer: str, what: str, magnitude: float) -> None:
        """A number that is compared or kept: differences of two of them stay in the signed range."""
        self.require(layer, what, magnitude, 2.0 ** (61 - self.fixed_point.fraction))

    def require(self, layer: str, what: str, magnitude: float, limit: float) -> None:
        """
        Raises:
            OverflowPreflightError: magnitude is not below limit.
        """
        self.found.append((layer, what, magnitude, limit))
        if not magnitude < limit:
            raise OverflowPreflightError(
                f"{what} of layer {layer!r} could reach {magnitude:.3g} in absolute value",
                expected=f"less than {limit:.3g}, by the weights and the declared range of the inputs",
                remedy="declare a smaller input_range, scale inputs or weights, or give FixedPoint fewer fraction bits",
            )


def declared_ranges(given: Any, count: int) -> list[tuple[float, float]]:
    """(low, high) of each of `count` inputs, from one pair or a list of them.

    Raises:
        ConfigurationError: It is neither.
    """
    pairs = [given] * count if isinstance(given, tuple) and len(given) == 2 else given
    try:
        found = [(float(low), float(high)) for low, high in pairs]
        valid = len(found) == count and all(-math.inf < low <= high < math.inf for low, high in found)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ConfigurationError(
            f"input_range={given!r}",
            expected="(low, high), or a list of one pair per input",
            remedy="declare the range",
        )
    return found
