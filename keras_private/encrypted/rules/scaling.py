"""Rescaling by public numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.products import scale_by_constants
from keras_private.encrypted.ranges import Preflight, Range, symmetric
from keras_private.encrypted.rules.registry import Rule, SharedValues, Values, rule, unsupported
from keras_private.encrypted.shared import Shared


@rule(tf.keras.layers.Rescaling)
class RescalingRule(Rule):
    """x * scale + offset, both numbers. Also the rule of operators between a tensor and a number."""

    def check(self, layer: Any) -> None:
        for name in ("scale", "offset"):
            value = getattr(layer, name)
            if np.ndim(value) or not math.isfinite(value) or abs(value) >= 2.0**20:
                raise unsupported(layer, f"{name}={value}", "a number below 2^20")

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        return [_scaled(inputs[0], float(layer.scale)) + float(layer.offset)], None

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        return [_scaled(gradients[0], float(layer.scale)) if needs_input else None], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        _check(layer, "the scaled input", inputs[0].magnitude, preflight)
        offset = float(layer.offset)
        return [inputs[0].scaled(float(layer.scale)) + Range(offset, offset)]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        _check(layer, "the scaled gradient", gradient, preflight)
        return [symmetric(gradient).scaled(float(layer.scale)).magnitude]


def _scaled(value: Shared, factor: float) -> Shared:
    if factor.is_integer():
        return value.times_integer(int(factor))
    return scale_by_constants(value, np.array(factor))


def _check(layer: Any, what: str, magnitude: float, preflight: Preflight) -> None:
    """The factor is an integer of up to 21 bits before the truncation."""
    preflight.value(layer.name, what, magnitude * 2.0**21)
