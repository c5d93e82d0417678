"""Division by square roots: every octave of the interval, its ends, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from keras_private.encrypted.protocol.roots import divided_by_root, shifts
from keras_private.errors import ConfigurationError
from tests.encrypted.harness import compute

UNIT = 2.0**-16


@pytest.mark.parametrize("low, high", [(UNIT, 2.0), (UNIT, 256.0), (0.25, 1.0), (0.5, 3.0), (1.0, 1000.0)])
def test_every_octave_and_both_ends(low, high):
    units = np.unique(np.round(np.geomspace(low, high * (1 - 1e-6), 300) / UNIT))
    x = np.clip(units * UNIT, low, high - UNIT)
    found = compute(lambda a: divided_by_root((a - a) + 1.0, a, low, high), x)
    np.testing.assert_allclose(found * np.sqrt(x), 1.0, rtol=2.0**-17)


def test_a_numerator_of_either_sign_and_zero():
    x = np.tile([UNIT, 0.01, 1.0, 200.0], 3)
    numerator = np.repeat([-3.0, 0.0, 5.0], 4)
    found = compute(lambda n, a: divided_by_root(n, a, UNIT, 256.0), numerator, x)
    exact = numerator / np.sqrt(np.round(x / UNIT) * UNIT)
    np.testing.assert_allclose(found, exact, rtol=2.0**-17, atol=1e-9)


@pytest.mark.parametrize("span", range(2, 50))
def test_shifts_lead_every_exponent_into_the_last_two_octaves(span):
    for exponent in range(1, span + 1):
        for value in (2.0**-exponent, 1.999999 * 2.0**-exponent):
            for shift in shifts(span):
                value *= 2.0**shift if value < 2.0**-shift else 1.0
            assert 0.25 <= value < 1


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (2.0, 1.0), (1.0, np.inf), (2.0**-20, 1.0), (1.0, 2.0**50)])
def test_bounds_that_make_no_sense_are_refused(low, high):
    with pytest.raises(ConfigurationError):
        compute(lambda a: divided_by_root(a, a, low, high), np.ones(2))
