"""Sharing, linear maps, products and truncation against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.protocol.products import convolution, matmul, multiply, scale, scale_by_tensor
from keras_private.encrypted.protocol.sharing import reveal_integers, share
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import concat, stack
from keras_private.errors import ConfigurationError, EncodingError
from tests.encrypted.harness import compute

UNIT = 2.0**-16
SLOW_TRACES = settings(deadline=None, max_examples=12)


def numbers(*shape: int, seed: int = 0, size: float = 3.0) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(-size, size, shape)
    return np.round(values / UNIT) * UNIT


def near(found: np.ndarray, expected: np.ndarray, units: float) -> None:
    assert found.shape == expected.shape
    assert np.max(np.abs(found - expected), initial=0.0) <= units * UNIT + 1e-12


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0, 4)])
def test_what_is_shared_is_revealed(shape):
    values = numbers(*shape, size=1e6)
    np.testing.assert_array_equal(compute(lambda x: x, values), values)


def test_linear_maps_are_exact():
    x, y = numbers(4, 3), numbers(4, 3, seed=1)
    functions = {
        "add": (lambda a, b: a + b, x + y),
        "subtract": (lambda a, b: a - b, x - y),
        "negative": (lambda a, b: -a, -x),
        "public": (lambda a, b: 2.5 - a + 1, 3.5 - x),
        "integer": (lambda a, b: a.times_integer(-7), -7 * x),
        "point": (lambda a, b: a.scaled_by_power(-3), x / 8),
        "index": (lambda a, b: a[1:, ::-1], x[1:, ::-1]),
        "concat": (lambda a, b: concat([a, b], 1), np.concatenate([x, y], 1)),
        "stack": (lambda a, b: stack([a, b]), np.stack([x, y])),
        "sum": (lambda a, b: a.local(lambda s: tf.reduce_sum(s, 0)), x.sum(0)),
    }
    found = compute(lambda a, b: [function(a, b) for function, _ in functions.values()], x, y)
    for name, result, (_, expected) in zip(functions, found, functions.values()):
        np.testing.assert_array_equal(result, expected, err_msg=name)


@SLOW_TRACES
@given(
    shapes=st.sampled_from(
        [((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 4)), ((), (5,)), ((0, 3), (3,)), ((1, 1), (4, 3))]
    ),
    seed=st.integers(0, 100),
    size=st.sampled_from([1.0, 100.0, 20000.0]),
)
def test_elementwise_products_broadcast(shapes, seed, size):
    x, y = numbers(*shapes[0], seed=seed, size=size), numbers(*shapes[1], seed=seed + 1, size=size)
    near(compute(multiply, x, y), x * y, 1)


@SLOW_TRACES
@given(
    n=st.integers(1, 5),
    k=st.integers(0, 9),
    m=st.integers(1, 5),
    a=st.booleans(),
    b=st.booleans(),
    seed=st.integers(0, 9),
)
def test_matrix_products(n, k, m, a, b, seed):
    x = numbers(*((k, n) if a else (n, k)), seed=seed)
    y = numbers(*((m, k) if b else (k, m)), seed=seed + 1)
    expected = (x.T if a else x) @ (y.T if b else y)
    near(compute(lambda left, right: matmul(left, right, a, b), x, y), expected, 1)


@SLOW_TRACES
@given(
    size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    filters=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pad=st.integers(0, 1),
)
def test_convolutions_and_their_gradients(size, filters, channels, stride, dilation, pad):
    if stride > 1:
        dilation = 1
    reach = [(f - 1) * dilation + 1 for f in filters]
    if any(r > s + 2 * pad for r, s in zip(reach, size)):
        return
    x, w = numbers(2, *size, channels[0]), numbers(*filters, *channels, seed=1)
    padding = ((pad, pad), (pad, pad))
    geometry = {"strides": (stride, stride), "padding": padding, "dilations": (dilation, dilation)}
    with tf.GradientTape() as tape:
        xt, wt = tf.constant(x), tf.constant(w)
        tape.watch([xt, wt])
        # TensorFlow has no gradient of dilated convolutions on CPU.
        padded = tf.pad(xt, [[0, 0], *map(list, padding), [0, 0]])
        cut = tf.image.extract_patches(
            padded, [1, *filters, 1], [1, stride, stride, 1], [1, dilation, dilation, 1], "VALID"
        )
        y = tf.tensordot(cut, tf.reshape(wt, [-1, channels[1]]), 1)
        g = numbers(*y.shape, seed=2)
        total = tf.reduce_sum(y * g)
    dx, dw = tape.gradient(total, [xt, wt])

    def run(a, b, c):
        return [
            convolution("conv2d", a, b, lambda p, q: tf.constant(list(y.shape)), **geometry),
            convolution("conv2d_input", b, c, lambda p, q: tf.constant(x.shape), input_size=size, **geometry),
            convolution("conv2d_filter", a, c, lambda p, q: tf.constant(w.shape), filter_size=filters, **geometry),
        ]

    for found, expected in zip(compute(run, x, w, g), (y, dx, dw)):
        near(found, expected.numpy(), 1)


@pytest.mark.parametrize("factor", [3, -2.0, 0.5, 0.1, -1e-3, 3.7e-5, 123.456])
def test_public_factors(factor):
    x = numbers(50)
    precision = np.abs(x).max() * abs(factor) * 2.0**-11
    assert np.max(np.abs(compute(lambda a: scale(a, factor), x) - x * factor)) <= UNIT + precision * 2.0**-1


def test_public_tensors():
    x, y = numbers(4, 3), numbers(3, seed=3)
    near(compute(lambda a: scale_by_tensor(a, tf.constant(y)), x), x * y, 1)


def test_truncation_is_stochastic_rounding():
    """Errors of less than one unit, right in the mean; a truncation that always rounds down fails the second."""
    x = np.full(200_000, 1000.0 + 0.3 * UNIT * 2**4)
    fine = FixedPoint(fraction=20)
    found = compute(lambda a: truncate(a, 4), x, fixed_point=fine)
    units = (found - 1000.0) / UNIT
    assert set(units) == {4.0, 5.0}
    exact = np.round(x * 2**20)[0] / 2**20
    share = (exact - 1000.0) / UNIT
    assert abs(units.mean() - share) < 5 * np.sqrt(0.25 / len(x))


def test_truncation_up_to_the_edge_of_its_range():
    edge = 2.0**62 - 1
    ring = np.array([edge, -edge, 0, 1, -1, 2.0**61, -(2.0**61), 12345], np.float64)
    values = np.array(
        [int(v) if abs(v) < 2**60 else int(np.sign(v)) * (2**62 - 1) if abs(v) > 2**61 else int(v) for v in ring]
    )

    @tf.function(autograph=False)
    def run(x):
        session = Session()
        return reveal_integers(truncate(share(session, x, "owner", "x", fraction=16), 16), "owner")

    for _ in range(50):
        error = run(tf.constant(values, tf.int64)).numpy() - values // 2**16
        assert set(error) <= {0, 1}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**24, -1e9])
def test_what_cannot_be_encoded_is_refused(bad):
    with pytest.raises(EncodingError, match="weights"):
        FixedPoint().encode(tf.constant([1.0, bad]), "weights")
    with pytest.raises(tf.errors.InvalidArgumentError, match="input 0"):
        compute(lambda x: x, [1.0, bad])


def test_values_of_different_points_do_not_add():
    with pytest.raises(ConfigurationError, match="bits after the point"):
        compute(lambda x: x + x.scaled_by_power(-1), [1.0])


@pytest.mark.parametrize("arguments", [{"fraction": 0}, {"fraction": 30}, {"integer": 0}, {"fraction": 16.0}])
def test_fixed_points_that_do_not_fit(arguments):
    with pytest.raises(ConfigurationError):
        FixedPoint(**arguments)


def test_ten_million_truncations_are_right_to_one_unit():
    """The law of the error: floor or ceiling, with the chance that makes the mean exact; nothing larger, ever."""
    rng = np.random.default_rng(0)
    bits, count = 16, 10_000_000
    integers = rng.integers(-(2**61), 2**61, count)

    @tf.function(autograph=False)
    def run(x):
        session = Session()
        return reveal_integers(truncate(share(session, x, "owner", "x", fraction=bits), bits), "owner")

    error = run(tf.constant(integers)).numpy() - (integers >> bits)
    assert set(np.unique(error)) == {0, 1}
    # Error 1 has the chance of the bits cut off: compare in 16 classes of them.
    rest = (integers & (2**bits - 1)) >> (bits - 4)
    total = np.bincount(rest, minlength=16)
    chance = np.bincount(rest, weights=(integers & (2**bits - 1)) / 2**bits, minlength=16) / total
    found = np.bincount(rest, weights=error, minlength=16) / total
    assert np.all(np.abs(found - chance) < 6 * np.sqrt(chance * (1 - chance) / total) + 1e-6)
