"""The privacy report of private fits and of ledgers: its epsilon is that of all charges, and never a smaller one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.dp import privacy_report, report_of_ledger
from keras_private.dp.accounting import ADD_OR_REMOVE, ZERO_OUT, Charge, epsilon
from keras_private.dp.ledger import Ledger
from keras_private.errors import ConfigurationError, LedgerError
from keras_private.report.content import CLEAR, CLIENT, COHORT, COORDINATOR, EXAMPLE, NOISY, NOTHING, RELEASE, TOTALS
from tests.dp.doubles import Bookkept
from tests.dp.test_model import compiled, data, sequential

DELTA = 1e-4
X, Y = data()
CHARGE = Charge(1.5, 0, 0.1, "poisson", ADD_OR_REMOVE, 5)


def by_hand(noise=1.5, batch=24):
    model = sequential()
    optimizer = kp.DPOptimizer("sgd", l2_norm_clip=0.5, noise_multiplier=noise, expected_batch_size=batch)
    model.compile(optimizer, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def level(report, adversary, item):
    return next(view.of(item).level for view in report.views if view.adversary == adversary)


def test_the_report_of_make_private_has_the_epsilon_of_its_fit():
    private = compiled()
    history = private.fit(X, Y, batch_size=24, epochs=2, verbose=0).history
    report = private.privacy_report()
    (spending,) = report.spendings
    assert spending.epsilon == history["epsilon"][-1] <= 3.0
    assert (spending.delta, spending.unit, spending.observer) == (DELTA, EXAMPLE, RELEASE)
    assert spending.adjacency == "add or remove one example" and spending.samplers == ("poisson",)
    assert spending.steps == 20 and spending.accountant == "pld"
    assert spending.mechanism["sampling probability"] == "0.1" and "noise multiplier" in spending.mechanism
    assert next(each for each in report.series if each.name == "epsilon").y == tuple(history["epsilon"])
    assert report.costs["fit"].seconds > 0 and report.simulated == ()
    assert level(report, "whoever gets the model", "model after each step") == NOISY
    assert level(report, "whoever gets the model", "examples") == NOTHING
    assert level(report, "host that trains", "examples") == CLEAR
    assert level(report, "whoever gets History, logs or the figures in this report", "training metrics") == TOTALS
    assert any("had learnt before" in each for each in report.not_covered)
    assert kp.PrivacyReport.from_json(report.to_json()) == report

    private.fit(X, Y, batch_size=24, epochs=0, verbose=0)
    again = private.privacy_report().spendings[0]
    assert again.epsilon == spending.epsilon and again.steps == 20


def test_without_a_sampler_there_is_no_amplification():
    model = by_hand()
    model.fit(X, Y, batch_size=24, epochs=1, verbose=0)
    (spending,) = privacy_report(model, DELTA).spendings
    coordinates = model.optimizer.noise_coordinates
    assert spending.epsilon == epsilon([Charge(1.5, 10, None, "unknown", ZERO_OUT, coordinates)], DELTA)
    assert spending.samplers == ("unknown",) and spending.adjacency == "zero out one example"
    assert "sampling probability" not in spending.mechanism


def test_steps_outside_a_budget_count_unamplified_beside_those_within():
    model, sampler = by_hand(), kp.PoissonSampler(X, Y, batch_size=24)
    model.fit(sampler, epochs=1, verbose=0, callbacks=[kp.PrivacyBudget(50.0, DELTA, data=sampler)])
    within = privacy_report(model, DELTA).spendings[0]
    model.optimizer.steps_done.assign_add(3)  # As if a loop of one's own had trained.
    (both,) = privacy_report(model, DELTA).spendings
    assert both.epsilon > within.epsilon and both.steps == within.steps + 3
    assert both.samplers == ("poisson", "unknown") and both.adjacency == "zero out one example"


def test_without_noise_models_are_exact_functions_and_epsilon_is_infinite():
    model = by_hand(noise=0.0)
    model.fit(X, Y, batch_size=24, epochs=1, verbose=0)
    report = privacy_report(model, DELTA)
    assert report.spendings[0].epsilon == math.inf
    assert level(report, "whoever gets the model", "model after each step") == TOTALS
    assert "without noise" in str(report)


def test_before_any_step_nothing_was_spent():
    report = privacy_report(by_hand(), DELTA)
    assert report.spendings[0].epsilon == 0.0 and report.spendings[0].steps == 0 and report.series == ()


def test_a_model_that_adds_no_noise_has_no_such_report():
    model = sequential()
    model.compile("sgd", "mse")
    with pytest.raises(ConfigurationError, match="adds no noise"):
        privacy_report(model, DELTA)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigurationError, match="delta"):
            privacy_report(by_hand(), delta)


def test_with_a_ledger_the_report_is_that_of_the_file_and_a_missing_one_is_refused(tmp_path):
    path = tmp_path / "spent.ledger"
    private = compiled(ledger=str(path))
    private.fit(X, Y, batch_size=24, epochs=1, verbose=0)
    report = private.privacy_report()
    written = report_of_ledger(path, DELTA)
    assert written.kind == "ledger" and written.model == "spent.ledger" and written.views == ()
    assert written.spendings[0].epsilon == report.spendings[0].epsilon > 0
    both = kp.PrivacyReport.joined([report, written])
    assert both.spendings[0].epsilon >= 2 * report.spendings[0].epsilon, "what both count counts twice"
    path.unlink()
    with pytest.raises(LedgerError, match="missing"):
        private.privacy_report()
    with pytest.raises(LedgerError, match="There is no ledger"):
        report_of_ledger(path, DELTA)
    assert not path.exists()


def record(path, *identities):
    ledger = Ledger.open(path)
    for identity in identities:
        optimizer = Bookkept()
        optimizer.identity = identity
        ledger.reserve(ledger.start(optimizer, CHARGE, 80), 10)
    ledger.close()


def test_reserved_steps_of_a_crash_count(tmp_path):
    record(tmp_path / "l", "one", "other")
    (spending,) = report_of_ledger(tmp_path / "l", DELTA).spendings
    assert spending.steps == 20
    assert spending.epsilon == epsilon([Charge(1.5, 20, 0.1, "poisson", ADD_OR_REMOVE, 5)], DELTA)


def test_a_ledger_of_rounds_says_nothing_good_of_the_coordinator(tmp_path):
    record(tmp_path / "l", "client:one")
    release, cohort, coordinator = report_of_ledger(tmp_path / "l", DELTA).spendings
    assert {each.unit for each in (release, cohort, coordinator)} == {CLIENT} and release.steps_are == "rounds"
    assert (cohort.observer, coordinator.observer) == (COHORT, COORDINATOR)
    assert release.epsilon < cohort.epsilon < coordinator.epsilon == math.inf
    assert cohort.adjacency == "zero out one client" and "sampling probability" not in cohort.mechanism


def test_a_ledger_that_mixes_units_is_refused(tmp_path):
    record(tmp_path / "l", "client:one", "other")
    with pytest.raises(LedgerError, match="mixes guarantees for client and example"):
        report_of_ledger(tmp_path / "l", DELTA)
    Ledger.open(tmp_path / "l").close()  # It was let go of.


def test_a_damaged_ledger_is_refused(tmp_path):
    record(tmp_path / "l", "one")
    content = (tmp_path / "l").read_bytes()
    (tmp_path / "l").write_bytes(content.replace(b"10", b"01", 1))
    with pytest.raises(LedgerError):
        report_of_ledger(tmp_path / "l", DELTA)


def test_rdp_is_named_and_not_below_pld():
    model = by_hand()
    model.fit(X[:48], Y[:48], batch_size=24, epochs=1, verbose=0)
    pld, rdp = (privacy_report(model, DELTA, accountant).spendings[0] for accountant in ("pld", "rdp"))
    assert rdp.accountant == "rdp" and rdp.epsilon >= pld.epsilon and np.isfinite(rdp.epsilon)
