"""The privacy report of federated training: what it says for every way of running it, and that it never says less."""

from __future__ import annotations

import dataclasses
import math

import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import ConfigurationError
from keras_private.federated import DPAggregator, Mean, Median, RemoteWorker, Zeroing
from keras_private.federated.exposure import EVALUATION, FIT, PERSONALIZATION, Exposure
from keras_private.federated.sights import ITEMS, views_of, worst
from keras_private.federated.worker_place import Place
from keras_private.federated.workers import Workers
from keras_private.report.content import CLEAR, COORDINATOR, LEVELS, NOISY, NOTHING, SHARES, TOTALS
from tests.federated.test_model import LOSS, dense, examples

EXAMPLES, UPDATE, COHORT, MEAN, MODELS, FIGURES = ITEMS
DELTA = 1e-3


class Apart(kp.SecureAggregation):
    """As with parties on hosts of their own."""

    @property
    def simulated(self):
        return ()


def seen(exposure):
    return {view.adversary: {sight.item: sight.level for sight in view.sights} for view in views_of(exposure)}


def exposure(aggregator=None, stays_put=True, apart=True, noise=0.0, what=FIT):
    return Exposure(what, stays_put, apart, 10, aggregator, noise)


def test_with_a_mean_the_coordinator_reads_updates_and_not_the_examples_of_other_hosts():
    coordinator = seen(exposure(Mean()))["coordinator"]
    assert coordinator == {
        EXAMPLES: NOTHING, UPDATE: CLEAR, COHORT: CLEAR, MEAN: TOTALS, MODELS: TOTALS, FIGURES: TOTALS
    }  # fmt: skip


def test_with_masks_coordinator_and_parties_see_no_update():
    views = seen(exposure(DPAggregator(Apart(), noise_multiplier=1.0), noise=1.0))
    assert views["coordinator"] == {
        EXAMPLES: NOTHING, UPDATE: SHARES, COHORT: CLEAR, MEAN: NOISY, MODELS: NOISY, FIGURES: NOTHING
    }  # fmt: skip
    for party in ("party 0", "party 1"):
        assert views[party] == {
            EXAMPLES: NOTHING, UPDATE: SHARES, COHORT: CLEAR, MEAN: NOTHING, MODELS: NOTHING, FIGURES: NOTHING
        }  # fmt: skip
    assert views["whoever gets the models"][MODELS] == NOISY


@pytest.mark.parametrize("stays_put, apart", [(True, False), (False, True), (False, False)])
def test_masks_hide_nothing_from_a_coordinator_that_has_the_examples(stays_put, apart):
    told = exposure(DPAggregator(Apart(), noise_multiplier=1.0), stays_put, apart, 1.0)
    assert told.simulated and not told.hidden
    assert seen(told)["coordinator"][EXAMPLES] == seen(told)["coordinator"][UPDATE] == CLEAR


def test_parties_in_this_process_hide_nothing():
    told = exposure(DPAggregator(kp.SecureAggregation(), noise_multiplier=1.0), noise=1.0)
    assert seen(told)["coordinator"][UPDATE] == CLEAR and "party 0" not in seen(told)
    assert "both parties" in told.simulated[0]


@pytest.mark.parametrize("noise, level", [(0.0, TOTALS), (0.5, NOISY)])
def test_without_noise_models_are_exact_functions(noise, level):
    views = seen(exposure(DPAggregator(noise_multiplier=noise), noise=noise))
    assert views["whoever gets the models"][MODELS] == views["a client's host"][MODELS] == level
    assert views["coordinator"][MEAN] == TOTALS, "it adds up the updates itself"


@pytest.mark.parametrize("aggregator", [Mean(), Median(), Zeroing(l2_norm_bound=1.0)])
def test_figures_of_training_reach_the_coordinator_unless_updates_are_hidden(aggregator):
    assert seen(exposure(aggregator))["coordinator"][FIGURES] == TOTALS


def test_an_evaluation_shows_totals_and_no_update():
    coordinator = seen(exposure(what=EVALUATION))["coordinator"]
    assert coordinator[UPDATE] == coordinator[MEAN] == NOTHING and coordinator[FIGURES] == TOTALS


def test_of_several_runs_the_most_counts():
    blind, open_ = exposure(DPAggregator(Apart(), noise_multiplier=1.0), noise=1.0), exposure(Mean(), apart=False)
    merged = {view.adversary: view for view in worst([views_of(blind), views_of(open_)])}
    for other in (blind, open_):
        for view in views_of(other):
            for sight in view.sights:
                order = list(LEVELS).index
                assert order(merged[view.adversary].of(sight.item).level) >= order(sight.level)
    assert merged["coordinator"].of(UPDATE).level == CLEAR


@pytest.mark.parametrize(
    "at, apart",
    [
        (None, False),
        ("127.0.0.1:9", False),
        (RemoteWorker("worker", "127.0.0.1:9", "folder"), False),
        (RemoteWorker("worker", "10.0.0.7:9", "folder"), True),
    ],
)
def test_a_worker_is_apart_only_at_another_address(at, apart):
    assert Workers([Place(at)], 1.0).apart is apart
    assert not Workers([Place(at), Place()], 1.0).apart, "all must be"


def test_the_report_of_a_fit():
    clients = {f"client{index}": examples(6, index) for index in range(8)}
    fed = kp.FederatedModel(dense(), aggregator=DPAggregator(kp.SecureAggregation(), l2_norm_clip=1.0))
    fed.compile("sgd", loss=LOSS)
    with pytest.raises(ConfigurationError, match="Nothing was trained"):
        fed.privacy_report()
    budget = kp.PrivacyBudget(50.0, DELTA)
    history = fed.fit(clients, epochs=2, clients_per_round=8, callbacks=[budget], verbose=0)
    report, spent = fed.privacy_report(), fed.privacy_spent(DELTA)
    release, cohort, coordinator = report.spendings
    assert release.epsilon == spent.epsilon == history.history["epsilon"][-1] == budget.epsilon_spent
    assert (cohort.epsilon, coordinator.epsilon) == (spent.epsilon_cohort_seen, math.inf)
    assert {each.unit for each in report.spendings} == {"client"} and release.delta == DELTA
    assert len(report.simulated) == 2 and str(report).index("SIMULATED") < str(report).index("epsilon")
    dimension = sum(variable.shape.num_elements() for variable in fed.model.trainable_variables)
    assert report.costs["fit"].rounds == 2
    # Weights there, one masked word for each and three beside back, with the nonce.
    assert report.costs["fit"].bytes >= 2 * 8 * dimension * (4 + 8)
    assert next(each for each in report.series if each.name == "epsilon").x == (1.0, 2.0)
    assert kp.PrivacyReport.from_json(report.to_json()) == report

    fed.evaluate(clients)
    again = fed.privacy_report()
    assert "evaluation" in again.costs and {view.adversary for view in again.views} == {
        view.adversary for view in report.views
    }
    fed.personalize(clients, "client0")
    assert [each.what for each in fed.exposures] == [FIT, EVALUATION, PERSONALIZATION]


def test_a_fit_without_noise_spoils_the_guarantee_of_those_with():
    clients = {f"client{index}": examples(4, index) for index in range(3)}
    fed = kp.FederatedModel(dense(), aggregator=DPAggregator(noise_multiplier=5.0))
    fed.compile("sgd", loss=LOSS)
    fed.fit(clients, epochs=1, clients_per_round=3, verbose=0)
    with pytest.raises(ConfigurationError, match="delta is not known"):
        fed.privacy_report()
    assert math.isfinite(fed.privacy_report(DELTA).spendings[0].epsilon)
    private, fed.aggregator = fed.aggregator, Mean()
    fed.fit(clients, epochs=1, verbose=0)
    for aggregator in (fed.aggregator, private):
        fed.aggregator = aggregator
        report = fed.privacy_report(DELTA)
        assert {each.epsilon for each in report.spendings} == {math.inf}
        assert report.views[-2].of(MODELS).level == TOTALS


def test_without_a_private_aggregator_there_is_no_epsilon():
    fed = kp.FederatedModel(dense())
    fed.compile("sgd", loss=LOSS)
    fed.fit({"a": examples(4), "b": examples(4, 1)}, epochs=1, verbose=0)
    report = fed.privacy_report()
    assert report.spendings == () and report.learns and "infinite" in str(report)
    assert report.who_sees(UPDATE) == ("coordinator", "a client's host")


def test_examples_that_are_sent_were_at_the_coordinator():
    told = exposure(Mean(), stays_put=False)
    assert "sends them" in told.simulated[0]
    assert dataclasses.replace(told, stays_put=True).simulated == ()


class GivenAway(Apart):
    """Its keys could be read when the fit began, and no more when the report is made."""

    readable = True

    @property
    def simulated(self):
        return ("keys of clients can be read by this process",) if self.readable else ()


def test_what_could_be_read_when_a_fit_began_counts_for_good():
    aggregator = GivenAway()
    told = Exposure(FIT, True, True, 10, aggregator, together=tuple(aggregator.simulated))
    GivenAway.readable = False
    try:
        assert aggregator.simulated == () and not told.hidden and told.simulated
        assert seen(told)["coordinator"][UPDATE] == CLEAR
        assert Exposure(FIT, True, True, 10, aggregator).hidden
    finally:
        GivenAway.readable = True


def test_what_is_opened_of_masked_sums_is_said():
    told = exposure(Apart())
    figures = next(view for view in views_of(told) if view.adversary == "coordinator").of(FIGURES)
    assert figures.level == TOTALS and "clamped" in figures.note
    assert seen(told)["coordinator"][UPDATE] == SHARES and seen(told)["coordinator"][MEAN] == TOTALS


def test_coordinator_and_both_parties_together_read_updates():
    told = exposure(DPAggregator(Apart(), noise_multiplier=1.0), noise=1.0)
    pooled = seen(told)["coordinator and both parties together"]
    assert pooled[UPDATE] == CLEAR and pooled[MEAN] == pooled[MODELS] == TOTALS


def test_parties_on_other_hosts_are_adversaries_where_the_coordinator_reads_everything_too():
    views = seen(exposure(Apart(), apart=False))
    assert views["coordinator"][UPDATE] == CLEAR and views["party 0"][COHORT] == CLEAR


@pytest.mark.parametrize("what", [FIT, EVALUATION, PERSONALIZATION])
def test_who_can_read_examples_can_read_each_clients_figures(what):
    assert seen(exposure(DPAggregator(noise_multiplier=1.0), apart=False, what=what))["coordinator"][FIGURES] == CLEAR


def test_figures_of_each_client_that_were_asked_for_are_seen():
    told = dataclasses.replace(exposure(what=EVALUATION), per_client=True)
    assert seen(told)["coordinator"][FIGURES] == CLEAR
    assert seen(dataclasses.replace(told, per_client=False))["coordinator"][FIGURES] == TOTALS


@pytest.mark.parametrize("address", ["127.0.0.2:9", "localhost.:9", "[::1]:9", "0.0.0.0:9", "[::ffff:127.0.0.1]:9"])
def test_no_address_of_this_machine_is_apart(address):
    assert not Workers([Place(RemoteWorker("worker", address, "folder"))], 1.0).apart


def of_coordinator(report):
    return next(each for each in report.spendings if each.observer == COORDINATOR)


@pytest.fixture(scope="module")
def private():
    """A fit of rounds, told as if workers and parties had been on other hosts."""
    fed = kp.FederatedModel(dense(), aggregator=DPAggregator(noise_multiplier=5.0))
    fed.compile("sgd", loss=LOSS)
    fed.fit({f"client{index}": examples(4, index) for index in range(3)}, epochs=1, clients_per_round=3, verbose=0)
    (fit,) = fed.exposures
    fit.apart = fit.stays_put = True
    fed.privacy_meter._hidden.assign(1)
    return fed


def test_an_evaluation_where_the_coordinator_reads_examples_ends_every_guarantee_against_it(private):
    assert math.isfinite(of_coordinator(private.privacy_report(DELTA)).epsilon)
    there, here = exposure(what=EVALUATION), exposure(what=EVALUATION, apart=False)
    for more, finite in (([there], True), ([here], False), ([exposure(what=PERSONALIZATION, apart=False)], False)):
        private.exposures += more
        try:
            report = private.privacy_report(DELTA)
        finally:
            private.exposures[1:] = []
        assert math.isfinite(of_coordinator(report).epsilon) is finite
        assert ("coordinator" in report.who_sees(EXAMPLES)) is not finite
        assert math.isfinite(report.spendings[0].epsilon), "who gets the models is somebody else"
        assert any("personalized copies" in each for each in report.not_covered) is (more[0].what == PERSONALIZATION)


def test_a_fit_that_ended_before_its_first_round_changes_nothing(private):
    before = private.privacy_report(DELTA)
    private.exposures.append(dataclasses.replace(exposure(Mean(), apart=False), rounds=0))
    try:
        after = private.privacy_report(DELTA)
    finally:
        private.exposures.pop()
    assert dataclasses.replace(after, created=before.created) == before


def test_rounds_of_other_processes_are_not_passed_over(private):
    private.rounds_elsewhere = 7
    try:
        said = private.privacy_report(DELTA).not_covered
        assert any("7 rounds that checkpoints brought along" in each for each in said)
    finally:
        private.rounds_elsewhere = 0


def test_only_who_does_not_see_the_cohort_is_told_a_sampling_probability(private):
    release, cohort, coordinator = private.privacy_report(DELTA).spendings
    assert "sampling probability" in release.mechanism
    assert "sampling probability" not in {**cohort.mechanism, **coordinator.mechanism}
    assert cohort.mechanism["noise multiplier"] == "5" and cohort.mechanism["sums by"] == "Mean"


def test_another_aggregator_is_charged_at_its_own_noise_and_both_are_named(tmp_path):
    clients = {f"client{index}": examples(4, index) for index in range(3)}
    fed = kp.FederatedModel(dense(), aggregator=DPAggregator(l2_norm_clip=1.0, noise_multiplier=5.0))
    fed.compile("sgd", loss=LOSS)
    fed.fit(clients, epochs=1, clients_per_round=3, verbose=0, checkpoints=tmp_path)
    fed.aggregator = DPAggregator(l2_norm_clip=2.0, noise_multiplier=0.5)
    fed.fit(clients, epochs=1, clients_per_round=3, verbose=0)
    charges = fed.privacy_meter.ledger.charges()
    assert [charge.noise_multiplier for charge in charges if charge.steps] == [5.0, 0.5]
    facts = fed.privacy_report(DELTA).spendings[0].mechanism
    assert facts["noise multiplier"] == "0.5 and 5" and facts["L2 norm clip"] == "1 and 2"

    class Swap(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            fed.aggregator = Mean()

    with pytest.raises(ConfigurationError, match="aggregator was changed while a fit runs"):
        fed.fit(clients, epochs=1, clients_per_round=3, verbose=0, callbacks=[Swap()])
    assert sum(charge.steps for charge in fed.privacy_meter.ledger.charges()) == 2

    other = kp.FederatedModel(dense(), aggregator=DPAggregator(l2_norm_clip=1.0, noise_multiplier=5.0))
    other.compile("sgd", loss=LOSS)
    other.fit(clients, epochs=2, clients_per_round=3, verbose=0, checkpoints=tmp_path)
    assert (other.rounds_elsewhere, other.exposures[0].rounds) == (1, 1)
