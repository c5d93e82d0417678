"""Charts: of any figures at all one that ends, with every line inside."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keras_private.report import Series
from keras_private.report.drawing import HEIGHT, WIDTH, _between, _marks, chart
from tests.report.samples import HOSTILE

figures = st.floats(allow_nan=True, allow_infinity=True)


def parsed(shown):
    return ElementTree.fromstring(shown)


def series(ys, name="epsilon", x_is="epoch"):
    return Series(name, tuple(float(x) for x in range(1, len(ys) + 1)), tuple(ys), x_is)


@given(st.lists(figures, min_size=1, max_size=8))
@example([1e17, 1e17 + 16])
@example([1.0, math.nextafter(1.0, 2.0)])
@example([5e-324, 0.0])
@example([-1e308, 1e308])
@example([1e150, -1e150])
def test_whatever_the_figures_every_point_is_inside(ys):
    shown = chart([series(ys)], "Epsilon")
    drawn = [y for y in ys if abs(y) <= 1e150]
    if not drawn:
        assert shown == ""
        return
    (svg,) = parsed(shown).iter("svg")
    (line,) = svg.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert len(points) == len(drawn)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert 2 <= len(list(svg.iter("line"))) <= 12


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_marks_hold_both_ends_and_are_few(one, other):
    low, high = sorted((one, other))
    marks = _marks(low, high)
    slack = max(abs(low), abs(high)) * 1e-6
    assert marks[0] <= low + slack and high - slack <= marks[-1] and 2 <= len(marks) <= 8
    assert marks == sorted(set(marks))


@pytest.mark.parametrize("low, high, marks", [(0.7, 3.0, [0, 1, 2, 3]), (0.2, 0.91, [0.2, 0.4, 0.6, 0.8, 1.0])])
def test_marks_are_round(low, high, marks):
    assert _marks(low, high) == pytest.approx(marks)


@pytest.mark.parametrize(
    "left, right, inside", [(1, 20, [5, 10, 15]), (1, 3, [2]), (1, 1, []), (1, 200, [50, 100, 150])]
)
def test_numbers_of_epochs_are_round_and_apart(left, right, inside):
    assert _between(left, right) == inside


def test_larger_is_higher_and_later_is_further_right():
    (line,) = parsed(chart([series([1.0, 2.0, 4.0])], "Epsilon")).iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert points == sorted(points) and [y for _, y in points] == sorted((y for _, y in points), reverse=True)


def test_each_line_has_a_colour_and_its_name():
    shown = chart([series([1.0, 2.0], "accuracy"), series([0.0, 1.0], "val_accuracy")], "Accuracy")
    colours = re.findall(r"stroke:var\((--line-\d)\)", shown)
    assert len(set(colours)) == 2 and ">accuracy<" in shown and ">val_accuracy<" in shown


def test_names_are_text():
    shown = chart([series([1.0], HOSTILE, HOSTILE)], HOSTILE)
    assert [element.tag for element in parsed(shown).iter() if element.tag in ("script", "img")] == []
    assert "&lt;script&gt;" in shown and "\x00" not in shown
