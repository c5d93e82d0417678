"""The learning rate of a Keras optimizer whose apply_gradients is not called."""

from __future__ import annotations

from typing import Any


def current_rate(optimizer: Any) -> float:
    """The rate of its next step, a schedule taken at `optimizer.iterations`.

    Keras 2.14 brings `learning_rate` up to date with a schedule in apply_gradients alone: elsewhere it stays at what
    it was when the optimizer was made.
    """
    optimizer._compute_current_learning_rate()
    return float(optimizer.learning_rate)
