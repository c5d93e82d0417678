"""Windows of images as stock TensorFlow ops, for integers: TensorFlow's own convolutions take floats only."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_private.encrypted.kernels.interface import Padding, Pair


def patches(x: tf.Tensor, size: Pair, strides: Pair, padding: Padding, dilations: Pair) -> tf.Tensor:
    """[n, oh, ow, kh, kw, c] from x [n, h, w, c]."""
    padded = tf.pad(x, [[0, 0], *map(list, padding), [0, 0]])
    positions = [
        padded[
            :,
            row * dilations[0] : _end(padded, 1, size[0], row, dilations[0]) : strides[0],
            column * dilations[1] : _end(padded, 2, size[1], column, dilations[1]) : strides[1],
        ]
        for row in range(size[0])
        for column in range(size[1])
    ]
    stacked = tf.stack(positions, 3)
    outer = [_length(stacked, axis) for axis in range(3)]
    return tf.reshape(stacked, [*outer, size[0], size[1], _length(stacked, 4)])


def scatter(
    windows: tf.Tensor, input_size: Pair, size: Pair, strides: Pair, padding: Padding, dilations: Pair
) -> tf.Tensor:
    """The transpose of `patches`: sums [n, oh, ow, kh, kw, c] where the windows overlap into [n, *input_size, c]."""
    total = None
    (top, bottom), (left, right) = padding
    height, width = input_size[0] + top + bottom, input_size[1] + left + right
    for row in range(size[0]):
        for column in range(size[1]):
            spread = _insert_zeros(_insert_zeros(windows[:, :, :, row, column], 1, strides[0]), 2, strides[1])
            before = row * dilations[0], column * dilations[1]
            after = height - before[0] - _length(spread, 1), width - before[1] - _length(spread, 2)
            placed = tf.pad(spread, [[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]])
            total = placed if total is None else total + placed
    assert total is not None
    return total[:, top : top + input_size[0], left : left + input_size[1]]


def _end(padded: tf.Tensor, axis: int, count: int, index: int, dilation: int) -> tf.Tensor:
    # All positions of the window see the same number of places: stop short by what is still to come.
    return _length(padded, axis) - (count - 1 - index) * dilation


def _length(x: tf.Tensor, axis: int) -> Any:
    """A Python int where it is known: fewer operations."""
    return tf.shape(x)[axis] if x.shape[axis] is None else x.shape[axis]


def _insert_zeros(x: tf.Tensor, axis: int, stride: int) -> tf.Tensor:
    """Places neighbours along `axis` `stride` apart; nothing after the last."""
    if stride == 1:
        return x
    widened = tf.expand_dims(x, axis + 1)
    padding = [[0, 0] for _ in range(widened.shape.rank)]
    padding[axis + 1][1] = stride - 1
    widened = tf.pad(widened, padding)
    lengths = [_length(x, each) for each in range(x.shape.rank)]
    lengths[axis] *= stride
    flat = tf.reshape(widened, lengths)
    index = [slice(None)] * x.shape.rank
    # An empty axis stays empty.
    end = lengths[axis] - (stride - 1)
    index[axis] = slice(0, max(end, 0) if isinstance(end, int) else tf.maximum(end, 0))
    return flat[tuple(index)]
