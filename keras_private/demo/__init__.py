"""The demo: one network on real images, trained plainly, privately and over clients, and asked on shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the demo; see `keras-private demo --help`."""
    from .command import main as run

    return run(argv)
