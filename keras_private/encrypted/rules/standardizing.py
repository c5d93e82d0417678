"""GroupNormalization and LayerNormalization: each row's own means and variances, in training as in prediction."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from keras_private._backends.keras_graph import call_shapes
from keras_private.encrypted.fixed_point import TRUNCATION_BITS
from keras_private.encrypted.protocol.comparison import clip
from keras_private.encrypted.protocol.functions import GUARDED, reduce_sum, with_fraction
from keras_private.encrypted.protocol.products import multiply, scale_by_constants, sum_of_products
from keras_private.encrypted.protocol.roots import divided_by_root
from keras_private.encrypted.ranges import Preflight, Range, symmetric
from keras_private.encrypted.rules.registry import (
    Parameter,
    Rule,
    SharedValues,
    Values,
    magnitude,
    pull,
    rule,
    unsupported,
)
from keras_private.encrypted.shared import Shared, concat, local, stack, zeros

LARGEST_GRADIENT = 64.0
"""Elements of a row's gradient of the inputs beyond this count as this; where averages after the layer divide the
gradient, elements of the undivided one.

Interval arithmetic cannot see that a normalized row has few large elements: from layer to layer its bounds on gradients
would grow by the root of the number of elements over that of epsilon, thousandfold, and admit one such layer alone.
"""

LEAST_EPSILON = 1e-5
_NARROW = 10
_FINE = 4
_MEAN_BITS = 16
_ROOT_BITS = 60
_SLACK = 1.01


@dataclasses.dataclass(frozen=True)
class Groups:
    """A tensor as [rows, positions, groups, channels]; what is normalized together is a row and group."""

    rows: int
    positions: int
    groups: int
    channels: int

    @property
    def shape(self) -> list[int]:
        return [self.rows, self.positions, self.groups, self.channels]

    @property
    def count(self) -> int:
        """Numbers that are normalized together."""
        return self.positions * self.channels


@dataclasses.dataclass(frozen=True)
class Saved:
    """For backward: x - mean, 1 / deviation, gamma / deviation."""

    centred: Shared
    inverse: Shared
    factor: Shared


class StandardizingRule(Rule):
    """y = gamma (x - mean) / sqrt(variance + epsilon) + beta.

    1. The mean is a local sum and one product with a public number.
    2. x - mean is cut to 10 bits after the point, whose squares are summed before they are sent: S.
    3. 1 / deviation = sqrt(n) / sqrt(S + n epsilon) by protocol/roots.py: one number for each row and group.
    4. It is multiplied by gamma first, and then by x - mean: one product of full size.

    Backward, with h = gamma g and z = (x - mean) / deviation: (h - mean(h) - z mean(h z)) / deviation, held within
    LARGEST_GRADIENT; gamma gets the sum of g z and beta that of g.
    """

    regularized: ClassVar[Mapping[str, str]] = {"gamma": "gamma_regularizer", "beta": "beta_regularizer"}

    @abc.abstractmethod
    def groups(self, layer: Any, shape: Any) -> Groups:
        """Of an input of this shape."""

    def check(self, layer: Any) -> None:
        if not layer.epsilon >= LEAST_EPSILON:
            raise unsupported(
                layer, f"epsilon={layer.epsilon}", f"at least {LEAST_EPSILON}, which the rounding of squares is below"
            )

    def parameters(self, layer: Any) -> dict[str, Parameter]:
        found = pull("gamma", layer.gamma, layer.trainable) if layer.scale else {}
        return {**found, **pull("beta", layer.beta, layer.trainable)} if layer.center else found

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        shape, fraction = inputs[0].shape, inputs[0].fraction
        groups = self.groups(layer, shape)
        x = inputs[0].local(functools.partial(tf.reshape, shape=groups.shape))
        mean = scale_by_constants(reduce_sum(x, [1, 3], keepdims=True), np.array(1.0 / groups.count), bits=_MEAN_BITS)
        centred = local(tf.subtract, x, mean)
        inverse = self._inverse_deviation(centred, groups.count, float(layer.epsilon))
        factor = multiply(inverse, _channels(parameters["gamma"], groups)) if layer.scale else inverse
        output = multiply(centred, factor, fraction=fraction)
        if layer.center:
            output = local(tf.add, output, _channels(parameters["beta"], groups))
        return [output.local(functools.partial(tf.reshape, shape=shape))], Saved(centred, inverse, factor)

    def _inverse_deviation(self, centred: Shared, count: int, epsilon: float) -> Shared:
        """[rows, 1, groups, 1], with _FINE bits more after the point than the inputs."""
        bits = min(_NARROW, centred.fraction)
        narrow = with_fraction(centred, bits)
        squares = sum_of_products(narrow, narrow, [1, 3], truncated=False)
        root = zeros(centred.session, squares.shape, GUARDED) + math.sqrt(count)
        least = count * epsilon
        found = divided_by_root(root, squares + least, least, 2.0 ** (_ROOT_BITS - 2 * bits))
        return with_fraction(found, centred.fraction + _FINE)

    def backward(
        self, layer: Any, saved: Saved, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        shape, fraction = gradients[0].shape, gradients[0].fraction
        groups = self.groups(layer, shape)
        gradient = gradients[0].local(functools.partial(tf.reshape, shape=groups.shape))
        normal = multiply(saved.centred, saved.inverse, fraction=fraction)
        products = sum_of_products(gradient, normal, [1], truncated=False)
        sums = reduce_sum(gradient, [1], keepdims=True)
        found = {}
        if layer.trainable:
            if layer.scale:
                of_gamma = reduce_sum(products, 0)
                found["gamma"] = of_gamma.local(lambda share: tf.reshape(share, parameters["gamma"].shape))
            if layer.center:
                of_beta = with_fraction(reduce_sum(sums, 0), products.fraction)
                found["beta"] = of_beta.local(lambda share: tf.reshape(share, parameters["beta"].shape))
        if not needs_input:
            return [None], found
        both = concat([sums, with_fraction(products, fraction)], 1)
        fine = fraction + _FINE
        if layer.scale:
            totals = sum_of_products(both, _channels(parameters["gamma"], groups), [3], fraction=fine)
        else:
            totals = with_fraction(reduce_sum(both, [3], keepdims=True), fine)
        means = scale_by_constants(totals, np.array(1.0 / groups.count), bits=_MEAN_BITS)
        means = multiply(means, saved.inverse)
        along = means[:, 1:].local(lambda share: tf.broadcast_to(share, saved.factor.shape))
        back = sum_of_products(stack([gradient, normal]), stack([saved.factor, -along]), [0], fraction=fraction)[0]
        back = local(tf.subtract, back, with_fraction(means[:, :1], fraction))
        back = clip(back, -LARGEST_GRADIENT, LARGEST_GRADIENT)
        return [back.local(functools.partial(tf.reshape, shape=shape))], found

    def _calls(self, layer: Any) -> list[Groups]:
        """For one row of each call."""
        return [self.groups(layer, (1, *shapes[0][1:])) for shapes, _ in call_shapes(layer)]

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        count = max(groups.count for groups in self._calls(layer))
        fraction = preflight.fixed_point.fraction
        preflight.value(layer.name, "the scaled sum", count * inputs[0].magnitude * 2.0**_MEAN_BITS)
        bits = min(_NARROW, fraction)
        furthest = inputs[0].high - inputs[0].low + 2.0**-bits
        squares = count * (furthest**2 + float(layer.epsilon))
        preflight.require(layer.name, "the sum of squares", squares, 2.0 ** (_ROOT_BITS - 2 * bits))
        gamma = magnitude(values["gamma"]) if layer.scale else 1.0
        limit = 2.0 ** (TRUNCATION_BITS - 2 * fraction - _FINE)
        preflight.require(layer.name, "gamma over the deviation", gamma / math.sqrt(layer.epsilon), limit)
        most = _SLACK * gamma * math.sqrt(count)
        preflight.require(layer.name, "the normalized input", most, limit)
        return [symmetric(most + (magnitude(values["beta"]) if layer.center else 0.0))]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        calls = self._calls(layer)
        rows = batch * max(groups.rows for groups in calls)
        positions = max(groups.positions for groups in calls)
        count = max(groups.count for groups in calls)
        gamma = magnitude(values["gamma"]) if layer.scale else 1.0
        # By Cauchy and Schwarz: the squares of what was normalized together sum to its number.
        products = _SLACK * gradient * math.sqrt(positions * count)
        preflight.product(layer.name, "the gradient times the normalized input", products)
        if layer.scale:
            preflight.gradient(layer.name, "gamma", rows * products)
        if layer.center:
            preflight.gradient(layer.name, "beta", rows * positions * gradient)
        fraction = preflight.fixed_point.fraction
        totals = _SLACK * gradient * gamma * count
        preflight.value(layer.name, "the scaled sum of gradients", totals * 2.0 ** (_FINE + _MEAN_BITS))
        each = _SLACK * gradient * gamma / math.sqrt(layer.epsilon)
        limit = 2.0 ** (TRUNCATION_BITS - 2 * fraction - 2 * _FINE)
        preflight.require(layer.name, "a gradient over the deviation", each, limit)
        whole = each * (2 + math.sqrt(count))
        preflight.require(layer.name, "the gradient of the input", whole, limit * 2.0**_FINE)
        return [LARGEST_GRADIENT]


def _channels(value: Shared, groups: Groups) -> Shared:
    return value.local(lambda share: tf.reshape(share, [1, 1, groups.groups, groups.channels]))


@rule(tf.keras.layers.GroupNormalization)
class GroupNormalizationRule(StandardizingRule):
    """Any number of groups; the last axis; epsilon of at least LEAST_EPSILON."""

    def check(self, layer: Any) -> None:
        super().check(layer)
        if layer.axis not in (-1, layer.input_spec.ndim - 1):
            raise unsupported(layer, f"axis={layer.axis}", "the last axis")

    def groups(self, layer: Any, shape: Any) -> Groups:
        groups = layer.groups
        return Groups(shape[0], math.prod(shape[1:-1]), groups, shape[-1] // groups)


@rule(tf.keras.layers.LayerNormalization)
class LayerNormalizationRule(StandardizingRule):
    """The last axis, or several up to the last; epsilon of at least LEAST_EPSILON."""

    def check(self, layer: Any) -> None:
        super().check(layer)
        rank = len(call_shapes(layer)[0][0][0])
        if list(layer.axis) != list(range(max(rank - len(layer.axis), 1), rank)):
            raise unsupported(layer, f"axis={list(layer.axis)}", "the last axes")

    def groups(self, layer: Any, shape: Any) -> Groups:
        first = len(shape) - len(layer.axis)
        return Groups(math.prod(shape[:first]), 1, 1, math.prod(shape[first:]))
