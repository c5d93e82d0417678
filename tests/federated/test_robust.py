"""Trimmed, Median and Zeroing: against their definitions, against liars, and what they refuse."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_private.errors import ConfigurationError
from keras_private.federated.aggregators.base import Cohort
from keras_private.federated.aggregators.mean import Mean
from keras_private.federated.aggregators.private import DPAggregator
from keras_private.federated.aggregators.robust import BLOCK, Median, Trimmed, Zeroing
from tests.federated.aggregating import cohort_of, reports_of, simulate

pytestmark = pytest.mark.filterwarnings("ignore:Trimmed")
NUMBERS = st.floats(-1e6, 1e6, width=32)


def by_definition(values: np.ndarray, cut: int) -> np.ndarray:
    rows = np.sort(values.astype(np.float64), axis=0)
    return np.array([np.mean(column[cut : len(column) - cut]) for column in rows.T])


@settings(max_examples=25)
@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 13), st.integers(1, 4)), elements=NUMBERS),
       st.sampled_from([(0.0, 0), (0.1, 1), (0.25, 4), (0.4, 5)]))  # fmt: skip
def test_trimmed_and_median_are_those_of_the_definition(updates, choice):
    trim = choice[0]
    cut = int(len(updates) * round(trim * 100)) // 100
    close = {"rtol": 1e-9, "atol": 1e-6}
    np.testing.assert_allclose(simulate(Trimmed(trim), updates).mean, by_definition(updates, cut), **close)
    np.testing.assert_allclose(simulate(Median(), updates).mean, np.median(updates.astype(float), axis=0), **close)


def test_models_of_more_than_one_block():
    updates = np.random.default_rng(0).normal(size=(11, BLOCK + 5)).astype(np.float32)
    np.testing.assert_allclose(simulate(Trimmed(0.2), updates).mean, by_definition(updates, 2), atol=1e-12)
    np.testing.assert_allclose(simulate(Median(), updates).mean, np.median(updates.astype(float), axis=0), atol=1e-12)


@pytest.mark.parametrize("trim, clients, cut", [(0.29, 100, 29), (0.1, 30, 3), (0.1, 9, 0), (0.49, 100, 49),
                                                (0.4999999999999999, 2, 0)])  # fmt: skip
def test_the_share_is_the_decimal_number_that_was_written(trim, clients, cut):
    assert simulate(Trimmed(trim), np.zeros((clients, 1))).measurements["trimmed"] == 2 * cut


@settings(max_examples=25)
@given(st.integers(5, 15), st.data())
def test_a_minority_of_liars_moves_no_coordinate_out_of_the_range_of_the_others(clients, data):
    honest_and_liars = data.draw(arrays.arrays(np.float32, (clients, 3), elements=st.floats(-1, 1, width=32)))
    for aggregator, liars in ((Trimmed(0.3), clients * 3 // 10), (Median(), (clients - 1) // 2)):
        updates = honest_and_liars.copy()
        updates[:liars] = data.draw(
            arrays.arrays(np.float32, (liars, 3), elements=st.sampled_from([2.0**100, -(2.0**100), 0.5, 64.0]))
        )
        found, honest = simulate(aggregator, updates).mean, updates[liars:]
        assert (found >= honest.min(axis=0) - 1e-7).all() and (found <= honest.max(axis=0) + 1e-7).all()


def test_one_liar_steers_the_mean_and_none_of_these():
    updates = np.full((10, 4), 0.5, np.float32)
    updates[3] = 1e6
    assert simulate(Mean(), updates).mean[0] > 1e4
    for aggregator in (Trimmed(0.1), Median(), Zeroing(), Zeroing(l2_norm_bound=2.0), Zeroing(Median())):
        np.testing.assert_allclose(simulate(aggregator, updates).mean, np.full(4, 0.5), atol=1e-6)


def test_weights_count_for_nothing():
    updates = np.arange(5, dtype=np.float32).reshape(5, 1)
    for aggregator in (Trimmed(0.2), Median()):
        assert not aggregator.weighted
        assert simulate(aggregator, updates, [1000, 1, 1, 1, 1]).mean[0] == 2.0


def test_a_share_that_leaves_nothing_out_is_told():
    with pytest.warns(UserWarning, match="nothing out of 9 clients"):
        Trimmed(0.1).prepare(3, Cohort(9.0, 9, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trimmed(0.1).prepare(3, Cohort(10.0, 10, 10))
        Trimmed(0.0).prepare(3, Cohort(9.0, 9, 9))


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1, float("nan"), "0.1", None, True])
def test_a_share_that_is_none_is_refused(trim):
    with pytest.raises(ConfigurationError, match="trim"):
        Trimmed(trim)


# Zeroing.


def test_an_update_on_the_bound_counts_and_one_above_does_not():
    updates = np.array([[3.0, 4.0], [3.0, 4.0000005], [0.0, 1.0]], np.float32)
    total = simulate(Zeroing(l2_norm_bound=5.0), updates)
    assert total.clients == 2 and total.measurements["left_out"] == 1
    np.testing.assert_allclose(total.mean, [1.5, 2.5])


def test_the_bound_sees_norms_that_float32_cannot_hold():
    updates = np.array([[3e38, 3e38], [1e-30, 1e-30]], np.float32)
    total = simulate(Zeroing(l2_norm_bound=1e-29), updates)
    assert total.clients == 1
    np.testing.assert_allclose(total.mean, updates[1])
    assert simulate(Zeroing(l2_norm_bound=1e-31), updates).clients == 0


def test_what_is_zeroed_is_not_in_the_divisor_and_weights_stay():
    updates = np.array([[1.0], [2.0], [900.0]], np.float32)
    for aggregator in (Zeroing(l2_norm_bound=10.0), Zeroing(quantile=0.5, multiple=3.0)):
        total = simulate(aggregator, updates, [3, 1, 1000])
        assert total.mean[0] == 1.25 and total.clients == 2 and total.weight == 4.0


def test_the_bound_of_a_quantile_is_of_the_round_and_shown():
    updates = np.array([[1.0], [2.0], [3.0], [100.0], [np.nan]], np.float32)
    total = simulate(Zeroing(quantile=0.5, multiple=4.0), updates)
    assert total.measurements["norm_bound"] == 10.0 and total.measurements["zeroed"] == 1.0
    assert total.measurements["left_out"] == 2.0
    np.testing.assert_allclose(total.mean, [2.0])
    total = simulate(Zeroing(quantile=1.0, multiple=1.0), updates)
    assert total.measurements["zeroed"] == 0.0 and total.clients == 4, "the largest norm is the bound"


def test_zeroing_takes_over_what_is_inside():
    aggregator = Zeroing(Median(), l2_norm_bound=2.0)
    assert aggregator.lists_updates and not aggregator.weighted
    assert not Zeroing(l2_norm_bound=2.0).lists_updates and Zeroing().lists_updates and Zeroing().weighted
    described = Zeroing(Median()).description()
    assert described["inner"]["name"] == "Median" and described["quantile"] == 0.5
    assert len(described["protects_from"]) == 2


class Hidden(Mean):
    hides_updates = True


def test_a_quantile_is_refused_where_updates_are_hidden_and_a_bound_is_not():
    with pytest.raises(ConfigurationError, match="l2_norm_bound"):
        Zeroing(Hidden())
    assert Zeroing(Hidden(), l2_norm_bound=1.0).hides_updates


@pytest.mark.parametrize("options", [{"l2_norm_bound": 0}, {"l2_norm_bound": float("inf")}, {"quantile": 1.1},
                                     {"multiple": 0}, {"inner": "mean"},
                                     {"inner": DPAggregator(noise_multiplier=1.0), "l2_norm_bound": 1.0}])  # fmt: skip
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError):
        Zeroing(**options)


def test_a_round_needs_prepare_where_nobody_reports():
    for aggregator in (Trimmed(), Median(), Zeroing()):
        reports, round = reports_of(aggregator, np.zeros((0, 3)))
        with pytest.raises(ConfigurationError, match="prepare"):
            aggregator.total(reports, round)
        aggregator.prepare(3, cohort_of(3))
        assert aggregator.total(reports, round).mean.tolist() == [0, 0, 0]
