"""Smooth functions: largest error over the interval that each states."""

from __future__ import annotations

import numpy as np
import pytest

from keras_private.encrypted.protocol.functions import (
    exp_of_nonpositive,
    log_sum_exp,
    logarithm,
    reciprocal,
    sigmoid,
    softmax,
    tanh,
    with_fraction,
)
from tests.encrypted.harness import compute
from tests.selection import long_but

UNIT = 2.0**-16


def test_exponential():
    x = -np.concatenate([np.linspace(0, 16, 400), [0, UNIT, 1e3, 1e6]])
    assert np.max(np.abs(compute(exp_of_nonpositive, x) - np.exp(x))) < 2 * UNIT


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (1.0, 2.0), (1.0, 10.0), (0.5, 100.0), (1.0, 1000.0)])
def test_reciprocal(low, high):
    x = np.linspace(low, high, 300)
    found = compute(lambda a: reciprocal(with_fraction(a, 24), low, high), x)
    exact = 1 / (np.round(x * 2**16) / 2**16)
    assert np.max(np.abs(found - exact)) < 1 / 2**18


def test_sigmoid_and_tanh():
    x = np.concatenate([np.linspace(-20, 20, 401), [0, 1e4, -1e4]])
    s, t = compute(lambda a: [sigmoid(a), tanh(a)], x)
    assert np.max(np.abs(s - 1 / (1 + np.exp(-np.maximum(x, -700))))) < 4 * UNIT
    assert np.max(np.abs(t - np.tanh(x))) < 8 * UNIT


@pytest.mark.parametrize("classes", long_but([1, 2, 3, 10, 17], 1, 3))
def test_softmax_and_log_sum_exp(classes):
    x = np.random.default_rng(classes).normal(0, 4, (40, classes))
    probabilities, total = compute(lambda a: [softmax(a), log_sum_exp(a)], x)
    shifted = np.exp(x - x.max(-1, keepdims=True))
    assert np.max(np.abs(probabilities - shifted / shifted.sum(-1, keepdims=True))) < 4 * UNIT
    expected = np.log(shifted.sum(-1, keepdims=True)) + x.max(-1, keepdims=True)
    assert np.max(np.abs(total - expected)) < 8 * UNIT


@pytest.mark.parametrize("high", [1.0, 2.0, 10.0, 1000.0])
def test_logarithm(high):
    x = np.linspace(1, high, 200)
    found = compute(lambda a: logarithm(with_fraction(a, 24), high), x)
    assert np.max(np.abs(found - np.log(x))) < (2 + high / 100) * UNIT
