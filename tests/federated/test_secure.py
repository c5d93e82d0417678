"""SecureAggregation: right sums, views that say nothing, masks that are used once, and noise that covers."""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import keras_private as kp
from keras_private.errors import AggregationError, ConfigurationError, OverflowPreflightError
from keras_private.federated import DPAggregator, Mean
from keras_private.federated.aggregators import secure as secure_aggregation
from keras_private.federated.aggregators.base import Cohort, Noise, Place, Reports, Round
from keras_private.federated.aggregators.masking import keys, parties
from keras_private.random import CELLS_PER_SIGMA
from tests.federated.aggregating import SESSION
from tests.federated.aggregating import reports_of as reports
from tests.federated.test_model import LOSS, dense, difference, examples


def prepared(dimension, names, **arguments):
    aggregator = kp.SecureAggregation(**arguments)
    aggregator.prepare(dimension, Cohort(float(len(names)), len(names), len(names), True, tuple(names)))
    return aggregator


def graph(aggregator, dimension):
    """The client's graph, as a function of (update, weight, name, round)."""

    @tf.function(autograph=False)
    def encode(update, weight, name, number):
        return aggregator.encode(update, weight, Place(name, tf.constant(SESSION), number))

    def run(update, weight, name, number=1):
        summed, each = encode(
            tf.constant(update, tf.float32),
            tf.constant(weight, tf.float32),
            tf.constant(name),
            tf.constant(number, tf.int64),
        )
        return summed["masked"].numpy(), each["nonce"].numpy()

    return run


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(2, 6),
    st.floats(1e-3, 50.0),
    st.booleans(),
    st.integers(10, 30),
    st.integers(0, 2**31),
)
def test_the_sum_is_that_of_the_clients_within_rounding(dimension, count, size, weighted, bits, seed):
    draw = np.random.default_rng(seed)
    updates = draw.uniform(-size, size, (count, dimension)).astype(np.float32)
    weights = draw.integers(1, 1000, count).astype(np.float32) if weighted else np.ones(count, np.float32)
    names = [f"client-{index}" for index in range(count)]
    aggregator = prepared(dimension, names, weighted=weighted, fraction_bits=bits)
    total = aggregator.total(*reports(aggregator, updates, weights, names))
    aggregator.close()
    expected = np.sum(updates.astype(np.float64) * weights[:, None], axis=0)
    np.testing.assert_allclose(total.update, expected, atol=count * 2.0 ** -(bits + 1) * 1.001)
    assert (total.weight, total.clients) == (weights.sum(), count)


def test_federated_training_is_that_with_mean(tmp_path):
    clients = {f"client{index}": examples(5 + index, index) for index in range(6)}
    clients["broken"] = (np.full((3, 6), np.nan, np.float32), np.zeros(3, np.int64))
    clients["empty"] = examples(0)
    models = [dense(), dense()]
    histories = []
    for model, aggregator in zip(models, (Mean(), kp.SecureAggregation())):
        fed = kp.FederatedModel(model, aggregator)
        fed.compile("sgd", loss=LOSS, metrics=["accuracy"])
        histories.append(fed.fit(clients, epochs=2, batch_size=4, shuffle=False, verbose=0, workers=2).history)
    assert difference(*models) < 1e-6
    assert histories[1] == {"clients": [6.0, 6.0], "left_out": [2.0, 2.0], "clamped": [0.0, 0.0]}
    assert set(histories[0]) > {"loss", "accuracy"}


def uniform(words: np.ndarray) -> bool:
    counts = np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("value", [0.0, 1.0, 64.0, -64.0])
def test_what_the_coordinator_gets_of_one_client_is_uniform_whatever_the_update(value):
    names = ("a", "b")
    aggregator = prepared(5000, names)
    masked, _ = graph(aggregator, 5000)(np.full(5000, value), 3.0, "a")
    assert uniform(masked)
    # The test can fail: what was encoded is far from uniform.
    assert not uniform(np.full(5000, int(value * 3 * 2**24), np.int64))
    aggregator.close()


def test_with_one_partys_pads_it_is_still_uniform():
    master, between = [keys.new_master(), keys.new_master()], b"b" * 32
    aggregator = prepared(5000, ("a", "b"))
    folder = pathlib.Path(aggregator._folder)
    masters = [keys.new_master(), keys.new_master()]
    keys.write_client_keys(folder, ("a", "b"), masters)
    run = graph(aggregator, 5000)
    masked, nonces = zip(*(run(np.ones(5000), 1.0, name) for name in ("a", "b")))
    request = parties.Request(SESSION, 1, 5003, tuple(zip("ab", (bytes(n.astype(np.uint8)) for n in nonces))), 5003)
    both = [parties.PadParty(index, masters[index], between, journal=None) for index in (0, 1)]
    proofs = [party.propose(request) for party in both]
    answers = [party.answer(request, proofs[1 - index]) for index, party in enumerate(both)]
    with np.errstate(over="ignore"):
        total = masked[0] + masked[1]
        for one in answers:
            assert uniform(total + one)
        assert uniform(answers[0] + answers[1])
        opened = total + answers[0] + answers[1]
    np.testing.assert_array_equal(opened[:5000], np.full(5000, 2 * 2**24))
    assert master[0] != master[1]
    aggregator.close()


def test_a_graph_that_is_run_again_has_other_masks():
    aggregator = prepared(64, ("a", "b"))
    run = graph(aggregator, 64)
    (first, nonce), (second, other) = run(np.zeros(64), 1.0, "a"), run(np.ones(64), 1.0, "a")
    assert not np.array_equal(nonce, other)
    with np.errstate(over="ignore"):
        opened = second - first
    # With one pad for both, the difference would be that of the updates.
    assert np.sum(opened == 2**24) == 0
    assert np.sum(np.abs(opened.astype(np.float64)) < 2**50) <= 1
    aggregator.close()


def test_keys_are_read_when_the_graph_runs():
    aggregator = prepared(16, ("a", "b"))
    run = graph(aggregator, 16)
    run(np.zeros(16), 1.0, "a")
    path = pathlib.Path(aggregator._folder) / keys.file_name("a", 1)
    path.write_bytes(b"short")
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(np.zeros(16), 1.0, "a")
    path.unlink()
    with pytest.raises(tf.errors.NotFoundError):
        run(np.zeros(16), 1.0, "a")
    aggregator.close()


def test_foreign_keys_are_noticed():
    names = ("a", "b")
    aggregator = prepared(8, names)
    keys.write_client_keys(aggregator._folder, ["a"], [keys.new_master(), keys.new_master()])
    with pytest.raises(AggregationError, match="keys that clients and parties share"):
        aggregator.total(*reports(aggregator, np.ones((2, 8), np.float32), np.ones(2), names))
    aggregator.close()


def test_a_round_is_opened_once_and_no_part_of_it():
    names = ("a", "b", "c")
    aggregator = prepared(8, names)
    found, number = reports(aggregator, np.ones((3, 8), np.float32), np.ones(3), names)
    aggregator.total(found, number)
    with pytest.raises(AggregationError, match="was answered"):
        aggregator.total(found, number)
    fewer = Reports(found.summed, found.each[:2])
    with pytest.raises(AggregationError, match="was answered"):
        aggregator.total(fewer, Round(SESSION, 1, names[:2]))
    with pytest.raises(AggregationError, match="a nonce was used"):
        aggregator.total(fewer, Round(SESSION, 2, names[:2]))
    with pytest.raises(AggregationError, match="at least 2"):
        aggregator.total(Reports(found.summed, found.each[:1]), Round(SESSION, 3, names[:1]))
    aggregator.close()


def test_noise_leaves_full_deviation_without_any_one_of_three():
    """The noise of two of the three, and that of all, in the opened sum; and weights stay masked."""
    names, dimension = ("a", "b"), 20_000
    noise = Noise(noise_multiplier=2.0, l2_norm_clip=3.0)
    aggregator = prepared(dimension, names)
    found, number = reports(aggregator, np.ones((2, dimension), np.float32), np.ones(2), names)
    total = aggregator.total(found, number, noise)
    assert total.clients is None
    assert total.weight == 2.0
    left = total.update - 2.0
    sigma = 2.0 * (3.0 + np.sqrt(dimension) / 2 / 2**24)
    # All three: sqrt(3/2) sigma.
    deviation = left.std() / (sigma * np.sqrt(1.5))
    assert abs(deviation - 1) < 5 / np.sqrt(2 * dimension)
    assert stats.kstest(left / left.std(), "norm").pvalue > 1e-6
    # Any two: at least sigma. The units of one party's noise, drawn alone:
    one = parties.noise_of(aggregator._party_noise(noise, dimension), 100_000) / 2**24
    assert np.sqrt(2) * one.std() > sigma * (1 - 5 / np.sqrt(2 * 100_000))
    assert np.sqrt(2) * one.std() < sigma * 1.01
    aggregator.close()


@pytest.mark.parametrize("ratio", [1.0, 1.5, 7.3, 1000.0, float(parties.LARGEST_MULTIPLE)])
def test_integer_noise_has_the_deviation_asked_for_and_fills_the_integers(ratio):
    stddev = CELLS_PER_SIGMA * ratio
    draws = parties.noise_of(stddev, 200_000)
    found = draws.astype(np.float64).std() / stddev
    assert found > 1 - 5 / np.sqrt(2 * 200_000)
    assert found < np.sqrt(1 + 3 / ratio) + 5 / np.sqrt(2 * 200_000)
    # No lattice shows: the remainders by small numbers are even, the noise's own multiple included.
    for modulus in {2, 3, 16, max(2, min(parties.multiple_of(stddev), 64))}:
        counts = np.bincount(draws % modulus, minlength=modulus)
        assert stats.chisquare(counts).pvalue > 1e-6


@pytest.mark.parametrize("stddev", [1.0, CELLS_PER_SIGMA * 0.99, CELLS_PER_SIGMA**2, float("nan"), float("inf")])
def test_noise_that_the_ring_cannot_carry_is_refused(stddev):
    with pytest.raises(OverflowPreflightError, match="fraction_bits"):
        parties.noise_of(stddev, 3)


def test_user_level_privacy_over_secure_sums():
    clients = {f"client{index}": examples(6, index) for index in range(40)}
    aggregator = DPAggregator(kp.SecureAggregation(), l2_norm_clip=0.5)
    fed = kp.FederatedModel(dense(), aggregator)
    fed.compile("sgd", loss=LOSS, metrics=["accuracy"])
    history = fed.fit(
        clients, epochs=2, clients_per_round=30, verbose=0, callbacks=[kp.PrivacyBudget(epsilon=6.0, delta=1e-2)]
    ).history
    assert set(history) == {"epsilon"}
    assert history["epsilon"][-1] <= 6.0
    spent = fed.privacy_spent(1e-2)
    assert spent.epsilon <= spent.epsilon_cohort_seen < np.inf
    # Both parties are here, so that whoever runs this reads everything; and the figure says so.
    assert spent.epsilon_coordinator == np.inf
    described = aggregator.description()
    assert described["simulated"] == ["both parties, their keys and those of the clients are in this process"]
    # Every draw of noise is charged: three draws of two for each coordinate.
    assert aggregator.dimension == 6 * sum(np.size(weight) for weight in fed.get_weights())


def test_what_could_wrap_is_refused_before_the_first_round():
    names = [f"client{index}" for index in range(1000)]
    with pytest.raises(OverflowPreflightError, match="1000 clients could take"):
        prepared(4, names, fraction_bits=40)
    for bits, weighted in itertools.product((20, 28), (True, False)):
        prepared(4, names[:10], fraction_bits=bits, weighted=weighted).close()


def test_clamping_and_weights_above_the_bound():
    names = ("a", "b")
    aggregator = prepared(2, names, bound=1.0, max_weight=10.0)
    total = aggregator.total(*reports(aggregator, np.array([[5.0, -5.0], [0.5, 0.0]], np.float32), [100.0, 1.0], names))
    np.testing.assert_allclose(total.update, [10.5, -10.0], atol=1e-6)
    assert total.weight == 11.0
    assert total.measurements == {"left_out": 0, "clamped": 1}
    aggregator.close()


@pytest.mark.parametrize("weight", [np.inf, np.nan, 0.0, -1.0])
def test_weights_that_are_none_count_for_nothing(weight):
    names = ("a", "b", "c")
    aggregator = prepared(2, names)
    total = aggregator.total(*reports(aggregator, np.ones((3, 2), np.float32), [weight, 1.0, 2.0], names))
    assert (total.weight, total.clients) == (3.0, 2)
    np.testing.assert_allclose(total.update, [3.0, 3.0])
    aggregator.close()


def test_noise_that_cannot_be_is_refused_before_the_first_round():
    clients = {f"client{index}": examples(3, index) for index in range(40)}
    for clip, chosen, message in ((0.01, 40, "fraction_bits"), (1.0, 3, "would have fewer than 2 clients")):
        aggregator = DPAggregator(kp.SecureAggregation(), l2_norm_clip=clip, noise_multiplier=1.0)
        fed = kp.FederatedModel(dense(), aggregator)
        fed.compile("sgd", loss=LOSS)
        with pytest.raises((OverflowPreflightError, ConfigurationError), match=message):
            fed.fit(clients, epochs=1, clients_per_round=chosen, verbose=0)
        assert fed.rounds_done == 0
        assert int(fed.privacy_meter.steps_done) == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.floats(0.0, 1.0), st.integers(2, 400))
def test_the_chance_of_a_round_below_the_minimum_is_that_of_scipy(population, share, least):
    cohort = Cohort(max(share * population, 0.1), population, population, False)
    expected = stats.binom.cdf(least - 1, population, min(cohort.expected / population, 1.0))
    np.testing.assert_allclose(secure_aggregation.too_few(cohort, least), expected, rtol=1e-6, atol=1e-14)


def test_rounds_below_what_a_party_asks_for_are_refused_before_the_first_one(tmp_path):
    """A party may ask for more clients than the aggregator."""
    cohort = Cohort(30.0, 40, 40, False, tuple(f"client{index}" for index in range(40)))
    for least, refused in ((2, False), (25, True)):
        both = [parties.PadParty(n, b"m" * 32, b"b" * 32, least, journal=None) for n in (0, 1)]
        aggregator = kp.SecureAggregation(parties=both, keys=tmp_path)
        private = DPAggregator(aggregator, l2_norm_clip=1.0, noise_multiplier=1.0)
        if not refused:
            private.prepare(10, cohort)
            continue
        with pytest.raises(ConfigurationError, match="fewer than 25 clients"):
            private.prepare(10, cohort)


def test_nothing_is_left_behind():
    aggregator = prepared(4, ("a", "b"))
    folder = pathlib.Path(aggregator._folder)
    assert sorted(path.name for path in folder.iterdir()) == [f"{n}.party{p}.key" for n in "ab" for p in (0, 1)]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])
    aggregator.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_clients": 1},
        {"bound": 0.0},
        {"bound": float("inf")},
        {"max_weight": 0.5},
        {"fraction_bits": 0},
        {"fraction_bits": 60},
        {"keys": "folder"},
        {"parties": (None,), "keys": "folder"},
    ],
)
def test_arguments_that_cannot_be(arguments):
    with pytest.raises(ConfigurationError):
        kp.SecureAggregation(**arguments)


def test_cohorts_that_cannot_be():
    with pytest.raises(ConfigurationError, match="no sum over fewer is opened"):
        prepared(4, ("a", "b"), min_clients=3)
    with pytest.raises(ConfigurationError, match=r"'\.\./a'"):
        prepared(4, ("../a", "b"))
    with pytest.raises(ConfigurationError, match="not prepared"):
        kp.SecureAggregation().total(Reports({}, ()), Round(SESSION, 1, ("a", "b")))
