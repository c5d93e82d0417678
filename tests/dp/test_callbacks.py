"""PrivacyBudget in real Keras fits: charges, refusals, stops, interruptions; on a stand-in and on DPOptimizer."""

from __future__ import annotations

import csv
import math
import warnings

import numpy as np
import pytest
import tensorflow as tf

from keras_private._backends import keras_fit
from keras_private.dp import metering
from keras_private.dp.accounting import ADD_OR_REMOVE, ZERO_OUT, Charge, epsilon, max_steps
from keras_private.dp.callbacks import PrivacyBudget
from keras_private.dp.ledger import Ledger
from keras_private.dp.metering import Budget, Meter
from keras_private.dp.optimizer import DPOptimizer
from keras_private.dp.sampling import PoissonSampler
from keras_private.errors import BudgetExhaustedError, ConfigurationError, LedgerError
from tests.dp.doubles import CountingSGD

EXAMPLES, BATCH, DELTA = 80, 8, 1e-5
X = np.random.default_rng(0).normal(size=(EXAMPLES, 4)).astype(np.float32)
Y = X[:, :1]
NOISE = 2.0


def sampler(**options) -> PoissonSampler:
    return PoissonSampler(X, Y, **{"batch_size": BATCH, **options})


def network(optimizer=None, **options) -> tf.keras.Model:
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
    model.compile(optimizer or CountingSGD(NOISE, BATCH), loss="mse", **options)
    return model


def poisson(steps: int, noise: float = NOISE, q: float = BATCH / EXAMPLES) -> Charge:
    return Charge(noise, steps, q, "poisson", ADD_OR_REMOVE, 5)


def cost(*charges: Charge) -> float:
    return epsilon(charges, DELTA)


def fit(model, data, budget, epochs=1, callbacks=(), **options):
    return model.fit(data, epochs=epochs, verbose=0, callbacks=[*callbacks, budget], **options).history


class At(tf.keras.callbacks.Callback):
    """Runs something at one batch or at the beginning."""

    def __init__(self, action, batch=None, hook="on_train_batch_end") -> None:
        super().__init__()
        setattr(self, hook, lambda *args, **kwargs: action(self.model) if batch in (None, args[0]) else None)

    def _implements_train_batch_hooks(self) -> bool:
        return True


def interrupt(model):
    raise KeyboardInterrupt


# Figures.


def test_epsilon_of_every_epoch_is_in_the_history():
    data, model = sampler(), network()
    budget = PrivacyBudget(30.0, DELTA, data=data)
    history = fit(model, data, budget, epochs=3)
    assert history["epsilon"] == [cost(poisson(10 * epoch)) for epoch in (1, 2, 3)]
    assert budget.epsilon_spent == history["epsilon"][-1]
    assert int(model.optimizer.steps_done) == 30
    assert model.optimizer.ledger.charges() == (poisson(30),)


def test_the_statement_says_what_the_figure_means_and_rounds_up():
    data = sampler()
    budget = PrivacyBudget(30.0, DELTA, data=data)
    assert budget.statement().startswith("epsilon 0.0000 at delta 1e-05")
    fit(network(), data, budget)
    shown = budget.statement()
    assert shown.endswith("at delta 1e-05, add or remove one example, Poisson sampling, PLD")
    figure = float(shown.split()[1])
    assert budget.epsilon_spent <= figure < budget.epsilon_spent + 1e-4


def test_rdp_is_named_and_used():
    data = sampler()
    budget = PrivacyBudget(30.0, DELTA, data=data, accountant="rdp")
    assert fit(network(), data, budget)["epsilon"] == [epsilon([poisson(10)], DELTA, "rdp")]
    assert budget.statement().endswith("RDP")


def test_progress_bar_and_callbacks_listed_earlier_show_epsilon(tmp_path, capsys):
    data = sampler()
    budget = PrivacyBudget(30.0, DELTA, data=data)
    calls = []
    before = At(lambda model: calls.append("before"), hook="on_train_begin")
    after = At(lambda model: calls.append("after"), hook="on_train_begin")
    log = tf.keras.callbacks.CSVLogger(tmp_path / "log.csv")
    network().fit(data, epochs=2, verbose=2, callbacks=[before, log, budget, after])
    assert "epsilon: " in capsys.readouterr().out
    assert [float(row["epsilon"]) for row in csv.DictReader((tmp_path / "log.csv").open())][1] == budget.epsilon_spent
    assert calls == ["before", "after"], "moving to the front skipped or repeated a callback"


# Which data.


def test_without_data_nothing_is_amplified():
    model = network()
    budget = PrivacyBudget(500.0, DELTA)
    history = fit(model, X, budget, y=Y, batch_size=BATCH)
    assert history["epsilon"] == [cost(Charge(NOISE, 10, None, "unknown", ZERO_OUT, 5))]
    assert "zero out one example, unknown sampling (no amplification)" in budget.statement()


def test_a_sampler_that_was_not_named_earns_nothing_and_a_warning_once():
    data, model = sampler(), network()
    budget = PrivacyBudget(500.0, DELTA)
    with pytest.warns(UserWarning, match="data=sampler"):
        first = fit(model, data, budget)["epsilon"][-1]
    assert first == cost(Charge(NOISE, 10, None, "unknown", ZERO_OUT, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(model, data, budget)


@pytest.mark.parametrize("iterated", [
    lambda: sampler(), lambda: X, lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH),
], ids=["another sampler", "arrays", "dataset"])  # fmt: skip
def test_data_that_fit_does_not_iterate_is_refused(iterated):
    model, budget = network(), PrivacyBudget(30.0, DELTA, data=sampler())
    data = iterated()
    with pytest.raises(ConfigurationError, match="not what the running fit iterates"):
        fit(model, data, budget, **({"y": Y} if data is X else {}))
    assert int(model.optimizer.steps_done) == 0


def test_data_outside_a_fit_is_refused():
    budget = PrivacyBudget(30.0, DELTA, data=sampler())
    budget.set_model(network())
    budget.set_params({"epochs": 1, "steps": 10})
    with pytest.raises(ConfigurationError, match="cannot be determined"):
        budget.on_train_begin()


def test_the_fit_of_another_model_does_not_vouch_for_the_data():
    data, other = sampler(), network()
    inner = PrivacyBudget(30.0, DELTA, data=data)
    inner.set_model(network())
    inner.set_params({"epochs": 1, "steps": 10})
    outer = At(lambda model: inner.on_train_begin(), hook="on_train_begin")
    with pytest.raises(ConfigurationError, match="cannot be determined"):
        other.fit(data, verbose=0, callbacks=[outer])


def test_a_sampler_of_another_batch_size_is_refused():
    data = sampler(batch_size=16)
    with pytest.raises(ConfigurationError, match="16 examples in expectation"):
        fit(network(), data, PrivacyBudget(30.0, DELTA, data=data))


def test_class_weight_and_workers_are_fine():
    data, model = sampler(), network()
    budget = PrivacyBudget(30.0, DELTA, data=data)
    labels = PoissonSampler(X, (Y > 0).astype(np.int64)[:, 0], BATCH)
    budget = PrivacyBudget(30.0, DELTA, data=labels)
    fit(model, labels, budget, class_weight={0: 1.0, 1: 2.0}, workers=2)
    assert budget.epsilon_spent == cost(poisson(10))


# Refusals.


@pytest.mark.parametrize("bad", [
    {"epsilon": 0.0}, {"epsilon": math.inf}, {"delta": 0.0}, {"delta": 1.0}, {"accountant": "moments"},
    {"data": X}, {"data": "sampler"},
], ids=lambda bad: next(iter(bad)))  # fmt: skip
def test_impossible_arguments_are_refused(bad):
    with pytest.raises(ConfigurationError):
        PrivacyBudget(**{"epsilon": 1.0, "delta": DELTA, **bad})


@pytest.mark.parametrize(("optimizer", "match"), [
    (tf.keras.optimizers.SGD, "DPOptimizer"),
    (lambda: tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.SGD()), "loss scaling"),
])  # fmt: skip
def test_other_optimizers_are_refused(optimizer, match):
    with pytest.raises(ConfigurationError, match=match):
        fit(network(optimizer()), X, PrivacyBudget(1.0, DELTA), y=Y)


def test_a_model_without_weights_is_refused():
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.compile(CountingSGD(), loss="mse")
    with pytest.raises(ConfigurationError, match="not built"):
        fit(model, X, PrivacyBudget(1.0, DELTA), y=Y)


def test_automatic_steps_per_execution_are_refused():
    with pytest.raises(ConfigurationError, match="steps_per_execution"):
        fit(network(steps_per_execution="auto"), X, PrivacyBudget(100.0, DELTA), y=Y)


def test_two_budgets_are_refused():
    with pytest.raises(ConfigurationError, match="two PrivacyBudgets"):
        fit(network(), X, PrivacyBudget(100.0, DELTA), callbacks=[PrivacyBudget(50.0, DELTA)], y=Y)


def test_choices_by_training_metrics_are_warned_about_once():
    choosers = [
        tf.keras.callbacks.EarlyStopping(monitor="loss"),
        tf.keras.callbacks.ReduceLROnPlateau(monitor="loss"),
        tf.keras.callbacks.ModelCheckpoint("unused", monitor="loss", save_best_only=True),
    ]
    fine = [tf.keras.callbacks.EarlyStopping(monitor="val_loss"), tf.keras.callbacks.ModelCheckpoint("unused")]
    budget = PrivacyBudget(500.0, DELTA)
    for callback in choosers:
        with pytest.warns(UserWarning, match=f"{type(callback).__name__} decides by 'loss'"):
            budget._check_callbacks([callback])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        budget._check_callbacks([*choosers, *fine])


# Composition and exhaustion.


def test_fits_compose():
    data, model = sampler(), network()
    first = fit(model, data, PrivacyBudget(30.0, DELTA, data=data))["epsilon"][-1]
    second = fit(model, data, PrivacyBudget(30.0, DELTA, data=data))["epsilon"][-1]
    assert first == cost(poisson(10)) and second == cost(poisson(20))


def test_steps_before_the_first_budget_cost_full_price():
    data, model = sampler(), network()
    model.fit(data, verbose=0)
    budget = PrivacyBudget(500.0, DELTA, data=data)
    history = fit(model, data, budget)
    assert history["epsilon"] == [cost(Charge(NOISE, 10, None, "unknown", ZERO_OUT, 5), poisson(10))]
    assert "Poisson sampling and unknown sampling" in budget.statement()


@pytest.mark.parametrize("ledger", [False, True], ids=["memory", "file"])
def test_fit_stops_at_the_budget_and_the_next_one_does_not_start(tmp_path, capsys, ledger):
    target = cost(poisson(25)) * 1.0001
    path = tmp_path / "ledger.json" if ledger else None
    data, model = sampler(), network()
    budget = PrivacyBudget(target, DELTA, data=data, ledger=path)
    model.fit(data, epochs=5, verbose=2, callbacks=[budget])
    assert int(model.optimizer.steps_done) == 25 == max_steps(target, DELTA, NOISE, 0.1, noise_coordinates=5)
    assert budget.epsilon_spent == cost(poisson(25)) <= target
    assert f"Privacy budget used up, training stopped: {budget.statement()}." in capsys.readouterr().out
    weights = model.get_weights()
    with pytest.raises(BudgetExhaustedError, match="no step is left"):
        fit(model, data, PrivacyBudget(target, DELTA, data=data, ledger=path))
    assert int(model.optimizer.steps_done) == 25
    np.testing.assert_array_equal(weights[0], model.get_weights()[0])
    if ledger:
        Ledger.open(path).close()


def test_a_plan_that_fits_exactly_is_not_called_used_up(capsys):
    data = sampler()
    budget = PrivacyBudget(cost(poisson(20)) * 1.00001, DELTA, data=data)
    network().fit(data, epochs=2, verbose=2, callbacks=[budget])
    assert "used up" not in capsys.readouterr().out


def test_steps_outside_the_fit_are_stopped_by_the_gate():
    data, model = sampler(), network()
    fit(model, data, PrivacyBudget(30.0, DELTA, data=data))
    weights = model.get_weights()
    for attempt in (lambda: model.train_on_batch(X, Y), lambda: model.fit(X, Y, verbose=0)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="not authorized"):
            attempt()
    np.testing.assert_array_equal(weights[0], model.get_weights()[0])
    assert int(model.optimizer.steps_done) == 10


def test_executions_of_several_steps_are_charged_exactly():
    data, model = sampler(steps_per_epoch=10), network(steps_per_execution=4)
    budget = PrivacyBudget(30.0, DELTA, data=data)
    assert fit(model, data, budget, epochs=2)["epsilon"] == [cost(poisson(10)), cost(poisson(20))]
    assert int(model.optimizer.steps_done) == 20


@pytest.mark.parametrize(("allowed", "ran"), [(9, 8), (13, 10), (14, 14), (24, 24)])
def test_fit_stops_before_an_execution_that_does_not_fit(allowed, ran):
    data, model = sampler(steps_per_epoch=10), network(steps_per_execution=4)
    fit(model, data, PrivacyBudget(cost(poisson(allowed)) * 1.00001, DELTA, data=data), epochs=5)
    assert int(model.optimizer.steps_done) == ran


def test_an_execution_that_does_not_fit_at_all_is_refused():
    data, model = sampler(), network(steps_per_execution=4)
    with pytest.raises(BudgetExhaustedError, match="execution of 4 steps"):
        fit(model, data, PrivacyBudget(cost(poisson(3)) * 1.00001, DELTA, data=data))
    assert int(model.optimizer.steps_done) == 0


def test_without_noise_no_step_runs():
    with pytest.raises(BudgetExhaustedError):
        fit(network(CountingSGD(0.0, BATCH)), X, PrivacyBudget(100.0, DELTA), y=Y)


# Ledger files.


def charges_in(path) -> tuple[Charge, ...]:
    ledger = Ledger.open(path)
    charges = ledger.charges()
    ledger.close()
    return charges


def test_a_resumed_optimizer_goes_on_in_the_same_file(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    fit(model, data, PrivacyBudget(30.0, DELTA, data=data, ledger=path), epochs=2)
    assert charges_in(path) == (poisson(20),)
    resumed = network()
    resumed.optimizer.restore(20, model.optimizer)
    history = fit(resumed, data, PrivacyBudget(30.0, DELTA, data=data, ledger=path))
    assert history["epsilon"] == [cost(poisson(30))]
    assert sum(charge.steps for charge in resumed.optimizer.ledger.charges_of(resumed.optimizer)) == 30


def test_an_older_checkpoint_adds_to_what_was_charged(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    fit(model, data, PrivacyBudget(30.0, DELTA, data=data, ledger=path), epochs=2)
    model.optimizer.restore(10)
    history = fit(model, data, PrivacyBudget(30.0, DELTA, data=data, ledger=path))
    assert history["epsilon"] == [cost(poisson(30))] and int(model.optimizer.steps_done) == 20


@pytest.mark.parametrize("other", [
    lambda: (network(), sampler()),
    lambda: (network(CountingSGD(4.0, BATCH)), sampler()),
    lambda: (network(CountingSGD(NOISE, 16)), sampler(batch_size=16)),
], ids=["clone", "more noise", "larger batch"])  # fmt: skip
def test_another_optimizer_cannot_lower_the_figure(tmp_path, other):
    path, data = tmp_path / "l.json", sampler()
    fit(network(), data, PrivacyBudget(50.0, DELTA, data=data, ledger=path))
    model, theirs = other()
    budget = PrivacyBudget(50.0, DELTA, data=theirs, ledger=path)
    last = fit(model, theirs, budget)["epsilon"][-1]
    more = poisson(len(theirs), model.optimizer.noise_multiplier, theirs.sampling_probability)
    assert last == cost(poisson(10), more) > cost(poisson(10))


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered", "foreign", "behind"])
def test_a_ledger_that_cannot_be_trusted_stops_fit_before_any_step(tmp_path, damage):
    path, data, model = tmp_path / "l.json", sampler(), network()
    fit(model, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path))
    resumed = network()
    resumed.optimizer.restore(10, model.optimizer)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "altered":
        path.write_bytes(whole.replace(b'"reserved": 10', b'"reserved": 90'))
    elif damage == "foreign":
        resumed.optimizer.restore(10, CountingSGD())
    else:
        resumed.optimizer.restore(11)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(LedgerError):
        fit(resumed, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path))
    assert int(resumed.optimizer.steps_done) in (10, 11)
    assert (path.read_bytes() if path.exists() else None) == before


def test_charges_before_reads_and_lets_go(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    budget = PrivacyBudget(50.0, DELTA, data=data, ledger=path)
    assert budget.charges_before(model.optimizer) == () and not path.exists()
    fit(model, data, budget)
    assert budget.charges_before(model.optimizer) == (poisson(10),)
    assert charges_in(path) == (poisson(10),)
    model.optimizer.restore(99)
    with pytest.raises(LedgerError, match="behind"):
        budget.charges_before(model.optimizer)
    assert charges_in(path) == (poisson(10),)


def test_the_reservation_is_on_disk_before_its_steps_are_authorized(tmp_path):
    path, data = tmp_path / "l.json", sampler(steps_per_epoch=60)
    optimizer = CountingSGD(NOISE, BATCH)
    recorded = []
    authorize = optimizer.authorize

    def watched(total):
        import json

        recorded.append((total, json.loads(path.read_text())["sessions"][-1]["reserved"]))
        authorize(total)

    optimizer.authorize = watched
    fit(network(optimizer), data, PrivacyBudget(50.0, DELTA, data=data, ledger=path))
    assert recorded[-1][0] == 60 and len(recorded) > 3
    assert all(reserved >= total for total, reserved in recorded)


# Interruptions within a process.


@pytest.mark.parametrize("same_callback", [True, False])
def test_an_interrupted_fit_is_settled_when_its_optimizer_goes_on(tmp_path, same_callback):
    path, data, model = tmp_path / "l.json", sampler(), network()
    budget = PrivacyBudget(50.0, DELTA, data=data, ledger=path)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, budget, callbacks=[At(interrupt, 4)])
    assert sum(charge.steps for charge in model.optimizer.ledger.charges()) == 10, "the whole reservation"
    if not same_callback:
        budget = PrivacyBudget(50.0, DELTA, data=data, ledger=path)
    assert fit(model, data, budget)["epsilon"] == [cost(poisson(5 + 10))]
    assert sum(charge.steps for charge in charges_in(path)) == 15


def test_an_interrupted_fit_stays_charged_in_full_after_a_restore(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path), callbacks=[At(interrupt, 4)])
    model.optimizer.restore(2)
    fit(model, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path))
    assert sum(charge.steps for charge in charges_in(path)) == 20


def test_an_interrupted_fit_in_memory_stays_charged_until_its_optimizer_goes_on():
    data, model = sampler(), network()
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, PrivacyBudget(50.0, DELTA, data=data), callbacks=[At(interrupt, 4)])
    assert model.optimizer.ledger.charges() == (poisson(10),)
    assert fit(model, data, PrivacyBudget(50.0, DELTA, data=data))["epsilon"] == [cost(poisson(15))]


def test_another_model_can_take_the_file_after_an_interruption(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    budget = PrivacyBudget(50.0, DELTA, data=data, ledger=path)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, budget, callbacks=[At(interrupt, 4)])
    other = network()
    assert fit(other, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path))["epsilon"] == [cost(poisson(15))]


def test_a_running_fit_keeps_its_file(tmp_path):
    path, data = tmp_path / "l.json", sampler()
    inner = PrivacyBudget(50.0, DELTA, data=data, ledger=path)
    nested = At(lambda model: fit(network(), data, inner), 3)
    with pytest.raises(LedgerError, match="another fit"):
        fit(network(), data, PrivacyBudget(50.0, DELTA, data=data, ledger=path), callbacks=[nested])


def test_a_checkpoint_restored_when_fit_begins_starts_its_own_session(tmp_path):
    """What BackupAndRestore does, listed before or after the budget."""
    path, data, model = tmp_path / "l.json", sampler(), network()
    fit(model, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path))
    fresh = network()
    restore = At(lambda model_: fresh.optimizer.restore(10, model.optimizer), hook="on_train_begin")
    budget = PrivacyBudget(50.0, DELTA, data=data, ledger=path)
    history = fresh.fit(data, verbose=0, callbacks=[budget, restore]).history
    assert history["epsilon"] == [cost(poisson(20))] and int(fresh.optimizer.steps_done) == 20


def test_a_checkpoint_restored_between_epochs_lowers_nothing(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    back = At(lambda model_: model_.optimizer.restore(2), 0, hook="on_epoch_end")
    history = fit(model, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path), epochs=2, callbacks=[back])
    assert int(model.optimizer.steps_done) == 12
    assert history["epsilon"][-1] >= cost(poisson(20))
    assert sum(charge.steps for charge in charges_in(path)) >= 20


def test_a_checkpoint_restored_between_batches_lowers_nothing(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    back = At(lambda model_: model_.optimizer.restore(2), 6)
    history = fit(model, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path), callbacks=[back])
    assert history["epsilon"][-1] >= cost(poisson(10))
    assert sum(charge.steps for charge in charges_in(path)) >= 10


def test_steps_by_a_callback_count_against_the_reservation(tmp_path):
    path, data, model = tmp_path / "l.json", sampler(), network()
    extra = At(lambda model_: model_.train_on_batch(X, Y), 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not authorized"):
        fit(model, data, PrivacyBudget(50.0, DELTA, data=data, ledger=path), callbacks=[extra])
    assert int(model.optimizer.steps_done) == 10
    assert sum(charge.steps for charge in model.optimizer.ledger.charges()) == 10


# Cost of flushing.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("step", "flush"), [(0.01, 0.005), (0.01, 0.05), (0.001, 0.01), (0.1, 0.001)])
def test_flushes_cost_less_than_one_percent_of_the_steps(monkeypatch, step, flush):
    clock, written = Clock(), []
    monkeypatch.setattr(metering.time, "perf_counter", clock)
    optimizer = CountingSGD(50.0, BATCH)
    optimizer.build([tf.Variable(tf.zeros((5,)))])
    meter = Meter(Budget(50.0, DELTA, "pld", None), in_use=lambda: True)
    meter.open(optimizer)
    meter.begin(poisson(0, 50.0), planned=40_000, execution=1, num_examples=EXAMPLES)
    reserve = meter._ledger.reserve

    def slow(session, steps):
        clock.now += flush
        written.append(steps)
        return reserve(session, steps)

    monkeypatch.setattr(meter._ledger, "reserve", slow)
    steps = 40_000
    clock.now += 5.0  # Tracing: counted to the first block.
    for _ in range(steps):
        meter.announce(1)
        clock.now += step
    assert len(written) * flush < 0.01 * steps * step
    assert max(written) * step <= 1000 * flush + 16 * step, "longer blocks than the rule needs lose more in a crash"
    assert sum(written) >= steps


def test_a_budget_adds_little_to_each_batch():
    """Python's part, without the flush: well below 1 % of a 10 ms step."""
    import time

    data, model = sampler(), network()
    budget = PrivacyBudget(500.0, DELTA, data=data)
    budget.set_model(model)
    budget.set_params({"epochs": 1, "steps": 5000})
    budget._meter.open(model.optimizer)
    budget._meter.begin(poisson(0), 5000, 1, EXAMPLES)
    budget.on_train_batch_begin(0)
    start = time.process_time()
    for batch in range(1, 2001):
        budget.on_train_batch_begin(batch)
        budget.on_train_batch_end(batch)
    assert (time.process_time() - start) / 2000 < 1e-4
    budget._meter.close()


# Reading the running fit.


def test_the_running_fit_is_found_and_only_while_it_runs():
    data, model, found = sampler(), network(CountingSGD()), []
    probe = At(lambda model_: found.append((keras_fit.running_fit(model_), keras_fit.is_in_running_fit(probe))),
               hook="on_train_begin")  # fmt: skip
    model.fit(data, epochs=4, initial_epoch=3, verbose=0, callbacks=[probe])
    ((fit_found, in_fit),) = found
    assert fit_found.model is model and fit_found.data is data and fit_found.initial_epoch == 3 and in_fit
    assert probe in fit_found.callbacks
    assert keras_fit.running_fit() is None and not keras_fit.is_in_running_fit(probe)
    assert keras_fit.data_of_running_fit(network()) is None


# The real optimizer.


def test_with_the_real_optimizer(tmp_path):
    path, data = tmp_path / "l.json", sampler()
    model = network(DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=NOISE, expected_batch_size=BATCH))
    budget = PrivacyBudget(cost(poisson(15)) * 1.0001, DELTA, data=data, ledger=path)
    history = fit(model, data, budget, epochs=3)
    assert history["epsilon"] == [cost(poisson(10)), cost(poisson(15))]
    assert int(model.optimizer.steps_done) == 15
    assert model.optimizer.privacy_spent(DELTA) == history["epsilon"][-1]
    weights = model.get_weights()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not authorized"):
        model.train_on_batch(X, Y)
    np.testing.assert_array_equal(weights[0], model.get_weights()[0])
    with pytest.raises(BudgetExhaustedError):
        fit(model, data, budget)
    assert charges_in(path) == (poisson(15),)
