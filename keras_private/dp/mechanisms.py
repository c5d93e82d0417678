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
from dataclasses import dataclass

import tensorflow as tf

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

    def release(self, clipped_sum: tf.Tensor, divisor: float) -> tf.Tensor:
        """The noisy sum divided by `divisor`.

        Args:
            clipped_sum: One variable's clipped sum, floating point, any shape.
            divisor: A public number: the expected batch size.
        """
        if self.noise_multiplier == 0.0:
            return clipped_sum / tf.constant(divisor, clipped_sum.dtype)
        noisy = secure_source().add_gaussian_noise(
            tf.cast(clipped_sum, tf.float32), cell=self.cell, scale=1.0 / divisor
        )
        return tf.cast(noisy, clipped_sum.dtype)
