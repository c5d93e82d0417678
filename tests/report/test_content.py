"""The values of a report: what they refuse, and that figures are shown rounded up."""

from __future__ import annotations

import dataclasses
import decimal
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_private.errors import ConfigurationError
from keras_private.report import Cost, Series, Sight, View
from tests.report.samples import spending


@given(st.floats(0, 1e308))
def test_epsilon_is_shown_rounded_up_to_three_places(epsilon):
    shown = decimal.Decimal(spending(epsilon=epsilon).shown)
    exact = decimal.Decimal(repr(epsilon))
    with decimal.localcontext(decimal.Context(prec=400)):
        assert exact <= shown < exact + decimal.Decimal("0.001")


@given(st.floats(0, 1, exclude_max=True))
def test_delta_is_shown_rounded_up_to_three_digits(delta):
    shown = decimal.Decimal(spending(delta=delta).shown_delta)
    exact = decimal.Decimal(repr(delta))
    assert exact <= shown <= exact * decimal.Decimal("1.01") + decimal.Decimal("5e-324")


@pytest.mark.parametrize(
    "epsilon, delta, shown", [(2.0, 1e-5, ("2.000", "1e-05")), (2.0000001, 1.2301e-5, ("2.001", "1.24e-05"))]
)
def test_what_is_exact_stays_exact(epsilon, delta, shown):
    found = spending(epsilon=epsilon, delta=delta)
    assert (found.shown, found.shown_delta) == shown


def test_no_guarantee_is_called_infinite():
    assert spending(epsilon=math.inf).shown == "infinite"


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": "household"},
        {"observer": "nobody"},
        {"epsilon": -1e-9},
        {"epsilon": math.nan},
        {"epsilon": "3"},
        {"delta": 1.0},
        {"delta": -0.1},
        {"delta": math.nan},
        {"adjacency": "zero out one client"},
        {"adjacency": "replace one example"},
        {"steps": -1},
        {"steps": 1.5},
        {"mechanism": {"noise multiplier": math.inf}},
        {"mechanism": {"noise multiplier": [1.0]}},
    ],
)
def test_a_guarantee_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        dataclasses.replace(spending(), **wrong)


def test_levels_and_things_that_do_not_exist_are_refused():
    with pytest.raises(ConfigurationError, match="level"):
        Sight("examples", "some")
    with pytest.raises(ConfigurationError, match="each thing once"):
        View("host", (Sight("examples", "clear"), Sight("examples", "nothing")))


@pytest.mark.parametrize("wrong", [{"seconds": -1.0}, {"seconds": math.nan}, {"bytes": -1}, {"rounds": math.inf}])
def test_costs_are_numbers(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Cost(**wrong)


def test_a_series_has_one_figure_for_each_of_its_ascending_numbers():
    with pytest.raises(ConfigurationError, match="one for each"):
        Series("loss", (1.0, 2.0), (0.5,))
    with pytest.raises(ConfigurationError, match="ascending"):
        Series("loss", (2.0, 1.0), (0.5, 0.4))
    assert Series("loss", (1.0,), (float("nan"),)) == Series("loss", (1.0,), (math.inf - math.inf,))
