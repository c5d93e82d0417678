"""No key of a run is known before it: the contract of keys, on programs and on one that breaks it.

The contract of messages runs in test_session.py.
"""

from __future__ import annotations

import pytest
import tensorflow as tf

from keras_private.encrypted.kernels import choose
from keras_private.encrypted.protocol.comparison import relu
from keras_private.encrypted.protocol.functions import softmax
from keras_private.encrypted.protocol.products import matmul, multiply
from keras_private.encrypted.protocol.truncation import truncate
from tests.contracts.secure_transcript import assert_keys_drawn
from tests.encrypted.harness import traced

PROGRAMS = {
    "share and reveal": lambda x: x + x,
    "truncate": lambda x: truncate(x, 8),
    "elementwise product": lambda x: multiply(x, x),
    "matrix product": lambda x: matmul(x, x),
    "relu": lambda x: relu(x)[0],
    "softmax": softmax,
}


class KnownKey(type(choose())):
    """Kernels that mask under a key which is written in the program."""

    def zero_mask(self, key_a, key_b, nonce, shape, dtype=tf.int64):
        return super().zero_mask(key_a, tf.ones([32], tf.uint8), nonce, shape, dtype)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_key_is_drawn_in_the_run(name):
    assert_keys_drawn(traced(PROGRAMS[name], [(4, 4)]).graph)


def test_the_suite_rejects_a_key_that_is_a_constant():
    graph = traced(PROGRAMS["share and reveal"], [(4, 4)], kernels=KnownKey()).graph
    with pytest.raises(AssertionError, match="same in every run"):
        assert_keys_drawn(graph)
