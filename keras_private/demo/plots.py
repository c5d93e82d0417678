"""The story's plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .outcome import Outcome


def drawing() -> Any:
    """matplotlib's pyplot, drawing into files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def save(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Accuracy and epsilon over epochs or rounds, a file for each.

    Returns:
        What was written.
    """
    pyplot, written = drawing(), []
    for name, title, values_of in (
        ("accuracy", "accuracy on other images", lambda outcome: outcome.accuracies),
        ("epsilon", "epsilon spent", lambda outcome: outcome.epsilons),
    ):
        figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
        for outcome in outcomes:
            values = values_of(outcome)
            if values:
                label = f"{outcome.act}, by {outcome.x_is}"
                axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=label)
        axes.set(xlabel="epoch or round", ylabel=title, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=120)
        pyplot.close(figure)
    return written
