"""What every report says of where and when it was made."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .._backends import installed
from .content import Series


def versions() -> dict[str, str]:
    """This package, the interpreter, and the packages underneath that are installed."""
    found = {"keras_private": sys.modules["keras_private"].__version__, "python": platform.python_version()}
    found.update({each.name: each.version for each in installed() if each.version is not None})
    return found


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def series_of(histories: Sequence[Any], x_is: str = "epoch") -> tuple[Series, ...]:
    """Figures of several fits in a row, each a Keras History or None; numbered as the fits were.

    What a later fit did again, with the same numbers, stands there once, as it was last.
    """
    found: dict[str, dict[float, float]] = {}
    for history in histories:
        figures: Mapping[str, Sequence[Any]] = getattr(history, "history", None) or {}
        for name, values in figures.items():
            numbers = list(getattr(history, "epoch", None) or range(len(values)))
            # Validation may be asked for once in a few epochs: the last of each stride has the figure.
            stride = max(1, round(len(numbers) / len(values))) if values else 1
            for x, y in zip(numbers[stride - 1 :: stride], values):
                found.setdefault(name, {})[float(x) + 1] = float(y)
    return tuple(Series(name, tuple(sorted(points)), tuple(points[x] for x in sorted(points)), x_is)
                 for name, points in found.items())  # fmt: skip
