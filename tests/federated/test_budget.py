"""PrivacyBudget over rounds: charges, figures, the stop, the gate, the ledger, crashes and restored checkpoints."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import tensorflow as tf

from keras_private.dp.accounting import ADD_OR_REMOVE, ZERO_OUT, Charge, epsilon, max_steps
from keras_private.dp.callbacks import PrivacyBudget
from keras_private.dp.ledger import Ledger
from keras_private.dp.optimizer import DPOptimizer
from keras_private.dp.sampling import PoissonSampler
from keras_private.errors import BudgetExhaustedError, ConfigurationError, LedgerError
from keras_private.federated.aggregators.base import Round
from keras_private.federated.aggregators.mean import Mean
from keras_private.federated.aggregators.private import DPAggregator
from keras_private.federated.aggregators.robust import Median
from keras_private.federated.aggregators.secure import SecureAggregation
from keras_private.federated.budget import charged_probability, meter_of
from keras_private.federated.model import FederatedModel
from keras_private.federated.sampling import FixedSampler, PoissonClients
from tests.federated.aggregating import SESSION, reports_of

NAMES = [f"client{index}" for index in range(200)]
DELTA, NOISE, D = 1e-5, 2.0, 3
UPDATES = np.random.default_rng(0).normal(size=(len(NAMES), D)).astype(np.float32)


class Rounds:
    """Federated rounds in the order that the meter is documented for, without a federation."""

    def __init__(self, aggregator=None):
        self.aggregator = aggregator or DPAggregator(l2_norm_clip=1.0, noise_multiplier=NOISE)
        self.privacy_meter = meter_of(self.aggregator)
        self.stop_training, self.released, self.weights = False, [], np.zeros(D)

    def fit(self, epochs=1, expected=20, callbacks=(), first=0, poisson=True, before_total=None, hidden=False):
        meter, kind = self.privacy_meter, PoissonClients if poisson else FixedSampler
        sampler = kind(NAMES, expected, None)
        follow = tf.keras.callbacks.CallbackList(
            list(callbacks), add_history=True, model=self, epochs=epochs, steps=1, verbose=0
        )
        self.stop_training = False
        try:
            self.aggregator.prepare(D, sampler.cohort)
            meter.begin(self, sampler, follow.callbacks, first, hidden)
            follow.on_train_begin()
            for epoch in range(first, epochs):
                follow.on_epoch_begin(epoch)
                names = sampler.draw()
                if before_total is not None:
                    before_total(epoch)
                meter.authorize_round()
                rows = UPDATES[[NAMES.index(name) for name in names]] if names else np.zeros((0, D))
                reports = reports_of(self.aggregator, rows[:1], names=names[:1])[0]
                total = self.aggregator.total(reports, Round(SESSION, epoch + 1, tuple(names)))
                self.released.append(total.mean)
                self.weights = self.weights + total.mean
                follow.on_epoch_end(epoch, {})
                if self.stop_training:
                    break
            follow.on_train_end()
        finally:
            meter.end()
            self.aggregator.close()
        return self.history.history


def poisson(rounds, noise=NOISE, expected=20):
    return Charge(noise, rounds, q_of(expected), "poisson", ADD_OR_REMOVE, D)


def q_of(expected):
    return charged_probability(PoissonClients(NAMES, expected, None))


def bare(rounds, noise=NOISE):
    return Charge(noise, rounds, None, "unknown", ZERO_OUT, D)


def cost(*charges):
    return epsilon(charges, DELTA)


# Charges and figures.


def test_epsilon_of_every_round_is_in_the_history_and_in_callbacks_listed_earlier():
    seen = []
    early = tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["epsilon"]))
    fed, budget = Rounds(), PrivacyBudget(30.0, DELTA)
    history = fed.fit(3, callbacks=[early, budget])
    assert history["epsilon"] == [cost(poisson(rounds)) for rounds in (1, 2, 3)] == seen
    assert budget.epsilon_spent == history["epsilon"][-1]
    assert fed.privacy_meter.ledger.charges() == (poisson(3),)
    assert int(fed.privacy_meter.steps_done) == 3 == len(fed.released)


def test_the_statement_speaks_of_clients():
    fed, budget = Rounds(), PrivacyBudget(30.0, DELTA)
    fed.fit(2, callbacks=[budget])
    assert budget.statement().endswith("at delta 1e-05, add or remove one client, Poisson sampling, PLD")
    budget = PrivacyBudget(500.0, DELTA)
    Rounds().fit(2, callbacks=[budget], poisson=False)
    assert "zero out one client, unknown sampling (no amplification)" in budget.statement()


def test_fixed_cohorts_earn_no_amplification():
    fed = Rounds()
    history = fed.fit(2, callbacks=[PrivacyBudget(500.0, DELTA)], poisson=False)
    assert history["epsilon"] == [cost(bare(1)), cost(bare(2))]
    assert history["epsilon"][-1] > 3 * cost(poisson(2))


@pytest.mark.parametrize("budgeted", [True, False])
def test_three_observers_three_figures(budgeted):
    fed = Rounds()
    fed.fit(3, callbacks=[PrivacyBudget(500.0, DELTA)] if budgeted else [])
    spent = fed.privacy_meter.privacy_spent(DELTA)
    assert spent.epsilon == cost(poisson(3)) and spent.epsilon_cohort_seen == cost(bare(3)) > spent.epsilon
    assert spent.epsilon_coordinator == math.inf, "with Mean the coordinator reads every update"
    assert (spent.adjacency, spent.adjacency_cohort_seen) == ("add or remove one client", "zero out one client")
    assert (spent.samplers, spent.accountant, spent.rounds, spent.delta) == (("poisson",), "pld", 3, DELTA)


def test_against_a_coordinator_that_sees_no_update_the_figure_is_the_unamplified_one():
    class Hidden(Mean):
        hides_updates = True

    fed = Rounds(DPAggregator(Hidden(), noise_multiplier=NOISE))
    assert fed.privacy_meter.privacy_spent(DELTA).epsilon_coordinator == 0.0
    fed.fit(2, hidden=True)
    spent = fed.privacy_meter.privacy_spent(DELTA, accountant="rdp")
    assert spent.epsilon_coordinator == spent.epsilon_cohort_seen == epsilon([bare(2)], DELTA, "rdp")
    fed.fit(1)
    spent = fed.privacy_meter.privacy_spent(DELTA)
    assert spent.epsilon_cohort_seen == cost(bare(3)) and spent.epsilon_coordinator == math.inf, "one round was seen"


def test_rounds_of_which_nobody_knows_where_they_ran_count_as_seen(tmp_path):
    class Hidden(Mean):
        hides_updates = True

    def made():
        return Rounds(DPAggregator(Hidden(), noise_multiplier=NOISE))

    path = tmp_path / "ledger"
    first, second = made(), made()
    first.fit(2, callbacks=[PrivacyBudget(500.0, DELTA, ledger=path)], hidden=True)
    assert first.privacy_meter.privacy_spent(DELTA).epsilon_coordinator == cost(bare(2))
    second.fit(1, callbacks=[PrivacyBudget(500.0, DELTA, ledger=path)], hidden=True)
    spent = second.privacy_meter.privacy_spent(DELTA)
    assert spent.rounds == 3 and spent.epsilon_coordinator == math.inf


def test_parties_in_this_process_hide_nothing_from_the_coordinator():
    fed, rounds = Rounds(DPAggregator(SecureAggregation(), noise_multiplier=NOISE)), Rounds()
    rounds.fit(2)
    spent = restored_into(fed, rounds).privacy_meter.privacy_spent(DELTA)
    assert spent.epsilon_cohort_seen == cost(bare(2)) and spent.epsilon_coordinator == math.inf
    assert "both parties" in spent.simulated[0] and rounds.privacy_meter.privacy_spent(DELTA).simulated == ()


def test_rounds_without_a_budget_are_counted_with_their_sampling():
    fed = Rounds()
    fed.fit(2)
    fed.fit(3, expected=60)
    fed.fit(1, poisson=False)
    assert fed.privacy_meter.ledger.charges() == (poisson(2), poisson(3, expected=60), bare(1))
    assert all(session.settled and session.num_examples == 200 for session in fed.privacy_meter.ledger.sessions)
    assert fed.privacy_meter.privacy_spent(DELTA).samplers == ("poisson", "unknown")
    budget = PrivacyBudget(500.0, DELTA)
    history = fed.fit(1, callbacks=[budget])
    assert history["epsilon"] == [cost(poisson(3), poisson(3, expected=60), bare(1))]


@pytest.mark.parametrize("expected", [1, 20, 67, 199, 200])
def test_the_probability_is_never_below_the_one_drawn_with(expected):
    probability, charged = expected / 200, q_of(expected)
    # A draw is a multiple of 2**-53, and is in when it lies below.
    drawn = math.ceil(probability * 2**53) / 2**53
    assert drawn <= charged <= min(1.0, drawn + 2.0**-51)
    assert charged_probability(FixedSampler(NAMES, expected, None)) is None


# The stop.


def test_the_fit_stops_before_the_first_round_that_would_pass(capsys):
    target = cost(poisson(7)) * 1.0001
    fed, budget = Rounds(), PrivacyBudget(target, DELTA)
    history = fed.fit(50, callbacks=[budget])
    assert len(history["epsilon"]) == 7 == len(fed.released)
    assert max_steps(target, DELTA, NOISE, q_of(20), noise_coordinates=D) == 7
    assert budget.epsilon_spent <= target < cost(poisson(8))
    with pytest.raises(BudgetExhaustedError, match="add or remove one client"):
        fed.fit(50, callbacks=[PrivacyBudget(target, DELTA)], first=7)
    assert len(fed.released) == 7
    assert len(fed.fit(50, callbacks=[PrivacyBudget(cost(poisson(9)), DELTA)], first=7)["epsilon"]) == 2


def test_an_exhausted_budget_releases_nothing():
    fed = Rounds()
    with pytest.raises(BudgetExhaustedError):
        fed.fit(5, callbacks=[PrivacyBudget(0.01, DELTA)])
    assert fed.released == [] and fed.privacy_meter.ledger.charges() == ()


def test_rounds_that_were_done_before_are_not_planned_again():
    target = cost(poisson(4)) * 1.0001
    history = Rounds().fit(10, callbacks=[PrivacyBudget(target, DELTA)], first=6)
    assert len(history["epsilon"]) == 4


# The noise.


def test_noise_that_was_left_open_is_worked_out_from_the_budget():
    fed, budget = Rounds(DPAggregator()), PrivacyBudget(2.0, DELTA)
    history = fed.fit(12, callbacks=[budget])
    assert len(history["epsilon"]) == 12 and 1.98 < history["epsilon"][-1] <= 2.0
    assert fed.privacy_meter.ledger.charges() == (poisson(12, fed.aggregator.noise_multiplier),)
    with pytest.raises(BudgetExhaustedError):
        fed.fit(13, callbacks=[budget], first=12)
    assert len(fed.released) == 12
    before = fed.aggregator.noise_multiplier
    more = fed.fit(14, callbacks=[PrivacyBudget(2.5, DELTA)], first=12)
    assert len(more["epsilon"]) == 2 and 2.4 < more["epsilon"][-1] <= 2.5
    assert fed.aggregator.noise_multiplier != before
    assert [charge.steps for charge in fed.privacy_meter.ledger.charges()] == [12, 2]


def test_noise_that_nobody_gives_is_an_error_and_no_round():
    fed = Rounds(DPAggregator())
    with pytest.raises(ConfigurationError, match="PrivacyBudget"):
        fed.fit(1)
    assert fed.released == [] and int(fed.privacy_meter.steps_done) == 0


def test_noise_that_changes_within_a_fit_is_refused():
    fed = Rounds(DPAggregator())
    weaken = lambda epoch: fed.aggregator.calibrate(0.01) if epoch == 2 else None  # noqa: E731
    with pytest.raises(ConfigurationError, match="charged"):
        fed.fit(5, callbacks=[PrivacyBudget(2.0, DELTA)], before_total=weaken)
    assert len(fed.released) == 2


# The gate.


def test_no_round_passes_the_gate_without_a_reservation():
    fed = Rounds()
    meter = fed.privacy_meter
    with pytest.raises(ConfigurationError, match="No federated fit"):
        meter.authorize_round()

    def once_more(epoch):
        if epoch == 1:
            meter.authorize_round()

    with pytest.raises(BudgetExhaustedError, match="not in the privacy budget"):
        fed.fit(2, callbacks=[PrivacyBudget(50.0, DELTA)], before_total=once_more)
    assert len(fed.released) == 1
    assert meter.privacy_spent(DELTA).epsilon >= cost(poisson(2)), "the round whose noise was never seen is charged"


def test_after_a_budget_served_no_round_passes_without_one():
    fed = Rounds()
    fed.fit(1, callbacks=[PrivacyBudget(50.0, DELTA)])
    with pytest.raises(BudgetExhaustedError, match="Pass PrivacyBudget"):
        fed.fit(2, first=1)
    assert len(fed.released) == 1
    fed.fit(2, callbacks=[PrivacyBudget(50.0, DELTA)], first=1)
    assert fed.privacy_meter.ledger.charges() == (poisson(1), poisson(1))


# Crashes.


def fail_at(epoch):
    def fail(now):
        if now == epoch:
            raise KeyboardInterrupt

    return fail


@pytest.mark.parametrize("path", [None, "ledger.json"])
def test_a_fit_that_breaks_leaves_what_ran_charged_and_the_ledger_free(path, tmp_path):
    path = None if path is None else tmp_path / path
    fed = Rounds()
    with pytest.raises(KeyboardInterrupt):
        fed.fit(9, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], before_total=fail_at(3))
    assert len(fed.released) == 3
    assert cost(*fed.privacy_meter.ledger.charges()) >= cost(poisson(3))
    history = fed.fit(5, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], first=4)
    assert cost(poisson(4)) <= history["epsilon"][0] <= cost(poisson(10))
    fed = Rounds()
    with pytest.raises(KeyboardInterrupt):
        fed.fit(9, before_total=fail_at(3))
    assert fed.privacy_meter.ledger.charges() == (poisson(3),)


def restored_into(other: Rounds, fed: Rounds, values=None) -> Rounds:
    values = [variable.numpy() for variable in fed.privacy_meter.variables] if values is None else values
    for variable, value in zip(other.privacy_meter.variables, values):
        variable.assign(value)
    return other


def test_a_checkpoint_that_is_restored_gives_nothing_back(tmp_path):
    path, fed = tmp_path / "ledger.json", Rounds()
    fed.fit(2, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)])
    early = [variable.numpy() for variable in fed.privacy_meter.variables]
    fed.fit(6, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], first=2)
    restored_into(fed, fed, early)
    assert int(fed.privacy_meter.steps_done) == 2
    history = fed.fit(3, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], first=2)
    assert history["epsilon"] == [cost(poisson(7))]
    # In another process.
    again = restored_into(Rounds(), fed)
    assert again.privacy_meter.identity == fed.privacy_meter.identity
    history = again.fit(4, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], first=3)
    assert history["epsilon"] == [cost(poisson(8))]


def test_a_ledger_that_is_missing_or_foreign_after_rounds_is_refused(tmp_path):
    path, fed = tmp_path / "ledger.json", Rounds()
    fed.fit(2, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)])
    for name in ("another.json", "ledger.json"):
        if name == "ledger.json":
            path.unlink()
        resumed = restored_into(Rounds(), fed)
        with pytest.raises(LedgerError, match="missing"):
            resumed.fit(3, callbacks=[PrivacyBudget(50.0, DELTA, ledger=tmp_path / name)], first=2)
        assert resumed.released == []


def test_rounds_before_a_restored_checkpoint_are_charged_without_a_ledger_too():
    fed = Rounds()
    fed.fit(3)
    resumed = restored_into(Rounds(DPAggregator(noise_multiplier=50.0)), fed)
    spent = resumed.privacy_meter.privacy_spent(DELTA)
    assert spent.epsilon == cost(bare(3)), "at the least noise that any of them had, and without amplification"
    assert resumed.fit(4, callbacks=[PrivacyBudget(500.0, DELTA)], first=3)["epsilon"][0] >= cost(bare(3))


def test_what_is_reserved_is_on_disk_before_a_round_runs(tmp_path):
    path, fed, seen = tmp_path / "ledger.json", Rounds(), []

    def look(epoch):
        text = path.read_bytes()
        copy = tmp_path / f"copy{epoch}.json"
        copy.write_bytes(text)
        with_copy = Ledger.open(copy)
        seen.append(sum(charge.steps for charge in with_copy.charges()))
        with_copy.close()

    fed.fit(20, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], before_total=look)
    assert all(reserved >= epoch + 1 for epoch, reserved in enumerate(seen)) and len(seen) == 20


# Refusals.


def test_clients_and_examples_do_not_add_up_in_one_ledger(tmp_path):
    path, fed = tmp_path / "ledger.json", Rounds()
    fed.fit(1, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)])
    x = np.zeros((64, 2), np.float32)
    data = PoissonSampler(x, x[:, :1], batch_size=8)
    model = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
    model.compile(DPOptimizer("sgd", noise_multiplier=5.0, expected_batch_size=8), loss="mse")
    with pytest.raises(LedgerError, match="another unit than one example"):
        model.fit(data, verbose=0, callbacks=[PrivacyBudget(50.0, DELTA, data=data, ledger=path)])
    assert int(model.optimizer.steps_done) == 0
    other = tmp_path / "other.json"
    model.fit(data, verbose=0, callbacks=[PrivacyBudget(50.0, DELTA, data=data, ledger=other)])
    with pytest.raises(LedgerError, match="another unit than one client"):
        Rounds().fit(1, callbacks=[PrivacyBudget(50.0, DELTA, ledger=other)])
    fed.fit(2, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], first=1)


def test_two_budgets_and_samplers_of_examples_are_refused():
    x = np.zeros((64, 2), np.float32)
    data = PoissonSampler(x, x, batch_size=8)
    for callbacks in ([PrivacyBudget(5.0, DELTA), PrivacyBudget(5.0, DELTA)], [PrivacyBudget(5.0, DELTA, data=data)]):
        fed = Rounds()
        with pytest.raises(ConfigurationError, match=r"two PrivacyBudgets|sampler of examples"):
            fed.fit(1, callbacks=callbacks)
        assert fed.released == []


@pytest.mark.parametrize("aggregator", [Mean(), Median()], ids=["Mean", "Median"])
def test_rounds_of_aggregators_that_are_not_private_have_no_meter(aggregator):
    with pytest.raises(ConfigurationError, match="DPAggregator outermost"):
        meter_of(aggregator)


def test_a_ledger_in_use_by_another_running_fit_is_refused(tmp_path):
    path, fed, inside, leave = tmp_path / "ledger.json", Rounds(), threading.Event(), threading.Event()

    def wait(epoch):
        inside.set()
        leave.wait(20)

    def run():
        fed.fit(1, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)], before_total=wait)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert inside.wait(20)
        with pytest.raises(LedgerError, match="in use"):
            Rounds().fit(1, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)])
    finally:
        leave.set()
        thread.join()
    assert len(fed.released) == 1
    history = Rounds().fit(1, callbacks=[PrivacyBudget(50.0, DELTA, ledger=path)])
    assert history["epsilon"] == [cost(poisson(2))]


# In a federation.


def federation(aggregator) -> FederatedModel:
    fed = FederatedModel(tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)]), aggregator=aggregator)
    fed.compile(client_optimizer="sgd", loss="mse")
    return fed


def few_clients() -> dict:
    rng = np.random.default_rng(3)
    return {f"client{index}": (rng.normal(size=(6, 4)).astype(np.float32), np.ones((6, 1), np.float32))
            for index in range(10)}  # fmt: skip


def test_a_federated_fit_stops_at_its_budget_and_goes_on_from_a_checkpoint_with_all_that_was_spent(tmp_path):
    q, clients = charged_probability(PoissonClients(list(few_clients()), 5, None)), few_clients()

    def spent(rounds):
        return cost(Charge(4.0, rounds, q, "poisson", ADD_OR_REMOVE, 5))

    def fit(target):
        fed = federation(DPAggregator(l2_norm_clip=0.5, noise_multiplier=4.0))
        budget = PrivacyBudget(target, DELTA, ledger=tmp_path / "ledger.json")
        history = fed.fit(clients, epochs=20, clients_per_round=5, verbose=0, callbacks=[budget],
                          checkpoints=tmp_path / "rounds")  # fmt: skip
        return fed, history.history

    fed, history = fit(spent(3) * 1.0001)
    assert history["epsilon"] == [spent(1), spent(2), spent(3)] and fed.rounds_done == 3
    assert not {"loss", "clients", "left_out"} & set(history), "figures that no noise covers"
    assert fed.privacy_spent(DELTA).epsilon == spent(3) and fed.privacy_spent(DELTA).epsilon_coordinator == math.inf
    again, history = fit(spent(5) * 1.0001)
    assert history["epsilon"] == [spent(4), spent(5)] and again.rounds_done == 5
    assert again.privacy_meter.identity == fed.privacy_meter.identity
    with pytest.raises(BudgetExhaustedError, match="one client"):
        fit(spent(5) * 1.0001)


def test_without_noise_a_federated_round_is_that_of_the_clipped_mean():
    updates, weights = [], []
    for aggregator in (Mean(weighted=False), DPAggregator(l2_norm_clip=100.0, noise_multiplier=0.0)):
        fed = federation(aggregator)
        fed.model.set_weights([np.full((4, 1), 0.25, np.float32), np.zeros(1, np.float32)])
        fed.fit(few_clients(), epochs=1, verbose=0, shuffle=False)
        weights.append(np.concatenate([item.ravel() for item in fed.model.get_weights()]))
        updates.append(weights[-1] - np.array([0.25] * 4 + [0.0]))
    assert np.linalg.norm(updates[0]) > 1e-3
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-6)


def test_a_budget_without_a_private_aggregator_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="DPAggregator outermost"):
        federation(Mean()).fit(few_clients(), epochs=1, verbose=0, callbacks=[PrivacyBudget(1.0, DELTA)])
