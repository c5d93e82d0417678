"""The portable source's laws: deterministic functions of a fresh 256-bit key, traced once each.

The key never leaves these functions, and each use of it has its own nonce, so no word serves twice.
"""

from __future__ import annotations

import tensorflow as tf

from keras_private.random import chacha20
from keras_private.random.gaussian_table import gaussian_table

_KEY = tf.TensorSpec([8], tf.uint32)
_BYTES = tf.TensorSpec([None], tf.uint8)
_SCALAR = tf.TensorSpec([], tf.int64)
# Kept as calls: inlined, grappler would optimize the same body again at every draw of a graph.
_ONCE = {"_noinline": True}


def _u64(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint64)


def _words(key: tf.Tensor, use: tf.Tensor | int, count: tf.Tensor) -> tf.Tensor:
    """`count` uniform uint32 words; every `use` of one key is a nonce of its own."""
    nonce = tf.stack([tf.cast(use, tf.uint32), tf.constant(0, tf.uint32), tf.constant(0, tf.uint32)])
    blocks = -(-count // chacha20.BLOCK_WORDS)
    return tf.reshape(chacha20.block_words(key, nonce, tf.constant(0, tf.int64), blocks), [-1])[:count]


def _words64(key: tf.Tensor, use: tf.Tensor | int, count: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.reshape(_words(key, use, 2 * count), [-1, 2]), tf.uint64)


def uniform_full(key: tf.Tensor, count: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """`count` uniform integers over the whole range of dtype."""
    words = _traced_words(key, -(-count * dtype.size // 4))
    if dtype.size == 8:
        words = tf.reshape(words, [-1, 2])
    return tf.reshape(tf.bitcast(words, dtype), [-1])[:count]


@tf.function(input_signature=(_KEY, _SCALAR), autograph=False, experimental_attributes=_ONCE)
def _traced_words(key: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    return _words(key, 0, count)


def uniform(key: tf.Tensor, count: tf.Tensor, minval: tf.Tensor, maxval: tf.Tensor) -> tf.Tensor:
    """`count` uniform integers in [minval, maxval), bounds of one integer dtype."""
    low, high = _lifted(minval), _lifted(maxval)
    check = tf.debugging.Assert(
        minval < maxval, ["keras_private: minval must be below maxval, got", minval, maxval]
    )
    with tf.control_dependencies([] if check is None else [check]):
        # An empty range divides by zero below, should the assertion be stripped.
        size = tf.where(minval < maxval, high - low, _u64(0))
    values = low + _traced_below(key, count, size)
    return values if minval.dtype == tf.uint64 else tf.cast(tf.bitcast(values, tf.int64), minval.dtype)


def _lifted(bound: tf.Tensor) -> tf.Tensor:
    return bound if bound.dtype == tf.uint64 else tf.bitcast(tf.cast(bound, tf.int64), tf.uint64)


@tf.function(
    input_signature=(_KEY, _SCALAR, tf.TensorSpec([], tf.uint64)),
    autograph=False,
    experimental_attributes=_ONCE,
)
def _traced_below(key: tf.Tensor, count: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    # Rejection: the 2^64 mod size largest words are redrawn, the rest fall evenly on the residues.
    largest = _u64(2**64 - 1) - (_u64(0) - size) % size

    def redraw(
        use: tf.Tensor, words: tf.Tensor, rejected: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        fresh = _words64(key, use, tf.shape(rejected, tf.int64)[0])
        words = tf.tensor_scatter_nd_update(words, rejected, fresh)
        return use + 1, words, tf.boolean_mask(rejected, fresh > largest)

    words = _words64(key, 0, count)
    _, words, _ = tf.while_loop(
        lambda use, words, rejected: tf.size(rejected) > 0,
        redraw,
        (tf.constant(1), words, tf.where(words > largest)),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None]), tf.TensorShape([None, 1])),
    )
    return words % size


def _high_product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Upper 64 bits of the product of uint64 tensors."""
    shift, mask = _u64(32), _u64(2**32 - 1)
    a1, a0 = tf.bitwise.right_shift(a, shift), tf.bitwise.bitwise_and(a, mask)
    b1, b0 = tf.bitwise.right_shift(b, shift), tf.bitwise.bitwise_and(b, mask)
    middle = a1 * b0 + tf.bitwise.right_shift(a0 * b0, shift)
    carry = tf.bitwise.bitwise_and(middle, mask) + a0 * b1
    return a1 * b1 + tf.bitwise.right_shift(middle, shift) + tf.bitwise.right_shift(carry, shift)


def rejection_threshold(bins: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """2^64 (1 - mass of cell `offset` / mass of cell 0) of a bin; the integers of native/src/gaussian.cc."""
    n = offset * (_u64(8192) * bins + offset + _u64(1))
    correction = (n + _u64(6 << 17)) // _u64(12 << 17)
    x = tf.bitwise.left_shift(n, _u64(23)) - correction
    h = tf.fill(tf.shape(x), _u64(2**63))
    for k in range(12, 1, -1):
        h = _u64(2**63) - _high_product(x, h) // _u64(k)
    return tf.bitwise.left_shift(_high_product(x, h), _u64(1))


def _field(words: tf.Tensor, shift: int, bits: int) -> tf.Tensor:
    shifted = tf.bitwise.right_shift(words, tf.constant(shift, tf.uint32))
    return tf.cast(tf.bitwise.bitwise_and(shifted, tf.constant(2**bits - 1, tf.uint32)), tf.int64)


def _extended(high16: tf.Tensor, fresh: tf.Tensor) -> tf.Tensor:
    """16 bits drawn before, continued by 48 of a fresh word."""
    low = tf.bitwise.bitwise_and(fresh, _u64(2**48 - 1))
    return tf.bitwise.left_shift(tf.cast(high16, tf.uint64), _u64(48)) + low


def _pick_bins(key: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
    thresholds, aliases = (tf.constant(array) for array in gaussian_table())
    column, bits = _field(first, 0, 12), _field(first, 12, 16)
    threshold = tf.gather(thresholds, column)
    top = tf.cast(tf.bitwise.right_shift(threshold, _u64(48)), tf.int64)
    equal = tf.where(tf.equal(bits, top))
    fresh = _words64(key, 1, tf.shape(equal, tf.int64)[0])
    uniform64 = _extended(tf.gather_nd(bits, equal), fresh)
    keep = tf.tensor_scatter_nd_update(bits < top, equal, uniform64 < tf.gather_nd(threshold, equal))
    return tf.where(keep, column, tf.cast(tf.gather(aliases, column), tf.int64))


@tf.function(input_signature=(_KEY, _SCALAR), autograph=False, experimental_attributes=_ONCE)
def gaussian_cells(key: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """`count` draws of floor(2^20 Z): int64. The construction of native/src/gaussian.cc, draw by draw."""
    words = _words(key, 0, 2 * count)
    first, second = words[:count], words[count:]
    bins = _pick_bins(key, first)

    def is_open(second: tf.Tensor, bins: tf.Tensor) -> tf.Tensor:
        return _field(second, 12, 16) + bins >= 65535

    def decide(
        use: tf.Tensor, offset: tf.Tensor, index: tf.Tensor, second: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        waiting = tf.shape(index, tf.int64)[0]
        own_bins = tf.gather_nd(bins, index)
        uniform64 = _extended(_field(second, 12, 16), _words64(key, use, waiting))
        threshold = rejection_threshold(
            tf.cast(own_bins, tf.uint64), tf.cast(_field(second, 0, 12), tf.uint64)
        )
        rejected = uniform64 > _u64(2**64 - 1) - threshold
        # A rejection keeps the bin, whose probability is already right, and redraws the offset.
        index, own_bins = tf.boolean_mask(index, rejected), tf.boolean_mask(own_bins, rejected)
        second = _words(key, use + 1, tf.shape(index, tf.int64)[0])
        offset = tf.tensor_scatter_nd_update(offset, index, _field(second, 0, 12))
        still = is_open(second, own_bins)
        return use + 2, offset, tf.boolean_mask(index, still), tf.boolean_mask(second, still)

    index = tf.where(is_open(second, bins))
    _, offset, _, _ = tf.while_loop(
        lambda use, offset, index, second: tf.size(index) > 0,
        decide,
        (tf.constant(2), _field(second, 0, 12), index, tf.gather_nd(second, index)),
        shape_invariants=(tf.TensorShape([]), *[tf.TensorShape(s) for s in ([None], [None, 1], [None])]),
    )
    cells = bins * 4096 + offset
    return tf.where(tf.equal(_field(second, 28, 1), 1), -cells - 1, cells)


def round_and_add(x: tf.Tensor, noise: tf.Tensor, cell: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """float32((k + noise + 1/2) * (cell * scale)), k the integer nearest to x / cell; see SecureSource."""
    step = cell * scale
    valid = tf.math.is_finite(cell) & (cell >= 2.0**-125) & tf.math.is_finite(scale) & tf.math.is_finite(step)
    check = tf.debugging.Assert(
        valid,
        [
            "keras_private: cell must be finite and at least 2^-125, scale and cell * scale finite",
            cell,
            scale,
        ],
    )
    with tf.control_dependencies([] if check is None else [check]):
        # Out of range for invalid arguments, should the assertion be stripped.
        step = tf.gather(step[tf.newaxis], tf.where(valid, 0, 1))
    quotient = tf.cast(x, tf.float64) / cell
    quotient = tf.where(tf.math.is_nan(quotient), tf.constant(0.0, tf.float64), quotient)
    nearest = tf.round(tf.clip_by_value(quotient, -(2.0**52), 2.0**52))
    return tf.cast(((nearest + tf.cast(noise, tf.float64)) + 0.5) * step, tf.float32)


@tf.function(
    input_signature=(_BYTES, _BYTES, _SCALAR, _SCALAR), autograph=False, experimental_attributes=_ONCE
)
def expand(key: tf.Tensor, nonce: tf.Tensor, counter: tf.Tensor, num_bytes: tf.Tensor) -> tf.Tensor:
    """ChaCha20 keystream of RFC 8439 2.4, refused past block 2^32."""
    blocks = num_bytes // 64 + tf.cast(num_bytes % 64 > 0, tf.int64)
    valid = (num_bytes >= 0) & (counter >= 0) & (counter < 2**32) & (blocks <= 2**32 - counter)
    check = tf.debugging.Assert(
        valid,
        [
            "keras_private: the keystream must lie within blocks 0 to 2^32 - 1, got counter, bytes",
            counter,
            num_bytes,
        ],
    )
    with tf.control_dependencies([] if check is None else [check]):
        # A negative size fails in tf.range, should the assertion be stripped.
        blocks = tf.where(valid, blocks, tf.constant(-1, tf.int64))
        key = tf.ensure_shape(key, [32])
    words = chacha20.block_words(
        chacha20.bytes_to_words(key), chacha20.bytes_to_words(tf.ensure_shape(nonce, [12])), counter, blocks
    )
    return chacha20.words_to_bytes(words, num_bytes)
