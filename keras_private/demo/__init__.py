"""The demo: one network trained without and with differential privacy on real images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the demo; see `keras-private demo --help`."""
    from .private_fit import main as run

    return run(argv)
