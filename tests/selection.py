"""Which cases of a test run by default: the mark `long` leaves the others to `make test-long`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def long_but(cases: Iterable[Any], *short: Any) -> list[Any]:
    """The cases, all of them marked but those that are named."""
    return [each if each in short else pytest.param(each, marks=pytest.mark.long) for each in cases]
