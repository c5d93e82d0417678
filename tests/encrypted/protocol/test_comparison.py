"""Signs and what is chosen by them, against plain comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private.encrypted.protocol.comparison import choose, clip, is_negative, largest, maximum, relu
from tests.encrypted.harness import compute

EDGES = np.array([0, 1, -1, 2, -2, 2**20, -(2**20), 2**39, -(2**39), 2**39 - 1]) / 2.0**16


def test_signs_at_the_edges_and_of_many_numbers():
    values = np.concatenate([EDGES, np.random.default_rng(0).normal(0, 1000, 5000)])
    values = np.round(values * 2**16) / 2**16
    np.testing.assert_array_equal(compute(is_negative, values), values < 0)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(-(2**39), 2**39), min_size=1, max_size=9), st.integers(0, 3))
def test_relu_is_exact(integers, _):
    values = np.array(integers) / 2.0**16
    result, bit = compute(lambda x: list(relu(x)), values)
    np.testing.assert_array_equal(result, np.maximum(values, 0))
    np.testing.assert_array_equal(bit, values >= 0)


@pytest.mark.parametrize("shape", [(), (3, 2), (0,), (2, 0, 3)])
def test_shapes_are_kept(shape):
    values = np.random.default_rng(1).integers(-9, 9, shape).astype(float)
    np.testing.assert_array_equal(compute(is_negative, values), values < 0)


def test_maximum_choose_and_clip():
    rng = np.random.default_rng(2)
    x, y = (rng.integers(-(2**20), 2**20, (4, 5)) / 2.0**16 for _ in range(2))
    best, bit, chosen, clipped = compute(
        lambda a, b: [*maximum(a, b), choose(is_negative(a), a, b), clip(a, -1.5, 2.0)], x, y
    )
    np.testing.assert_array_equal(best, np.maximum(x, y))
    np.testing.assert_array_equal(bit, x >= y)
    np.testing.assert_array_equal(chosen, np.where(x < 0, x, y))
    np.testing.assert_array_equal(clipped, np.clip(x, -1.5, 2.0))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10])
def test_the_largest_and_its_place(count):
    rng = np.random.default_rng(count)
    x = rng.permuted(np.tile(np.arange(count) - 3.0, (20, 1)), axis=1)
    best, place = compute(lambda a: list(largest(a)), x)
    np.testing.assert_array_equal(best, x.max(-1))
    np.testing.assert_array_equal(place, x == x.max(-1, keepdims=True))


def test_equal_numbers_have_one_place():
    place = compute(lambda a: largest(a)[1], np.ones((3, 6)))
    np.testing.assert_array_equal(place.sum(-1), 1)
