"""DPAggregator: the bound, the sensitivity, the law of the noise, and that nothing else is told."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from keras_private.dp.mechanisms import GaussianMechanism
from keras_private.errors import AggregationError, ConfigurationError, OverflowPreflightError
from keras_private.federated.aggregators.base import Cohort, Noise, Reports
from keras_private.federated.aggregators.mean import Mean
from keras_private.federated.aggregators.private import DPAggregator, clip, summation_slack
from keras_private.federated.aggregators.robust import Zeroing
from keras_private.federated.aggregators.secure import SecureAggregation
from tests.federated.aggregating import cohort_of, reports_of, simulate

D = 20_000
ANY = st.floats(-(2.0**100), 2.0**100, width=32)


def squared_norm(vector: np.ndarray) -> Fraction:
    return sum((Fraction(float(item)) ** 2 for item in vector), Fraction(0))


# The bound.


@settings(max_examples=60)
@given(arrays.arrays(np.float32, st.integers(1, 40), elements=ANY),
       st.sampled_from([1e-25, 1e-3, 0.1, 1.0, 1 / 3, 7.3, 1e25]))  # fmt: skip
def test_what_is_clipped_is_within_the_bound_in_exact_arithmetic(update, bound):
    found = clip(tf.constant(update), bound).numpy()
    assert found.dtype == np.float32 and squared_norm(found) <= Fraction(bound) ** 2
    if squared_norm(update) <= (Fraction(bound) * (1 - Fraction(1, 2**20))) ** 2:
        assert np.array_equal(found, update), "what is within the bound stays as it is"
    else:
        assert math.sqrt(squared_norm(found)) >= 0.999 * bound


@pytest.mark.parametrize("dimension", [3, 1000, 300_000])
def test_the_bound_holds_for_long_updates_and_the_direction_stays(dimension):
    update = np.random.default_rng(1).lognormal(sigma=3.0, size=dimension).astype(np.float32)
    found = clip(tf.constant(update), 0.7).numpy().astype(np.float64)
    assert math.fsum(found**2) <= 0.7**2
    wide = update.astype(np.float64)
    np.testing.assert_allclose(found, 0.7 * wide / np.linalg.norm(wide), rtol=1e-5)


@settings(max_examples=30)
@given(st.data())
def test_the_sums_of_neighbouring_rounds_differ_by_at_most_the_sensitivity(data):
    clients, dimension = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    updates = data.draw(arrays.arrays(np.float32, (clients, dimension), elements=ANY | st.floats(-1, 1, width=32)
                                      | st.sampled_from([float("nan"), float("inf")])))  # fmt: skip
    bound, multiplier = data.draw(st.sampled_from([0.01, 1.0, 3.7])), data.draw(st.sampled_from([0.3, 1.0, 20.0]))
    aggregator = DPAggregator(l2_norm_clip=bound, noise_multiplier=multiplier)
    aggregator.prepare(dimension, cohort_of(clients))
    noise = aggregator.noise()
    mechanism = GaussianMechanism(noise.l2_norm_clip, noise.noise_multiplier, dimension)

    def before_noise(rows):
        # As Mean and the mechanism do: a float32 sum, rounded to the grid.
        exact = np.asarray(reports_of(aggregator, rows)[0].summed["update"]).astype(np.float32).astype(np.float64)
        return np.floor(exact / mechanism.cell + 0.5) * mechanism.cell

    place = data.draw(st.integers(0, clients - 1))
    other = updates.copy()
    other[place] = 0.0
    whole = before_noise(updates)
    for neighbour in (np.delete(updates, place, axis=0), other):
        assert np.linalg.norm(whole - before_noise(neighbour)) <= mechanism.sensitivity * (1 + 1e-12)


def test_sums_of_many_equal_clients_do_not_round_past_the_sensitivity():
    # In float32 the sum of n clients rounds by up to n * n / 2**24 of the bound: here by 4 hundredths of it.
    clients = 3000
    update = clip(tf.constant(np.array([0.1, 0.2, 0.3, 0.7], np.float32)), 0.1).numpy()
    aggregator = DPAggregator(l2_norm_clip=0.1, noise_multiplier=1.0)
    with_float32 = np.zeros(4, np.float32)
    for _ in range(clients):
        with_float32 = with_float32 + update
    assert np.linalg.norm(with_float32.astype(float) - clients * update.astype(float)) > 0.03 * 0.1
    sums = []
    for count in (clients - 1, clients):
        summed = reports_of(aggregator, np.repeat(update[None], count, axis=0))[0].summed["update"]
        assert summed.dtype == np.float64
        sums.append(summed.astype(np.float32).astype(np.float64))
    assert np.linalg.norm(sums[1] - sums[0]) <= 0.1 * (1 + summation_slack(clients))
    assert summation_slack(clients) < 1e-3


# The noise.


def noise_of(multiplier: float, bound: float, clients: int = 4, inner=None, population: int = 100) -> np.ndarray:
    """What the released sum has more than the sum of clipped updates."""
    updates = np.random.default_rng(0).normal(size=(clients, D)).astype(np.float32)
    exact = sum(clip(tf.constant(update), bound).numpy().astype(np.float64) for update in updates)
    aggregator = DPAggregator(inner, l2_norm_clip=bound, noise_multiplier=multiplier)
    return simulate(aggregator, updates, cohort=cohort_of(clients, population)).update - exact


def fits(noise: np.ndarray, standard_deviation: float) -> bool:
    """Whether mean, variance and shape are those of the normal law, at about one wrong refusal in 10,000."""
    scaled = noise / standard_deviation
    n = scaled.size
    by_variance = abs(np.sum(scaled**2) - n) < 4 * math.sqrt(2 * n)
    by_mean = abs(scaled.mean()) < 4 / math.sqrt(n)
    return by_variance and by_mean and scipy.stats.kstest(scaled, "norm").pvalue > 1e-4


@pytest.mark.parametrize("inner", [None, Mean(), Zeroing(l2_norm_bound=100.0)], ids=["none", "Mean", "Zeroing"])
def test_the_noise_has_its_law_and_no_other(inner):
    noise = noise_of(1.3, 0.5, inner=inner)
    # The sensitivity is a little above the bound: slack of float32, and half a cell of the grid.
    sigma = 1.3 * 0.5 * (1 + 2.0**-9)
    assert fits(noise, sigma)
    for wrong in (0.9, 0.95, 1.05, 1.1):
        assert not fits(noise, wrong * sigma)


def test_the_noise_is_that_of_the_mechanism_for_what_prepare_said():
    for population in (10, 100_000):
        aggregator = DPAggregator(l2_norm_clip=2.0, noise_multiplier=1.5)
        aggregator.prepare(D, cohort_of(4, population))
        noise = aggregator.noise()
        assert noise == Noise(1.5, 2.0 * (1 + summation_slack(population)))
        expected = GaussianMechanism(noise.l2_norm_clip, 1.5, D).standard_deviation
        assert fits(noise_of(1.5, 2.0, population=population), expected)
        assert expected >= 1.5 * 2.0


def test_every_round_has_noise_of_its_own():
    first, second = noise_of(1.0, 1.0), noise_of(1.0, 1.0)
    assert fits((first - second) / math.sqrt(2), 1.0 + 2.0**-9)


@pytest.mark.parametrize("updates", [np.zeros((0, D)), np.full((3, D), np.nan)], ids=["nobody", "not finite"])
def test_a_round_of_nobody_is_noise(updates):
    total = simulate(DPAggregator(noise_multiplier=1.0), updates, cohort=cohort_of(3))
    assert fits(total.update, 1.0 + 2.0**-9) and total.weight == 3.0


def test_no_noise_is_what_was_asked_for_with_zero():
    updates = np.array([[0.3, 0.4], [30.0, 40.0]], np.float32)
    total = simulate(DPAggregator(l2_norm_clip=1.0, noise_multiplier=0.0), updates)
    np.testing.assert_allclose(total.mean, [(0.3 + 0.6) / 2, (0.4 + 0.8) / 2], atol=1e-5)
    assert DPAggregator(noise_multiplier=0.0).description()["protects_from"] == []


# What is told.


def test_the_divisor_is_the_expected_number_whoever_comes():
    for clients in (1, 5, 9):
        updates = np.full((clients, 3), 0.1, np.float32)
        total = simulate(DPAggregator(noise_multiplier=1e-7), updates, cohort=Cohort(4.0, 20, 20, False))
        assert total.weight == 4.0
        np.testing.assert_allclose(total.mean, np.full(3, 0.1 * clients / 4), atol=1e-5)


def test_neighbouring_rounds_are_told_apart_by_the_noisy_sum_only():
    updates = np.full((4, 3), 0.1, np.float32)
    bad = updates.copy()
    bad[2] = np.nan
    cohort = cohort_of(4)
    rounds = [(updates, None), (bad, None), (updates, [1, 0, 1, 1]), (updates[:3], None)]
    told = []
    for given_updates, weights in rounds:
        total = simulate(DPAggregator(noise_multiplier=1.0), given_updates, weights, cohort=cohort)
        told.append((total.weight, total.clients, dict(total.measurements)))
    assert told == [(4.0, None, {})] * 4


def test_examples_are_no_weights_even_if_the_inner_mean_is_weighted():
    updates = np.array([[1.0], [0.0]], np.float32)
    for inner in (Mean(), Mean(weighted=False)):
        aggregator = DPAggregator(inner, noise_multiplier=1e-7)
        assert not aggregator.weighted and aggregator.description()["inner"]["weighted"] is False
        assert abs(simulate(aggregator, updates, [1000, 1]).mean[0] - 0.5) < 1e-5


def test_what_a_client_reports_does_not_tell_whether_it_counts():
    aggregator = DPAggregator(noise_multiplier=1.0)
    aggregator.prepare(2, cohort_of(1))
    for update in ([0.1, 0.1], [np.nan, 0.1]):
        summed = reports_of(aggregator, np.array([update], np.float32))[0].summed
        assert summed["weight"] == 1.0 and summed["clients"] == 1


def test_the_description_says_who_is_protected_from_what():
    described = DPAggregator(l2_norm_clip=0.5, noise_multiplier=1.0).description()
    assert "coordinator reads every update" in described["protects_from"][0]
    assert described["unit"] == "client" and described["l2_norm_clip"] == 0.5
    assert not DPAggregator(noise_multiplier=1.0).hides_updates

    class Hidden(Mean):
        hides_updates = True

    hidden = DPAggregator(Hidden(), noise_multiplier=1.0)
    assert hidden.hides_updates and "coordinator included" in hidden.description()["protects_from"][0]
    simulated = DPAggregator(SecureAggregation(), noise_multiplier=1.0)
    assert simulated.hides_updates and "reads every update" in simulated.description()["protects_from"][0]
    assert simulated.description()["simulated"]


def test_every_draw_of_noise_is_charged_whatever_stands_between():
    for inner, draws in ((Mean(), 1), (SecureAggregation(), 6), (Zeroing(SecureAggregation(), l2_norm_bound=9.0), 6)):
        aggregator = DPAggregator(inner, noise_multiplier=1.0)
        aggregator.prepare(7, cohort_of(3))
        aggregator.close()
        assert aggregator.dimension == 7 * draws


@pytest.mark.parametrize("within", [lambda inner: inner, lambda inner: Zeroing(inner, l2_norm_bound=9.0)],
                         ids=["alone", "in Zeroing"])  # fmt: skip
def test_noise_that_the_ring_cannot_carry_is_refused_before_the_first_round(within):
    inner = within(SecureAggregation(fraction_bits=10))
    aggregator = DPAggregator(inner, noise_multiplier=1e-3)
    with pytest.raises(OverflowPreflightError, match="fraction_bits"):
        aggregator.prepare(7, cohort_of(3))
    aggregator.close()


# What is refused.


@pytest.mark.parametrize("options", [{"l2_norm_clip": 0.0}, {"l2_norm_clip": float("inf")}, {"l2_norm_clip": 1e-30},
                                     {"noise_multiplier": -1.0}, {"noise_multiplier": float("nan")},
                                     {"noise_multiplier": "1"}, {"inner": "mean"}, {"inner": DPAggregator()},
                                     {"inner": Mean}])  # fmt: skip
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ConfigurationError):
        DPAggregator(**options)


def test_without_a_noise_multiplier_there_is_no_result():
    with pytest.raises(ConfigurationError, match="PrivacyBudget"):
        simulate(DPAggregator(), np.zeros((3, 2)))


def test_noise_that_was_given_is_not_changed_and_noise_that_was_not_is():
    with pytest.raises(ConfigurationError, match="was given"):
        DPAggregator(noise_multiplier=1.0).calibrate(0.1)
    aggregator = DPAggregator()
    with pytest.raises(ConfigurationError):
        aggregator.calibrate(float("nan"))
    aggregator.calibrate(1.25)
    assert aggregator.noise_multiplier == 1.25 and aggregator.calibrated
    assert simulate(aggregator, np.zeros((3, D))).update.std() > 1.0


def test_clients_that_are_there_twice_are_refused():
    aggregator = DPAggregator(noise_multiplier=1.0)
    with pytest.raises(AggregationError, match="different"):
        simulate(aggregator, np.zeros((3, 2)), names=["a", "b", "a"])


def test_more_clients_than_the_noise_is_for_are_refused():
    with pytest.raises(AggregationError, match="at most 2"):
        simulate(DPAggregator(noise_multiplier=1.0), np.zeros((3, 2)), cohort=Cohort(2.0, 2, 2))


def test_rounds_before_prepare_and_noise_of_others_are_refused():
    aggregator = DPAggregator(noise_multiplier=1.0)
    _, round = reports_of(aggregator, np.zeros((1, 2)))
    with pytest.raises(ConfigurationError, match="prepare"):
        aggregator.total(Reports({}, ()), round)
    with pytest.raises(ConfigurationError, match="noise"):
        simulate(aggregator, np.zeros((1, 2)), noise=Noise(1.0, 1.0))


def test_noise_that_the_grid_is_too_coarse_for_is_refused_before_the_first_round():
    with pytest.raises(ConfigurationError, match="grid"):
        DPAggregator(noise_multiplier=1e7).prepare(D, cohort_of(3))
    aggregator = DPAggregator()
    aggregator.prepare(D, cohort_of(3))
    with pytest.raises(ConfigurationError, match="grid"):
        aggregator.calibrate(1e7)
