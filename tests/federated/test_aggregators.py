"""The shared suite, for each aggregator and for what stands inside another."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_private.errors import ConfigurationError
from keras_private.federated.aggregators.mean import Mean
from keras_private.federated.aggregators.private import DPAggregator
from keras_private.federated.aggregators.robust import Median, Trimmed, Zeroing
from keras_private.federated.aggregators.secure import SecureAggregation
from tests.contracts.aggregators import AggregatorContract, updates
from tests.federated.aggregating import simulate


class TestMean(AggregatorContract):
    adds_noise_when_asked = True

    def aggregator(self):
        return Mean()


class TestUnweightedMean(AggregatorContract):
    adds_noise_when_asked = True

    def aggregator(self):
        return Mean(weighted=False)


@pytest.mark.filterwarnings("ignore:Trimmed")
class TestTrimmed(AggregatorContract):
    def aggregator(self):
        return Trimmed(0.2)


class TestMedian(AggregatorContract):
    def aggregator(self):
        return Median()


class TestZeroingByABound(AggregatorContract):
    adds_noise_when_asked = True

    def aggregator(self):
        return Zeroing(l2_norm_bound=1.0)


class TestZeroingByAQuantile(AggregatorContract):
    def aggregator(self):
        return Zeroing()


class TestZeroingAroundTheMedian(AggregatorContract):
    def aggregator(self):
        return Zeroing(Median(), l2_norm_bound=1.0)


@pytest.mark.filterwarnings("ignore:Trimmed")
class TestZeroingByAQuantileAroundTrimmed(AggregatorContract):
    def aggregator(self):
        return Zeroing(Trimmed(0.2))


class TestDPAggregator(AggregatorContract):
    """With noise far below the tolerance, so that what is left is the mean."""

    tolerance, counts_clients = 1e-5, False

    def aggregator(self):
        return DPAggregator(l2_norm_clip=1.0, noise_multiplier=1e-7)


class TestDPAggregatorAroundZeroing(AggregatorContract):
    tolerance, counts_clients = 1e-5, False

    def aggregator(self):
        return DPAggregator(Zeroing(l2_norm_bound=1.0), l2_norm_clip=1.0, noise_multiplier=1e-7)


class TestSecureAggregation(AggregatorContract):
    adds_noise_when_asked, smallest_round = True, 2

    def aggregator(self):
        return SecureAggregation()


class TestZeroingAroundSecureAggregation(AggregatorContract):
    adds_noise_when_asked, smallest_round = True, 2

    def aggregator(self):
        return Zeroing(SecureAggregation(), l2_norm_bound=1.0)


class TestDPAggregatorAroundSecureAggregation(AggregatorContract):
    """With so many bits after the point that the least noise of the ring is far below the tolerance."""

    tolerance, counts_clients, smallest_round = 1e-5, False, 2

    def aggregator(self):
        inner = SecureAggregation(weighted=False, bound=1.0, fraction_bits=45)
        return DPAggregator(inner, l2_norm_clip=1.0, noise_multiplier=1e-7)


def test_the_weighted_mean_is_that_of_numpy():
    given, weights = updates(6), np.array([3, 1, 4, 1, 5, 9.0])
    found = simulate(Mean(), given, weights)
    np.testing.assert_allclose(found.mean, np.average(given, axis=0, weights=weights), atol=1e-6)
    np.testing.assert_allclose(simulate(Mean(weighted=False), given, weights).mean, given.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("inner", [Trimmed(0.2), Median(), Zeroing()], ids=["Trimmed", "Median", "Zeroing"])
def test_what_needs_single_updates_stands_inside_nothing_that_adds_noise(inner):
    assert inner.lists_updates
    with pytest.raises(ConfigurationError, match=type(inner).__name__):
        DPAggregator(inner, noise_multiplier=1.0)


# The suite itself fails what it should.


class InPython(Mean):
    def encode(self, update, weight, place):
        update = tf.ensure_shape(tf.py_function(lambda value: value, [update], tf.float32), update.shape)
        return super().encode(update, weight, place)


class CountsEverybody(Mean):
    def encode(self, update, weight, place):
        return {"update": update * weight, "weight": weight, "clients": tf.constant(1, tf.int64)}, {}


class DropsNoise(Mean):
    def total(self, reports, round, noise=None):
        return super().total(reports, round)


class FirstOnly(Median):
    def _statistic(self, values):
        return values[0]


@pytest.mark.parametrize("wrong, test", [
    (InPython, "test_clients_run_stock_operations_only"),
    (CountsEverybody, "test_clients_that_are_not_finite_or_have_no_examples_add_nothing"),
    (CountsEverybody, "test_who_counts_is_counted"),
    (DropsNoise, "test_noise_is_added_or_refused"),
    (FirstOnly, "test_the_order_of_clients_does_not_matter"),
])  # fmt: skip
def test_the_suite_refuses_wrong_aggregators(wrong, test):
    class Suite(AggregatorContract):
        adds_noise_when_asked = wrong is DropsNoise

        def aggregator(self):
            return wrong()

    with pytest.raises(AssertionError):
        getattr(Suite(), test)()
