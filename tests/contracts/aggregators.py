"""What every aggregator must do. Subclass `AggregatorContract` and give the method `aggregator`.

One that adds noise or rounds says how far that can lead in `tolerance`, in the unit of an update's coordinate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.errors import ConfigurationError
from keras_private.federated.aggregators.base import Aggregator, Cohort, Noise
from tests.federated.aggregating import cohort_of, simulate, traced

PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "NumpyFunction"}
ELSEWHERE = ("KerasPrivate", "Secure", "I128", "TfEncrypted")
D = 7


def updates(clients: int, seed: int = 0, dimension: int = D) -> np.ndarray:
    """Of norm below 1, so that no bound of the suite's aggregators changes them."""
    drawn = np.random.default_rng(seed).normal(size=(clients, dimension))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True) * 0.9).astype(np.float32)


class AggregatorContract:
    """Inherit as `class TestX(AggregatorContract)`."""

    tolerance = 1e-6
    smallest_round = 1
    adds_noise_when_asked = False
    counts_clients = True
    divides_by_expected = False

    def aggregator(self) -> Aggregator:
        raise NotImplementedError

    def mean(self, *args: Any, **kwargs: Any) -> np.ndarray:
        total = simulate(self.aggregator(), *args, **kwargs)
        assert isinstance(total.update, np.ndarray) and total.update.dtype == np.float64
        assert (total.clients is not None) == self.counts_clients
        return total.mean

    def test_equal_clients_equal_one(self):
        one = updates(1)
        for count in {self.smallest_round, max(self.smallest_round, 5)}:
            found = self.mean(np.repeat(one, count, axis=0))
            assert found.shape == (D,) and found.dtype == np.float64
            np.testing.assert_allclose(found, one[0], atol=self.tolerance)

    def test_the_order_of_clients_does_not_matter(self):
        given, weights = updates(6), np.array([3, 1, 4, 1, 5, 9.0])
        order = np.array([4, 2, 0, 5, 1, 3])
        names = np.array([f"client{index}" for index in range(6)])
        first = self.mean(given, weights, names.tolist())
        second = self.mean(given[order], weights[order], names[order].tolist())
        np.testing.assert_allclose(first, second, atol=self.tolerance)

    def test_clients_that_are_not_finite_or_have_no_examples_add_nothing(self):
        good = updates(5)
        bad = np.zeros((4, D), np.float32)
        bad[0, 2], bad[1, 0], bad[2] = np.nan, np.inf, -np.inf
        bad[3] = 5.0
        weights = np.array([1.0] * 8 + [0.0])
        # For a divisor that is not counted, the same expectation in both rounds.
        cohort = cohort_of(5)
        alone = self.mean(good, cohort=cohort)
        found = self.mean(np.concatenate([good, bad]), weights, cohort=cohort)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, alone, atol=self.tolerance)

    def test_who_counts_is_counted(self):
        given = updates(6)
        given[1, 1] = np.nan
        total = simulate(self.aggregator(), given, [1, 1, 0, 1, 1, 1])
        assert total.clients == (4 if self.counts_clients else None)
        for name, value in total.measurements.items():
            assert isinstance(name, str) and np.isfinite(float(value))

    def test_a_round_that_nobody_is_in_changes_nothing(self):
        if self.smallest_round > 1:
            return
        for given in (np.zeros((0, D)), np.full((3, D), np.nan)):
            found = self.mean(given, cohort=cohort_of(3))
            assert found.shape == (D,)
            np.testing.assert_allclose(found, np.zeros(D), atol=self.tolerance)

    def test_a_round_can_be_smaller_and_larger_than_the_one_before(self):
        aggregator = self.aggregator()
        for count in (6, max(3, self.smallest_round), 8):
            given = np.repeat(updates(1, seed=count), count, axis=0)
            np.testing.assert_allclose(simulate(aggregator, given).mean, given[0], atol=self.tolerance)

    def test_models_of_one_and_of_many_coordinates(self):
        for dimension in (1, 70_001):
            given = np.repeat(updates(1, dimension=dimension), max(3, self.smallest_round), axis=0)
            found = self.mean(given)
            assert found.shape == (dimension,)
            np.testing.assert_allclose(found, given[0], atol=self.tolerance)

    def test_noise_is_added_or_refused(self):
        given, noise = updates(max(4, self.smallest_round), dimension=500), Noise(5.0, 1.0)
        attempts = [lambda: simulate(self.aggregator(), given, noise=noise) for _ in range(2)]
        if self.adds_noise_when_asked:
            one, other = (attempt().update for attempt in attempts)
            assert 5.0 < (one - other).std() < 10.0
            return
        for attempt in attempts:
            try:
                attempt()
            except ConfigurationError:
                continue
            raise AssertionError("noise was dropped without a word")

    def test_the_description_is_whole(self):
        described = self.aggregator().description()
        assert described["name"] == type(self.aggregator()).__name__
        for key in ("protects_from", "simulated"):
            assert isinstance(described[key], list) and all(isinstance(item, str) for item in described[key])
        if not self.aggregator().hides_updates and not self.aggregator().private:
            assert not any("coordinator" in item for item in described["protects_from"])

    def test_flags_are_those_of_the_class_or_of_what_is_inside(self):
        aggregator = self.aggregator()
        for name in ("weighted", "hides_updates", "private", "lists_updates"):
            assert isinstance(getattr(aggregator, name), bool)
        assert not (aggregator.lists_updates and aggregator.hides_updates)

    def test_clients_run_stock_operations_only(self):
        aggregator = self.aggregator()
        aggregator.prepare(D, cohort_of(3))
        try:
            graph = traced(aggregator, D).graph.as_graph_def()
        finally:
            aggregator.close()
        bodies = [graph.node, *(function.node_def for function in graph.library.function)]
        types = {node.op for body in bodies for node in body}
        own = {name for name in types if name.startswith(ELSEWHERE)}
        assert not types & PYTHON and not own, sorted(types & PYTHON | own)
        stock = set(tf.raw_ops.__dict__) | {function.signature.name for function in graph.library.function}
        assert types <= stock | {"Placeholder", "_Arg", "_Retval"}, sorted(types - stock)

    def test_what_is_summed_has_a_type_that_can_be_summed(self):
        aggregator = self.aggregator()
        aggregator.prepare(D, cohort_of(3))
        try:
            summed, each = traced(aggregator, D).structured_outputs
        finally:
            aggregator.close()
        assert summed, "the federation sums at least one value"
        for item in summed.values():
            assert item.dtype in (tf.float32, tf.float64, tf.int64) and item.shape.is_fully_defined()
        hidden = aggregator.hides_updates or not aggregator.lists_updates
        assert not (hidden and any(item.dtype == tf.float32 and item.shape == (D,) for item in each.values()))

    def test_close_can_be_called_twice_and_prepare_after_it(self):
        aggregator = self.aggregator()
        for _ in range(2):
            aggregator.prepare(D, Cohort(3.0, 3, 3))
            aggregator.close()
            aggregator.close()
