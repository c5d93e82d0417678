"""What training and evaluation assume of weights, labels and outputs, and which limits make the assumption hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_private.encrypted import penalties
from keras_private.encrypted.data import Rows
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.losses import Loss
from keras_private.encrypted.lowering import Program
from keras_private.encrypted.ranges import Preflight
from keras_private.encrypted.steps import Limits
from keras_private.errors import ConfigurationError, OverflowPreflightError

_GROWTHS = (16.0, 8.0, 4.0, 2.0, 1.5)


class Assumptions:
    """Bounds from the first weights, the declared ranges of inputs, and how far weights may grow.

    Args:
        program: The lowered model.
        fixed_point: Encoding.
        input_ranges: Declared.
        values: The first weights.
        growth: How many times their first size sums of weights may reach; None: the most, up to 16, that the ring
            admits.
    """

    def __init__(
        self,
        program: Program,
        fixed_point: FixedPoint,
        input_ranges: Sequence[tuple[float, float]],
        values: Mapping[str, np.ndarray],
        growth: float | None,
    ) -> None:
        self.program, self.fixed_point, self.input_ranges, self.values = program, fixed_point, input_ranges, values
        self.growths = _GROWTHS if growth is None else (growth,)

    def training(self, loss: Loss, batch: int, rows: Rows, wants: Sequence[str]) -> tuple[Preflight, Limits]:
        """Bounds in training, on the assumption that the limits on weights hold: as wide as the ring admits.

        Raises:
            OverflowPreflightError: Even with the least growth a number could leave the ring.
        """
        for growth in self.growths:
            try:
                return self._training_at(growth, loss, batch, rows, wants)
            except OverflowPreflightError:
                if growth == self.growths[-1]:
                    raise
        raise AssertionError("no growth was tried")

    def evaluation(self, loss: Loss, batch: int, rows: Rows, wants: Sequence[str], trained: bool) -> None:
        """Whether loss and metrics of these rows stay in the ring.

        Raises:
            OverflowPreflightError: They could leave it.
        """
        if not trained:
            # Exact first weights, and inputs with their signs.
            preflight = self.program.check_ranges(
                self.fixed_point, self.input_ranges, self.values, to_logits=loss.to_logits
            )
            return self._check_loss(preflight, loss, self.values, (), batch, rows, wants)
        for growth in self.growths:
            try:
                grown = self._grown(growth)
                preflight = self.program.check_ranges(
                    self.fixed_point, self.input_ranges, grown, to_logits=loss.to_logits, either_sign=True
                )
                return self._check_loss(preflight, loss, grown, (), batch, rows, wants)
            except OverflowPreflightError:
                if growth == self.growths[-1]:
                    raise
        return None

    def _check_loss(
        self,
        preflight: Preflight,
        loss: Loss,
        sizes: Mapping[str, np.ndarray],
        trained: Sequence[str],
        batch: int,
        rows: Rows,
        wants: Sequence[str],
    ) -> None:
        shape = next(block.labels.shape for block in rows.blocks if block.labels is not None)
        # The loss is averaged over positions as over rows.
        positions = math.prod(shape[1:-1])
        counts = batch * positions, rows.rows * positions
        loss.check(preflight, preflight.outputs, largest_label(rows), shape[-1], *counts, wants)
        penalties.check(preflight, self.program.penalties, sizes, trained, *counts, wants)

    def _grown(self, growth: float) -> dict[str, np.ndarray]:
        return {
            # A parameter that starts at zero may reach `growth` itself. Twice, since limits are rounded down.
            name: 2 * growth * (np.abs(value) if np.any(value) else np.ones(value.shape))
            for name, value in self.values.items()
        }

    def _training_at(
        self, growth: float, loss: Loss, batch: int, rows: Rows, wants: Sequence[str]
    ) -> tuple[Preflight, Limits]:
        grown = self._grown(growth)
        labels = largest_label(rows)
        preflight = self.program.check_ranges(
            self.fixed_point,
            self.input_ranges,
            grown,
            lambda outputs: loss.gradient_bound(outputs, labels),
            batch,
            to_logits=loss.to_logits,
        )
        self._check_loss(preflight, loss, grown, self.program.trainable, batch, rows, wants)
        limits: list[tuple[str, tuple[int, ...], float]] = []
        for node in self.program.nodes:
            for name in node.rule.parameters(node.layer):
                full = f"{node.layer.name}/{name}"
                if full not in self.program.trainable or any(full == limit[0] for limit in limits):
                    continue
                for axes in node.rule.summed_axes(node.layer, name):
                    sums = grown[full].sum(axes) if axes else grown[full]
                    # Parties see limits: of the first weights, they learn a power of two.
                    limits.append((full, axes, 2.0 ** math.floor(math.log2(float(np.max(sums))))))
        return preflight, tuple(limits)


def largest_label(rows: Rows) -> float:
    """The largest magnitude."""
    return max(float(np.max(np.abs(block.labels))) for block in rows.blocks if block.labels is not None)


def checked_growth(value: Any) -> float | None:
    """The argument weight_growth.

    Raises:
        ConfigurationError: It is no number of at least 1.
    """
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 1:
        raise ConfigurationError(f"weight_growth={value!r}", expected="a number of at least 1", remedy="leave it out")
    return float(value)


def check_split(rows: Rows, validation: Rows) -> None:
    """
    Raises:
        ConfigurationError: One of the two parts has no rows.
    """
    if not rows.rows or not validation.rows:
        raise ConfigurationError(
            f"a split into {rows.rows} and {validation.rows} rows",
            expected="at least one row for each",
            remedy="change validation_split, or give more rows",
        )
