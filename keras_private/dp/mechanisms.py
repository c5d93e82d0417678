"""The Gaussian mechanism on a grid: the one place where noise meets a clipped sum.

Construction: the sum is rounded once to the nearest point of a grid, and rounded Gaussian noise, a whole
number of grid cells, is added in integers. Since k + floor(z) = floor(k + z) for an integer k, the result is a
function of the continuous Gaussian mechanism on the rounded sum and inherits its guarantee exactly, for every
accountant; no floating-point bit of the exact sum survives (Mironov 2012, "On significance of the least
significant bits for differential privacy"). What the sampler lacks to the exact law is
`random.TOTAL_VARIATION_PER_DRAW` per coordinate, which accounting takes out of delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from .. import native
from ..errors import ConfigurationError
from ..random import CELLS_PER_SIGMA, secure_source
from .clipping import FLOAT_SLACK


@dataclass(frozen=True)
class GaussianMechanism:
    """Adds Gaussian noise to a sum of vectors that one example can move by at most `l2_norm_clip`.

    Guarantees:
        - The noise has standard deviation `noise_multiplier * sensitivity` in every coordinate.
        - `sensitivity` covers the clip norm, float32 slack in norm and contraction, and the rounding of the
          sum to the grid: at most one cell in each coordinate.
        - With noise_multiplier 0 nothing is added and nothing is rounded: no privacy.

    Attributes:
        l2_norm_clip: The clip norm C, in the unit of the gradients.
        noise_multiplier: Standard deviation of the noise divided by the sensitivity.
        coordinates: Number of coordinates of the whole sum, over all variables.
    """

    l2_norm_clip: float
    noise_multiplier: float
    coordinates: int

    def __post_init__(self) -> None:
        if self.noise_multiplier * math.sqrt(self.coordinates) > CELLS_PER_SIGMA / 2:
            raise ConfigurationError(
                f"{self.coordinates} coordinates at noise multiplier {self.noise_multiplier} are too many for "
                f"the grid of {CELLS_PER_SIGMA} cells per standard deviation.",
                expected="noise_multiplier * sqrt(coordinates) at most half the cells",
                remedy="Train fewer variables privately.",
            )

    @property
    def cell(self) -> float:
        """Size of a grid cell, in the unit of the gradients; 0 without noise."""
        rounding = self.noise_multiplier * math.sqrt(self.coordinates)
        bound = self.l2_norm_clip * (1.0 + FLOAT_SLACK)
        return self.noise_multiplier * bound / (CELLS_PER_SIGMA - rounding)

    @property
    def sensitivity(self) -> float:
        """Largest L2 distance of the rounded sums of two neighbouring batches."""
        return self.l2_norm_clip * (1.0 + FLOAT_SLACK) + self.cell * math.sqrt(self.coordinates)

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of the noise in each coordinate of the sum."""
        return self.cell * CELLS_PER_SIGMA

    def release(self, clipped_sums: Sequence[tf.Tensor], divisor: float) -> list[tf.Tensor]:
        """The noisy sums divided by `divisor`.

        Args:
            clipped_sums: Each variable's clipped sum, floating point, any shapes; together `coordinates` entries.
            divisor: A public number: the expected batch size.

        Raises:
            ConfigurationError: The sums have more coordinates than the sensitivity covers.
        """
        sizes = [int(item.shape.num_elements()) for item in clipped_sums]
        if sum(sizes) > self.coordinates:
            raise ConfigurationError(
                f"{sum(sizes)} coordinates are to be released.",
                expected=f"at most {self.coordinates}, for which the sensitivity was worked out",
                remedy="Make the mechanism for all variables of the step.",
            )
        if self.noise_multiplier == 0.0:
            return [item / tf.constant(divisor, item.dtype) for item in clipped_sums]
        singles = [tf.cast(item, tf.float32) for item in clipped_sums]
        source = secure_source()
        if source.name == "native":
            noisy = self._release_natively(singles, sum(sizes), divisor)
        else:
            # Each portable draw adds thousands of operations to the graph, so that one draw serves all variables.
            flat = tf.concat([tf.reshape(item, [-1]) for item in singles], axis=0)
            noisy = tf.split(source.add_gaussian_noise(flat, cell=self.cell, scale=1.0 / divisor), sizes)
        return [tf.cast(tf.reshape(result, item.shape), item.dtype) for result, item in zip(noisy, clipped_sums)]

    def _release_natively(self, sums: Sequence[tf.Tensor], total: int, divisor: float) -> list[tf.Tensor]:
        """One draw for all variables that waits for nothing of the step, then one pass: round, add, scale."""
        ops = native.load()
        cells = ops.keras_private_noise_cells(count=total)
        cell, scale = tf.constant(self.cell, tf.float64), tf.constant(1.0 / divisor, tf.float64)
        return list(ops.keras_private_release_sums(sums, cells, cell, scale))
