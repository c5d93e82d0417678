"""The privacy report of federated training: what it says for every way of running it, and that it never says less."""

from __future__ import annotations

import dataclasses
import math

import pytest

import keras_private as kp
from keras_private.errors import ConfigurationError
from keras_private.federated import DPAggregator, Mean, Median, RemoteWorker, Zeroing
from keras_private.federated.exposure import EVALUATION, FIT, PERSONALIZATION, Exposure
from keras_private.federated.reporting import ITEMS, views_of, worst
from keras_private.federated.workers import Workers, _Place
from keras_private.report.content import CLEAR, LEVELS, NOISY, NOTHING, SHARES, TOTALS
from tests.federated.test_model import LOSS, dense, examples

EXAMPLES, UPDATE, COHORT, MEAN, MODELS, FIGURES = ITEMS
DELTA = 1e-3


class Apart(kp.SecureAggregation):
    """As with parties on hosts of their own."""

    @property
    def simulated(self) -> bool:
        return False


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
    assert Workers([_Place(at)], 1.0).apart is apart
    assert not Workers([_Place(at), _Place()], 1.0).apart, "all must be"


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
