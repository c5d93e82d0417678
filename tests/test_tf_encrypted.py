"""The adapter that runs stock tf-encrypted: bits against plain Python, and what it restores against plaintext."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from keras_private import _backends
from keras_private._backends import tf_encrypted as adapter

TYPES = (np.int8, np.int16, np.int32, np.int64)
needs_tfe = pytest.mark.skipif(importlib.util.find_spec("tf_encrypted") is None, reason="tf-encrypted is not installed")


def words(kind: type) -> np.ndarray:
    limits = np.iinfo(kind)
    drawn = np.random.default_rng(7).integers(limits.min, limits.max, 40, dtype=kind, endpoint=True)
    return np.concatenate([drawn, np.array([limits.min, limits.max, -1, 0, 1], kind)])


def bits(word: int, width: int) -> list[int]:
    return [int(word) >> place & 1 for place in range(width)]


def packed(bits: list[int], kind: type) -> int:
    value = sum(bit << place for place, bit in enumerate(bits))
    width = 8 * np.dtype(kind).itemsize
    return value - (1 << width) if value >> (width - 1) else value


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("start", "stride"), [(0, 1), (0, 2), (1, 2), (2, 3), (0, 4), (3, 4), (5, 8)])
def test_bit_gather(kind: type, start: int, stride: int) -> None:
    x, width = words(kind), 8 * np.dtype(kind).itemsize
    found = adapter.bit_gather(tf.constant(x), start, stride).numpy()
    assert found.tolist() == [packed(bits(word, width)[start::stride], kind) for word in x]


@pytest.mark.parametrize("kind", TYPES)
def test_split_reverse_and_indices(kind: type) -> None:
    x, width = words(kind), 8 * np.dtype(kind).itemsize
    split = adapter.bit_split_and_gather(tf.constant(x), 2).numpy()
    assert split.tolist() == [[packed(bits(word, width)[start::2], kind) for word in x] for start in (0, 1)]
    reverse = adapter.bit_reverse(tf.constant(x)).numpy()
    assert reverse.tolist() == [packed(bits(word, width)[::-1], kind) for word in x]
    one_hot = np.array([1], kind) << np.arange(width, dtype=kind)
    assert adapter.xor_indices(tf.constant(one_hot)).numpy().tolist() == list(range(width))
    linear = adapter.xor_indices(tf.constant(x ^ x[::-1])).numpy()
    assert (
        linear.tolist()
        == (adapter.xor_indices(tf.constant(x)) ^ adapter.xor_indices(tf.constant(x[::-1]))).numpy().tolist()
    )


@needs_tfe
@pytest.mark.slow
def test_traced_softmax_and_comparison() -> None:
    tfe = _backends.require("tf_encrypted")
    tfe.set_protocol(tfe.protocol.ABY3())
    x = np.array([[1.0, -2.0, 3.0], [0.5, 7.0, -1.0]])
    shared = tfe.define_private_variable(x).read_value()

    # Softmax sorts in a loop, compares bits and inverts: all that is restored.
    @tfe.function
    def run(shared: object) -> tuple[tf.Tensor, tf.Tensor]:
        return tfe.softmax(shared).reveal().to_native(), tfe.relu(shared).reveal().to_native()

    softmax, relu = run(shared)
    np.testing.assert_allclose(softmax, tf.nn.softmax(x), atol=1e-3)
    np.testing.assert_allclose(relu, np.maximum(x, 0), atol=1e-4)
