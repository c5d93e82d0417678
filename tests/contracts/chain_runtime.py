"""What every runtime of the tensor chain must do. Subclass `ChainRuntimeContract` and give the fixture `cluster`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_private as kp
from keras_private.chain import PointerTensor
from keras_private.errors import AccessError, ConfigurationError, ExposureError, OverflowPreflightError, PartiesError

X = np.array([[1.5, -2.25, 3.0], [-0.5, 0.0, 7.75]])
Y = np.array([[2.0, -2.25, 0.5], [1.0, -1.0, 8.0]])


class ChainRuntimeContract:
    """Inherit as `class TestX(ChainRuntimeContract)`; "alice", "bob" and "eve" must be able to speak to the parties."""

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls) -> Any:
        raise NotImplementedError

    def test_what_is_sent_comes_back(self, cluster):
        private = kp.encrypt(X, cluster, name="alice")
        found = private.reveal()
        assert found.dtype == np.float64 and np.array_equal(found, X)
        assert np.array_equal(private.get().reveal(), X) and private.get().holds_secret
        assert kp.encrypt(X > 0, cluster, name="alice").reveal().dtype == bool
        scalar = kp.encrypt(np.int32(-7), cluster, name="alice").reveal()
        assert scalar == -7 and scalar.dtype == np.int32 and scalar.shape == ()

    def test_steps_are_what_encrypt_does(self, cluster):
        private = kp.PrivateTensor(X, name="alice", bound=64).fix_precision(fraction=12).share(cluster).send()
        assert (private.fraction, private.bound, private.readers) == (12, 64.0, ("alice",))
        assert np.array_equal(private.reveal(), X)

    def test_there_is_a_pointer_for_each_party(self, cluster):
        private = kp.encrypt(X, cluster, name="alice")
        assert [each.party for each in private.pointers] == ["server0", "server1", "server2"]
        assert len({each.id for each in private.pointers}) == 1 and len(private.pointers[0].id) == 32
        assert PointerTensor.from_json(private.pointers[1].to_json()).id == private.pointers[1].id
        assert not any(each.holds_secret for each in private.walk())

    def test_every_value_and_result_has_an_id_of_its_own(self, cluster):
        one, other = (kp.encrypt(X, cluster, name="alice") for _ in range(2))
        assert len({one.pointers[0].id, other.pointers[0].id, (one + other).pointers[0].id}) == 3

    def test_results_are_those_of_numpy(self, cluster):
        a, b = (kp.encrypt(each, cluster, name="alice", bound=8) for each in (X, Y))
        pairs = [
            (a + b, X + Y),
            (3 - a * 2, 3 - X * 2),
            (a @ b.T, X @ Y.T),
            (a < b, X < Y),
            ((a * b).sum(0), (X * Y).sum(0)),
            (a[1, ::-1].relu(), np.maximum(X[1, ::-1], 0)),
            (a.reshape(-1).sigmoid(), 1 / (1 + np.exp(-X.reshape(-1)))),
        ]
        for found, expected in pairs:
            assert found.shape == expected.shape
            np.testing.assert_allclose(found.reveal(), expected, atol=2e-4)

    def test_readers_are_those_that_all_operands_have(self, cluster):
        a = kp.encrypt(X, cluster, name="alice", readers=("alice", "bob", "eve"))
        b = kp.encrypt(Y, cluster, name="alice", readers=("eve", "alice"))
        assert (a + b).readers == ("alice", "eve") and (a + 1).readers == a.readers
        assert (a * b).owners == ("alice",)

    def test_who_is_no_reader_is_denied(self, cluster):
        a = kp.encrypt(X, cluster, name="alice", readers=("alice", "bob"))
        for name in ("alice", "bob"):
            assert np.array_equal(kp.PrivateTensor.from_json(a.to_json(), cluster, name).reveal(), X)
        stranger = kp.PrivateTensor.from_json(a.to_json(), cluster, "eve")
        for value in (stranger, stranger + 1, stranger[0] * stranger[1]):
            for attempt in (value.reveal, value.get):
                with pytest.raises(AccessError, match="eve"):
                    attempt()
        with pytest.raises(AccessError):
            stranger.release("eve")

    def test_an_owner_who_is_no_reader_is_denied(self, cluster):
        with pytest.raises(AccessError):
            kp.encrypt(X, cluster, name="alice", readers=("bob",)).reveal()

    def test_millionaires_learn_who_is_richer_and_nothing_else(self, cluster):
        alice = kp.encrypt(417.25, cluster, name="alice")
        bob = kp.encrypt(398.5, cluster, name="bob")
        seen = kp.PrivateTensor.from_json(bob.to_json(), cluster, "alice")
        richer = alice > seen
        assert richer.readers == () and set(richer.owners) == {"alice", "bob"}
        richer = richer.release("alice", "bob")
        for denied in (richer, seen):
            with pytest.raises(AccessError):
                denied.reveal()
        at_bob = kp.PrivateTensor.from_json(richer.to_json(), cluster, "bob")
        assert at_bob.history == f"greater(alice:{alice.pointers[0].id}, bob:{bob.pointers[0].id})"
        at_bob = at_bob.release("alice", "bob")
        assert bool(at_bob.reveal()) and bool(richer.reveal()) and set(richer.look().readers) == {"alice", "bob"}
        for denied in (seen, richer * seen, kp.PrivateTensor.from_json(alice.to_json(), cluster, "bob")):
            with pytest.raises(AccessError):
                denied.reveal()

    def test_values_that_were_dropped_are_gone(self, cluster):
        a = kp.encrypt(X, cluster, name="alice")
        text = a.to_json()
        b = a + 1
        a.drop()
        for attempt in (a.reveal, lambda: a + 1, lambda: kp.PrivateTensor.from_json(text, cluster, "bob")):
            with pytest.raises(PartiesError):
                attempt()
        assert np.array_equal(b.reveal(), X + 1)

    def test_another_name_cannot_drop_what_it_did_not_send(self, cluster):
        a = kp.encrypt(X, cluster, name="alice")
        kp.PrivateTensor.from_json(a.to_json(), cluster, "bob").drop()
        assert np.array_equal(a.reveal(), X)

    def test_the_last_chain_of_a_value_drops_it(self, cluster):
        a = kp.encrypt(X, cluster, name="alice")
        text, again = a.to_json(), a.look()
        del a
        _collected(cluster)
        kp.PrivateTensor.from_json(text, cluster, "alice")
        del again
        _collected(cluster)
        with pytest.raises(PartiesError):
            kp.PrivateTensor.from_json(text, cluster, "alice")

    def test_an_overflow_is_refused_before_anything_runs(self, cluster):
        a = kp.encrypt(X, cluster, name="alice", bound=2**20)
        with pytest.raises(OverflowPreflightError, match="product"):
            a * a
        with pytest.raises(OverflowPreflightError):
            a * 2.0**40
        assert np.array_equal((a + a).reveal(), 2 * X)

    def test_what_does_not_fit_is_refused(self, cluster):
        a = kp.encrypt(X, cluster, name="alice")
        attempts = [
            lambda: a @ a,
            lambda: a + kp.encrypt(np.ones(5), cluster, name="alice"),
            lambda: a.reshape(4, 2),
            lambda: a.sum(axis=2),
            lambda: a[5],
            lambda: a[X > 0],
            lambda: a + float("nan"),
            lambda: a + X,
            lambda: X + a,
            lambda: a / 0,
            lambda: a + kp.PrivateTensor(X),
        ]
        for attempt in attempts:
            with pytest.raises(ConfigurationError, match="What to do"):
                attempt()

    def test_a_private_value_is_no_condition_and_no_number(self, cluster):
        a = kp.encrypt(1.0, cluster, name="alice")
        for attempt in (bool, float, int, lambda each: max(each, each)):
            with pytest.raises(ExposureError):
                attempt(a < 2)
        with pytest.raises(TypeError):
            list(a)


def _collected(cluster: Any) -> None:
    """Frees chains that nobody has, and makes a call, with which the parties hear of it."""
    import gc

    gc.collect()
    kp.encrypt(0.0, cluster, name="alice")
