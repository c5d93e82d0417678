"""Layers that only move or drop elements: no communication, but for the masks of Dropout."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.products import scale
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import (
    Rule,
    SharedValues,
    Values,
    require_channels_last,
    rule,
    unsupported,
)
from keras_private.encrypted.shared import Shared


class MovingRule(Rule):
    """A linear map of elements, `moved`, with its inverse or transpose, `returned`."""

    def check(self, layer: Any) -> None:
        if type(layer) is tf.keras.layers.Flatten:
            require_channels_last(layer)

    def moved(self, layer: Any, share: tf.Tensor) -> tf.Tensor:
        target = [-1] if type(layer) is tf.keras.layers.Flatten else layer.target_shape
        return tf.reshape(share, [share.shape[0], *target])

    def returned(self, layer: Any, share: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
        return tf.reshape(share, shape)

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        return [inputs[0].local(lambda share: self.moved(layer, share))], inputs[0].shape

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        return [gradients[0].local(lambda share: self.returned(layer, share, saved))], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        return [inputs[0]]


@rule(tf.keras.layers.Flatten, tf.keras.layers.Reshape)
class ReshapeRule(MovingRule):
    """Flatten and Reshape."""


@rule(tf.keras.layers.Permute)
class PermuteRule(MovingRule):
    """Axes in another order."""

    def moved(self, layer: Any, share: tf.Tensor) -> tf.Tensor:
        return tf.transpose(share, [0, *layer.dims])

    def returned(self, layer: Any, share: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
        return tf.transpose(share, np.argsort([0, *layer.dims]))


@rule(tf.keras.layers.ZeroPadding1D, tf.keras.layers.ZeroPadding2D)
class ZeroPaddingRule(MovingRule):
    """Zeros around the images or sequences."""

    def check(self, layer: Any) -> None:
        require_channels_last(layer)

    def _sides(self, layer: Any) -> list[tuple[int, int]]:
        padding = layer.padding
        return [tuple(padding)] if isinstance(padding[0], int) else [tuple(each) for each in padding]

    def moved(self, layer: Any, share: tf.Tensor) -> tf.Tensor:
        return tf.pad(share, [[0, 0], *map(list, self._sides(layer)), [0, 0]])

    def returned(self, layer: Any, share: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
        index = [slice(None)]
        for axis, (before, _) in enumerate(self._sides(layer)):
            index.append(slice(before, before + shape[1 + axis]))
        return share[tuple(index)]

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        return [inputs[0] | Range(0.0, 0.0)]


@rule(tf.keras.layers.Dropout)
class DropoutRule(Rule):
    """While training, server 0 draws which elements stay, and tells the others: a public choice, blind to the data.

    Prediction passes values on. The chance to stay is 1 - rate up to 2^-31.
    """

    def check(self, layer: Any) -> None:
        if not isinstance(layer.rate, numbers.Real) or not 0 <= float(layer.rate) < 1:
            raise unsupported(layer, f"rate={layer.rate}", "0 <= rate < 1")
        if layer.noise_shape is not None:
            raise unsupported(layer, f"noise_shape={layer.noise_shape}", "None")
        if layer.seed is not None:
            # The mask comes from the parties' secure generator, which nobody seeds.
            raise unsupported(layer, f"seed={layer.seed}", "None")

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        value = inputs[0]
        if not training or not layer.rate:
            return [value], None
        session = value.session
        with session.at(0):
            drawn = session.source.uniform_full(value.shape.as_list(), tf.int32)
            threshold = tf.constant(int(-(2**31) + layer.rate * 2**32), tf.int32)
            kept = tf.ensure_shape(tf.cast(drawn >= threshold, tf.int8), value.shape)
        masks = [kept if party == 0 else session.send(kept, 0, party) for party in range(3)]
        return [_masked(value, masks, layer.rate)], masks

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        return [gradients[0] if saved is None else _masked(gradients[0], saved, layer.rate)], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        found = inputs[0].scaled(1.0 / (1.0 - layer.rate)) | Range(0.0, 0.0)
        preflight.product(layer.name, "the scaled input", found.magnitude)
        return [found]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        found = gradient / (1.0 - layer.rate)
        preflight.product(layer.name, "the scaled gradient", found)
        return [found]


def _masked(value: Shared, masks: list[tf.Tensor], rate: float) -> Shared:
    pairs = []
    for party in range(3):
        with value.session.at(party):
            mask = tf.cast(masks[party], tf.int64)
            pairs.append(tuple(share * mask for share in value.pairs[party]))
    return scale(Shared(value.session, tuple(pairs), value.fraction), 1.0 / (1.0 - rate))
