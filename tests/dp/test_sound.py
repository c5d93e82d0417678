"""No example has a say on another's row, and one example moves the clipped sum by no more than is stated."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private.dp.clipping import (
    FLOAT_SLACK,
    ExampleGradients,
    Formed,
    OuterProducts,
    Sequences,
    clip_factors,
    form,
)
from keras_private.dp.mechanisms import GaussianMechanism
from keras_private.dp.rules import Factored
from keras_private.errors import ConfigurationError
from keras_private.random import CELLS_PER_SIGMA
from tests.dp.helpers import dp, floats, labels, rowwise, stepper

layers = tf.keras.layers
SPARSE = tf.keras.losses.SparseCategoricalCrossentropy
BATCH, CLASSES = 5, 3
BOUND = 1.0 + FLOAT_SLACK


# Rows: bit-identical when another example changes.


def convolutional() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            layers.Conv2D(4, 3, dilation_rate=2, padding="same", activation="relu"),
            layers.GroupNormalization(2),
            layers.Conv2D(3, 2, strides=2, activation="tanh"),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def over_time() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            layers.Dense(8, "gelu"),
            layers.LayerNormalization(),
            layers.Dense(4, "softmax"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )


def dense() -> tf.keras.Model:
    return tf.keras.Sequential([layers.Dense(8, "relu"), layers.Dense(CLASSES)])


MODELS = {
    "dense": (dense, (6,)),
    "convolutional": (convolutional, (6, 7, 2)),
    "over time": (over_time, (4, 5)),
}
Rows = tuple[Callable[..., list[np.ndarray]], list[np.ndarray]]


def rows_of(name: str, reduction: str) -> Rows:
    tf.keras.utils.set_random_seed(2)
    build, shape = MODELS[name]
    model = build()
    data = [floats(BATCH, *shape), labels(BATCH, CLASSES), np.abs(floats(BATCH, seed=4))]
    model(data[0])
    loss = SPARSE(True, reduction=reduction)
    run = rowwise(lambda x, y, weight: loss(y, model(x, training=True), weight), model.trainable_variables, data)
    return run, data


def others(rows: list[np.ndarray], without: int) -> list[np.ndarray]:
    return [np.delete(item, without, axis=0) for item in rows]


@pytest.fixture(
    scope="module",
    params=[(name, "sum_over_batch_size") for name in MODELS] + [("dense", "sum"), ("dense", "none")],
)
def rows(request: pytest.FixtureRequest) -> Rows:
    return rows_of(*request.param)


@pytest.mark.parametrize("change", ["noise", "huge", "zero", "nan", "label", "weight", "no weight"])
def test_changing_an_example_leaves_all_other_rows_bit_identical(rows, change):
    run, data = rows
    before = run(*data)
    for j in (0, 2, BATCH - 1):
        x, y, weight = (item.copy() for item in data)
        x[j] = {"noise": floats(*x[j].shape, seed=9), "huge": 1e30, "zero": 0, "nan": np.nan}.get(change, x[j])
        y[j] = (y[j] + 1) % CLASSES if change == "label" else y[j]
        weight[j] = {"weight": 1e6, "no weight": 0}.get(change, weight[j])
        after = run(x, y, weight)
        for old, new in zip(others(before, j), others(after, j)):
            np.testing.assert_array_equal(old, new)
        moved = [not np.array_equal(old[j], new[j]) for old, new in zip(before, after)]
        assert any(moved), "the change did not even reach the example's own rows"


def test_removing_an_example_leaves_all_other_rows_as_they_were(rows):
    """The formula is the same to the bit; how a matrix product is cut into blocks may depend on the batch size."""
    run, data = rows
    before = run(*data)
    for j in (0, 2, BATCH - 1):
        after = run(*(np.delete(item, j, axis=0) for item in data))
        for old, new in zip(others(before, j), after):
            np.testing.assert_allclose(new, old, rtol=1e-6, atol=1e-6 * np.max(np.abs(old)))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "none"])
def test_removing_an_example_is_bit_identical_where_the_kernel_is(reduction):
    """Entrywise operations have no blocks: nothing in a row may tell how many examples there were."""
    scale, offset = tf.Variable(floats(6)), tf.Variable(floats(6, seed=1))
    loss = tf.keras.losses.MeanSquaredError(reduction=reduction)
    data = [floats(BATCH, 6), floats(BATCH, 6, seed=2), np.abs(floats(BATCH, seed=4))]
    run = rowwise(lambda x, y, weight: loss(y, tf.tanh(x * scale + offset), weight), [scale, offset], data)
    before = run(*data)
    for j in range(BATCH):
        for old, new in zip(others(before, j), run(*(np.delete(item, j, axis=0) for item in data))):
            np.testing.assert_array_equal(old, new)


def test_a_masking_weight_of_zero_takes_an_example_out():
    run, data = rows_of("dense", "sum")
    data[2][1] = 0.0
    gradients = run(*data)[1::2]
    for gradient in gradients:
        assert not np.any(gradient[1]) and np.any(gradient[0])


def test_order_of_examples_does_not_matter_to_their_rows(rows):
    run, data = rows
    order = np.array([3, 0, 4, 1, 2])
    for old, new in zip(run(*data), run(*(item[order] for item in data))):
        np.testing.assert_allclose(new, old[order], rtol=1e-6, atol=1e-6 * np.max(np.abs(old)))


# Norms: upper bounds, on inputs made to cancel.


def exact_squared_norm(left: np.ndarray, right: np.ndarray) -> float:
    """|sum_t left_t outer right_t|^2 in rational arithmetic, over one example."""
    lefts = [[Fraction(float(entry)) for entry in row] for row in left]
    rights = [[Fraction(float(entry)) for entry in row] for row in right]
    gram = lambda rows, s, t: sum(a * b for a, b in zip(rows[s], rows[t]))  # noqa: E731
    places = range(len(lefts))
    return float(sum(gram(lefts, s, t) * gram(rights, s, t) for s in places for t in places))


def cancelling(seed: int, size: float, rest: float, time: int = 16, width: int = 32) -> Factored:
    """Terms of norm about `size` that sum to almost nothing: each is followed by its negative, a little off."""
    generator = np.random.default_rng(seed)
    half = time // 2
    left = generator.normal(size=(half, width)) * size
    right = generator.normal(size=(half, width)) * size
    off = generator.normal(size=(half, width)) * rest
    lefts = np.concatenate([left, left]).astype(np.float32)[np.newaxis]
    rights = np.concatenate([right, off - right]).astype(np.float32)[np.newaxis]
    order = generator.permutation(2 * half)
    return Factored(tf.constant(lefts[:, order]), tf.constant(rights[:, order]))


def naive_gram(use: Factored) -> float:
    """The usual float32 formula, which is what the float64 one replaces."""
    left, right = use.left, use.right
    grams = tf.matmul(left, left, transpose_b=True) * tf.matmul(right, right, transpose_b=True)
    return float(tf.reduce_sum(grams))


SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size, rest", [(30.0, 1e-3), (1e3, 1e-4), (1e6, 1.0), (1e-3, 1e-8), (1e12, 1e-3)])
def test_norms_of_cancelling_sequences_are_upper_bounds(seed, size, rest):
    use = cancelling(seed, size, rest)
    bound = float(Sequences(use.left, use.right).squared_norms()[0])
    assert bound >= exact_squared_norm(use.left[0].numpy(), use.right[0].numpy())


def test_the_bound_is_not_so_large_as_to_be_useless():
    """True squared norm near 0.02 among terms of squared norm a thousand each."""
    use = cancelling(0, 1.0, 2e-3)
    true = exact_squared_norm(use.left[0].numpy(), use.right[0].numpy())
    assert 1e-4 < true < 1.0
    np.testing.assert_allclose(Sequences(use.left, use.right).squared_norms()[0], true, rtol=1e-5)


def test_the_float32_formula_fails_on_these_inputs():
    """The witness: on the same inputs it reports zero or less, or a fraction of the norm, for large gradients."""
    failures = 0
    for seed in SEEDS:
        for size, rest in ((30.0, 1e-3), (1e3, 1e-4)):
            use = cancelling(seed, size, rest)
            true = exact_squared_norm(use.left[0].numpy(), use.right[0].numpy())
            failures += naive_gram(use) < 0.5 * true
    assert failures >= len(SEEDS) // 2


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    time=st.integers(2, 8),
    widths=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    exponents=st.lists(st.integers(-12, 12), min_size=2, max_size=8),
    kind=st.sampled_from(["sequences", "outer", "formed"]),
)
def test_norms_are_upper_bounds_of_what_is_summed(seed, time, widths, exponents, kind):
    """Against the float64 norm of the very rows that the weighted sum adds up."""
    generator = np.random.default_rng(seed)
    time = 1 if kind == "outer" else time
    scales = [10.0 ** exponents[place % len(exponents)] for place in range(time)]
    left = (generator.normal(size=(3, time, widths[0])) * np.reshape(scales, (-1, 1))).astype(np.float32)
    right = (generator.normal(size=(3, time, widths[1])) / np.reshape(scales, (-1, 1))).astype(np.float32)
    gradients = of_kind(kind, left, right)
    squared = gradients.squared_norms().numpy()
    for index in range(3):
        keep = tf.ones([3], bool)
        row = np.asarray(gradients.weighted_sum(tf.one_hot(index, 3), keep), np.float64)
        assert np.sqrt(squared[index]) * BOUND >= np.linalg.norm(row)


def of_kind(kind: str, left: np.ndarray, right: np.ndarray) -> ExampleGradients:
    if kind == "sequences":
        return Sequences(tf.constant(left), tf.constant(right))
    if kind == "outer":
        return OuterProducts(tf.constant(left[:, 0]), tf.constant(right[:, 0]))
    return form(Factored(tf.constant(left), tf.constant(right)))


@pytest.mark.parametrize(
    "left, right",
    [
        ([1.8e19], [1e-19] * 4000),  # squares of the right underflow in float32
        ([1e-22] * 50, [1e25] * 50),  # squares of the right overflow in float32
        ([1.0] + [2.0**-13] * 100000, [1.0]),  # small squares vanish beside the large one in float32
    ],
)
def test_norms_of_extreme_outer_products(left, right):
    left, right = (np.array([item], np.float32) for item in (left, right))
    expected = np.sum(left.astype(np.float64) ** 2) * np.sum(right.astype(np.float64) ** 2)
    np.testing.assert_allclose(OuterProducts(left, right).squared_norms(), [expected], rtol=1e-6)


# Sensitivity: one more or one fewer example.


def clipped_sum(gradients: ExampleGradients, clip: float) -> np.ndarray:
    scales, keep = clip_factors([gradients.squared_norms()], clip)
    return np.asarray(gradients.weighted_sum(scales, keep), np.float64).reshape(-1)


ADVERSARIAL = [
    "huge",
    "tiny",
    "cancelling",
    "duplicate",
    "opposite",
    "mixed magnitudes",
    "one entry",
    "random",
]


def adversary(kind: str, time: int, d: int, p: int, rest: tuple[np.ndarray, np.ndarray], seed: int) -> tuple:
    generator = np.random.default_rng(seed)
    left, right = generator.normal(size=(1, time, d)), generator.normal(size=(1, time, p))
    if kind == "huge":
        left, right = left * 1e18, right * 1e15
    elif kind == "tiny":
        left, right = left * 1e-18, right * 1e-15
    elif kind == "cancelling" and time > 1:
        use = cancelling(seed, 1e4, 1e-2, time + time % 2, 8)
        left, right = np.resize(use.left, (1, time, d)), np.resize(use.right, (1, time, p))
    elif kind in ("duplicate", "opposite"):
        left, right = rest[0][:1], rest[1][:1] * (1 if kind == "duplicate" else -1)
    elif kind == "mixed magnitudes":
        left = left * 10.0 ** generator.integers(-15, 15, size=left.shape)
    elif kind == "one entry":
        left, right = left * 0, right * 0
        left[0, 0, 0], right[0, 0, 0] = 1e19, 1e-10
    return left.astype(np.float32), right.astype(np.float32)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 40), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    kind=st.sampled_from(ADVERSARIAL),
    form_kind=st.sampled_from(["sequences", "outer", "formed"]),
    clip=st.sampled_from([1e-3, 1.0, 50.0]),
    same=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_one_example_moves_the_clipped_sum_by_at_most_the_bound(shape, kind, form_kind, clip, same, seed):
    """`same` makes all the others alike, so that the sum grows as large as it can and rounds as much as it can."""
    batch, time, d, p = shape
    time = 1 if form_kind == "outer" else time
    count = batch + 1
    left, right = floats(count, time, d, seed=seed), floats(count, time, p, seed=seed + 1)
    if same:
        left, right = np.repeat(left[:1], count, 0), np.repeat(right[:1], count, 0)
    mine = adversary(kind, time, d, p, (left, right), seed)
    place = seed % count
    with_it = [np.concatenate([rest[:place], own, rest[place:]]) for rest, own in zip((left, right), mine)]
    more = clipped_sum(of_kind(form_kind, *with_it), clip)
    fewer = clipped_sum(of_kind(form_kind, left, right), clip)
    assert np.linalg.norm(more - fewer) <= clip * BOUND


@pytest.mark.parametrize("form_kind", ["sequences", "outer", "formed"])
@pytest.mark.parametrize("count, size", [(256, 1), (2048, 20), (8192, 3)])
def test_rounding_of_a_large_batch_stays_within_the_slack(form_kind, count, size):
    """All examples point the same way, so that the sum is as large against C as a sum can be."""
    time = 1 if form_kind == "outer" else 2
    left = np.ones((count, time, 1), np.float32)
    right = (np.full((count, time, size), 0.1) + floats(1, 1, size, scale=0.01)).astype(np.float32)
    more = clipped_sum(of_kind(form_kind, left, right), 0.01)
    for drop in (0, count // 2, count - 1):
        fewer = clipped_sum(of_kind(form_kind, np.delete(left, drop, 0), np.delete(right, drop, 0)), 0.01)
        assert np.linalg.norm(more - fewer) <= 0.01 * BOUND


@pytest.mark.parametrize("name", MODELS)
def test_one_example_moves_the_gradient_of_a_whole_model_by_at_most_c(name):
    tf.keras.utils.set_random_seed(2)
    build, shape = MODELS[name]
    model, clip, divisor = build(), 0.5, 4.0
    data = [floats(BATCH, *shape), labels(BATCH, CLASSES)]
    model(data[0])
    loss = SPARSE(True)
    step = stepper(lambda x, y: loss(y, model(x)), model.trainable_variables, data, clip, divisor)
    before = np.concatenate([item.reshape(-1) for item in step(*data)]).astype(np.float64)
    moved = []
    for own in (
        floats(*shape),
        1e3 * floats(*shape),
        1e-3 * floats(*shape),
        data[0][0],
        np.full(shape, 1e15),
    ):
        for label in range(CLASSES):
            batch = [np.concatenate([data[0], [own]]).astype(np.float32), np.append(data[1], label)]
            after = np.concatenate([item.reshape(-1) for item in step(*batch)]).astype(np.float64)
            moved.append(np.linalg.norm(after - before) * divisor)
    assert max(moved) <= clip * BOUND
    assert max(moved) >= clip * 0.99, "no example was clipped: the test shows nothing"


# The mechanism.

MECHANISMS = st.builds(
    GaussianMechanism,
    l2_norm_clip=st.sampled_from([1e-3, 1.0, 7.0]),
    noise_multiplier=st.sampled_from([0.3, 1.0, 2.0, 30.0]),
    coordinates=st.sampled_from([1, 10, 10**4]),
)


@given(MECHANISMS)
def test_sensitivity_cell_and_deviation_agree(mechanism):
    bound = mechanism.l2_norm_clip * BOUND
    assert mechanism.sensitivity >= bound + mechanism.cell * math.sqrt(mechanism.coordinates) * (1 - 1e-12)
    np.testing.assert_allclose(
        mechanism.standard_deviation, mechanism.noise_multiplier * mechanism.sensitivity, rtol=1e-9
    )
    np.testing.assert_allclose(mechanism.standard_deviation, mechanism.cell * CELLS_PER_SIGMA, rtol=1e-12)
    assert mechanism.sensitivity < 1.01 * bound or mechanism.coordinates * mechanism.noise_multiplier**2 > 1e5


@given(MECHANISMS, st.integers(0, 10**6))
def test_neighbouring_sums_on_the_grid_are_within_the_sensitivity(mechanism, seed):
    """Worst case: the move is C whole, and every coordinate rounds away from its neighbour."""
    generator = np.random.default_rng(seed)
    size, cell = mechanism.coordinates, mechanism.cell
    direction = generator.normal(size=size)
    move = direction / np.linalg.norm(direction) * mechanism.l2_norm_clip * BOUND
    below = (generator.integers(-50, 50, size) + 0.5 - 1e-9 * np.sign(move)) * cell
    on_grid = [np.round(item / cell) * cell for item in (below, below + move)]
    distance = np.linalg.norm(on_grid[1] - on_grid[0])
    assert distance <= mechanism.sensitivity * (1 + 1e-9)


def test_a_grid_too_coarse_for_the_model_is_refused():
    too_many = int((CELLS_PER_SIGMA / 2 / 30.0) ** 2) + 10**6
    with pytest.raises(ConfigurationError, match="too many"):
        GaussianMechanism(1.0, 30.0, too_many)


def test_without_noise_nothing_is_rounded():
    mechanism = GaussianMechanism(1.0, 0.0, 3)
    value = tf.constant([1.23456789e-7, 3.0, -2.0])
    np.testing.assert_array_equal(mechanism.release([value], 1.0)[0], value)
    assert mechanism.cell == 0 and mechanism.standard_deviation == 0


def test_more_coordinates_than_the_sensitivity_covers_are_refused():
    with pytest.raises(ConfigurationError, match="coordinates"):
        GaussianMechanism(1.0, 1.0, 3).release([tf.zeros([2]), tf.zeros([2])], 1.0)


def test_a_variable_given_twice_does_not_double_its_release():
    kernel = tf.Variable(floats(3, 2))
    data = [floats(1, 3, scale=100.0)]
    try:
        found: Any = stepper(lambda x: tf.reduce_sum(tf.matmul(x, kernel), 1), [kernel, kernel], data, 1.0, 1.0)(*data)
    except ConfigurationError:
        return
    assert np.sqrt(sum(np.sum(item**2) for item in found)) <= BOUND


def test_clip_factors_keep_small_gradients_and_drop_what_is_not_finite():
    squared = [tf.constant([0.25, 4.0, np.nan, np.inf, 0.0, 1e300], tf.float64)]
    scales, keep = clip_factors(squared, 1.0)
    np.testing.assert_allclose(scales, [1.0, 0.5, 0.0, 0.0, 1.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(keep, [True, True, False, False, True, True])
    assert isinstance(Formed(tf.zeros([0, 2])).squared_norms(), tf.Tensor)


def test_the_optimizer_uses_the_stated_mechanism():
    optimizer = dp(clip=2.0, noise=1.5)
    mechanism = optimizer._mechanism([tf.Variable(tf.zeros([3, 2])), tf.Variable(tf.zeros([4]))])
    assert mechanism == GaussianMechanism(2.0, 1.5, 10)
