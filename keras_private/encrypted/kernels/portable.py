"""The kernels in stock TensorFlow ops: for where the native library cannot be loaded."""

from __future__ import annotations

from typing import Any, Callable

import tensorflow as tf

from keras_private.encrypted.kernels import windows
from keras_private.encrypted.kernels.interface import Kernels, Padding, Pair
from keras_private.random import laws

_UNSIGNED = {tf.int8: tf.uint8, tf.int16: tf.uint16, tf.int32: tf.uint32, tf.int64: tf.uint64}
_CONTAINERS = {32: tf.int64, 16: tf.int32, 8: tf.int16, 4: tf.int8, 2: tf.int8, 1: tf.int8}


class PortableKernels(Kernels):
    """Slower than the native kernels, never different."""

    name = "portable"

    def keystream(self, key: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType = tf.int64) -> tf.Tensor:
        shape = tf.cast(tf.convert_to_tensor(shape), tf.int64)
        count = tf.reduce_prod(shape)
        stream = laws.expand(key, nonce, tf.constant(0, tf.int64), count * dtype.size)
        words = stream if dtype.size == 1 else tf.reshape(stream, tf.stack([count, dtype.size]))
        return tf.reshape(tf.bitcast(words, dtype), shape)

    def zero_mask(
        self, key_a: tf.Tensor, key_b: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType = tf.int64
    ) -> tf.Tensor:
        return self.keystream(key_a, nonce, shape, dtype) - self.keystream(key_b, nonce, shape, dtype)

    def zero_mask_bits(
        self, key_a: tf.Tensor, key_b: tf.Tensor, nonce: tf.Tensor, shape: Any, dtype: tf.DType
    ) -> tf.Tensor:
        return self.keystream(key_a, nonce, shape, dtype) ^ self.keystream(key_b, nonce, shape, dtype)

    def product(self, x0: tf.Tensor, x1: tf.Tensor, y0: tf.Tensor, y1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return mask + x0 * (y0 + y1) + x1 * y0

    def matmul(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        y0: tf.Tensor,
        y1: tf.Tensor,
        mask: tf.Tensor,
        transpose_a: bool = False,
        transpose_b: bool = False,
    ) -> tf.Tensor:
        def run(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            return self.matmul_public(x, y, transpose_a, transpose_b)

        return _bilinear(run, x0, x1, y0, y1, mask)

    def matmul_public(
        self, x: tf.Tensor, y: tf.Tensor, transpose_a: bool = False, transpose_b: bool = False
    ) -> tf.Tensor:
        return tf.matmul(x, y, transpose_a, transpose_b)

    def conv2d(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        w0: tf.Tensor,
        w1: tf.Tensor,
        mask: tf.Tensor,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        def run(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
            return self.conv2d_public(x, w, strides, padding, dilations)

        return _bilinear(run, x0, x1, w0, w1, mask)

    def conv2d_public(self, x: tf.Tensor, w: tf.Tensor, strides: Pair, padding: Padding, dilations: Pair) -> tf.Tensor:
        cut = windows.patches(x, _size(w), strides, padding, dilations)
        rows, outer = _rows(cut, 3)
        out = tf.matmul(rows, tf.reshape(w, [-1, w.shape[3]]))
        return tf.reshape(out, tf.concat([outer, tf.shape(w)[3:]], 0))

    def conv2d_input(
        self,
        w0: tf.Tensor,
        w1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        input_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        def run(w: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
            rows, outer = _rows(g, 3)
            cut = tf.matmul(rows, tf.reshape(w, [-1, w.shape[3]]), transpose_b=True)
            cut = tf.reshape(cut, tf.concat([outer, tf.shape(w)[:3]], 0))
            return windows.scatter(cut, input_size, _size(w), strides, padding, dilations)

        return _bilinear(run, w0, w1, g0, g1, mask)

    def conv2d_filter(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        filter_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        def run(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
            rows, _ = _rows(windows.patches(x, filter_size, strides, padding, dilations), 3)
            out = tf.matmul(rows, _rows(g, 3)[0], transpose_a=True)
            return tf.reshape(out, [*filter_size, x.shape[3], g.shape[3]])

        return _bilinear(run, x0, x1, g0, g1, mask)

    def depthwise(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        w0: tf.Tensor,
        w1: tf.Tensor,
        mask: tf.Tensor,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        def run(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
            return self.depthwise_public(x, w, strides, padding, dilations)

        return _bilinear(run, x0, x1, w0, w1, mask)

    def depthwise_public(
        self, x: tf.Tensor, w: tf.Tensor, strides: Pair, padding: Padding, dilations: Pair
    ) -> tf.Tensor:
        cut = windows.patches(x, _size(w), strides, padding, dilations)
        # [n, oh, ow, kh, kw, c, 1] times [kh, kw, c, m].
        out = tf.reduce_sum(cut[..., None] * w, [3, 4])
        return tf.reshape(out, tf.concat([tf.shape(out)[:3], [w.shape[2] * w.shape[3]]], 0))

    def depthwise_input(
        self,
        w0: tf.Tensor,
        w1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        input_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        def run(w: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
            cut = tf.reduce_sum(_split(g, w.shape[2], w.shape[3])[:, :, :, None, None] * w, -1)
            return windows.scatter(cut, input_size, _size(w), strides, padding, dilations)

        return _bilinear(run, w0, w1, g0, g1, mask)

    def depthwise_filter(
        self,
        x0: tf.Tensor,
        x1: tf.Tensor,
        g0: tf.Tensor,
        g1: tf.Tensor,
        mask: tf.Tensor,
        filter_size: Pair,
        strides: Pair,
        padding: Padding,
        dilations: Pair,
    ) -> tf.Tensor:
        def run(x: tf.Tensor, g: tf.Tensor) -> tf.Tensor:
            cut = windows.patches(x, filter_size, strides, padding, dilations)
            gradient = _split(g, x.shape[3], g.shape[3] // x.shape[3])
            return tf.reduce_sum(cut[..., None] * gradient[:, :, :, None, None], [0, 1, 2])

        return _bilinear(run, x0, x1, g0, g1, mask)

    def and_words(self, x0: tf.Tensor, x1: tf.Tensor, y0: tf.Tensor, y1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        return mask ^ (x0 & (y0 ^ y1)) ^ (x1 & y0)

    def carry_leaf(
        self, a0: tf.Tensor, a1: tf.Tensor, b0: tf.Tensor, b1: tf.Tensor, mask: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        a0, a1, b0, b1 = (_bits_reversed(each) for each in (a0, a1, b0, b1))
        return self.and_words(a0, a1, b0, b1, mask), a0 ^ b0, a1 ^ b1

    def carry_level(self, width: int, x0: tf.Tensor, x1: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        half = width // 2
        lower = tf.constant(2**half - 1, tf.uint64)
        generates, propagates = zip(*(_rows_of_bits(width, each) for each in (x0, x1)))
        p_high = [_shifted(p, half) for p in propagates]

        def conjunction(low: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            first, second = (each & lower for each in low)
            return (p_high[0] & (first ^ second)) ^ (p_high[1] & first)

        joined = _shifted(generates[0], half) ^ conjunction(generates)
        if half > 1:
            joined |= tf.bitwise.left_shift(conjunction(propagates), tf.constant(half, tf.uint64))
        dtype = _CONTAINERS[half]
        used = 2 * half if half > 1 else 1
        mask = tf.cast(tf.bitcast(mask, _UNSIGNED[dtype]), tf.uint64) & tf.constant(2**used - 1, tf.uint64)
        return tf.bitcast(tf.cast(joined ^ mask, _UNSIGNED[dtype]), dtype)

    def trunc_dealer(
        self, key0: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor, shape: Any, bits: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        r = self._stream(key0, nonce, 1, shape) + self._stream(key2, nonce, 1, shape)
        top = tf.cast(r < 0, tf.int64) * _power(64 - bits)
        return (
            _shifted_logically(r, bits) - self._stream(key0, nonce, 2, shape),
            top - self._stream(key0, nonce, 3, shape),
        )

    def trunc_mask(self, z2: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        return z2 + self._stream(key2, nonce, 0, tf.shape(z2))

    def trunc_open0(self, z0: tf.Tensor, z2m: tf.Tensor, key0: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        return z0 + z2m + self._stream(key0, nonce, 1, tf.shape(z0)) + _power(62)

    def trunc_open1(self, z1: tf.Tensor, key2: tf.Tensor, nonce: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(z1)
        return z1 - self._stream(key2, nonce, 0, shape) + self._stream(key2, nonce, 1, shape)

    def trunc_close0(self, c0: tf.Tensor, c1: tf.Tensor, key0: tf.Tensor, nonce: tf.Tensor, bits: int) -> tf.Tensor:
        opened, shape = c0 + c1, tf.shape(c0)
        second, third, fourth = (self._stream(key0, nonce, number, shape) for number in (2, 3, 4))
        kept = tf.where(opened < 0, tf.zeros_like(third), third)
        return _shifted_logically(opened, bits) - _power(62 - bits) - second + kept - fourth

    def trunc_close1(
        self,
        c0: tf.Tensor,
        c1: tf.Tensor,
        a1: tf.Tensor,
        m1: tf.Tensor,
        key2: tf.Tensor,
        nonce: tf.Tensor,
        bits: int,
    ) -> tf.Tensor:
        del bits
        kept = tf.where(c0 + c1 < 0, tf.zeros_like(m1), m1)
        return kept - a1 - self._stream(key2, nonce, 4, tf.shape(c0))

    def _stream(self, key: tf.Tensor, nonce: tf.Tensor, number: int, shape: Any) -> tf.Tensor:
        return self.keystream(key, tf.concat([nonce[:11], tf.constant([number], tf.uint8)], 0), shape)


def _bilinear(
    run: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    x0: tf.Tensor,
    x1: tf.Tensor,
    y0: tf.Tensor,
    y1: tf.Tensor,
    mask: tf.Tensor,
) -> tf.Tensor:
    return mask + run(x0, y0 + y1) + run(x1, y0)


def _size(weights: tf.Tensor) -> Pair:
    return weights.shape[0], weights.shape[1]


def _rows(x: tf.Tensor, outer: int) -> tuple[tf.Tensor, tf.Tensor]:
    """x as a matrix whose rows are its first `outer` axes, and their sizes. Empty tensors keep their widths."""
    shape = tf.shape(x)
    sizes = tf.stack([tf.reduce_prod(shape[:outer]), tf.reduce_prod(shape[outer:])])
    return tf.reshape(x, sizes), shape[:outer]


def _split(g: tf.Tensor, channels: int, multiplier: int) -> tf.Tensor:
    """[n, oh, ow, channels * multiplier] as [n, oh, ow, channels, multiplier]."""
    return tf.reshape(g, tf.concat([tf.shape(g)[:3], [channels, multiplier]], 0))


def _power(exponent: int) -> tf.Tensor:
    # 2^63 is -2^63 in the ring.
    return tf.constant(2**exponent if exponent < 63 else -(2**63), tf.int64)


def _shifted(word: tf.Tensor, places: int) -> tf.Tensor:
    return tf.bitwise.right_shift(word, tf.constant(places, word.dtype))


def _shifted_logically(word: tf.Tensor, places: int) -> tf.Tensor:
    return tf.bitcast(_shifted(tf.bitcast(word, tf.uint64), places), tf.int64)


def _rows_of_bits(width: int, container: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """G and P of a container, as uint64 words."""
    if width == 64:
        wide = tf.bitcast(container, tf.uint64)
        return wide[0], wide[1]
    wide = tf.cast(tf.bitcast(container, _UNSIGNED[container.dtype]), tf.uint64)
    return wide & tf.constant(2**width - 1, tf.uint64), _shifted(wide, width)


def _bits_reversed(word: tf.Tensor) -> tf.Tensor:
    """The word shifted left by one, with bit j at the place whose number is j with its six bits reversed."""
    bits = tf.bitwise.left_shift(tf.bitcast(word, tf.uint64), tf.constant(1, tf.uint64))
    for high, low in ((5, 0), (4, 1), (3, 2)):
        places = tf.constant(2**high - 2**low, tf.uint64)
        chosen = sum(1 << j for j in range(64) if not j >> high & 1 and j >> low & 1)
        moved = (tf.bitwise.right_shift(bits, places) ^ bits) & tf.constant(chosen, tf.uint64)
        bits = bits ^ moved ^ tf.bitwise.left_shift(moved, places)
    return tf.bitcast(bits, tf.int64)
