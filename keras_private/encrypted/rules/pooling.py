"""Average and maximum pooling, in windows and over everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.geometry import Windows, padded
from keras_private.encrypted.kernels import windows as cutting
from keras_private.encrypted.protocol.comparison import largest
from keras_private.encrypted.protocol.functions import reduce_sum
from keras_private.encrypted.protocol.products import multiply, scale, scale_by_constants
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import Rule, SharedValues, Values, require_channels_last, rule
from keras_private.encrypted.shared import Shared, add_public

_BELOW_ALL = -(2**61)
"""In the ring: less than every value that the preflight admits."""


class PoolingRule(Rule):
    """Layers of one dimension are images of height 1."""

    def check(self, layer: Any) -> None:
        require_channels_last(layer)

    def windows(self, layer: Any, shape: tf.TensorShape) -> Windows:
        if shape.rank == 3:
            (size,), (stride,) = layer.pool_size, layer.strides
            return padded(layer.padding, (1, shape[1]), (1, size), (1, stride))
        return padded(layer.padding, (shape[1], shape[2]), tuple(layer.pool_size), tuple(layer.strides))

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        # An input is in several windows when they overlap.
        pool, strides = getattr(layer, "pool_size", (1,)), getattr(layer, "strides", (1,))
        overlap = np.prod([-(-size // stride) for size, stride in zip(pool, strides)])
        return [gradient * float(overlap)]


def _cut(value: Shared, windows: Windows) -> Shared:
    """[n, oh, ow, c, kh * kw]."""

    def run(share: tf.Tensor) -> tf.Tensor:
        images = share if share.shape.rank == 4 else share[:, None]
        cut = cutting.patches(images, windows.size, windows.strides, windows.padding, windows.dilations)
        merged = tf.reshape(cut, [*cut.shape[:3], windows.size[0] * windows.size[1], cut.shape[5]])
        return tf.transpose(merged, [0, 1, 2, 4, 3])

    return value.local(run)


def _put_back(value: Shared, windows: Windows, shape: tf.TensorShape) -> Shared:
    """The transpose of _cut."""

    def run(share: tf.Tensor) -> tf.Tensor:
        cut = tf.transpose(share, [0, 1, 2, 4, 3])
        cut = tf.reshape(cut, [*cut.shape[:3], *windows.size, cut.shape[4]])
        images = cutting.scatter(cut, windows.image, windows.size, windows.strides, windows.padding, windows.dilations)
        return tf.reshape(images, shape)

    return value.local(run)


def _covered(windows: Windows) -> np.ndarray:
    """1 where an element of a window lies in the image, [1, oh, ow, 1, kh * kw]."""
    ones = np.pad(np.ones(windows.image, np.int64), windows.padding)
    rows, columns = windows.places
    cut = np.zeros((rows, columns, windows.size[0] * windows.size[1]), np.int64)
    for row in range(rows):
        for column in range(columns):
            top, left = row * windows.strides[0], column * windows.strides[1]
            cut[row, column] = ones[top : top + windows.size[0], left : left + windows.size[1]].reshape(-1)
    return cut[None, :, :, None, :]


def _outputs(value: Shared, rank: int) -> Shared:
    return value if rank == 4 else value.local(lambda share: share[:, 0])


@rule(tf.keras.layers.AveragePooling1D, tf.keras.layers.AveragePooling2D)
class AveragePoolingRule(PoolingRule):
    """Sums are local, the division by a public count costs one truncation. Padding is not counted, as in Keras."""

    def _factors(self, windows: Windows) -> np.ndarray:
        return 1.0 / _covered(windows).sum(-1)

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        rank = inputs[0].shape.rank
        windows = self.windows(layer, inputs[0].shape)
        means = scale_by_constants(reduce_sum(_cut(inputs[0], windows), -1), self._factors(windows))
        return [_outputs(means, rank)], (windows, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        windows, shape = saved
        gradient = gradients[0] if shape.rank == 4 else gradients[0].local(lambda share: share[:, None])
        each = scale_by_constants(gradient, self._factors(windows))
        count = windows.size[0] * windows.size[1]
        spread = each.local(lambda share: tf.repeat(share[..., None], count, axis=-1))
        return [_put_back(spread, windows, shape)], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        # Sum, times a factor of at most 20 bits.
        preflight.value(layer.name, "the sum", inputs[0].magnitude * 2.0**21)
        return [inputs[0]]


@rule(tf.keras.layers.MaxPooling1D, tf.keras.layers.MaxPooling2D)
class MaxPoolingRule(PoolingRule):
    """A tournament in each window; of equal elements the last gets the gradient."""

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        rank = inputs[0].shape.rank
        windows = self.windows(layer, inputs[0].shape)
        cut = _cut(inputs[0], windows)
        covered = _covered(windows)
        if not covered.all():
            cut = add_public(cut, np.broadcast_to((1 - covered) * _BELOW_ALL, cut.shape.as_list()))
        best, winner = largest(cut, one_hot=training)
        return [_outputs(best, rank)], (winner, windows, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        winner, windows, shape = saved
        gradient = gradients[0] if shape.rank == 4 else gradients[0].local(lambda share: share[:, None])
        count = winner.shape[-1]
        spread = gradient.local(lambda share: tf.repeat(share[..., None], count, axis=-1))
        return [_put_back(multiply(winner, spread), windows, shape)], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        preflight.value(layer.name, "the input", inputs[0].magnitude)
        return [inputs[0]]


class GlobalRule(Rule):
    """Over all positions; keepdims too."""

    def check(self, layer: Any) -> None:
        require_channels_last(layer)

    def _flat(self, value: Shared) -> Shared:
        """[n, c, positions]."""
        shape = value.shape
        return value.local(lambda share: tf.transpose(tf.reshape(share, [shape[0], -1, shape[-1]]), [0, 2, 1]))

    def _kept(self, layer: Any, value: Shared, rank: int) -> Shared:
        if not layer.keepdims:
            return value
        return value.local(lambda share: tf.reshape(share, [share.shape[0], *[1] * (rank - 2), share.shape[-1]]))

    def _unflat(self, value: Shared, shape: tf.TensorShape) -> Shared:
        return value.local(lambda share: tf.reshape(tf.transpose(share, [0, 2, 1]), shape))

    def _spread(self, gradient: Shared, shape: tf.TensorShape, count: int) -> Shared:
        return gradient.local(lambda share: tf.repeat(tf.reshape(share, [shape[0], shape[-1], 1]), count, axis=-1))


@rule(tf.keras.layers.GlobalAveragePooling1D, tf.keras.layers.GlobalAveragePooling2D)
class GlobalAverageRule(GlobalRule):
    """A local sum and one product with a public number."""

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        flat = self._flat(inputs[0])
        mean = scale(reduce_sum(flat, -1), 1.0 / flat.shape[-1])
        return [self._kept(layer, mean, inputs[0].shape.rank)], (flat.shape[-1], inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        count, shape = saved
        return [self._unflat(self._spread(scale(gradients[0], 1.0 / count), shape, count), shape)], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        # The factor 1 / count has at most 32 bits after the point and 16 that count.
        preflight.value(layer.name, "the sum", inputs[0].magnitude * 2.0**17)
        return [inputs[0]]


@rule(tf.keras.layers.GlobalMaxPooling1D, tf.keras.layers.GlobalMaxPooling2D)
class GlobalMaxRule(GlobalRule):
    """One tournament for each channel."""

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        best, winner = largest(self._flat(inputs[0]), one_hot=training)
        return [self._kept(layer, best, inputs[0].shape.rank)], (winner, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        winner, shape = saved
        spread = self._spread(gradients[0], shape, winner.shape[-1])
        return [self._unflat(multiply(winner, spread), shape)], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        preflight.value(layer.name, "the input", inputs[0].magnitude)
        return [inputs[0]]
