"""Partitions: each example exactly once, against a naive reference; the Dirichlet law accepted, wrong ones not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_private.errors import ClientDataError, ConfigurationError
from keras_private.federated import partition

TAIL = 1e-9  # Of a test statistic under the right law: these tests do not fail by chance.


def numbered(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples that can be told apart, and labels that follow from no other property."""
    return np.arange(count), np.random.default_rng(seed).integers(classes, size=count)


def parts(clients) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for name in clients.names:
        batches = [(np.zeros(0, int), np.zeros(0, int)), *clients[name].batch(1000).as_numpy_iterator()]
        found[name] = tuple(np.concatenate(column) for column in zip(*batches))
    return found


def assert_exactly_once(clients, x: np.ndarray, y: np.ndarray) -> None:
    """The naive reference: walk through the clients and cross out each example with its own label."""
    left = dict(zip(x.tolist(), y.tolist()))
    for name, (seen_x, seen_y) in parts(clients).items():
        assert clients.sizes[name] == len(seen_x)
        for one, label in zip(seen_x.tolist(), seen_y.tolist()):
            assert left.pop(one) == label
    assert not left


@settings(max_examples=25)
@given(st.integers(1, 60), st.data(), st.integers(0, 2**32))
def test_iid_deals_out_everything_once_and_evenly(count, data, seed):
    clients = data.draw(st.integers(1, count))
    x, y = numbered(count, 4, 7)
    dealt = partition.iid(x, y, clients, seed)
    assert len(dealt) == clients
    assert_exactly_once(dealt, x, y)
    assert max(dealt.sizes.values()) - min(dealt.sizes.values()) <= 1


@settings(max_examples=25)
@given(st.integers(1, 80), st.integers(1, 6), st.integers(1, 5), st.floats(1e-3, 100), st.integers(0, 2**32))
def test_dirichlet_deals_out_everything_once(count, clients, classes, alpha, seed):
    x, y = numbered(count, classes, 7)
    dealt = partition.dirichlet(x, y, clients, alpha, seed, min_size=0)
    assert len(dealt) == clients
    assert_exactly_once(dealt, x, y)


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["", "ö", "b", "b "]) | st.integers(-2, 2), min_size=1, max_size=40), st.booleans())
def test_by_column_groups_as_a_loop_does(column, as_text):
    column = [f"u{each}" for each in column] if as_text else [len(str(each)) for each in column]
    x, y = numbered(len(column), 3, 7)
    naive: dict[str, list[int]] = {}
    for one, value in zip(x.tolist(), column):
        naive.setdefault(str(value), []).append(one)
    dealt = partition.by_column(x, y, np.array(column))
    assert_exactly_once(dealt, x, y)
    assert {name: seen[0].tolist() for name, seen in parts(dealt).items()} == naive
    assert list(dealt.names) == [str(value) for value in sorted(set(column))]


@settings(max_examples=60)
@given(st.integers(0, 500), st.lists(st.floats(1e-9, 1), min_size=1, max_size=9))
def test_cuts_follow_the_shares_within_one_example(count, weights):
    shares = np.array(weights) / np.sum(weights)
    sizes = np.diff(partition._cuts(count, shares), prepend=0, append=count)
    assert sizes.sum() == count
    assert (sizes >= 0).all()
    assert (np.abs(sizes - count * shares) <= 1 + 1e-6).all()


def moment_distance(table: np.ndarray, alpha: float) -> float:
    """How many standard errors the mean of sum_k p_k^2 lies from its value under Dirichlet(alpha, ..., alpha).

    Args:
        table: [clients, labels] counts; every label one draw of shares.
        alpha: The law in question.
    """
    shares = table / table.sum(0)
    clients = len(table)
    squares = (shares**2).sum(0)
    return float(
        (squares.mean() - (alpha + 1) / (clients * alpha + 1)) / (squares.std(ddof=1) / math.sqrt(len(squares)))
    )


def table_of(clients) -> np.ndarray:
    return partition.label_counts(clients)[1]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 3.0])
def test_dirichlet_skew_has_this_alpha_and_no_other(alpha):
    clients, labels, each = 4, 1500, 120
    y = np.repeat(np.arange(labels), each)
    table = table_of(partition.dirichlet(np.arange(len(y)), y, clients, alpha, seed=11, min_size=0))
    limit = stats.norm.isf(TAIL / 2)
    assert (table.sum(0) == each).all()
    assert abs(moment_distance(table, alpha)) < limit
    for wrong in (0.7 * alpha, 1.4 * alpha):
        assert abs(moment_distance(table, wrong)) > limit
    # One client's share follows Beta(alpha, (clients - 1) alpha); rounding to examples moves the law by 1 / each.
    grid = np.linspace(0.1, 0.9, 17)
    seen = (table[0][:, None] <= grid * each).mean(0)
    low, high = (stats.beta.cdf(grid + shift / each, alpha, (clients - 1) * alpha) for shift in (-1, 1))
    slack = math.sqrt(math.log(2 / TAIL) / (2 * labels))
    assert (seen >= low - slack).all()
    assert (seen <= high + slack).all()


def test_labels_are_independent_and_clients_alike():
    labels, each = 1500, 60
    y = np.repeat(np.arange(labels), each)
    table = table_of(partition.dirichlet(np.arange(len(y)), y, 3, 1.0, seed=5, min_size=0))
    shares = table / each
    limit = stats.norm.isf(TAIL / 2)
    error = shares.std(1, ddof=1) / math.sqrt(labels)
    assert (np.abs(shares.mean(1) - 1 / 3) < limit * error).all()
    following = np.corrcoef(shares[0, 1:], shares[0, :-1])[0, 1]
    assert abs(following) < limit / math.sqrt(labels)


def test_iid_is_no_dirichlet_partition():
    y = np.repeat(np.arange(500), 60)
    table = table_of(partition.iid(np.arange(len(y)), y, 4, seed=3))
    assert abs(moment_distance(table, 1.0)) > stats.norm.isf(TAIL / 2)


def test_iid_places_each_example_anywhere():
    x = np.zeros(30)
    hits = np.zeros((30, 3))
    for seed in range(60):
        for index, seen in enumerate(parts(partition.iid(np.arange(30), x, 3, seed)).values()):
            hits[seen[0], index] += 1
    statistic = ((hits - 20) ** 2 / 20).sum(1)
    assert (stats.chi2.sf(statistic, 2) > TAIL / 30).all()


def test_min_size_holds():
    x, y = numbered(200, 10, 1)
    dealt = partition.dirichlet(x, y, 10, 0.3, seed=2, min_size=8)
    assert min(dealt.sizes.values()) >= 8
    assert_exactly_once(dealt, x, y)


def test_seeds_repeat_and_their_absence_does_not():
    x, y = numbered(100, 5, 1)
    for make in (lambda seed: partition.iid(x, y, 5, seed), lambda seed: partition.dirichlet(x, y, 5, 1.0, seed)):
        first, again, other = (parts(make(seed)) for seed in (4, 4, 5))
        assert all(np.array_equal(first[name][0], again[name][0]) for name in first)
        assert any(not np.array_equal(first[name][0], other[name][0]) for name in first)
        assert any(not np.array_equal(parts(make(None))[name][0], parts(make(None))[name][0]) for name in first)


def test_names_and_nested_inputs():
    x = {"image": np.ones((9, 2), np.float64), "text": np.array(list("abcdefghi"))}
    dealt = partition.iid(x, np.arange(9), ["north", "south"], 0)
    assert dealt.names == ("north", "south")
    assert dealt.element_spec[0] == {"image": tf.TensorSpec([2], tf.float32), "text": tf.TensorSpec([], tf.string)}
    assert partition.iid(np.ones(12), np.ones(12), 11, 0).names[0] == "client_00"


@pytest.mark.parametrize("form", ["column", "one-hot", "bool", "text", "float"])
def test_labels_in_their_usual_forms(form):
    y = np.array([0, 1, 1, 0, 1, 1])
    given_y = {
        "column": y[:, None],
        "one-hot": np.eye(2, dtype=np.float32)[y],
        "bool": y.astype(bool),
        "text": np.array(["no", "yes"])[y],
        "float": y.astype(float),
    }[form]
    labels, table = partition.label_counts(partition.dirichlet(np.arange(6), given_y, 2, 1e6, 0))
    assert table.tolist() == [[1, 2], [1, 2]]
    assert labels == (["no", "yes"] if form == "text" else [0, 1])


def test_targets_without_labels_need_labels():
    y = np.random.default_rng(0).normal(size=40)
    with pytest.raises(ClientDataError, match="labels="):
        partition.dirichlet(np.arange(40), y, 2, 1.0)
    dealt = partition.dirichlet(np.arange(40), y, 2, 1.0, seed=1, labels=y > 0)
    assert sum(dealt.sizes.values()) == 40
    with pytest.raises(ClientDataError, match="39 rows for 40 examples"):
        partition.dirichlet(np.arange(40), y, 2, 1.0, labels=np.zeros(39, int))


GOOD = (np.arange(10), np.arange(10) % 2)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: partition.iid(*GOOD, 0), ConfigurationError),
        (lambda: partition.iid(*GOOD, 11), ConfigurationError),
        (lambda: partition.iid(*GOOD, 10**12), ConfigurationError),
        (lambda: partition.iid(*GOOD, -1), ConfigurationError),
        (lambda: partition.iid(*GOOD, True), ConfigurationError),
        (lambda: partition.iid(*GOOD, 2.5), ConfigurationError),
        (lambda: partition.iid(*GOOD, ["a", "a"]), ConfigurationError),
        (lambda: partition.iid(*GOOD, 2, seed=-1), ConfigurationError),
        (lambda: partition.iid(*GOOD, 2, seed="x"), ConfigurationError),
        (lambda: partition.iid(np.arange(9), np.arange(10), 2), ClientDataError),
        (lambda: partition.iid(np.zeros((0, 3)), np.zeros(0), 1), ClientDataError),
        (lambda: partition.iid([object()] * 10, np.arange(10), 2), ClientDataError),
        (lambda: partition.iid(3.0, 4.0, 2), ClientDataError),
        (lambda: partition.dirichlet(*GOOD, 2, alpha=0.0), ConfigurationError),
        (lambda: partition.dirichlet(*GOOD, 2, alpha=-1.0), ConfigurationError),
        (lambda: partition.dirichlet(*GOOD, 2, alpha=math.nan), ConfigurationError),
        (lambda: partition.dirichlet(*GOOD, 2, alpha=math.inf), ConfigurationError),
        (lambda: partition.dirichlet(*GOOD, 2, alpha="1"), ConfigurationError),
        (lambda: partition.dirichlet(*GOOD, 2, alpha=1.0, min_size=6), ConfigurationError),
        (lambda: partition.dirichlet(*GOOD, 2, alpha=1.0, min_size=-1), ConfigurationError),
        (lambda: partition.dirichlet(*GOOD, 5, alpha=1e-5, min_size=2), ConfigurationError),
        (lambda: partition.by_column(*GOOD, np.arange(9)), ClientDataError),
        (lambda: partition.by_column(*GOOD, np.arange(10) / 2), ClientDataError),
        (lambda: partition.by_column(*GOOD, np.zeros((10, 2), int)), ClientDataError),
        (lambda: partition.by_column(*GOOD, [""] + ["a"] * 9), ClientDataError),
        (lambda: partition.by_column(*GOOD, [None] + ["a"] * 9), ClientDataError),
    ],
)
def test_bad_inputs_are_refused(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.expected
    assert caught.value.remedy


def test_plot_draws_the_counts(tmp_path):
    x, y = numbered(300, 4, 1)
    clients = partition.dirichlet(x, y, 6, 0.5, seed=1)
    figure = partition.plot(clients)
    (axes,) = figure.axes
    labels, table = partition.label_counts(clients)
    widths = np.array([[bar.get_width() for bar in container] for container in axes.containers])
    assert np.array_equal(widths.T, table)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [str(label) for label in labels]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(clients.names)
    figure.savefig(tmp_path / "clients.png")
    assert (tmp_path / "clients.png").stat().st_size > 1000


def test_counts_of_clients_without_examples():
    clients = {"full": (np.ones((3, 1)), np.array([1, 1, 5])), "empty": (np.ones((0, 1)), np.zeros(0, np.int64))}
    labels, table = partition.label_counts(clients)
    assert labels == [1, 5]
    assert table.tolist() == [[2, 1], [0, 0]]
