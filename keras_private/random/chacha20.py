"""ChaCha20 (RFC 8439) in plain TensorFlow ops, vectorised over block counters.

Only stock ops, so it runs wherever a TensorFlow graph runs, static worker binaries included. Checked against
the RFC's vectors and, bit for bit, against OpenSSL's in tests/random.
"""

from __future__ import annotations

import tensorflow as tf

_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
BLOCK_BYTES = 64
BLOCK_WORDS = 16


def _rotate_left(x: tf.Tensor, bits: int) -> tf.Tensor:
    # A product that wraps and a sum of disjoint bits: TensorFlow's shifts and ors are several times as slow.
    left = x * tf.constant(1 << bits, tf.uint32)
    return left + tf.bitwise.right_shift(x, tf.constant(32 - bits, tf.uint32))


def _quarter_rounds(a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """RFC 8439, 2.1, on four columns of every block at once."""
    a += b
    d = _rotate_left(tf.bitwise.bitwise_xor(d, a), 16)
    c += d
    b = _rotate_left(tf.bitwise.bitwise_xor(b, c), 12)
    a += b
    d = _rotate_left(tf.bitwise.bitwise_xor(d, a), 8)
    c += d
    b = _rotate_left(tf.bitwise.bitwise_xor(b, c), 7)
    return a, b, c, d


def _rotate_rows(x: tf.Tensor, by: int) -> tf.Tensor:
    return tf.gather(x, [(row + by) % 4 for row in range(4)])


def block_words(key: tf.Tensor, nonce: tf.Tensor, counter: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
    """Keystream blocks as words.

    Args:
        key: uint32 [8].
        nonce: uint32 [3].
        counter: int64 scalar, the first block; the caller keeps counter + blocks within 2^32.
        blocks: int64 scalar, how many.

    Returns:
        uint32 [16, blocks]; column i is block counter + i.
    """
    counters = tf.cast(counter + tf.range(blocks), tf.uint32)[tf.newaxis]
    last = tf.concat([counters, tf.broadcast_to(nonce[:, tf.newaxis], [3, blocks])], axis=0)
    return columns(tf.broadcast_to(key[:, tf.newaxis], tf.stack([tf.constant(8, tf.int64), blocks])), last)


def columns(keys: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """The block function (RFC 8439, 2.3) on many columns in one pass, each with its own key, counter and nonce.

    Args:
        keys: uint32 [8, columns].
        last: uint32 [4, columns]: the counter, and three words of nonce.

    Returns:
        uint32 [16, columns].
    """
    constants = tf.constant(_CONSTANTS, tf.uint32)[:, tf.newaxis]
    start = (tf.broadcast_to(constants, tf.shape(last)), keys[:4], keys[4:], last)

    def double_round(
        i: tf.Tensor, a: tf.Tensor, b: tf.Tensor, c: tf.Tensor, d: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        a, b, c, d = _quarter_rounds(a, b, c, d)
        a, b, c, d = _quarter_rounds(a, _rotate_rows(b, 1), _rotate_rows(c, 2), _rotate_rows(d, 3))
        return i + 1, a, _rotate_rows(b, 3), _rotate_rows(c, 2), _rotate_rows(d, 1)

    rows = tf.TensorShape([4, None])
    mixed = tf.while_loop(
        lambda i, *_: i < 10,
        double_round,
        (tf.constant(0), *start),
        shape_invariants=(tf.TensorShape([]), rows, rows, rows, rows),
    )
    return tf.concat([after + before for after, before in zip(mixed[1:], start)], axis=0)


def words_to_bytes(words: tf.Tensor, num_bytes: tf.Tensor) -> tf.Tensor:
    """The first num_bytes of the keystream, from the words of `block_words`."""
    # Bitcast writes the host's byte order: little-endian, as the RFC's, on every platform TensorFlow serves.
    return tf.reshape(tf.bitcast(tf.transpose(words), tf.uint8), [-1])[:num_bytes]


def bytes_to_words(data: tf.Tensor) -> tf.Tensor:
    """uint8 [4 n] to uint32 [n], little-endian."""
    return tf.bitcast(tf.reshape(data, [-1, 4]), tf.uint32)
