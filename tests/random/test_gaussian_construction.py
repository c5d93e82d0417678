"""The Gaussian's deterministic parts and error budget (docs/guarantees/randomness.md) in exact arithmetic."""

from __future__ import annotations

import decimal
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keras_private import native
from keras_private.random import TOTAL_VARIATION_PER_DRAW, NativeSource, SecureSource, laws
from keras_private.random.gaussian_table import BINS, COLUMNS, WEIGHT_BITS, bin_weights, gaussian_table

# Errors of the parts, in units of 2^-64; the document derives them.
TABLE_BOUND = 1664 * 2.0 ** (64 - WEIGHT_BITS) + 1e-9
ACCEPTANCE_BOUND = 2.5


@pytest.fixture(autouse=True)
def _digits():
    with decimal.localcontext() as context:
        context.prec = 80
        yield


def integral(x: decimal.Decimal) -> decimal.Decimal:
    """Integral of exp(-t^2/2) over [0, x], by another series: x^(2k+1) / (1 3 5 ... (2k+1)) exp(-x^2/2)."""
    term, total, k = x, x, 0
    while term > total * decimal.Decimal("1e-75"):
        k += 1
        term = term * x * x / (2 * k + 1)
        total += term
    return total * (-x * x / 2).exp()


def test_the_series_is_the_normal_law() -> None:
    assert float(integral(decimal.Decimal(2))) == pytest.approx(
        math.sqrt(2 * math.pi) * (stats.norm.cdf(2) - 0.5), rel=1e-14
    )


def test_weights_are_the_exact_probabilities_rounded() -> None:
    weights, whole = bin_weights(), integral(decimal.Decimal(13))
    assert len(weights) == BINS and sum(weights) == 2**WEIGHT_BITS
    for j in [*range(1, 60), *range(60, BINS, 97), BINS - 1]:
        low, high = (integral(decimal.Decimal(i) / 256) for i in (j, j + 1))
        exact = (high - low) / whole * 2**WEIGHT_BITS
        assert abs(weights[j] - exact) <= decimal.Decimal("0.5000001")
    # Bin 0 takes what rounding left over.
    exact = integral(decimal.Decimal(1) / 256) / whole * 2**WEIGHT_BITS
    assert abs(weights[0] - exact) <= BINS / 2


def test_table_realises_the_weights_without_error() -> None:
    threshold, alias = gaussian_table()
    realised = [0] * COLUMNS
    for column in range(COLUMNS):
        realised[column] += int(threshold[column])
        realised[int(alias[column])] += 2**64 - int(threshold[column])
    assert realised == bin_weights() + [0] * (COLUMNS - BINS)


def test_native_and_portable_tables_are_one() -> None:
    threshold, alias = native.load().keras_private_gaussian_table()
    expected_threshold, expected_alias = gaussian_table()
    assert np.array_equal(threshold, expected_threshold) and np.array_equal(alias, expected_alias)


def both_thresholds(bins: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    by_native = native.load().keras_private_rejection_threshold(bins, offsets).numpy()
    by_portable = laws.rejection_threshold(
        tf.constant(bins, tf.uint64), tf.constant(offsets, tf.uint64)
    ).numpy()
    assert np.array_equal(by_native, by_portable)
    return by_native


def test_rejection_thresholds_are_exact_to_the_stated_bound() -> None:
    cells = [(j, offset) for j in (0, 1, 17, 255, 700, 1500, 3327) for offset in (0, 1, 2, 333, 2048, 4095)]
    bins, offsets = (np.array(column, np.int64) for column in zip(*cells))
    for (j, offset), threshold in zip(cells, both_thresholds(bins, offsets)):
        exact = 2**64 * (1 - cell_mass(4096 * j + offset) / cell_mass(4096 * j))
        assert abs(int(threshold) - exact) <= decimal.Decimal(ACCEPTANCE_BOUND)


def cell_mass(index: int) -> decimal.Decimal:
    """Mass of one cell, up to a constant, by Boole's rule: relative error below 2^-100 at this width."""
    low, width = decimal.Decimal(index) / 2**20, decimal.Decimal(1) / 2**20
    nodes = [(-((low + width * i / 4) ** 2) / 2).exp() for i in range(5)]
    return width / 90 * (7 * nodes[0] + 32 * nodes[1] + 12 * nodes[2] + 32 * nodes[3] + 7 * nodes[4])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, BINS - 1), st.integers(0, 4095)), min_size=1, max_size=50))
def test_thresholds_agree_and_quick_acceptance_is_safe(cells: list[tuple[int, int]]) -> None:
    bins, offsets = (np.array(column, np.int64) for column in zip(*cells))
    for (j, _), threshold in zip(cells, both_thresholds(bins, offsets)):
        # 11 bits below 2047 - floor(j / 32) are accepted unseen: every extension must lie below 2^64 - threshold.
        assert (2047 - j // 32) << 53 <= 2**64 - int(threshold)


def test_budget_is_below_the_stated_total_variation() -> None:
    tail = 2 * stats.norm.sf(13.0)
    smallest_acceptance = math.exp(-BINS / 65536)
    total = (TABLE_BOUND + ACCEPTANCE_BOUND / smallest_acceptance) * 2.0**-64 + tail
    assert total < TOTAL_VARIATION_PER_DRAW


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(FLOATS, st.integers(-13 * 2**20, 13 * 2**20)), min_size=1, max_size=70),
    st.one_of(st.integers(-125, 60).map(lambda e: 2.0**e), st.floats(1e-30, 1e30)),
    st.sampled_from([1.0, -1.0, 1 / 256, 3.7e-3]),
)
def test_rounding_is_the_stated_one_bit_for_bit(pairs: list, cell: float, scale: float) -> None:
    x, cells = np.array([p[0] for p in pairs], np.float32), np.array([p[1] for p in pairs], np.int32)
    check_rounding(x, cells, cell, scale)


def test_rounding_of_ties_and_limits() -> None:
    x = np.array(
        [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 2**31 + 128, 2.0**52, 2.0**53, -(2.0**60)], np.float32
    )
    check_rounding(x, np.arange(10, dtype=np.int32), 1.0, 1.0)
    check_rounding(x, np.arange(10, dtype=np.int32), 0.25, 1.0)


def check_rounding(x: np.ndarray, cells: np.ndarray, cell: float, scale: float) -> None:
    with np.errstate(all="ignore"):
        quotient = np.nan_to_num(x.astype(np.float64) / cell, nan=0.0, posinf=2.0**52, neginf=-(2.0**52))
        nearest = np.rint(np.clip(quotient, -(2.0**52), 2.0**52))
        expected = ((nearest + cells) + 0.5) * (cell * scale)
        expected = expected.astype(np.float32)
    # TensorFlow's threads may flush subnormal results; that is after the release.
    expected = np.where(np.abs(expected) < 2.0**-126, 0, expected)
    by_native = native.load().keras_private_round_and_add(x, cells, cell, scale).numpy()
    by_portable = laws.round_and_add(
        tf.constant(x),
        tf.constant(cells, tf.int64),
        tf.constant(cell, tf.float64),
        tf.constant(scale, tf.float64),
    ).numpy()
    for found in (by_native, by_portable):
        np.testing.assert_array_equal(np.where(np.abs(found) < 2.0**-126, 0, found), expected)


def slope_score(source: SecureSource, draws: int, rounds: int, flatten: bool = False) -> float:
    """Standard score of the density's fall within bins: about 0 when right, far off for uniform offsets."""
    score = variance = 0.0
    levels = np.arange(BINS)
    # Mean offset of bin j to first order: 2047.5 - slope 4096^2 / 12 * (j + 1/2) 2^-8 2^-20.
    means = 2047.5 - 4096**2 / 12 * (levels + 0.5) * 2.0**-28
    for _ in range(rounds):
        cells = source.gaussian_cells([draws]).numpy()
        magnitude = np.where(cells >= 0, cells, -cells - 1)
        bins, offsets = magnitude >> 12, (magnitude & 4095).astype(np.float64)
        if flatten:
            offsets = np.random.default_rng(3).integers(0, 4096, draws).astype(np.float64)
        score += float(((offsets - means[bins]) * bins).sum())
        variance += float((bins.astype(np.float64) ** 2).sum()) * 4096**2 / 12
    return score / math.sqrt(variance)


@pytest.mark.slow
def test_density_falls_within_bins() -> None:
    source = NativeSource()
    assert abs(slope_score(source, 2**22, 24)) < 5.8
    assert slope_score(source, 2**22, 24, flatten=True) > 5.8
