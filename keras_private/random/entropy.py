"""Fresh keys from the operating system, drawn inside a graph by stock ops.

Each key is read when the graph runs, used for one draw, and forgotten: there is no generator state to save,
restore, clone, share after a fork or repeat in another process.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from keras_private.errors import RandomnessError
from keras_private.random import chacha20

UUID_PATH = "/proc/sys/kernel/random/uuid"
_VERSION_4 = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
# Where the two hex digits of each wholly random byte stand: bytes 6 and 8 carry the version and variant.
_RANDOM_BYTES = tuple(
    position + 2 * i for position, count in ((0, 4), (9, 2), (16, 1), (21, 1), (24, 6)) for i in range(count)
)
_READS = 3  # 3 * 14 wholly random bytes; a key takes 32, as they come: nothing needs condensing.


def require_kernel_source(path: str) -> None:
    """Raises RandomnessError unless fresh kernel randomness can be read from `path` on this machine."""
    try:
        with open(path, encoding="ascii") as file:
            file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise RandomnessError(
            f"the kernel's random UUIDs cannot be read: {error}",
            expected=f"a readable {path} (Linux)",
            remedy="use the native source, or run where /proc is mounted",
        ) from error


def kernel_key(path: str) -> tf.Tensor:
    """A key from the Linux kernel's generator by stock ops alone: uint32 [8].

    Linux makes each version 4 UUID from 16 fresh bytes of its generator and overwrites 6 bits (lib/uuid.c,
    `generate_random_uuid`). The dataset ops are stateful: grappler neither folds nor merges them.

    Raises (when run):
        tf.errors.OpError: The file cannot be read, is no version 4 UUID, or repeats.
    """
    # One dataset over three reads; each opens the file anew.
    dataset = tf.data.TextLineDataset([path] * _READS, buffer_size=4096).batch(_READS)
    lines = tf.ensure_shape(dataset.get_single_element(), [_READS])
    valid = tf.reduce_all(tf.strings.regex_full_match(lines, _VERSION_4))
    valid &= tf.reduce_all(tf.not_equal(lines, tf.roll(lines, 1, axis=0)))
    check = tf.debugging.Assert(valid, ["keras_private: no fresh version 4 UUIDs could be read from", path])
    with tf.control_dependencies([] if check is None else [check]):
        digits = tf.cast(tf.ensure_shape(tf.io.decode_raw(lines, tf.uint8), [_READS, 36]), tf.int32)
    digits = tf.where(digits < ord("a"), digits - ord("0"), digits - (ord("a") - 10))
    high = tf.gather(digits, _RANDOM_BYTES, axis=1)
    low = tf.gather(digits, [position + 1 for position in _RANDOM_BYTES], axis=1)
    data = tf.reshape(tf.cast(16 * high + low, tf.uint8), [-1])[:32]
    # Grappler can be told to strip assertions. This index is out of range for an invalid read, and stays.
    guarded = tf.gather(data[tf.newaxis], tf.where(valid, 0, 1))
    return chacha20.bytes_to_words(tf.ensure_shape(guarded, [32]))


def python_key() -> tf.Tensor:
    """A key from os.urandom, by the Python process that runs the graph, where /proc is not: uint32 [8]."""
    data = tf.numpy_function(_urandom_key, [], tf.uint8, stateful=True)
    return chacha20.bytes_to_words(tf.ensure_shape(data, [32]))


def _urandom_key() -> np.ndarray:
    return np.frombuffer(os.urandom(32), np.uint8)
