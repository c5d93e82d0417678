"""Lines over epochs or rounds, as SVG that stands inside a page and takes the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .content import Series

WIDTH, HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34
_COLOURS = ("--line-1", "--line-2", "--line-3", "--line-4")
_TICKS = 4


def chart(series: Sequence[Series], title: str) -> str:
    """One chart of several series on one pair of axes; empty where no figure is finite.

    Args:
        series: At most four; of one meaning of x.
        title: Said to who cannot see it.
    """
    drawn = [(each, _points(each)) for each in series]
    drawn = [(each, points) for each, points in drawn if points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    bottom, top, step = _scale(min(ys), max(ys))
    left, right = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        up = (y - bottom) / (top - bottom)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    value = bottom
    while value <= top + step / 2:
        _, y = place(left, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        value += step
    for x in sorted({left, right, *_between(left, right)}):
        across, _ = place(x, bottom)
        parts.append(f'<text x="{across:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 1}" text-anchor="end">{escape(drawn[0][0].x_is)}</text>')
    for (_, points), colour in zip(drawn, _COLOURS):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline style="stroke:var({colour})" points="{path}"/>')
        for x, y in (place(*point) for point in points) if len(points) <= 40 else ():
            parts.append(f'<circle style="fill:var({colour})" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:var({colour})"></i>{escape(each.name)}</span>'
        for (each, _), colour in zip(drawn, _COLOURS)
    )
    return f"<figure>{''.join(parts)}<figcaption>{legend}</figcaption></figure>"


def _points(series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(series.x, series.y) if math.isfinite(x) and math.isfinite(y)]


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """Ends of an axis and the step between its marks: 1, 2 or 5 times a power of ten."""
    spread = high - low or abs(high) or 1.0
    rough = spread / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    bottom, top = math.floor(low / step) * step, math.ceil(high / step) * step
    return bottom, max(top, bottom + step), step


def _between(left: float, right: float) -> list[float]:
    """A few whole numbers inside."""
    count = int(right - left)
    stride = max(1, math.ceil(count / 6))
    inside = range(math.ceil(left), math.floor(right) + 1, stride)
    return [float(x) for x in inside if x - left >= stride / 2 and right - x >= stride / 2]
