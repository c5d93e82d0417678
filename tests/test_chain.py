"""Chains: every kind of link, and the way up and down."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.chain import (
    AdditiveSharedTensor,
    FixedPrecisionTensor,
    Form,
    Link,
    PointerTensor,
    PrivateTensor,
    ReplicatedSharedTensor,
)
from keras_private.errors import AccessError, BackendError, ConfigurationError, EncodingError, ExposureError
from tests.contracts.links import SECRETS, LinkContract


class TestPlainHead(LinkContract):
    kind, secret = PrivateTensor, True

    def make(self):
        return kp.PrivateTensor(SECRETS)


class TestEncodedHead(LinkContract):
    kind, secret = PrivateTensor, False

    def make(self):
        return kp.PrivateTensor(SECRETS).fix_precision()


class TestSentHead(LinkContract):
    kind, secret = PrivateTensor, False

    def make(self):
        return kp.encrypt(SECRETS)


class TestComputedHead(LinkContract):
    kind, secret = PrivateTensor, False

    def make(self):
        return kp.encrypt(SECRETS) * kp.encrypt(SECRETS) - 3.0


class TestEncoded(LinkContract):
    kind, secret = FixedPrecisionTensor, True

    def make(self):
        return kp.PrivateTensor(SECRETS).fix_precision().child


class TestEncodedAndShared(LinkContract):
    kind, secret = FixedPrecisionTensor, False

    def make(self):
        return kp.PrivateTensor(SECRETS).fix_precision().share().child


class TestReplicated(LinkContract):
    kind, secret = ReplicatedSharedTensor, True

    def make(self):
        return kp.PrivateTensor(SECRETS).fix_precision().share().child.child


class TestReplicatedAndSent(LinkContract):
    kind, secret = ReplicatedSharedTensor, False

    def make(self):
        return kp.encrypt(SECRETS).child.child


class TestAdditive(LinkContract):
    kind, secret = AdditiveSharedTensor, True

    def make(self):
        return kp.PrivateTensor(SECRETS).fix_precision().share_additively(2).child.child


class TestPointer(LinkContract):
    kind, secret = PointerTensor, False

    def make(self):
        return kp.encrypt(SECRETS).child.child.child[1]

    def test_json_has_no_secret_and_comes_back(self, link):
        facts = json.loads(link.to_json())
        assert set(facts) == {"format", "party", "location", "id", "place", "shape", "fraction", "bound"}
        for found in (PointerTensor.from_json(link.to_json()), pickle.loads(pickle.dumps(link))):
            assert found.to_json() == link.to_json() and found.parent is None and found.form == link.form

    @pytest.mark.parametrize(
        "change", [{"format": 2}, {"id": "12"}, {"place": 3}, {"party": 1}, {"shape": [-1]}, {"bound": "x"}]
    )
    def test_other_json_is_refused(self, link, change):
        with pytest.raises(ConfigurationError):
            PointerTensor.from_json(json.dumps({**json.loads(link.to_json()), **change}))
        for text in ("", "[]", "{}", "[" * 100_000):
            with pytest.raises(ConfigurationError):
                PointerTensor.from_json(text)


def test_every_kind_of_link_is_in_the_contract():
    kinds = {each.kind for each in LinkContract.__subclasses__()}
    concrete = {each for each in _below(Link) if not _below(each)}
    assert kinds == concrete


def _below(kind):
    found = set(kind.__subclasses__())
    return found | {each for child in found for each in _below(child)}


def test_each_step_adds_a_link_and_moves_the_secret_down():
    head = kp.PrivateTensor(SECRETS.astype(np.float32))
    encoded = head.fix_precision(fraction=12)
    shared = encoded.share()
    sent = shared.send()
    chains = [[type(link).__name__ for link in each.walk()] for each in (head, encoded, shared, sent)]
    names = ["PrivateTensor", "FixedPrecisionTensor", "ReplicatedSharedTensor"]
    assert chains == [names[:1], names[:2], names, [*names, *["PointerTensor"] * 3]]
    holders = [[link.holds_secret for link in each.walk()] for each in (head, encoded, shared, sent)]
    assert holders == [[True], [False, True], [False, False, True], [False] * 6]
    for chain in (head, encoded, shared, sent):
        assert (chain.dtype, chain.shape, chain.bound) == ("float32", (2, 2), 1024.0)
        assert np.array_equal(chain.get().reveal(), SECRETS.astype(np.float32))
    # Old chains are as they were.
    assert head.child is None and encoded.child.child is None and shared.pointers == ()


def test_tensors_of_tensorflow_and_keras_are_taken():
    for value in (tf.constant(SECRETS), tf.Variable(SECRETS), SECRETS.tolist(), tf.keras.backend.variable(SECRETS)):
        assert np.allclose(kp.PrivateTensor(value).fix_precision().get().reveal(), SECRETS)
    for value in (tf.keras.Input((2,)), tf.constant("text"), object(), "text", None, SECRETS + 1j):
        with pytest.raises(ConfigurationError):
            kp.PrivateTensor(value)


def test_later_changes_of_the_array_change_no_chain():
    array = SECRETS.copy()
    chain = kp.PrivateTensor(array)
    array[:] = 0
    found = chain.reveal()
    assert np.array_equal(found, SECRETS)
    found[:] = 0
    assert np.array_equal(chain.reveal(), SECRETS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1024.5, -2000.0])
def test_numbers_beyond_the_bound_are_refused_and_not_named(value):
    with pytest.raises(EncodingError) as raised:
        kp.PrivateTensor([0.0, value])
    assert str(value) not in str(raised.value)
    assert kp.PrivateTensor([1024.0, -1024.0]).fix_precision().get().reveal()[1] == -1024


@pytest.mark.parametrize(
    "options", [{"bound": 0}, {"bound": np.inf}, {"bound": True}, {"readers": "client"}, {"readers": (1,)}]
)
def test_other_arguments_are_refused(options):
    with pytest.raises(ConfigurationError, match="What to do"):
        kp.PrivateTensor(SECRETS, **options)


@pytest.mark.parametrize(("fraction", "bound"), [(-1, 2), (29, 2), (16.0, 2), (28, 2**25), (16, 2**37)])
def test_bits_that_do_not_fit_are_refused(fraction, bound):
    with pytest.raises(ConfigurationError):
        kp.PrivateTensor(1.0, bound=bound).fix_precision(fraction)


def test_integers_need_no_bits_after_the_point():
    chain = kp.PrivateTensor([3, -4]).fix_precision(0)
    assert "integers" in str(chain) and chain.get().reveal().tolist() == [3, -4]
    with pytest.raises(EncodingError):
        kp.PrivateTensor([0.5]).fix_precision(0)


def test_steps_out_of_order_are_refused():
    chain = kp.PrivateTensor(SECRETS)
    encoded = chain.fix_precision()
    shared = encoded.share()
    attempts = [
        chain.share,
        chain.send,
        encoded.send,
        encoded.fix_precision,
        shared.share,
        shared.fix_precision,
        shared.share_additively,
        chain.hand_out,
        chain.release,
        chain.drop,
        chain.to_json,
        chain.look,
        shared.send().hand_out,
        lambda: chain + 1,
        lambda: shared.relu(),
        lambda: shared[0],
        lambda: chain.fraction,
    ]
    for attempt in attempts:
        with pytest.raises((ConfigurationError, ExposureError), match="What to do"):
            attempt()


def test_parts_are_taken_before_sharing():
    for chain in (kp.PrivateTensor(SECRETS), kp.PrivateTensor(SECRETS).fix_precision()):
        part = chain[1:, 0]
        assert part.shape == (1,) and part.get().reveal() == SECRETS[1:, 0]
        assert len(chain) == 2 and chain[0, 0].shape == ()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_additive_shares_sum_up_and_are_fresh(count):
    encoded = kp.PrivateTensor(SECRETS).fix_precision()
    first, second = (encoded.share_additively(count) for _ in range(2))
    parts = first.hand_out()
    assert len(parts) == count
    with np.errstate(over="ignore"):
        assert np.array_equal(sum(parts[1:], parts[0]), encoded.child.ring())
    assert not any(np.any(one == other) for one, other in zip(parts, second.hand_out()))
    assert np.array_equal(first.get().reveal(), SECRETS)
    with pytest.raises(ConfigurationError):
        encoded.share_additively(1)


def test_pairs_are_replicated_and_each_number_of_them_is_fresh():
    encoded = kp.PrivateTensor(np.zeros(1000)).fix_precision()
    pairs = encoded.share().hand_out()
    for place in range(3):
        assert np.array_equal(pairs[place][1], pairs[(place + 1) % 3][0])
    words = np.concatenate([pair[0] for pair in pairs])
    assert len(np.unique(words)) == len(words)


def test_readers_of_a_value_that_is_here():
    with pytest.raises(AccessError, match="client"):
        kp.PrivateTensor(SECRETS, readers=("bob",)).reveal()


def test_parallel_chains_share_no_link():
    chain = kp.encrypt(SECRETS)
    with pytest.raises(ConfigurationError, match="another chain"):
        FixedPrecisionTensor((2, 2), 16, chain.child.child)


def test_a_chain_that_was_sent_is_written_down_as_json_alone():
    chain = kp.encrypt(SECRETS)
    with pytest.raises(ExposureError, match="to_json"):
        pickle.dumps(chain)
    assert copy.deepcopy(chain) is chain
    again = kp.PrivateTensor.from_json(chain.to_json())
    assert np.array_equal(again.reveal(), SECRETS) and again.dtype == "float64"
    facts = json.loads(chain.to_json())
    for change in ({"pointers": facts["pointers"][:2]}, {"pointers": 1}, {"dtype": "nonsense"}, {"format": 0}):
        with pytest.raises(ConfigurationError):
            kp.PrivateTensor.from_json(json.dumps({**facts, **change}))


def test_a_chain_can_be_freed():
    chain = kp.encrypt(SECRETS)
    seen = weakref.ref(chain.child.child)
    del chain
    gc.collect()
    assert seen() is None


def test_weights_of_an_encrypted_model_are_chains():
    layers = tf.keras.layers
    model = tf.keras.Sequential([tf.keras.Input((4,)), layers.Dense(3, "relu"), layers.Dense(2)])
    encrypted = kp.EncryptedModel(model, input_range=(0, 1))
    found = encrypted.private_weights
    assert list(found) == list(encrypted.steps.weights)
    for name, chain in found.items():
        layer, weight = name.split("/")
        expected = getattr(model.get_layer(layer), weight).numpy()
        assert [each.party for each in chain.pointers] == ["server0", "server1", "server2"]
        assert chain.readers == chain.owners == ("model_owner",) and np.max(np.abs(expected)) <= chain.bound
        np.testing.assert_allclose(chain.reveal(), expected, atol=2.0**-16)
        with pytest.raises(AccessError):
            kp.PrivateTensor.from_json(chain.to_json(), name="client").reveal()
    kernel = next(iter(found.values()))
    np.testing.assert_allclose((kernel * 2).sum().reveal(), 2 * model.layers[0].kernel.numpy().sum(), atol=1e-3)
    encrypted.compile("sgd", "mse")
    encrypted.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
    trained = encrypted.private_weights["dense/kernel" if "dense/kernel" in found else next(iter(found))]
    assert trained.bound > 2.0**40 and np.all(np.isfinite(trained.reveal()))


def test_form_is_checked():
    form = Form((2, 3), 16, 4.0)
    assert Form.of_facts(form.facts()) == form and form.size == 6
    for change in ({"shape": [1.5]}, {"shape": 3}, {"fraction": True}, {"fraction": 63}, {"bound": float("nan")}):
        with pytest.raises(ConfigurationError):
            Form.of_facts({**form.facts(), **change})


def test_chain_alone_knows_no_protocol():
    code = (
        "import sys, keras_private.chain as chain\n"
        "assert not any(name.startswith('keras_private.encrypted') for name in sys.modules)\n"
        "from keras_private.errors import BackendError\n"
        "try: chain.PrivateTensor([1.0]).fix_precision()\n"
        "except BackendError as error: print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "refused" in done.stdout and "kp.encrypt" in done.stdout, done.stderr
    assert issubclass(BackendError, ImportError)
