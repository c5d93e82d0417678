"""Arguments that are numbers within bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import ConfigurationError


def is_number(value: Any) -> bool:
    """A finite number, truth values excluded."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """An integer, truth values excluded."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def require(condition: bool, argument: str, value: Any, expected: str) -> None:
    """
    Raises:
        ConfigurationError: The condition does not hold.
    """
    if not condition:
        raise ConfigurationError(f"{argument} is {value!r}.", expected=expected, remedy=f"Give another {argument}.")
