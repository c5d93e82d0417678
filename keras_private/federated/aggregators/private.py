"""User-level differential privacy around another aggregator: each client's update clipped, the sum noised."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ...dp.mechanisms import GaussianMechanism
from ...errors import AggregationError, ConfigurationError
from ..checks import is_number, require
from .base import Aggregator, Cohort, Noise, Payload, Place, Reports, Round, Total, finite_or_nothing
from .mean import Mean

CLIP_MARGIN = 2.0**-20
"""How far below the bound an update is scaled, so that rounding its coordinates to float32 stays within it."""
LARGEST_DIMENSION = 1 << 30
SMALLEST_CLIP, LARGEST_CLIP = 1e-25, 1e25


class DPAggregator(Aggregator):
    """Makes the mean of a round differentially private for each client with all its examples (user level).

    Every client scales its update to L2 norm at most C, the inner aggregator sums them and adds Gaussian noise, and the
    sum is divided by the expected number of clients (McMahan et al. 2018, "Learning differentially private recurrent
    language models", with the noise of Abadi et al. 2016). Every client weighs 1, whatever the inner aggregator
    was set to, since weights that nobody bounds would move the sum.

    Args:
        inner: Sums the updates and adds the noise; `Mean(weighted=False)` if None.
        l2_norm_clip: The bound C, in [1e-25, 1e25].
        noise_multiplier: Standard deviation of the noise divided by the sensitivity of the sum; 0 means no privacy.
            None: `PrivacyBudget` works it out from epsilon, delta and the planned rounds at the beginning of each fit.

    Guarantees:
        - What one client adds to the sum has L2 norm at most C, in the numbers that travel: norm and scale are
          computed in float64, and the scale leaves room for the rounding to float32.
        - The sensitivity that the noise is for covers the rounding of sums of up to `Cohort.largest` clients.
        - A client whose update is not finite, or that has no examples, adds zeros. Nothing tells that it did.
        - The divisor is public. Total.clients is None, and no figure of the inner aggregator is passed on.
        - A round without clients is noise, like any other.

    Not guaranteed:
        - With `Mean` inside, anything against the coordinator or who runs its workers: they read every update. The
          guarantee is for those who see the model of each round and nothing else (central differential privacy).
        - Charges: the owner of the rounds counts them (keras_private.federated.budget).

    Raises:
        ConfigurationError: An argument is out of range, or `inner` has no sum that noise could be added to.
    """

    weighted = False
    private = True

    def __init__(
        self,
        inner: Optional[Aggregator] = None,
        l2_norm_clip: float = 1.0,
        noise_multiplier: Optional[float] = None,
    ) -> None:
        inner = Mean(weighted=False) if inner is None else inner
        if not isinstance(inner, Aggregator) or inner.lists_updates or inner.private:
            reason = "it is no aggregator"
            if isinstance(inner, Aggregator):
                reason = "it has no sum that noise could be added to"
                if inner.private:
                    reason = "it adds noise already, and rounds would be charged once for two mechanisms"
            raise ConfigurationError(
                f"inner is {type(inner).__name__ if isinstance(inner, Aggregator) else inner}: {reason}.",
                expected="one that sums updates: Mean, SecureAggregation, or Zeroing(l2_norm_bound=...) around one",
                remedy="Choose one of these.",
            )
        require(is_number(l2_norm_clip) and SMALLEST_CLIP <= l2_norm_clip <= LARGEST_CLIP,
                 "l2_norm_clip", l2_norm_clip, f"a number from {SMALLEST_CLIP:g} to {LARGEST_CLIP:g}")  # fmt: skip
        _require_noise(noise_multiplier, optional=True)
        self._inner, self._l2_norm_clip = inner, float(l2_norm_clip)
        self._calibrated = noise_multiplier is None
        self._noise_multiplier = None if noise_multiplier is None else float(noise_multiplier)
        self._dimension: Optional[int] = None
        self._cohort: Optional[Cohort] = None
        self.hides_updates, self.draws_per_coordinate = inner.hides_updates, inner.draws_per_coordinate

    @property
    def inner(self) -> Aggregator:
        return self._inner

    @property
    def l2_norm_clip(self) -> float:
        return self._l2_norm_clip

    @property
    def noise_multiplier(self) -> Optional[float]:
        """As given; of the last fit where a budget sets it; None before."""
        return self._noise_multiplier

    @property
    def calibrated(self) -> bool:
        """Whether a budget sets the noise."""
        return self._calibrated

    @property
    def dimension(self) -> int:
        """Draws of noise in each round: one for a coordinate, or as many as the inner aggregator takes.

        Raises:
            ConfigurationError: Before `prepare`.
        """
        return self._prepared()[0] * self._inner.draws_per_coordinate

    def calibrate(self, noise_multiplier: float) -> None:
        """Sets the noise of the next rounds, if none was given.

        Raises:
            ConfigurationError: It was given, is out of range, or is too much for the grid of the noise.
        """
        if not self._calibrated:
            raise ConfigurationError(
                f"The noise multiplier {self._noise_multiplier} was given.",
                expected="noise_multiplier=None where a budget works it out",
                remedy="Leave out noise_multiplier.",
            )
        _require_noise(noise_multiplier)
        self._noise_multiplier = float(noise_multiplier)
        self._check_grid()
        if self._dimension is not None:
            self._inner.check_noise(self.noise())

    def prepare(self, dimension: int, cohort: Cohort) -> None:
        if not 1 <= dimension <= LARGEST_DIMENSION:
            raise ConfigurationError(
                f"An update has {dimension} coordinates.",
                expected=f"1 to {LARGEST_DIMENSION}",
                remedy="Train fewer variables.",
            )
        if not cohort.expected > 0:
            raise ConfigurationError(
                f"{cohort.expected} clients are expected in a round.", expected="more", remedy="Name clients."
            )
        self._dimension, self._cohort = dimension, cohort
        self._check_grid()
        self._inner.prepare(dimension, cohort)
        if self._noise_multiplier is not None and not self._calibrated:
            self._inner.check_noise(self.noise())

    def close(self) -> None:
        self._inner.close()

    def encode(self, update: tf.Tensor, weight: tf.Tensor, place: Place) -> tuple[Payload, Payload]:
        update, _, _ = finite_or_nothing(update, weight)
        clipped = clip(update, self._l2_norm_clip)
        # Sums of float64 are of no other order than exact ones. One weight for all, so that none tells anything.
        return self._inner.encode(tf.cast(clipped, tf.float64), tf.ones([], tf.float64), place)

    def total(self, reports: Reports, round: Round, noise: Optional[Noise] = None) -> Total:
        _, cohort = self._prepared()
        if noise is not None:
            raise ConfigurationError(
                "DPAggregator was asked for other noise than its own.", expected="it outermost", remedy="Put it there."
            )
        if len(round.clients) > cohort.largest or len(set(round.clients)) < len(round.clients):
            raise AggregationError(
                f"Round {round.number} has {len(round.clients)} clients, {len(set(round.clients))} different ones.",
                expected=f"at most {cohort.largest}, each once: what the noise is for",
                remedy="Give every client a name of its own.",
            )
        found = self._inner.total(reports, round, self.noise())
        return Total(np.asarray(found.update, np.float64), float(cohort.expected))

    def noise(self) -> Noise:
        """What the sum of a round must carry.

        Raises:
            ConfigurationError: No noise was given and no budget has set any; or before `prepare`.
        """
        _, cohort = self._prepared()
        if self._noise_multiplier is None:
            raise ConfigurationError(
                "The noise multiplier is not known.",
                expected="DPAggregator(noise_multiplier=...), or a PrivacyBudget in the callbacks of fit",
                remedy="Give one of the two.",
            )
        return Noise(self._noise_multiplier, self._l2_norm_clip * (1.0 + summation_slack(cohort.largest)))

    def description(self) -> dict[str, Any]:
        inner = self._inner.description()
        if "weighted" in inner:
            inner = {**inner, "weighted": False}
        if self._noise_multiplier == 0:
            protects: list[str] = []
        elif self.hides_updates and not inner["simulated"]:
            protects = ["whoever sees the models of the rounds, the coordinator included, as far as `inner` keeps "
                        "single updates from it"]  # fmt: skip
        else:
            protects = ["whoever sees only the models of the rounds: central, the coordinator reads every update"]
        return {
            "name": "DPAggregator",
            "l2_norm_clip": self._l2_norm_clip,
            "noise_multiplier": self._noise_multiplier,
            "unit": "client",
            "inner": inner,
            "protects_from": [*protects, *inner["protects_from"]],
            "simulated": list(inner["simulated"]),
        }

    def _prepared(self) -> tuple[int, Cohort]:
        if self._dimension is None or self._cohort is None:
            raise ConfigurationError(
                "The aggregator was not prepared.", expected="prepare before total", remedy="Call prepare."
            )
        return self._dimension, self._cohort

    def _check_grid(self) -> None:
        """GaussianMechanism refuses more coordinates than its grid is fine enough for."""
        if self._dimension is not None and self._noise_multiplier is not None:
            GaussianMechanism(self._l2_norm_clip, self._noise_multiplier, self._dimension)


def clip(update: tf.Tensor, l2_norm_clip: float) -> tf.Tensor:
    """The update, scaled where its L2 norm is above the bound.

    Rounding: squares of float32 are exact in float64, a sum of d of them is off by at most d 2**-53 of itself, and
    rounding to float32 moves a coordinate by 2**-24 of itself or by 2**-150, whichever is more. For d up to 2**30 and
    bounds down to 1e-25 all of that is below CLIP_MARGIN.

    Args:
        update: float32 [d], finite.
        l2_norm_clip: The bound.

    Returns:
        float32 [d], of norm at most `l2_norm_clip`.
    """
    wide = tf.cast(update, tf.float64)
    norm = tf.sqrt(tf.reduce_sum(tf.square(wide)))
    bound = tf.constant(l2_norm_clip * (1.0 - CLIP_MARGIN), tf.float64)
    return tf.cast(wide * (bound / tf.maximum(norm, bound)), tf.float32)


def summation_slack(largest: int) -> float:
    """How far rounding can move apart the sums of two neighbouring rounds, beyond one client's update; unit C.

    No partial sum of n vectors of norm C is longer than n C. Each of n additions in float64 is off by at most 2**-53 of
    its result, and so is one rounding of the sum to float32 by 2**-24; both for either round.
    """
    return largest * 2.0**-23 + largest**2 * 2.0**-52


def _require_noise(value: Any, optional: bool = False) -> None:
    right = (optional and value is None) or (is_number(value) and value >= 0)
    require(right, "noise_multiplier", value, "a number, 0 or more" + (", or None" if optional else ""))
