"""BatchNormalization with fixed statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.products import multiply
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import Parameter, Rule, SharedValues, Values, rule, unsupported
from keras_private.encrypted.shared import Shared, local


@rule(tf.keras.layers.BatchNormalization)
class BatchNormalizationRule(Rule):
    """x * scale + offset, both folded from the moving statistics by the owner, before they are shared.

    In training its statistics would have to be computed on shares, which is not supported: freeze the layer, or
    replace it.
    """

    def check(self, layer: Any) -> None:
        axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
        if len(axes) != 1 or axes[0] not in (-1, layer.input_spec.ndim - 1):
            raise unsupported(layer, f"axis={layer.axis}", "the last axis")

    def refusal_to_train(self, layer: Any) -> str:
        if not layer.trainable:
            return ""
        return (
            "means and variances of a batch are not computed on shares: set layer.trainable = False, which keeps "
            "its moving statistics, scale and offset fixed, or put GroupNormalization there: keras_private.fix(model)"
        )

    def parameters(self, layer: Any) -> dict[str, Parameter]:
        mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        factor = 1.0 / np.sqrt(variance.astype(np.float64) + layer.epsilon)
        if layer.scale:
            factor = factor * layer.gamma.numpy()
        offset = -mean * factor + (layer.beta.numpy() if layer.center else 0.0)
        return {"factor": Parameter(factor, None, False), "offset": Parameter(offset, None, False)}

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        return [local(tf.add, multiply(inputs[0], parameters["factor"]), parameters["offset"])], None

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        return [multiply(gradients[0], parameters["factor"]) if needs_input else None], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        factor, offset = values["factor"], values["offset"]
        ends = np.stack([factor * inputs[0].low, factor * inputs[0].high])
        preflight.product(layer.name, "the scaled input", float(np.max(np.abs(ends), initial=0.0)))
        ends = ends + offset
        return [Range(float(np.min(ends, initial=0.0)), float(np.max(ends, initial=0.0)))]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        back = gradient * float(np.max(np.abs(values["factor"]), initial=0.0))
        preflight.product(layer.name, "the gradient of the input", back)
        return [back]
