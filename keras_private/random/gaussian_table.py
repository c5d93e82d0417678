"""The alias table of the Gaussian bins, in exact integers; native/src/gaussian_table.cc makes the same one.

|Z| is cut into bins of 2^-8 up to 13 sigma; what lies beyond has probability 2 Q(13) < 2^-124 and is dropped.
Weights are integers that sum to 2^76 (4096 columns of 2^64), so the table realises them without any error of
its own (Walker 1977; Vose 1991, "A linear algorithm for generating random numbers with a given
distribution").
"""

from __future__ import annotations

import functools

import numpy as np

BINS = 3328
COLUMNS = 4096
WEIGHT_BITS = 76
_CAPACITY = 1 << 64
_PRECISION = 256  # Fraction bits of the fixed-point numbers below.
_ONE = 1 << _PRECISION


@functools.lru_cache(maxsize=1)
def gaussian_table() -> tuple[np.ndarray, np.ndarray]:
    """Thresholds (uint64 [4096]) and aliases (int32 [4096]).

    Column i gives bin i when a uniform 64-bit integer is below threshold[i], else bin alias[i].
    """
    weights = bin_weights() + [0] * (COLUMNS - BINS)
    threshold, alias = [0] * COLUMNS, list(range(COLUMNS))
    small = [i for i in range(COLUMNS) if weights[i] < _CAPACITY]
    large = [i for i in range(COLUMNS) if weights[i] >= _CAPACITY]
    while small:
        poor, rich = small.pop(), large[-1]
        threshold[poor], alias[poor] = weights[poor], rich
        weights[rich] -= _CAPACITY - weights[poor]
        if weights[rich] < _CAPACITY:
            small.append(large.pop())
    return np.array(threshold, np.uint64), np.array(alias, np.int32)


def bin_weights() -> list[int]:
    """Integers proportional to P(j 2^-8 <= |Z| < (j + 1) 2^-8), j < BINS, rounded; their sum is 2^76."""
    masses, density, factor, ratio = [], _ONE, _ONE, _exp_minus(_ONE >> 16)
    for j in range(BINS):
        masses.append(density * _bin_integral(2 * j + 1) >> _PRECISION)
        # The density's ratio from one midpoint to the next is exp(-(j + 1) 2^-16).
        factor = factor * ratio >> _PRECISION
        density = density * factor >> _PRECISION
    total = sum(masses)
    weights = [((mass << (WEIGHT_BITS + 1)) // total + 1) >> 1 for mass in masses]
    weights[0] += (1 << WEIGHT_BITS) - sum(weights)
    return weights


def _exp_minus(x: int) -> int:
    total, power, k = _ONE, x, 1
    while power:
        total += -power if k % 2 else power
        k += 1
        power = (power * x >> _PRECISION) // k
    return total


def _bin_integral(odd: int) -> int:
    # Integral of exp(-(a s + s^2/2)) over |s| <= h = 2^-9, a = odd / 512.
    # Its even terms are He_n(a) h^(n+1) / (n+1)!, the odd ones cancel.
    a = odd << (_PRECISION - 9)
    before, now, scale = _ONE, a, _ONE >> 9
    total = scale
    for n in range(2, 41):
        before, now = now, (a * now >> _PRECISION) - (n - 1) * before
        if n % 2 == 0:
            scale = (scale >> 18) // (n * (n + 1))
            total += now * scale >> _PRECISION
    return 2 * total
