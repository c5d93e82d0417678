"""All pillars in one training, end to end with real processes: pad parties, worker, party processes, and a client."""

from __future__ import annotations

import csv
import math

import dp_accounting
import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.dp.reporting import report_of_ledger
from keras_private.federated import DPAggregator
from keras_private.report.content import COHORT, COORDINATOR, OBSERVERS, RELEASE
from tests.federated.pad_processes import gone
from tests.federated.test_model import LOSS, K, examples

pytestmark = pytest.mark.timeout(900)
DELTA = 1e-3
ROUNDS, EXPECTED, LEAST = 6, 20, 2
CLIENTS = {f"client{index}": examples(6, index) for index in range(40)}
PUBLIC = examples(200, 1000)


@pytest.fixture(scope="module")
def pads():
    with kp.federated.local_pad_parties(CLIENTS, min_clients=LEAST, verbose=False) as parties:
        yield parties
    assert all(gone(pid) for pid in parties.process_ids.values())


@pytest.fixture(scope="module")
def cluster():
    with kp.Cluster.local(verbose=False) as parties:
        pids = parties.process_ids()
        yield parties
    assert all(gone(pid) for pid in pids.values())


def network(name):
    tf.keras.utils.set_random_seed(0)
    return tf.keras.Sequential([K.Input((6,)), K.Dense(8, "relu"), K.Dense(3, "softmax")], name)


def masked(pads):
    return kp.SecureAggregation(LEAST, parties=pads, keys=pads.keys)


def independent_epsilon(noise, rounds, probability=1.0):
    """By dp_accounting alone."""
    event = dp_accounting.GaussianDpEvent(noise)
    if probability < 1.0:
        event = dp_accounting.PoissonSampledDpEvent(probability, event)
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    return accountant.compose(event, rounds).get_epsilon(DELTA)


def served(model, cluster):
    """The service's report, and how far a client's predictions are from those in plaintext."""
    x = PUBLIC[0][:8]
    with pytest.warns(UserWarning, match="on this machine"):
        service = kp.serve(model, cluster, batch_sizes=(8,))
    with service, kp.Client(cluster, model=service.model) as client:
        apart = np.abs(client.predict(x) - model.predict(x, verbose=0)).max()
        return service.privacy_report(), apart


def test_masked_private_rounds_with_a_budget_and_callbacks_then_encrypted_queries(pads, cluster, tmp_path):
    aggregator = DPAggregator(masked(pads), l2_norm_clip=0.5)
    fed = kp.FederatedModel(network("everything"), aggregator=aggregator)
    fed.compile(tf.keras.optimizers.SGD(0.2), loss=LOSS, metrics=["accuracy"])
    budget = kp.PrivacyBudget(8.0, DELTA, ledger=tmp_path / "ledger")
    # A goal that is out of reach: it stops the fit before all rounds that the noise is made for.
    stop = tf.keras.callbacks.EarlyStopping("val_accuracy", min_delta=2.0, patience=3, restore_best_weights=True)
    best = str(tmp_path / "best.weights.h5")
    keep = tf.keras.callbacks.ModelCheckpoint(best, "val_loss", save_best_only=True, save_weights_only=True)
    log = tf.keras.callbacks.CSVLogger(str(tmp_path / "rounds.csv"))
    history = fed.fit(
        CLIENTS, epochs=ROUNDS, clients_per_round=EXPECTED, local_epochs=2, batch_size=3, validation_data=PUBLIC,
        callbacks=[keep, log, stop, budget], verbose=0,
    ).history  # fmt: skip
    ran = len(history["epsilon"])
    assert 1 < ran < ROUNDS and stop.stopped_epoch == ran - 1

    # The figures: those of dp_accounting for the rounds that ran, of the noise that was worked out for all of them.
    probability = EXPECTED / len(CLIENTS)
    expected = [independent_epsilon(aggregator.noise_multiplier, n, probability) for n in range(1, ran + 1)]
    np.testing.assert_allclose(history["epsilon"], expected, rtol=2e-3)
    assert independent_epsilon(aggregator.noise_multiplier, ROUNDS, probability) == pytest.approx(8.0, rel=5e-3)
    spent = fed.privacy_spent(DELTA)
    assert budget.epsilon_spent == history["epsilon"][-1] == spent.epsilon < 8.0
    assert spent.epsilon_coordinator == math.inf, "everything is on one machine"

    # The callbacks saw every round with its epsilon, and the kept weights are those of a plain Keras model.
    with (tmp_path / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epsilon"]) for row in rows] == pytest.approx(history["epsilon"])
    kept = network("kept")
    kept.load_weights(best)
    kept.compile(loss=LOSS)
    assert kept.evaluate(*PUBLIC, verbose=0) == pytest.approx(min(history["val_loss"]), rel=1e-4)
    assert report_of_ledger(tmp_path / "ledger", DELTA).spendings[0].epsilon == spent.epsilon

    # Queries on shares.
    told, apart = served(fed.model, cluster)
    assert apart < 2e-3

    # Who learns what, of both together.
    joined = kp.PrivacyReport.joined([fed.privacy_report(), told])
    training, _ = joined.parts
    assert [each.observer for each in training.spendings] == [RELEASE, COHORT, COORDINATOR]
    together = next(each for each in joined.spendings if (each.unit, each.observer) == ("client", RELEASE))
    assert together.epsilon == spent.epsilon == training.spendings[0].epsilon, "a service learns nothing"
    adversaries = {view.adversary for part in joined.parts for view in part.views}
    named = {"coordinator", "a client's host", "whoever gets the models", "network", "a client", *cluster.parties}
    assert named <= adversaries
    text = str(joined)
    assert all(each in text.replace("\n    ", " ") for each in OBSERVERS.values())
    for what in ("party0 is a process of this machine", "party1 is a process of this machine", "keys of clients",
                 "the coordinator's host", "parties run on this machine"):  # fmt: skip
        assert any(what in item for item in joined.simulated), what


def test_private_clients_under_masks_with_a_budget_and_callbacks(pads, cluster, tmp_path):
    fed = kp.FederatedModel(network("examples"), aggregator=masked(pads))
    noise, local_epochs = 3.0, 2
    fed.compile(
        kp.DPOptimizer(tf.keras.optimizers.SGD(0.2), 1.0, noise, expected_batch_size=3), loss=LOSS, metrics=["accuracy"]
    )
    # Room for three rounds of two epochs, and not for a fourth.
    target = independent_epsilon(noise, 7 * local_epochs // 2)
    budget = kp.PrivacyBudget(target, DELTA, ledger=tmp_path / "ledger")
    log = tf.keras.callbacks.CSVLogger(str(tmp_path / "rounds.csv"))
    history = fed.fit(
        CLIENTS, epochs=ROUNDS, local_epochs=local_epochs, batch_size=3, validation_data=PUBLIC,
        callbacks=[log, budget], verbose=0,
    ).history  # fmt: skip
    assert not {"loss", "accuracy"} & set(history)
    expected = [independent_epsilon(noise, n * local_epochs) for n in (1, 2, 3)]
    np.testing.assert_allclose(history["epsilon"], expected, rtol=2e-3)
    assert fed.example_privacy_spent(DELTA) == history["epsilon"][-1] <= target
    with (tmp_path / "rounds.csv").open() as file:
        assert [float(row["epsilon"]) for row in csv.DictReader(file)] == pytest.approx(history["epsilon"])
    report = fed.privacy_report()
    assert [(each.unit, each.observer) for each in report.spendings] == [("example", COHORT), ("example", COORDINATOR)]
    assert report.spendings[0].epsilon == history["epsilon"][-1]
    assert served(fed.model, cluster)[1] < 2e-3


@pytest.mark.long
def test_a_model_of_make_private_is_served_as_the_graph_that_it_is(cluster):
    model = kp.make_private(network("made"), epsilon=5.0, delta=DELTA)
    model.compile(tf.keras.optimizers.SGD(0.2), LOSS)
    history = model.fit(*PUBLIC, batch_size=20, epochs=1, verbose=0).history
    told, apart = served(model, cluster)
    assert apart < 2e-3
    joined = kp.PrivacyReport.joined([model.privacy_report(), told])
    assert joined.spendings[0].epsilon == history["epsilon"][-1] <= 5.0
