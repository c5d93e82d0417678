"""Pads: what a client adds to its encoded update, one for each party, and the party can make again.

A pad is ChaCha20's keystream under a key of its own, derived in three steps from the key that client and party share:

    k1 = F(pair key, session)       k2 = F(k1, round)       k3 = F(k2, nonce)       pad = keystream(k3)

F(k, x) is the first half of one ChaCha20 block under k whose counter and nonce words are the 16 bytes x: a pseudorandom
function of x, since ChaCha20's block function is one of its 128 input bits (Bernstein 2008). Each input fills its 16
bytes in one way only, so that different (session, round, nonce) never meet in one chain but by a collision of keys. The
nonce is 128 bits drawn while the client's graph runs: a graph that is run again has other pads.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ....random import SecureSource
from ....random.entropy import UUID_PATH, kernel_key
from ....random.portable import PortableSource

KEY_BYTES = 32
NONCE_BYTES = 16


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
    # The round, and which step this is: no session or nonce stands in this place of the chain.
    number = tf.bitcast(tf.cast(number, tf.int64), tf.uint8)
    mark = tf.constant(list(b"round\0\0\0"), tf.uint8)
    for each in (session, tf.concat([number, mark], axis=0), nonce):
        key = _derived(source, key, each)
    stream = source.expand(key, 8 * words, tf.zeros([12], tf.uint8))
    return tf.bitcast(tf.reshape(stream, [words, 8]), tf.int64)


def _derived(source: SecureSource, key: Any, value: Any) -> tf.Tensor:
    counter = tf.cast(tf.bitcast(value[:4], tf.uint32), tf.int64)
    return source.expand(key, KEY_BYTES, value[4:], counter)


def client_source() -> SecureSource:
    """What a client's graph draws from and expands with: stock operations, keyed by its host's kernel.

    Raises:
        RandomnessError: This machine's kernel has no generator that stock operations can read.
    """
    return PortableSource(stock_ops_only=True)


def fresh_nonce() -> tf.Tensor:
    """uint8 [16], drawn from the kernel each time the graph runs."""
    return tf.reshape(tf.bitcast(kernel_key(UUID_PATH)[:4], tf.uint8), [NONCE_BYTES])


def read_key(path: tf.Tensor) -> tf.Tensor:
    """uint8 [32] from a file, read each time the graph runs."""
    content = tf.io.decode_raw(tf.io.read_file(path), tf.uint8)
    return tf.ensure_shape(content, [KEY_BYTES])


def bytes_of(text: tf.Tensor) -> tf.Tensor:
    """uint8 [16] from 32 hexadecimal digits."""
    digits = tf.ensure_shape(tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32), [2 * NONCE_BYTES])
    values = tf.where(digits < ord("a"), digits - ord("0"), digits - (ord("a") - 10))
    pairs = tf.reshape(values, [NONCE_BYTES, 2])
    return tf.cast(16 * pairs[:, 0] + pairs[:, 1], tf.uint8)
