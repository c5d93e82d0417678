"""DPOptimizer at clients: right steps, noise of the right law, a count that is never too small, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import keras_private as kp
from keras_private import native
from keras_private.dp import Charge
from keras_private.dp import epsilon as epsilon_of
from keras_private.errors import BackendError, ConfigurationError, UnsupportedModelError, WorkerError
from keras_private.federated import DPAggregator
from keras_private.federated.local_privacy import LocalMeter, LocalPrivacy
from keras_private.federated.worker_place import Place
from keras_private.federated.workers import Workers
from keras_private.random import secure_source
from keras_private.report.content import CLEAR, CLIENT, COHORT, COORDINATOR, EXAMPLE, NOISY
from tests.federated.test_model import LOSS, K, dense, examples

DELTA = 1e-4


def fed_of(model, clip=1.0, noise=1.0, batch=4, rate=0.1, aggregator=None, algorithm="fedavg", loss=LOSS):
    fed = kp.FederatedModel(model, aggregator)
    optimizer = kp.DPOptimizer(tf.keras.optimizers.SGD(rate), clip, noise, expected_batch_size=batch)
    fed.compile(optimizer, loss=loss, metrics=["accuracy"], algorithm=algorithm)
    return fed


def naively_trained(model, x, y, clip, batch, rate):
    """Each example's gradient by itself, clipped, summed; in order."""
    loss = tf.keras.losses.SparseCategoricalCrossentropy()
    for first in range(0, len(x), batch):
        sums = [np.zeros(w.shape) for w in model.trainable_variables]
        for one in range(first, min(first + batch, len(x))):
            with tf.GradientTape() as tape:
                value = loss(y[one : one + 1], model(x[one : one + 1], training=True))
            found = [g.numpy().astype(np.float64) for g in tape.gradient(value, model.trainable_variables)]
            norm = math.sqrt(sum((g**2).sum() for g in found))
            sums = [s + g * min(1.0, clip / norm) for s, g in zip(sums, found)]
        for variable, s in zip(model.trainable_variables, sums):
            variable.assign_sub(rate * s / batch)
    return model


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 11), st.sampled_from([0.05, 0.7, 1e3]), st.integers(1, 5))
def test_without_noise_a_round_of_one_client_is_clipped_sgd(count, clip, batch):
    data = examples(count, seed=count)
    fed = fed_of(dense(), clip, 0.0, batch)
    fed.fit({"only": data}, epochs=1, batch_size=batch, shuffle=False, verbose=0)
    expected = naively_trained(dense(), *data, clip, batch, 0.1)
    for ours, theirs in zip(fed.model.get_weights(), expected.get_weights()):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def linear(y, predicted):
    """Whose gradient does not depend on the weights: steps add up."""
    return tf.reduce_sum(predicted, -1)


def test_every_step_adds_noise_of_its_own_with_the_right_law():
    steps, batch, clip, noise, size = 4, 2, 0.5, 3.0, 1500

    def update(noise_multiplier):
        tf.keras.utils.set_random_seed(1)
        model = tf.keras.Sequential([K.Input((6,)), K.Dense(size)])
        begun = model.get_weights()
        fed = fed_of(model, clip, noise_multiplier, batch, 1.0, loss=linear)
        x = examples(steps * batch)[0]
        fed.fit({"only": (x, np.zeros(len(x), np.float32))}, epochs=1, batch_size=batch, shuffle=False, verbose=0)
        return np.concatenate([(b - a).ravel() for a, b in zip(begun, model.get_weights())])

    exact, first, second = update(0.0), update(noise), update(noise)
    draws = [(each - exact) * batch for each in (first, second)]
    sigma = noise * clip * math.sqrt(steps)
    # The sensitivity is above the clip norm by at most the slack that the mechanism states.
    for each in draws:
        assert stats.kstest(each / sigma, "norm").pvalue > 1e-6
        assert stats.kstest(each / (sigma * 1.15), "norm").pvalue < 1e-6
        assert stats.kstest(each / (sigma / math.sqrt(steps) * steps), "norm").pvalue < 1e-6, "one draw for all steps"
    assert abs(np.corrcoef(draws)[0, 1]) < 0.06


def test_the_graph_is_of_stock_operations_and_draws_from_the_kernel():
    with native.stock_operations():
        with pytest.raises(BackendError, match="without native"):
            native.load()
        assert secure_source().name == "portable"
    assert not native.stock_only()


@pytest.mark.parametrize("algorithm", ["fedsgd", "mimelite"])
def test_algorithms_that_send_plain_gradients_are_refused(algorithm):
    fed = fed_of(dense(), algorithm=algorithm)
    with pytest.raises(UnsupportedModelError, match="no noise was added"):
        fed.fit({"only": examples(4)}, batch_size=4, verbose=0)
    assert fed.example_privacy_spent(DELTA) == 0.0


def test_what_would_not_be_private_is_refused():
    with pytest.raises(ConfigurationError, match="divides by 4"):
        fed_of(dense()).fit({"only": examples(4)}, batch_size=5, verbose=0)
    moving = tf.keras.Sequential([K.Input((6,)), K.Dense(5), K.BatchNormalization(), K.Dense(3, "softmax")])
    with pytest.raises(UnsupportedModelError, match="by themselves"):
        fed_of(moving).fit({"only": examples(4)}, batch_size=4, verbose=0)
    across = tf.keras.Sequential([K.Input((6,)), K.Lambda(lambda x: x - tf.reduce_mean(x, 0)), K.Dense(3, "softmax")])
    with pytest.raises(UnsupportedModelError):
        fed_of(across).fit({"only": examples(4)}, batch_size=4, verbose=0)

    class Own(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = K.Dense(3, "softmax")

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            return super().train_step(data)

    with pytest.raises(UnsupportedModelError, match="train_step of its own"):
        fed_of(Own()).fit({"only": examples(4)}, batch_size=4, verbose=0)


def test_epsilon_is_that_of_the_client_with_the_most_epochs():
    fed = fed_of(dense(), noise=2.0)
    clients = {name: examples(5, seed) for seed, name in enumerate("abc")}
    history = fed.fit(clients, epochs=2, local_epochs=3, batch_size=4, verbose=0)
    d = 6 * 5 + 5 + 5 * 3 + 3
    assert fed.local_meter.charges() == (Charge(2.0, 6, noise_coordinates=d),)
    assert fed.example_privacy_spent(DELTA) == epsilon_of([Charge(2.0, 6, noise_coordinates=d)], DELTA)
    assert not {"loss", "accuracy"} & set(history.history), "figures of training are not covered"
    fed.fit({"b": clients["b"]}, epochs=1, batch_size=4, verbose=0)
    assert fed.local_meter.epochs == 7
    fed.fit({"d": examples(4, 9)}, epochs=1, batch_size=4, verbose=0)
    assert fed.local_meter.epochs == 7, "another client's examples"

    report = fed.privacy_report(DELTA)
    cohort, coordinator = report.spendings
    assert (cohort.unit, cohort.observer, cohort.epsilon) == (EXAMPLE, COHORT, fed.example_privacy_spent(DELTA))
    assert (coordinator.observer, coordinator.epsilon) == (COORDINATOR, math.inf), "it has the examples"
    assert report.who_sees("one client's update") == ("coordinator", "a client's host")
    assert "coordinator" not in report.who_sees("model of each round", CLEAR)
    assert set(report.who_sees("model of each round", NOISY)) >= {"whoever gets the models"}
    kp.PrivacyReport.joined([report, report])

    fed.compile("sgd", loss=LOSS)
    fed.fit(clients, epochs=1, batch_size=4, verbose=0)
    assert fed.example_privacy_spent(DELTA) == math.inf, "a fit without noise spoils it"


def test_both_units_at_once():
    fed = fed_of(dense(), aggregator=DPAggregator(kp.SecureAggregation(), noise_multiplier=1.0))
    clients = {f"client{seed}": examples(4, seed) for seed in range(30)}
    fed.fit(clients, epochs=2, clients_per_round=30, batch_size=4, verbose=0)
    report = fed.privacy_report(DELTA)
    assert [each.unit for each in report.spendings] == [CLIENT] * 3 + [EXAMPLE] * 2
    assert all(math.isfinite(each.epsilon) for each in report.spendings if each.observer != COORDINATOR)


class Flaky(Place):
    """Is lost at its first call."""

    calls = 0

    def run(self, computation, arguments, deadline):
        self.calls += 1
        if self.calls == 1:
            raise WorkerError("lost", expected="", remedy="")
        return "done"


def test_every_attempt_counts():
    meter, names = LocalMeter(), ["a", "b", "c"]
    meter.begin(LocalPrivacy(1.0, 1.0, 4), 10, 6)
    hosts = Workers([Flaky()], 1.0)
    hosts.spread(None, None, names, lambda positions: meter.count([names[each] for each in positions], 2))
    assert meter.epochs == 4


@pytest.mark.parametrize("restored_first", [True, False])
def test_a_restored_count_is_never_below_what_ran(restored_first):
    first, second = LocalMeter(), LocalMeter()
    first.begin(LocalPrivacy(1.0, 0.5, 4), 10, most=6)
    first.count(["a"], 2)
    saved = [variable.numpy() for variable in first.variables]
    first.count(["a"], 2)  # A round that was cut short, three times.
    first.count(["a"], 2)
    first.count(["a"], 2)
    if not restored_first:
        second.begin(LocalPrivacy(1.0, 0.9, 4), 10, most=6)
        second.count(["b"], 30)
    for variable, value in zip(second.variables, saved):
        variable.assign(value)
    second.restored()
    if restored_first:
        second.begin(LocalPrivacy(1.0, 0.9, 4), 10, most=6)
    assert second.epochs >= first.epochs == 8
    assert second.charges()[0].noise_multiplier == 0.5
    if not restored_first:
        assert second.epochs >= 30
        second.count(["b"], 1)
        assert second.epochs >= 31


def test_a_fit_that_goes_on_from_a_checkpoint_goes_on_counting(tmp_path):
    clients = {"a": examples(4)}
    first = fed_of(dense())
    first.fit(clients, epochs=2, batch_size=4, verbose=0, checkpoints=tmp_path)
    second = fed_of(dense())
    second.fit(clients, epochs=3, batch_size=4, verbose=0, checkpoints=tmp_path)
    assert second.local_meter.epochs >= 3 > first.local_meter.epochs
    assert second.example_privacy_spent(DELTA) >= epsilon_of([Charge(1.0, 3, noise_coordinates=53)], DELTA)
