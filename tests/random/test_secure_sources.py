"""Both sources under the shared contract, and where they must agree bit for bit."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private.random import NativeSource, PortableSource, SecureSource

# By path: another package's top-level `tests` may be installed beside this one.
_PATH = pathlib.Path(__file__).parents[1] / "contracts" / "secure_source.py"
_SPEC = importlib.util.spec_from_file_location("keras_private_secure_source_contract", _PATH)
contract = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = contract
_SPEC.loader.exec_module(contract)


class TestNative(contract.SecureSourceContract):
    def make_source(self) -> SecureSource:
        return NativeSource()


class TestPortable(contract.SecureSourceContract):
    def make_source(self) -> SecureSource:
        return PortableSource()


@settings(max_examples=40, deadline=None)
@given(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=12, max_size=12),
    st.integers(0, 5000),
    st.integers(0, 2**32 - 100),
)
def test_expansion_agrees_bit_for_bit(key: bytes, nonce: bytes, size: int, counter: int) -> None:
    arguments = tf.constant(list(key), tf.uint8), size, tf.constant(list(nonce), tf.uint8), counter
    native, portable = (source.expand(*arguments).numpy() for source in (NativeSource(), PortableSource()))
    assert native.shape == (size,) and np.array_equal(native, portable)


def test_long_expansion_is_sharded_without_a_seam() -> None:
    key, nonce = tf.zeros([32], tf.uint8), tf.ones([12], tf.uint8)
    size = 3_000_001
    whole = NativeSource().expand(key, size, nonce, 7).numpy()
    assert np.array_equal(whole, PortableSource().expand(key, size, nonce, 7).numpy())


@pytest.mark.parametrize("source", [NativeSource, PortableSource])
def test_expansion_length_may_be_a_tensor(source: type[SecureSource]) -> None:
    draw = tf.function(lambda n: source().expand(tf.zeros([32], tf.uint8), n, tf.zeros([12], tf.uint8)))
    assert draw(tf.constant(70)).shape == [70]
