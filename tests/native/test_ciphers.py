"""The cipher core against published vectors. It is stateless: nothing here can seed the generator."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from keras_private import native

KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAINTEXT = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHERTEXT = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


def as_tensor(data: bytes) -> tf.Tensor:
    return tf.constant(list(data), tf.uint8)


def test_aes_256_ctr_gives_the_vectors_of_nist_sp_800_38a_f_5_5() -> None:
    stream = native.load().keras_private_aes_ctr(as_tensor(KEY), as_tensor(COUNTER), 64).numpy().tobytes()
    assert bytes(a ^ b for a, b in zip(stream, PLAINTEXT)) == CIPHERTEXT


@pytest.mark.parametrize(("key", "iv", "size"), [(16, 16, 4), (32, 12, 4), (32, 16, -1)])
def test_wrong_sizes_are_refused(key: int, iv: int, size: int) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        native.load().keras_private_aes_ctr(tf.zeros([key], tf.uint8), tf.zeros([iv], tf.uint8), size)


def test_only_the_keyed_ops_take_a_key_and_every_draw_is_stateful() -> None:
    names = [name for name in dir(native.load()) if name.startswith("KerasPrivate")]
    definitions = [op_def_registry.get(name) for name in names]
    stateful = {op.name for op in definitions if op.is_stateful}
    draws = {
        "KerasPrivateUniformFull",
        "KerasPrivateUniformInt",
        "KerasPrivateGaussianCells",
        "KerasPrivateAddGaussianNoise",
    }
    assert draws <= stateful
    seeded = [
        op.name for op in definitions for arg in (*op.input_arg, *op.attr) if "seed" in arg.name.lower()
    ]
    keyed = {op.name for op in definitions for arg in op.input_arg if arg.name in ("key", "iv", "nonce")}
    rings = {name for name in keyed if name.startswith("KerasPrivateRing")}
    assert not seeded and not keyed & stateful
    assert keyed - rings == {"KerasPrivateExpand", "KerasPrivateAesCtr"}
    streams = {"Keystream", "ZeroMask", "TruncDealer", "TruncMask"}
    streams |= {f"Trunc{stage}{party}" for stage in ("Open", "Close") for party in (0, 1)}
    assert rings == {f"KerasPrivateRing{name}" for name in streams}


def test_a_large_draw_has_no_repeated_block() -> None:
    # 32 MiB in shards: blocks of one AES-CTR stream never repeat, and of two with odds below 2^-86.
    words = native.load().keras_private_uniform_full([2**21, 2], dtype=tf.uint64).numpy()
    keys = words[:, 0] ^ (words[:, 1] * np.uint64(0x9E3779B97F4A7C15))
    assert len(np.unique(keys)) == len(keys)
