"""Lines over epochs or rounds, as SVG that stands inside a page and takes the page's colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from .content import Series
from .text import printable

WIDTH, HEIGHT = 340, 210
"""As wide as on a telephone, so that its letters have their size there."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 14, 42
_COLOURS = ("--line-1", "--line-2", "--line-3", "--line-4")
_TICKS = 4
_LETTERS = 24
"""That a name has room for below a chart."""
_LARGEST, _SMALLEST = 1e150, 1e-150
"""Beyond these a figure is not drawn, or counts as 0: products of two must be numbers."""


def escaped(text: str) -> str:
    """As text of a page, whatever it holds."""
    return html.escape(printable(text))


def chart(series: Sequence[Series], title: str) -> str:
    """One chart of several series on one pair of axes; empty where no figure is finite.

    Args:
        series: At most four; of one meaning of x.
        title: Over the chart, and said to who cannot see it.
    """
    drawn = [(each, _points(each)) for each in series]
    drawn = [(each, points) for each, points in drawn if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    marks = _marks(min(ys), max(ys))
    bottom, top = marks[0], marks[-1]
    left, right = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - bottom) / (top - bottom)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escaped(title)}</title>']
    for value in marks:
        _, y = place(left, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{value:.4g}</text>')
    for x in sorted({left, right, *_between(left, right)}):
        across, _ = place(x, bottom)
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{x:g}</text>')
    middle, x_is = (_LEFT + WIDTH - _RIGHT) / 2, drawn[0][0].x_is[:_LETTERS]
    parts.append(f'<text x="{middle:g}" y="{HEIGHT - 4}" text-anchor="middle">{escaped(x_is)}</text>')
    for (_, points), colour in zip(drawn, _COLOURS):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline style="stroke:var({colour})" points="{path}"/>')
        for x, y in (place(*point) for point in points) if len(points) <= 40 else ():
            parts.append(f'<circle style="fill:var({colour})" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:var({colour})"></i>{escaped(each.name)}</span>'
        for (each, _), colour in zip(drawn, _COLOURS)
    )
    return f'<figure><p class="title">{escaped(title)}</p>{"".join(parts)}<figcaption>{legend}</figcaption></figure>'


def _points(series: Series) -> list[tuple[float, float]]:
    pairs = zip(series.x, series.y)
    return [(_drawable(x), _drawable(y)) for x, y in pairs if abs(x) <= _LARGEST and abs(y) <= _LARGEST]


def _drawable(value: float) -> float:
    return value if abs(value) >= _SMALLEST else 0.0


def _marks(low: float, high: float) -> list[float]:
    """Marks of an axis that hold both ends: multiples of 1, 2 or 5 times a power of ten."""
    size = max(abs(low), abs(high))
    # Figures that differ by less than their text shows are one figure.
    spread = high - low if high - low > size * 1e-6 else size or 1.0
    step = _step(spread / _TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [at * step for at in range(first, max(last, first + 1) + 1)]


def _step(rough: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(rough, _SMALLEST)))
    return next((factor * power for factor in (1.0, 2.0, 5.0) if factor * power >= rough * 0.999), 10.0 * power)


def _between(left: float, right: float) -> list[float]:
    """A few whole numbers inside."""
    step = max(1.0, _step((right - left) / 5))
    inside = range(math.ceil(left / step), math.floor(right / step) + 1)
    return [at * step for at in inside if at * step - left >= step / 2 and right - at * step >= step / 2]
