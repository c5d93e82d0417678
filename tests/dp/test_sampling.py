"""PoissonSampler: the right law accepted, wrong ones rejected; Keras's ways of iterating; edge cases."""

from __future__ import annotations

import math
import os
import time
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.src.utils.data_utils import OrderedEnqueuer
from scipy import stats

from keras_private.dp import sampling
from keras_private.dp.sampling import PoissonSampler
from keras_private.errors import ConfigurationError

EXAMPLES, BATCH, DRAWS = 40, 10, 4000
TAIL = 1e-9  # Of a test statistic under the right law: these tests do not fail by chance.


def membership(draws: list[np.ndarray], examples: int = EXAMPLES) -> np.ndarray:
    """[draws, examples] of 0 and 1."""
    table = np.zeros((len(draws), examples))
    for row, draw in zip(table, draws):
        np.add.at(row, draw, 1)
    return table


def departures(table: np.ndarray, q: float) -> list[str]:
    """Names of the properties of Poisson sampling that a table of draws does not have."""
    draws, examples = table.shape
    limit = stats.norm.isf(TAIL)
    found = []

    def check(name: str, hits: np.ndarray, trials: int, p: float) -> None:
        if np.abs(hits - trials * p).max() > limit * math.sqrt(trials * p * (1 - p)) + 1:
            found.append(name)

    check("inclusion", table.sum(0), draws, q)
    pairs = table.T @ table
    check("pairs", pairs[~np.eye(examples, dtype=bool)], draws, q * q)
    check("consecutive draws", (table[1:] * table[:-1]).sum(0), draws - 1, q * q)
    sizes = table.sum(1).astype(int)
    expected = stats.binom.pmf(np.arange(examples + 1), examples, q) * draws
    seen = np.bincount(sizes, minlength=examples + 1)[: examples + 1]
    common = expected >= 10
    observed = np.append(seen[common], seen[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    if stats.chi2.sf(((observed - wanted) ** 2 / wanted).sum(), len(wanted) - 1) < TAIL:
        found.append("batch size law")
    variance = examples * q * (1 - q)
    if abs(sizes.var() - variance) > limit * variance * math.sqrt(2 / draws) * 1.5:
        found.append("batch size variance")
    return found


def test_draws_have_the_law_of_poisson_sampling():
    sampler = PoissonSampler(np.arange(EXAMPLES), batch_size=BATCH)
    table = membership([sampler[0][0] for _ in range(DRAWS)])
    assert table.max() == 1.0, "an example was drawn twice in one draw"
    assert departures(table, BATCH / EXAMPLES) == []


def test_wrong_laws_are_told_apart():
    generator = np.random.default_rng(0)
    q = BATCH / EXAMPLES
    fixed = [generator.choice(EXAMPLES, BATCH, replace=False) for _ in range(DRAWS)]
    assert {"pairs", "batch size law", "batch size variance"} & set(departures(membership(fixed), q))
    shuffled = [part for _ in range(DRAWS * BATCH // EXAMPLES) for part in np.split(generator.permutation(EXAMPLES), 4)]
    assert "consecutive draws" in departures(membership(shuffled), q)
    cached = [draw for draw in membership([np.flatnonzero(generator.random(EXAMPLES) < q) for _ in range(DRAWS // 2)])
              for _ in range(2)]  # fmt: skip
    assert "consecutive draws" in departures(np.array(cached), q)
    for wrong in (0.9, 1.1):
        rescaled = (generator.random((DRAWS, EXAMPLES)) < q * wrong).astype(float)
        assert {"inclusion", "batch size law"} & set(departures(rescaled, q))
    right = (generator.random((DRAWS, EXAMPLES)) < q).astype(float)
    assert departures(right, q) == []


@settings(max_examples=30)
@given(examples=st.integers(1, 3000), data=st.data())
def test_the_stated_probability_is_the_drawn_one_rounded_up(examples, data):
    batch = data.draw(st.integers(1, examples))
    sampler = PoissonSampler(np.zeros(examples), batch_size=batch)
    drawn = Fraction((batch << 80) // examples, 1 << 80)
    stated = Fraction(sampler.sampling_probability)
    assert drawn <= Fraction(batch, examples)
    assert drawn <= stated <= drawn * (1 + Fraction(1, 1 << 50))


def test_the_comparison_is_exact_to_80_bits(monkeypatch):
    """Random bytes are replaced by ones that tie in the upper 16 bits, and compared with whole numbers."""
    examples, batch = 3000, 700
    sampler = PoissonSampler(np.arange(examples), batch_size=batch)
    threshold = (batch << 80) // examples
    generator = np.random.default_rng(1)
    coarse = (threshold >> 64) + generator.integers(-1, 2, examples)
    tied = np.flatnonzero(coarse == threshold >> 64)
    around = np.uint64((threshold & (2**64 - 1)) - 1) + generator.integers(0, 3, tied.size).astype(np.uint64)
    answers = [coarse.astype(np.uint16).tobytes(), around.tobytes()]
    monkeypatch.setattr(sampling.os, "urandom", lambda size: answers.pop(0))
    drawn = set(sampler[0][0])
    fine = dict(zip(tied.tolist(), around.tolist()))
    expected = {i for i in range(examples) if (int(coarse[i]) << 64) + fine.get(i, 0) < threshold}
    assert len(tied) > 500 and 0 < len(expected) < examples
    assert drawn == expected


def test_large_data_is_drawn_in_pieces(monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 64)
    sampler = PoissonSampler(np.arange(1000), batch_size=250)
    table = membership([sampler[0][0] for _ in range(600)], 1000)
    assert abs(table.mean() - 0.25) < 0.005
    assert np.all(table.sum(0) > 75)


def test_certain_inclusion_draws_everything():
    sampler = PoissonSampler(np.arange(7), batch_size=7)
    assert sampler.sampling_probability == 1.0
    for _ in range(50):
        np.testing.assert_array_equal(sampler[0][0], np.arange(7))


def test_every_item_is_a_new_draw():
    sampler = PoissonSampler(np.arange(1000), batch_size=500)
    draws = {sampler[index % 2][0].tobytes() for index in range(100)}
    assert len(draws) == 100


@pytest.mark.parametrize("use_multiprocessing", [False, True], ids=["threads", "processes"])
def test_workers_never_repeat_a_draw(use_multiprocessing):
    sampler = PoissonSampler(np.arange(1000), batch_size=500)
    enqueuer = OrderedEnqueuer(sampler, use_multiprocessing=use_multiprocessing)
    enqueuer.start(workers=2, max_queue_size=8)
    try:
        stream = enqueuer.get()
        draws = [next(stream)[0] for _ in range(30)]
    finally:
        enqueuer.stop()
    assert len({draw.tobytes() for draw in draws}) == 30
    assert 430 < np.mean([len(draw) for draw in draws]) < 570


def test_forked_processes_do_not_share_draws():
    sampler = PoissonSampler(np.arange(400), batch_size=200)
    read, write = os.pipe()
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.write(write, np.packbits(membership([sampler[0][0]], 400).astype(bool)).tobytes())
            os._exit(0)
        os.waitpid(child, 0)
    draws = {os.read(read, 50) for _ in range(4)}
    os.close(read)
    os.close(write)
    assert len(draws) == 4 and all(len(draw) == 50 for draw in draws)


@pytest.mark.parametrize(
    "options",
    [{}, {"workers": 2}, {"workers": 2, "use_multiprocessing": True}, {"class_weight": {0: 1.0, 1: 2.0}}],
    ids=["plain", "threads", "processes", "class_weight"],
)
def test_keras_fit_trains_on_one_draw_a_step_and_not_on_the_peek(options):
    seen = []

    class Records(tf.keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = tf.keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            tf.py_function(lambda rows: seen.append(rows.numpy()[:, 0].tobytes()), [data[0]], [])
            return super().train_step(data)

    x = np.arange(200, dtype=np.float64)[:, None] / 200
    sampler = PoissonSampler(x, (x[:, 0] > 0.5).astype(np.int64), batch_size=100, steps_per_epoch=4)
    epochs = 1 if "workers" in options else 3  # Keras takes 5 s to stop its workers after each.
    model = Records()
    model.compile("sgd", loss="mse")
    model.fit(sampler, epochs=epochs, verbose=0, **options)
    assert len(seen) == 4 * epochs and len(set(seen)) == 4 * epochs
    assert all(len(rows) % 4 == 0 for rows in seen), "Keras casts float64 to floatx"


def test_an_empty_draw_keeps_dtype_and_shape(monkeypatch):
    monkeypatch.setattr(sampling.os, "urandom", lambda size: b"\xff" * size)
    x, y = np.zeros((9, 3, 2), np.float16), np.zeros((9, 4), np.int8)
    batch = PoissonSampler(x, y, 1, sample_weight=np.ones(9, np.float64))[0]
    assert [part.shape for part in batch] == [(0, 3, 2), (0, 4), (0,)]
    assert [part.dtype for part in batch] == [np.float16, np.int8, np.float64]


def nested(leaf: st.SearchStrategy) -> st.SearchStrategy:
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, min_size=1, max_size=2)
            | st.tuples(inner, inner)
            | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2)
        ),
        max_leaves=4,
    )


@settings(max_examples=40)
@given(examples=st.integers(1, 30), data=st.data())
def test_rows_stay_together_in_any_nesting(examples, data):
    def make(leaf: tuple) -> np.ndarray | tf.Tensor:
        shape, dtype, tensor = leaf
        array = np.broadcast_to(np.arange(examples).reshape((examples,) + (1,) * len(shape)), (examples, *shape))
        return tf.constant(array.astype(dtype)) if tensor else array.astype(dtype)

    leaves = st.tuples(
        st.lists(st.integers(1, 3), max_size=2), st.sampled_from(["f4", "f8", "i4", "u1"]), st.booleans()
    )
    structure = data.draw(nested(leaves.map(make)))
    batch = data.draw(st.integers(1, examples))
    steps = data.draw(st.none() | st.integers(1, 9))
    parts = data.draw(st.integers(1, 3))
    weights = {"sample_weight": np.arange(examples)} if parts == 3 else {}
    sampler = PoissonSampler(
        structure, np.arange(examples) if parts > 1 else None, batch, steps_per_epoch=steps, **weights
    )
    assert len(sampler) == (steps or math.ceil(examples / batch))
    assert (sampler.num_examples, sampler.batch_size) == (examples, batch)
    item = sampler[len(sampler) - 1]
    assert isinstance(item, tuple) and len(item) == parts
    tf.nest.assert_same_structure(item[0], structure)
    rows = [leaf[(slice(None), *[0] * (leaf.ndim - 1))] for leaf in tf.nest.flatten(item)]
    assert all(np.array_equal(row, rows[0]) for row in rows)
    assert np.all(np.diff(rows[0].astype(int)) > 0)
    for leaf, source in zip(tf.nest.flatten(item[0]), tf.nest.flatten(structure)):
        assert isinstance(leaf, np.ndarray) and leaf.shape[1:] == tuple(source.shape[1:])
        assert leaf.dtype == (source.dtype.as_numpy_dtype if tf.is_tensor(source) else source.dtype)


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": np.zeros((0, 3))},
        {"x": np.zeros(5), "y": np.zeros(6)},
        {"x": {"a": np.zeros(5), "b": np.zeros((4, 2))}},
        {"x": np.float32(1.0)},
        {"x": {}},
        {"x": [1.0, 2.0]},
        {"x": tf.data.Dataset.range(5)},
        {"x": tf.RaggedTensor.from_row_lengths([1, 2, 3], [1, 2])},
        {"x": np.zeros(5), "sample_weight": np.zeros(5)},
        {"x": np.zeros(5), "batch_size": 0},
        {"x": np.zeros(5), "batch_size": 6},
        {"x": np.zeros(5), "batch_size": 2.0},
        {"x": np.zeros(5), "batch_size": True},
        {"x": np.zeros(5), "batch_size": None},
        {"x": np.zeros(5), "steps_per_epoch": 0},
    ],
    ids=lambda arguments: ",".join(f"{k}={np.shape(v) if k != 'batch_size' else v}" for k, v in arguments.items()),
)
def test_what_cannot_be_sampled_is_refused(arguments):
    with pytest.raises(ConfigurationError):
        PoissonSampler(**{"batch_size": 2, **arguments})


def test_unequal_lengths_are_shown():
    with pytest.raises(ConfigurationError, match=r"\(5, 2\).*\(6,\)"):
        PoissonSampler(np.zeros((5, 2)), np.zeros(6), 2)


def test_indices_out_of_range_end_iteration():
    sampler = PoissonSampler(np.zeros(10), batch_size=4)
    for index in (3, -4):
        with pytest.raises(IndexError):
            sampler[index]
    assert len(list(zip(range(3), sampler))) == 3


def test_there_is_no_seed_and_no_subclass():
    with pytest.raises(TypeError):
        PoissonSampler(np.zeros(5), batch_size=2, seed=1)
    with pytest.raises(TypeError, match="final"):
        type("Fixed", (PoissonSampler,), {})
    np.random.seed(0)
    first = PoissonSampler(np.arange(500), batch_size=250)[0][0]
    np.random.seed(0)
    assert not np.array_equal(first, PoissonSampler(np.arange(500), batch_size=250)[0][0])


def test_a_draw_of_60000_takes_under_a_millisecond_and_a_half():
    sampler = PoissonSampler(np.zeros(60_000), batch_size=256)
    times = []
    for _ in range(100):
        start = time.perf_counter()
        sampler._draw()
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5e-3
