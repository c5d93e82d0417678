"""Average and maximum pooling, in windows and over everything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private._backends.keras_graph import call_shapes
from keras_private.encrypted.geometry import Windows, padded
from keras_private.encrypted.kernels import windows as cutting
from keras_private.encrypted.protocol.functions import reduce_sum
from keras_private.encrypted.protocol.products import scale_by_constants
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import Rule, SharedValues, Values, require_channels_last, rule
from keras_private.encrypted.rules.tournament import largest_of, to_the_largest
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

    def overlap(self, layer: Any) -> float:
        """In how many windows an input is at most."""
        pairs = zip(layer.pool_size, layer.strides)
        return float(np.prod([-(-size // stride) for size, stride in pairs]))


def _cut(value: Shared, windows: Windows) -> Shared:
    """[n, oh, ow, kh * kw, c]."""

    def run(share: tf.Tensor) -> tf.Tensor:
        images = share if share.shape.rank == 4 else share[:, None]
        cut = cutting.patches(images, windows.size, windows.strides, windows.padding, windows.dilations)
        return tf.reshape(cut, [*cut.shape[:3], windows.size[0] * windows.size[1], cut.shape[5]])

    return value.local(run)


def _put_back(value: Shared, windows: Windows, shape: tf.TensorShape) -> Shared:
    """The transpose of _cut."""

    def run(share: tf.Tensor) -> tf.Tensor:
        cut = tf.reshape(share, [*share.shape[:3], *windows.size, share.shape[4]])
        images = cutting.scatter(cut, windows.image, windows.size, windows.strides, windows.padding, windows.dilations)
        return tf.reshape(images, shape)

    return value.local(run)


def _covered(windows: Windows) -> np.ndarray:
    """1 where an element of a window lies in the image, [1, oh, ow, kh * kw, 1]."""
    ones = np.pad(np.ones(windows.image, np.int64), windows.padding)
    rows, columns = windows.places
    cut = np.zeros((rows, columns, windows.size[0] * windows.size[1]), np.int64)
    for row in range(rows):
        for column in range(columns):
            top, left = row * windows.strides[0], column * windows.strides[1]
            cut[row, column] = ones[top : top + windows.size[0], left : left + windows.size[1]].reshape(-1)
    return cut[None, :, :, :, None]


def _outputs(value: Shared, rank: int) -> Shared:
    return value if rank == 4 else value.local(lambda share: share[:, 0])


def _images(gradient: Shared, shape: tf.TensorShape) -> Shared:
    return gradient if shape.rank == 4 else gradient.local(lambda share: share[:, None])


def _check_scaling(layer: Any, what: str, magnitude: float, preflight: Preflight) -> None:
    """Of a number times an integer of up to 20 bits, before its truncation (products.scale_by_constants)."""
    preflight.value(layer.name, what, magnitude * 2.0**20)


def _moved_by(count: float) -> int:
    """Bits that the point of a gradient moves when it is divided by `count`: a count of 784 would cost it 9 of 16."""
    return math.floor(math.log2(count))


def _divided(gradient: Shared, factors: np.ndarray, moved: int) -> Shared:
    """gradient * factors, with `moved` bits more after the point."""
    return scale_by_constants(gradient, factors * 2.0**moved).scaled_by_power(-moved)


@rule(tf.keras.layers.AveragePooling1D, tf.keras.layers.AveragePooling2D)
class AveragePoolingRule(PoolingRule):
    """Sums are local, the division by a public count costs one truncation. Padding is not counted, as in Keras."""

    def _factors(self, windows: Windows) -> np.ndarray:
        return 1.0 / _covered(windows).sum(3)

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        rank = inputs[0].shape.rank
        windows = self.windows(layer, inputs[0].shape)
        means = scale_by_constants(reduce_sum(_cut(inputs[0], windows), 3), self._factors(windows))
        return [_outputs(means, rank)], (windows, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        windows, shape = saved
        factors = self._factors(windows)
        each = _divided(_images(gradients[0], shape), factors, _moved_by(1 / float(np.max(factors))))
        count = windows.size[0] * windows.size[1]
        spread = each.local(lambda share: tf.repeat(share[:, :, :, None], count, axis=3))
        return [_put_back(spread, windows, shape)], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        _check_scaling(layer, "the scaled sum", inputs[0].magnitude * math.prod(layer.pool_size), preflight)
        return [inputs[0]]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        _check_scaling(layer, "the scaled gradient", gradient, preflight)
        # The point moves at most as far as counts divide.
        return [gradient * self.overlap(layer)]


@rule(tf.keras.layers.MaxPooling1D, tf.keras.layers.MaxPooling2D)
class MaxPoolingRule(PoolingRule):
    """A tournament in each window; of equal elements the first gets the gradient, as in Keras."""

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        rank = inputs[0].shape.rank
        windows = self.windows(layer, inputs[0].shape)
        cut = _cut(inputs[0], windows)
        covered = _covered(windows)
        if not covered.all():
            cut = add_public(cut, (1 - covered) * _BELOW_ALL)
        best, rounds = largest_of(cut)
        return [_outputs(best, rank)], (rounds, windows, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        rounds, windows, shape = saved
        return [_put_back(to_the_largest(_images(gradients[0], shape), rounds), windows, shape)], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        preflight.value(layer.name, "the input", inputs[0].magnitude)
        return [inputs[0]]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        return [gradient * self.overlap(layer)]


class GlobalRule(Rule):
    """Over all positions; keepdims too."""

    def check(self, layer: Any) -> None:
        require_channels_last(layer)

    def _flat(self, value: Shared) -> Shared:
        """[n, positions, c]."""
        return value.local(lambda share: tf.reshape(share, [share.shape[0], -1, share.shape[-1]]))

    def _kept(self, layer: Any, value: Shared, rank: int) -> Shared:
        if not layer.keepdims:
            return value
        return value.local(lambda share: tf.reshape(share, [share.shape[0], *[1] * (rank - 2), share.shape[-1]]))

    def _columns(self, gradient: Shared) -> Shared:
        """[n, c], without the axes that keepdims keeps."""
        return gradient.local(lambda share: tf.reshape(share, [share.shape[0], share.shape[-1]]))


def _positions(layer: Any) -> list[int]:
    """Of each call."""
    return [math.prod(shapes[0][1:-1]) for shapes, _ in call_shapes(layer)]


@rule(tf.keras.layers.GlobalAveragePooling1D, tf.keras.layers.GlobalAveragePooling2D)
class GlobalAverageRule(GlobalRule):
    """A local sum and one product with a public number."""

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        flat = self._flat(inputs[0])
        mean = scale_by_constants(reduce_sum(flat, 1), np.array(1.0 / flat.shape[1]))
        return [self._kept(layer, mean, inputs[0].shape.rank)], (flat.shape[1], inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        count, shape = saved
        each = _divided(self._columns(gradients[0]), np.array(1.0 / count), _moved_by(count))
        return [each.local(lambda share: tf.reshape(tf.repeat(share[:, None], count, axis=1), shape))], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        count = max(_positions(layer))
        _check_scaling(layer, "the scaled sum", inputs[0].magnitude * count, preflight)
        return [inputs[0]]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        _check_scaling(layer, "the scaled gradient", gradient, preflight)
        # The point moves at most as far as counts divide.
        return [gradient]


@rule(tf.keras.layers.GlobalMaxPooling1D, tf.keras.layers.GlobalMaxPooling2D)
class GlobalMaxRule(GlobalRule):
    """One tournament for each channel; of equal elements the first gets the gradient, which Keras divides."""

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        best, rounds = largest_of(self._flat(inputs[0]))
        return [self._kept(layer, best, inputs[0].shape.rank)], (rounds, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not needs_input:
            return [None], {}
        rounds, shape = saved
        spread = to_the_largest(self._columns(gradients[0]), rounds)
        return [spread.local(lambda share: tf.reshape(share, shape))], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        preflight.value(layer.name, "the input", inputs[0].magnitude)
        return [inputs[0]]
