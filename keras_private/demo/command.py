"""`keras-private demo`: its arguments, and which demo they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from .progress import waiting

DATA = ("auto", "digits")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """
    Returns:
        The exit code: 130 when it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="keras-private demo",
        description="One network on real images: trained plainly, trained with differential privacy, trained over "
        "clients with secure aggregation and differential privacy, and asked on shares by another process.",
    )
    short = parser.add_mutually_exclusive_group()
    short.add_argument("--quick", action="store_true", help="only the private fit beside the plain one, in a minute")
    short.add_argument("--long", action="store_true", help="the same with a longer recipe: 45 epochs at batch 2048")
    parser.add_argument("--data", choices=DATA, default="auto", help="auto: Fashion-MNIST if it can be had")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for reports and plots")
    parser.add_argument(
        "--allow-open",
        action="store_true",
        help="run the clients' worker also where the system grants it no network of its own: behind a firewall only",
    )
    options = parser.parse_args(argv)
    try:
        if options.quick or options.long:
            with waiting("starting TensorFlow"):
                from .private_fit import run as private_fit
            return private_fit(options.long, options.data, options.output)
        print("Starting TensorFlow ...", flush=True)
        with waiting("starting TensorFlow"):
            from .story import run as story
        return story(options.data, options.output, options.allow_open)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing of the demo runs any more.", flush=True)
        return 130
