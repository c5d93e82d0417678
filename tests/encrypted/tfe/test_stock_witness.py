"""The contract of messages rejects stock tf-encrypted: why its traced functions protect no data here.

Every test marked as failing is expected to fail for the reason given, and for no other exception than the contract's:
should another version of tf-encrypted pass, the mark is to go.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_private import _backends
from tests.contracts.secure_transcript import assert_fresh, assert_keys_drawn, assert_uniform

SHAPE = (64, 64)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tf_encrypted") is None, reason="tf-encrypted is not installed"
)
in_every_run = pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="ABY3 of tf-encrypted 0.9.1 draws its keys once and counts nonces while tracing: every run masks alike",
)


@pytest.fixture(scope="module")
def product() -> Any:
    """An unscaled product of x with itself, traced: the three summands that the servers pass on, and its value."""
    tfe = _backends.require("tf_encrypted")
    tfe.set_protocol(tfe.protocol.ABY3())
    prot = tfe.get_protocol()
    numbers = np.random.default_rng(0).integers(-9, 9, SHAPE)
    x = tfe.define_private_variable(numbers, apply_scaling=False).read_value().bone

    @tf.function(autograph=False)
    def run(bone: Any) -> Any:
        shared = prot.from_bone(bone)
        squared = shared * shared
        # Server i gets share i + 1 of server i + 1 (its own re-sharing step).
        received = {f"server{i}": squared.unwrapped[i][1].value for i in range(3)}
        return received, squared.reveal().to_native()

    concrete = run.get_concrete_function(x)
    return lambda: concrete(x), concrete.graph, numbers


def messages(product: Any) -> Any:
    run, _, _ = product
    return lambda: {f"share to {party}": (party, words.numpy()) for party, words in run()[0].items()}


def test_the_product_is_right_and_its_messages_are_what_is_revealed(product: Any) -> None:
    run, _, numbers = product
    received, value = run()
    np.testing.assert_array_equal(value.numpy(), numbers**2)
    np.testing.assert_array_equal(sum(words.numpy() for words in received.values()), numbers**2)


def test_within_one_run_its_messages_are_uniform(product: Any) -> None:
    assert_uniform(messages(product))


@in_every_run
def test_messages_of_two_runs_differ(product: Any) -> None:
    assert_fresh(messages(product))


@in_every_run
def test_keys_are_drawn_in_the_run(product: Any) -> None:
    assert_keys_drawn(product[1])
