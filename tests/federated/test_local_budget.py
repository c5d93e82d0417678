"""PrivacyBudget over the local epochs of a DPOptimizer at clients: charged before they run, stopped, recorded."""

from __future__ import annotations

import math
import re

import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.dp.accounting import Charge, epsilon, max_steps
from keras_private.dp.ledger import Ledger
from keras_private.dp.metering import Budget
from keras_private.errors import BudgetExhaustedError, ConfigurationError, LedgerError, WorkerError
from keras_private.federated.local_budget import EpochMeter
from keras_private.federated.local_privacy import LocalMeter, LocalPrivacy
from keras_private.federated.worker_place import Place
from tests.federated.test_local_privacy import DELTA, fed_of
from tests.federated.test_model import dense, examples

D = 6 * 5 + 5 + 5 * 3 + 3
NOISE = 2.0
CLIENTS = {name: examples(5, seed) for seed, name in enumerate("abc")}


def epochs(count, noise=NOISE):
    return Charge(noise, count, noise_coordinates=D)


def cost(*charges):
    return epsilon(charges, DELTA)


def fit(fed, budget, rounds, clients=CLIENTS, **arguments):
    callbacks = [] if budget is None else [budget]
    return fed.fit(clients, epochs=rounds, batch_size=4, verbose=0, callbacks=callbacks, **arguments).history


def test_epsilon_of_every_round_is_in_the_history_and_in_the_ledger(tmp_path):
    fed, budget = fed_of(dense(), noise=NOISE), kp.PrivacyBudget(50.0, DELTA, ledger=tmp_path / "ledger")
    history = fit(fed, budget, 3, local_epochs=2)
    assert history["epsilon"] == [cost(epochs(2 * rounds)) for rounds in (1, 2, 3)]
    assert fed.example_privacy_spent(DELTA) == history["epsilon"][-1] == budget.epsilon_spent
    ledger = Ledger.open(tmp_path / "ledger")
    assert ledger.charges() == (epochs(6),) and all(session.settled for session in ledger.sessions)
    ledger.close()
    assert budget.statement().endswith("zero out one example, unknown sampling (no amplification), PLD")
    # The report knows the delta of the budget, and the same figure.
    assert {each.epsilon for each in fed.privacy_report().spendings} == {history["epsilon"][-1], math.inf}


def test_only_what_the_client_with_the_most_epochs_adds_is_charged():
    fed, budget = fed_of(dense(), noise=NOISE), kp.PrivacyBudget(50.0, DELTA)
    fit(fed, budget, 1, {"a": CLIENTS["a"]})
    fit(fed, budget, 1, {"b": CLIENTS["b"]})
    assert budget.epsilon_spent == cost(epochs(1)), "other people's examples"
    fit(fed, budget, 2, {"a": CLIENTS["a"], "b": CLIENTS["b"]})
    assert budget.epsilon_spent == cost(epochs(3)) == fed.example_privacy_spent(DELTA)


def test_the_fit_stops_before_the_first_round_that_would_pass():
    target = cost(epochs(6)) * 1.0001
    fed, budget = fed_of(dense(), noise=NOISE), kp.PrivacyBudget(target, DELTA)
    history = fit(fed, budget, 50, local_epochs=2)
    assert len(history["epsilon"]) == 3 and fed.local_meter.epochs == 6
    assert max_steps(target, DELTA, NOISE, None, noise_coordinates=D) == 6
    weights = fed.get_weights()
    with pytest.raises(BudgetExhaustedError, match="one example") as refused:
        fit(fed, kp.PrivacyBudget(target, DELTA), 50, local_epochs=2)
    assert "fewer local epochs" in refused.value.remedy
    with pytest.raises(BudgetExhaustedError, match="not in the privacy budget"):
        fit(fed, None, 1)
    assert fed.local_meter.epochs == 6 and all((a == b).all() for a, b in zip(weights, fed.get_weights()))


def test_a_round_whose_epochs_do_not_fit_does_not_begin():
    fed = fed_of(dense(), noise=NOISE)
    with pytest.raises(BudgetExhaustedError, match="execution of 3 steps"):
        fit(fed, kp.PrivacyBudget(cost(epochs(2)) * 1.0001, DELTA), 1, local_epochs=3)
    assert fed.local_meter.epochs == 0 and fed.example_privacy_spent(DELTA) == 0.0


def test_epochs_without_a_budget_are_charged_to_the_next_one():
    fed, budget = fed_of(dense(), noise=NOISE), kp.PrivacyBudget(50.0, DELTA)
    fit(fed, None, 2)
    fit(fed, budget, 1)
    assert budget.epsilon_spent == cost(epochs(3)) == fed.example_privacy_spent(DELTA)


def test_an_attempt_that_is_lost_was_charged(monkeypatch):
    lost = []
    run = Place.run

    def flaky(place, computation, arguments, deadline):
        if not lost:
            lost.append(True)
            raise WorkerError("lost", expected="", remedy="")
        return run(place, computation, arguments, deadline)

    monkeypatch.setattr(Place, "run", flaky)
    fed, budget = fed_of(dense(), noise=NOISE), kp.PrivacyBudget(50.0, DELTA)
    history = fit(fed, budget, 2, local_epochs=2)
    assert history["epsilon"] == [cost(epochs(4)), cost(epochs(6))]


def test_an_attempt_that_is_not_in_the_budget_does_not_begin(monkeypatch):
    ran = []

    def always_lost(place, computation, arguments, deadline):
        ran.append(True)
        raise WorkerError("lost", expected="", remedy="")

    monkeypatch.setattr(Place, "run", always_lost)
    fed = fed_of(dense(), noise=NOISE)
    with pytest.raises(BudgetExhaustedError, match="would pass epsilon"):
        fit(fed, kp.PrivacyBudget(cost(epochs(2)) * 1.0001, DELTA), 1)
    assert len(ran) == 2


def test_a_ledger_goes_on_over_processes_and_holds_steps_of_a_central_fit_too(tmp_path):
    x, y = examples(40, 1)
    model = dense()
    model.compile(kp.DPOptimizer("sgd", 1.0, NOISE, expected_batch_size=4), loss="sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[kp.PrivacyBudget(90.0, DELTA, ledger=tmp_path / "ledger")])
    fed, budget = fed_of(dense(), noise=NOISE), kp.PrivacyBudget(90.0, DELTA, ledger=tmp_path / "ledger")
    fit(fed, budget, 2)
    assert budget.epsilon_spent == cost(epochs(10), epochs(2))
    user_level = kp.FederatedModel(dense(), kp.federated.DPAggregator(noise_multiplier=NOISE))
    user_level.compile("sgd", loss="sparse_categorical_crossentropy")
    with pytest.raises(LedgerError, match="another unit"):
        fit(user_level, kp.PrivacyBudget(90.0, DELTA, ledger=tmp_path / "ledger"), 1)


def test_a_restored_checkpoint_lets_no_more_epochs_through(tmp_path):
    first, ledger = fed_of(dense(), noise=NOISE), tmp_path / "ledger"
    fit(first, kp.PrivacyBudget(50.0, DELTA, ledger=ledger), 2, checkpoints=tmp_path / "rounds")
    second, budget = fed_of(dense(), noise=NOISE), kp.PrivacyBudget(50.0, DELTA, ledger=ledger)
    history = fit(second, budget, 3, checkpoints=tmp_path / "rounds")
    assert history["epsilon"] == [cost(epochs(2), epochs(1))]
    assert second.example_privacy_spent(DELTA) >= cost(epochs(3))
    (tmp_path / "ledger").unlink()
    third = fed_of(dense(), noise=NOISE)
    with pytest.raises(LedgerError, match="missing"):
        fit(third, kp.PrivacyBudget(50.0, DELTA, ledger=ledger), 4, checkpoints=tmp_path / "rounds")


def test_with_a_private_aggregator_rounds_are_charged():
    aggregator = kp.federated.DPAggregator(noise_multiplier=5.0)
    fed, budget = fed_of(dense(), noise=NOISE, aggregator=aggregator), kp.PrivacyBudget(50.0, DELTA)
    fit(fed, budget, 2)
    assert "one client" in budget.statement()
    assert fed.example_privacy_spent(DELTA) == cost(epochs(2))


def test_a_sampler_of_examples_is_refused():
    x, y = examples(20)
    budget = kp.PrivacyBudget(50.0, DELTA, data=kp.PoissonSampler(x, y, batch_size=4))
    with pytest.raises(ConfigurationError, match="sampler of examples"):
        fit(fed_of(dense()), budget, 1)


def test_the_gate_by_itself():
    counted = LocalMeter()
    meter = EpochMeter(counted)
    with pytest.raises(ConfigurationError, match="No federated fit"):
        meter.charge()
    meter.calibrate(Budget(1.0, DELTA, "pld", None), 1, ())
    assert meter.delta == DELTA and meter.planned(0) == 0 and meter.planned(3) is None
    counted.begin(LocalPrivacy(1.0, NOISE, 4), D, 3)
    meter.gate()
    meter.authorize(2)
    counted.count(["a", "b"], 2)
    counted.count(["c"], 2)
    with pytest.raises(BudgetExhaustedError):
        counted.count(["c"], 1)
    assert counted.epochs == 2 == int(meter.steps_done), "what was refused is not counted"
    meter.steps_done.assign(0)
    meter.authorize(0)
    with pytest.raises(BudgetExhaustedError):
        counted.count(["a"], 1)
    assert re.fullmatch("[0-9a-f]{32}", meter.identity)
    assert all(isinstance(each, tf.Variable) for each in meter.variables)
