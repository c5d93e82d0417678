"""Pads: what a client adds to its encoded update, one for each party, and the party can make again.

A pad is a keystream of ChaCha20 whose key is derived in two steps from the key that client and party share:

    k1 = F(pair key, session)    k2 = F(k1, round and first 4 bytes of r)    pad = keystream(k2, other 12 bytes of r)

F(k, x) is the first half of one ChaCha20 block under k whose counter and nonce words are the 16 bytes x: a pseudorandom
function of x, since ChaCha20's block function is one of its 128 input bits (Bernstein 2008). Each input fills its 16
bytes in one way only, and each key serves in one of the three places: different (session, round, r) have different
blocks, but for a collision of keys. The nonce r is 128 bits drawn while the client's graph runs: a graph that is run
again has other pads.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ....random import SecureSource, chacha20
from ....random.entropy import UUID_PATH, kernel_key

KEY_BYTES = 32
NONCE_BYTES = 16
_KEYED = 4
"""Bytes of a nonce that go into the key; the others are the nonce of the keystream."""
_BLOCK_WORDS = chacha20.BLOCK_BYTES // 8
_COLUMNS = 4096
"""Blocks of a pass: more are not faster, and their intermediate values leave the processor's cache."""


def pad(source: SecureSource, key: Any, session: Any, number: Any, nonce: Any, words: int) -> tf.Tensor:
    """The pad of one client and one party.

    Args:
        source: Any; all give the same bytes.
        key: uint8 [32], shared by client and party.
        session: uint8 [16].
        number: Of the round, int64 scalar.
        nonce: uint8 [16].
        words: Length.

    Returns:
        int64 [words], uniform to whoever has not the key.
    """
    for each in _steps(session, number, nonce):
        key = _derived(source, key, each)
    stream = source.expand(key, 8 * words, nonce[_KEYED:])
    return tf.bitcast(tf.reshape(stream, [words, 8]), tf.int64)


def sum_of_pads(keys: Any, session: Any, number: Any, nonce: Any, words: int) -> tf.Tensor:
    """The sum of the pads that one client has under several keys, in stock operations.

    The same as adding up `pad`, with all keys in one pass: a client's graph spends most of its time on starting small
    operations.

    Args:
        keys: uint8 [n, 32], n static.
        session, number, nonce, words: As for `pad`.

    Returns:
        int64 [words].
    """
    count = int(keys.shape[0])
    by_key = tf.transpose(tf.bitcast(tf.reshape(keys, [count, 8, 4]), tf.uint32))
    for each in _steps(session, number, nonce):
        last = tf.tile(chacha20.bytes_to_words(each)[:, tf.newaxis], [1, count])
        by_key = chacha20.columns(by_key, last)[:8]
    rest = chacha20.bytes_to_words(nonce[_KEYED:])[:, tf.newaxis]
    blocks = -(-words // _BLOCK_WORDS)
    size = max(_COLUMNS // count, 1)

    def summed(first: Any) -> tf.Tensor:
        here = tf.minimum(size, blocks - first)
        counters = tf.cast(first + tf.range(here), tf.uint32)[tf.newaxis]
        last = tf.tile(tf.concat([counters, tf.repeat(rest, here, axis=1)], axis=0), [1, count])
        stream = tf.transpose(chacha20.columns(tf.repeat(by_key, here, axis=1), last))
        return tf.reduce_sum(tf.bitcast(tf.reshape(stream, [count, here * _BLOCK_WORDS, 2]), tf.int64), axis=0)

    if blocks <= size:
        return tf.ensure_shape(summed(tf.constant(0))[:words], [words])
    passes = -(-blocks // size)
    parts = tf.TensorArray(tf.int64, passes, element_shape=[None], infer_shape=False)
    _, parts = tf.while_loop(
        lambda i, _: i < passes,
        lambda i, parts: (i + 1, parts.write(i, summed(i * size))),
        (tf.constant(0), parts),
        parallel_iterations=1,
    )
    return tf.ensure_shape(parts.concat()[:words], [words])


def _steps(session: Any, number: Any, nonce: Any) -> tuple[Any, Any]:
    """What the steps of the derivation are functions of: uint8 [16] each."""
    number = tf.bitcast(tf.cast(number, tf.int64), tf.uint8)
    # Which step this is: by itself, no session stands in this place of the chain.
    return session, tf.concat([number, nonce[:_KEYED], tf.constant(list(b"rnd\0"), tf.uint8)], axis=0)


def _derived(source: SecureSource, key: Any, value: Any) -> tf.Tensor:
    counter = tf.cast(tf.bitcast(value[:4], tf.uint32), tf.int64)
    return source.expand(key, KEY_BYTES, value[4:], counter)


def fresh_nonce() -> tf.Tensor:
    """uint8 [16], drawn from the kernel each time the graph runs."""
    return tf.reshape(tf.bitcast(kernel_key(UUID_PATH)[:4], tf.uint8), [NONCE_BYTES])


def read_key(path: tf.Tensor) -> tf.Tensor:
    """uint8 [32] from a file, read each time the graph runs."""
    content = tf.io.decode_raw(tf.io.read_file(path), tf.uint8)
    return tf.ensure_shape(content, [KEY_BYTES])


def bytes_of(text: tf.Tensor) -> tf.Tensor:
    """uint8 [16] from 32 hexadecimal digits.

    Raises (when run):
        tf.errors.OpError: The text is something else.
    """
    valid = tf.strings.regex_full_match(text, f"[0-9a-f]{{{2 * NONCE_BYTES}}}")
    check = tf.debugging.Assert(valid, ["keras_private: a session is 32 hexadecimal digits, not", text])
    with tf.control_dependencies([] if check is None else [check]):
        digits = tf.ensure_shape(tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32), [2 * NONCE_BYTES])
    values = tf.where(digits < ord("a"), digits - ord("0"), digits - (ord("a") - 10))
    pairs = tf.reshape(values, [NONCE_BYTES, 2])
    found = tf.cast(16 * pairs[:, 0] + pairs[:, 1], tf.uint8)
    # Out of range for other text, should the assertion be stripped.
    return tf.gather(found[tf.newaxis], tf.where(valid, 0, 1))
