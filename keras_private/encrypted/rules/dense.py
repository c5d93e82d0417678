"""Dense, on matrices and over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow as tf

from keras_private._backends.keras_graph import call_shapes
from keras_private.encrypted import ranges
from keras_private.encrypted.protocol.functions import reduce_sum, with_fraction
from keras_private.encrypted.protocol.products import matmul
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import Parameter, Rule, SharedValues, Values, magnitude, pull, rule
from keras_private.encrypted.shared import Shared, local


@rule(tf.keras.layers.Dense)
class DenseRule(Rule):
    """x W + b; axes before the last are rows."""

    regularized: ClassVar[Mapping[str, str]] = {"kernel": "kernel_regularizer", "bias": "bias_regularizer"}

    def check(self, layer: Any) -> None:
        pass

    def parameters(self, layer: Any) -> dict[str, Parameter]:
        found = pull("kernel", layer.kernel, layer.trainable)
        return {**found, **pull("bias", layer.bias, layer.trainable)} if layer.use_bias else found

    def summed_axes(self, layer: Any, name: str) -> list[tuple[int, ...]]:
        return [(0,), (1,)] if name == "kernel" else [()]

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        flat = _rows(inputs[0])
        output = matmul(flat, parameters["kernel"])
        if "bias" in parameters:
            output = local(tf.add, output, parameters["bias"])
        shape = [*inputs[0].shape[:-1], layer.units]
        return [output.local(lambda share: tf.reshape(share, shape))], (flat, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        flat, shape = saved
        gradient = _rows(gradients[0])
        found = {}
        if layer.trainable:
            found["kernel"] = matmul(flat, gradient, transpose_a=True, truncated=False)
            if "bias" in parameters:
                found["bias"] = with_fraction(reduce_sum(gradient, 0), found["kernel"].fraction)
        if not needs_input:
            return [None], found
        back = matmul(gradient, parameters["kernel"], transpose_b=True)
        return [back.local(lambda share: tf.reshape(share, shape))], found

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        products = ranges.affine(inputs[0], values["kernel"])
        preflight.product(layer.name, "the sum of products", products.magnitude)
        return [ranges.affine(inputs[0], values["kernel"], values["bias"] if layer.use_bias else 0.0)]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        rows = batch * max(math.prod(shapes[0][1:-1]) for shapes, _ in call_shapes(layer))
        preflight.gradient(layer.name, "kernel", rows * inputs[0].magnitude * gradient)
        if layer.use_bias:
            preflight.gradient(layer.name, "bias", rows * gradient)
        back = gradient * magnitude(abs(values["kernel"]).sum(1))
        preflight.product(layer.name, "the gradient of the input", back)
        return [back]


def _rows(value: Shared) -> Shared:
    if value.shape.rank == 2:
        return value
    return value.local(lambda share: tf.reshape(share, [-1, value.shape[-1]]))
