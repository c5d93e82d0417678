"""Layers of several inputs of one shape: Add, Subtract, Multiply, Average, Maximum, Minimum; and Concatenate."""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from keras_private._backends.keras_graph import call_shapes
from keras_private.encrypted.protocol.comparison import maximum
from keras_private.encrypted.protocol.products import multiply, scale
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import Rule, SharedValues, Values, rule, unsupported
from keras_private.encrypted.shared import Shared, concat, local


class MergeRule(Rule):
    """Inputs must have one shape: Keras would broadcast them."""

    def check(self, layer: Any) -> None:
        for shapes, _ in call_shapes(layer):
            if len(set(shapes)) != 1:
                raise unsupported(layer, f"inputs of shapes {shapes}", "inputs of one shape")

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        return [gradient for _ in inputs]


@rule(tf.keras.layers.Add)
class AddRule(MergeRule):
    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        return [functools.reduce(lambda a, b: a + b, inputs)], len(inputs)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        return [gradients[0]] * saved, {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        total = functools.reduce(lambda a, b: a + b, inputs)
        preflight.value(layer.name, "the sum", total.magnitude)
        return [total]


@rule(tf.keras.layers.Subtract)
class SubtractRule(MergeRule):
    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        return [inputs[0] - inputs[1]], None

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        return [gradients[0], -gradients[0]], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        difference = inputs[0] - inputs[1]
        preflight.value(layer.name, "the difference", difference.magnitude)
        return [difference]


@rule(tf.keras.layers.Average)
class AverageRule(MergeRule):
    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        return [scale(functools.reduce(lambda a, b: a + b, inputs), 1.0 / len(inputs))], len(inputs)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        return [scale(gradients[0], 1.0 / saved)] * saved, {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        # The factor 1 / n has up to 13 bits, or as many as the fixed point.
        largest = max(each.magnitude for each in inputs)
        preflight.product(layer.name, "the scaled sum", largest * max(2.0, len(inputs) / 8))
        return [functools.reduce(lambda a, b: a | b, inputs)]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        preflight.product(layer.name, "the scaled gradient", gradient)
        return [gradient / len(inputs) for _ in inputs]


@rule(tf.keras.layers.Multiply)
class MultiplyRule(MergeRule):
    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        # before[k]: the product of the inputs before the k-th.
        before: list[Shared | None] = [None]
        for each in inputs:
            last = before[-1]
            before.append(each if last is None else multiply(last, each))
        product = before.pop()
        assert product is not None
        return [product], (inputs, before)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        inputs, before = saved
        found: list[Shared | None] = []
        upstream = gradients[0]
        for place in reversed(range(len(inputs))):
            found.append(upstream if before[place] is None else multiply(upstream, before[place]))
            if place:
                upstream = multiply(upstream, inputs[place])
        return found[::-1], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        product = inputs[0]
        for each in inputs[1:]:
            product = product * each
            preflight.product(layer.name, "the product", product.magnitude)
        return [product]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        # With factors below 1 counted as 1, intermediate products are bounded too.
        factors = [max(each.magnitude, 1.0) for each in inputs]
        found = gradient * math.prod(factors)
        preflight.product(layer.name, "the gradient", found)
        return [found / factor for factor in factors]


@rule(tf.keras.layers.Maximum, tf.keras.layers.Minimum)
class MaximumRule(MergeRule):
    """Of equal inputs, the one that stands first gets the gradient."""

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        flipped = type(layer) is tf.keras.layers.Minimum
        best, bits = (-inputs[0] if flipped else inputs[0]), []
        for each in inputs[1:]:
            best, bit = maximum(best, -each if flipped else each)
            bits.append(bit)
        return [-best if flipped else best], bits

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        upstream, found = gradients[0], []
        for bit in reversed(saved):
            kept = multiply(bit, upstream)
            found.append(upstream - kept)
            upstream = kept
        return [upstream, *found[::-1]], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        for each in inputs:
            preflight.value(layer.name, "an input", each.magnitude)
        return [functools.reduce(lambda a, b: a | b, inputs)]


@rule(tf.keras.layers.Concatenate)
class ConcatenateRule(Rule):
    """Along any axis but the batch."""

    def check(self, layer: Any) -> None:
        for shapes, _ in call_shapes(layer):
            if layer.axis % len(shapes[0]) == 0:
                raise unsupported(layer, f"axis={layer.axis}", "an axis other than the batch")

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        axis = layer.axis % inputs[0].shape.rank
        return [concat(inputs, axis)], (axis, [each.shape[axis] for each in inputs])

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        axis, sizes = saved
        found: list[Shared | None] = []
        start = 0
        for size in sizes:
            places = (slice(None),) * axis + (slice(start, start + size),)
            found.append(local(lambda share, index=places: share[index], gradients[0]))  # type: ignore[misc]
            start += size
        return found, {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        return [functools.reduce(lambda a, b: a | b, inputs)]
