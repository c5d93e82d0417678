"""What tf-encrypted 0.9.1 finds missing in TensorFlow 2.14, put in its place in memory.

Nothing of the installed package is changed on disk. It was written for TensorFlow 2.9, and breaks in three places:

| missing                                           | in its place                                             |
|---------------------------------------------------|----------------------------------------------------------|
| a switch that it imports from while_v2            | the value the switch had by default                      |
| FuncGraph.control_captures, in its while_loop     | tf.while_loop over the shares                            |
| its own operations, compiled for TensorFlow 2.9.1 | bits by TensorFlow's bitwise operations, random words by |
|                                                   | tf.random, as in the fallback it has for some of them    |

Its randomness is not secure so, and its masks repeat in every call of a traced function: it serves for comparison
and for reading its models, never for protecting data.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import while_v2

REPLACED = "replaced_bits"
"""Name scope of the operations that stand for those on bits."""

_UNSIGNED = {tf.int8: tf.uint8, tf.int16: tf.uint16, tf.int32: tf.uint32, tf.int64: tf.uint64}


def load() -> ModuleType:
    """Imports tf_encrypted, with what it misses in place; again and again if need be.

    Raises:
        ImportError: It is not installed.
    """
    if not hasattr(while_v2, "glob_stateful_parallelism"):
        while_v2.glob_stateful_parallelism = False
    tfe = importlib.import_module("tf_encrypted")
    aux: Any = importlib.import_module("tf_encrypted.operations.aux.aux")
    if aux.aux_module is None:
        aux.aux_module = SimpleNamespace(
            bit_gather=_named(bit_gather),
            bit_split_and_gather=_named(bit_split_and_gather),
            bit_reverse=_named(bit_reverse),
            xor_indices=_named(xor_indices),
        )
    random: Any = importlib.import_module("tf_encrypted.operations.secure_random.secure_random")
    if random.secure_random_module is None:
        # Its fallback without the module draws words of 8 and 16 bits wrapped twice, and cannot use them.
        random.secure_random_module = SimpleNamespace(
            secure_seed=_seed, secure_seeded_random_uniform=_seeded_uniform, secure_random_uniform=_uniform
        )
    aby3: Any = importlib.import_module("tf_encrypted.protocol.aby3.aby3")
    aby3._while_loop_ = while_loop
    return tfe


def while_loop(
    prot: Any, cond: Callable[..., Any], body: Callable[..., Sequence[Any]], loop_vars: Sequence[Any]
) -> list[Any]:
    """Its loop over tensors, shared ones among them, by tf.while_loop. Shapes and encodings do not change."""
    if tf.executing_eagerly():
        values = list(loop_vars)
        while cond(*values):
            values = list(body(*values))
        return values

    def shared(values: Sequence[Any]) -> list[Any]:
        return [prot.from_bone(value) if hasattr(value, "factory") else value for value in values]

    def plain(values: Sequence[Any]) -> list[Any]:
        return [value.bone if hasattr(value, "bone") else value for value in values]

    found = tf.while_loop(
        lambda *values: cond(*shared(values)), lambda *values: plain(body(*shared(values))), plain(loop_vars)
    )
    return shared(found)


def bit_gather(x: tf.Tensor, start: int, stride: int) -> tf.Tensor:
    """Bits start, start + stride, ... of each word, packed from bit 0 on."""
    kind, width = _UNSIGNED[x.dtype], 8 * x.dtype.size
    word = tf.bitwise.right_shift(tf.bitcast(x, kind), tf.constant(start, kind))
    count = -(-(width - start) // stride)

    def runs(length: int) -> tf.Tensor:
        """Runs of `length` kept bits, one at every `length * stride`."""
        kept = sum(1 << (bit // length * length * stride + bit % length) for bit in range(count))
        return tf.constant(kept & ((1 << width) - 1), kind)

    length = 1
    word = tf.bitwise.bitwise_and(word, runs(1))
    while length < count and stride > 1:
        moved = tf.bitwise.right_shift(word, tf.constant(length * (stride - 1), kind))
        length *= 2
        word = tf.bitwise.bitwise_and(tf.bitwise.bitwise_or(word, moved), runs(length))
    return tf.bitcast(word, x.dtype)


def bit_split_and_gather(x: tf.Tensor, stride: int) -> tf.Tensor:
    """bit_gather from each start below stride, stacked in front. Shape [stride, *x.shape]."""
    return tf.stack([bit_gather(x, start, stride) for start in range(stride)])


def bit_reverse(x: tf.Tensor) -> tf.Tensor:
    """Each word's bits in reverse."""
    kind, width = _UNSIGNED[x.dtype], 8 * x.dtype.size
    word = tf.bitcast(x, kind)
    half = width // 2
    while half:
        low = tf.constant(sum(1 << bit for bit in range(width) if not bit & half), kind)
        shift = tf.constant(half, kind)
        up = tf.bitwise.left_shift(tf.bitwise.bitwise_and(word, low), shift)
        down = tf.bitwise.bitwise_and(tf.bitwise.right_shift(word, shift), low)
        word = tf.bitwise.bitwise_or(up, down)
        half //= 2
    return tf.bitcast(word, x.dtype)


def xor_indices(x: tf.Tensor) -> tf.Tensor:
    """XOR of the places of each word's ones: of a single one, its place."""
    kind, width = _UNSIGNED[x.dtype], 8 * x.dtype.size
    word = tf.bitcast(x, kind)
    found = tf.zeros_like(word)
    for place in range(width.bit_length() - 1):
        bits = tf.bitwise.bitwise_and(word, tf.constant(sum(1 << b for b in range(width) if b >> place & 1), kind))
        half = width // 2
        while half:
            bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, tf.constant(half, kind)))
            half //= 2
        bits = tf.bitwise.left_shift(tf.bitwise.bitwise_and(bits, tf.constant(1, kind)), tf.constant(place, kind))
        found = tf.bitwise.bitwise_or(found, bits)
    return tf.bitcast(found, x.dtype)


def _named(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    def run(*arguments: Any, **keywords: Any) -> tf.Tensor:
        with tf.name_scope(REPLACED):
            return function(*arguments, **keywords)

    return run


def _seed(name: str | None = None) -> tf.Tensor:
    return tf.random.uniform([2], tf.int64.min, tf.int64.max, tf.int64, name=name)


def _seeded_uniform(shape: Any, seed: Any, low: tf.Tensor, high: tf.Tensor, name: str | None = None) -> tf.Tensor:
    """Words from low to high - 1; those of 8 and 16 bits drawn as 32."""
    kind = low.dtype if low.dtype.size >= 4 else tf.int32
    words = tf.random.stateless_uniform(shape, seed, tf.cast(low, kind), tf.cast(high, kind), kind, name=name)
    return tf.cast(words, low.dtype)


def _uniform(shape: Any, low: tf.Tensor, high: tf.Tensor, name: str | None = None) -> tf.Tensor:
    return _seeded_uniform(shape, _seed(), low, high, name)
