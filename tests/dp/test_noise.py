"""The native release: one draw for all variables, made beside the step, and one pass that rounds, adds and scales."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_private import native
from keras_private.dp.mechanisms import GaussianMechanism
from keras_private.errors import BackendError
from tests.dp.helpers import floats

CELLS = 2**20
SHAPES = [(7, 5), (), (0, 3), (300,), (2, 1, 4)]


@pytest.fixture(scope="module")
def ops():
    try:
        return native.load()
    except BackendError as error:
        pytest.skip(f"no native library here: {error}")


def sums(scale: float = 3.0) -> list[tf.Tensor]:
    return [tf.constant(floats(*shape, seed=place, scale=scale)) for place, shape in enumerate(SHAPES)]


def mechanism_for(items: Sequence[tf.Tensor], noise_multiplier: float = 1.0) -> GaussianMechanism:
    return GaussianMechanism(1.0, noise_multiplier, sum(int(item.shape.num_elements()) for item in items))


# The pass that rounds, adds and scales.


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_sum_gets_its_own_part_of_the_noise(ops, count):
    """Bit for bit what the operation for one sum gives, which tests/random compares with numpy."""
    items, cell, scale = sums()[:count], 1e-3, 1 / 256
    total = sum(int(tf.size(item)) for item in items)
    cells = np.random.default_rng(0).integers(-(2**22), 2**22, total).astype(np.int32)
    found = ops.keras_private_release_sums(items, cells, cell, scale)
    parts = np.split(cells, np.cumsum([int(tf.size(item)) for item in items])[:-1])
    for one, item, part in zip(found, items, parts):
        expected = ops.keras_private_round_and_add(tf.reshape(item, [-1]), part, cell, scale)
        assert one.shape == item.shape
        np.testing.assert_array_equal(tf.reshape(one, [-1]), expected)


@pytest.mark.parametrize("size", [100_000, 8192 * 3 + 17])
def test_the_pass_is_the_same_however_it_is_split_over_threads(ops, size):
    x, cells = floats(size, scale=30.0), np.arange(size, dtype=np.int32) - size // 2
    whole = ops.keras_private_release_sums([x], cells, 1e-3, 0.5)[0]
    pieces = ops.keras_private_release_sums(np.split(x, [1, 1000, 70_000 % size]), cells, 1e-3, 0.5)
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    np.testing.assert_array_equal(whole, ops.keras_private_round_and_add(x, cells, 1e-3, 0.5))


@pytest.mark.parametrize("off", [-1, 1])
def test_noise_of_another_size_is_an_error(ops, off):
    with pytest.raises(tf.errors.InvalidArgumentError, match="7 entries"):
        ops.keras_private_release_sums([tf.zeros([3]), tf.zeros([4])], tf.zeros([7 + off], tf.int32), 1.0, 1.0)


@pytest.mark.parametrize("cell, scale", [(0.0, 1.0), (np.inf, 1.0), (np.nan, 1.0), (1.0, np.inf)])
def test_a_grid_that_cannot_be_is_an_error(ops, cell, scale):
    with pytest.raises(tf.errors.InvalidArgumentError):
        ops.keras_private_release_sums([tf.zeros([3])], tf.zeros([3], tf.int32), cell, scale)


# The draw.


def kolmogorov_smirnov(cells: np.ndarray, sigma: float = 1.0) -> float:
    """p-value against a normal law, each cell spread out over its width."""
    spread = cells + np.random.default_rng(1).random(len(cells))
    return float(stats.kstest(spread / (CELLS * sigma), "norm").pvalue)


def test_the_draw_has_the_law_and_another_is_told_apart(ops):
    cells = ops.keras_private_noise_cells(count=1_000_003).numpy()
    assert kolmogorov_smirnov(cells) > 1e-6
    assert kolmogorov_smirnov(cells, 0.97) < 1e-6 and kolmogorov_smirnov(cells, 1.03) < 1e-6
    score = (np.mean((cells + 0.5) ** 2) / CELLS**2 - 1) / np.sqrt(2 / len(cells))
    assert abs(score) < 5  # A deviation that is 1 % off scores 14.
    offsets = np.bincount(np.where(cells < 0, -cells - 1, cells) & 4095, minlength=4096)
    # Falling densities make low offsets more likely, by less than 1e-3: far below what this many draws show.
    assert stats.chisquare(offsets).pvalue > 1e-6
    beyond = (cells < -3 * CELLS).sum() + (cells >= 3 * CELLS).sum()
    assert stats.binomtest(int(beyond), len(cells), 2 * stats.norm.sf(3)).pvalue > 1e-6
    assert stats.binomtest(int((cells < 0).sum()), len(cells)).pvalue > 1e-6


@pytest.mark.parametrize("count", [0, 1, 2, 5, 42, 43, 170, 171, 255, 256, 257, 1023, 65_536 + 21])
def test_every_place_is_drawn_whatever_the_number(ops, count):
    """Blocks, what is left of the buffer, and what is left of a word: over some runs no place repeats or stays zero."""
    runs = np.stack([ops.keras_private_noise_cells(count=count).numpy() for _ in range(12)])
    assert runs.shape == (12, count)
    if count:
        assert (runs.std(axis=0) > 1e-3 * CELLS).all()
    # Of these many draws a few fall into one cell by chance: birthdays among 2.5 million.
    chance = runs.size**2 / 2 / (2 * np.sqrt(np.pi) * CELLS)
    assert runs.size - len(np.unique(runs)) <= chance + 6 * np.sqrt(chance) + 6


def test_decisions_by_bounds_are_those_of_the_threshold(ops):
    """Around the threshold itself, around the bounds that decide early, and anywhere."""
    generator = np.random.default_rng(2)
    size = 200_000
    bins, offsets = generator.integers(0, 3328, size), generator.integers(0, 4096, size)
    thresholds = ops.keras_private_rejection_threshold(bins, offsets).numpy().astype(object)
    exponents = np.array([int(o) * (8192 * int(j) + int(o) + 1) << 23 for j, o in zip(bins, offsets)], object)
    near = generator.integers(-300, 300, size).astype(object)
    for center in (thresholds, exponents, exponents - exponents * exponents // 2**65):
        rejected_below = np.clip(center + near, 0, 2**64 - 1)
        uniforms = (2**64 - 1 - rejected_below).astype(np.uint64)
        found = ops.keras_private_accepted(bins, offsets, uniforms).numpy()
        # uniform < 2^64 - threshold
        np.testing.assert_array_equal(found, (thresholds <= rejected_below).astype(bool))
    uniforms = generator.integers(0, 2**64, size, dtype=np.uint64)
    expected = thresholds <= 2**64 - 1 - uniforms.astype(object)
    np.testing.assert_array_equal(ops.keras_private_accepted(bins, offsets, uniforms), expected.astype(bool))


# Freshness, in graphs of the kind that training makes.


def test_draws_are_fresh_in_loops_graphs_and_calls(ops):
    """Nothing hoists, folds or merges an operation without inputs."""
    zeros = [tf.zeros([40]), tf.zeros([2, 30])]
    mechanism = mechanism_for(zeros)

    @tf.function(autograph=False)
    def run() -> list[tf.Tensor]:
        def body(count: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            flat = tf.concat([tf.reshape(item, [-1]) for item in mechanism.release(zeros, 1.0)], 0)
            return count + 1, tf.tensor_scatter_nd_update(kept, [[count]], [flat])

        looped = tf.while_loop(lambda count, _: count < 4, body, [0, tf.zeros([4, 100])])[1]
        twice = [tf.concat([tf.reshape(i, [-1]) for i in mechanism.release(zeros, 1.0)], 0) for _ in range(2)]
        return [looped, tf.stack(twice)]

    drawn = np.concatenate([item.numpy() for _ in range(2) for item in run()])
    assert drawn.shape == (12, 100)
    for one, other in itertools.combinations(drawn, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.6 and (one != other).mean() > 0.9


def test_the_draw_waits_for_nothing_of_the_step(ops):
    with tf.Graph().as_default() as graph:
        value = tf.compat.v1.placeholder(tf.float32, [40])
        mechanism_for([value]).release([tf.square(value)], 1.0)
        draws = [op for op in graph.get_operations() if op.type == "KerasPrivateNoiseCells"]
    assert len(draws) == 1 and draws[0].op_def.is_stateful
    assert not draws[0].inputs and not draws[0].control_inputs


@pytest.mark.parametrize("noise_multiplier", [0.5, 2.0])
def test_the_release_has_the_stated_deviation_in_every_variable(ops, noise_multiplier):
    shapes, divisor = [(300, 300), (90_000,)], 64.0
    zeros = [tf.zeros(shape) for shape in shapes]
    mechanism = mechanism_for(zeros, noise_multiplier)
    found = [item.numpy().reshape(-1) for item in mechanism.release(zeros, divisor)]
    for item in found:
        deviation = item.std() * divisor / mechanism.standard_deviation
        assert abs(deviation - 1) < 0.02  # 1/sqrt(2 n) is 0.0024
    assert abs(np.corrcoef(*found)[0, 1]) < 0.02
