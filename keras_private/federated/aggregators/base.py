"""What an aggregator is: from one vector per client to one mean vector."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ...errors import ConfigurationError

Payload = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Place:
    """What a client's graph knows of the round it works for; scalars of the traced graph.

    Attributes:
        client: Name of the client, tf.string.
        session: Identifies the call of `fit`, tf.string of 32 hexadecimal digits.
        round: Number of the round, from 1, tf.int64.
    """

    client: tf.Tensor
    session: tf.Tensor
    round: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Round:
    """One round, as the coordinator sees it.

    Attributes:
        session: Identifies the call of `fit`; 32 hexadecimal digits.
        number: Number of the round, from 1.
        clients: Names of the clients that reported, in the order of `Reports.each`.
    """

    session: str
    number: int
    clients: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reports:
    """What the coordinator receives.

    Attributes:
        summed: Name -> sum over the clients of this part of their payload; int64 sums wrap modulo 2^64.
        each: One mapping for each client that reported: the part of the payload that is not summed.
    """

    summed: Mapping[str, np.ndarray]
    each: tuple[Mapping[str, np.ndarray], ...]

    def bytes_of(self, clients: int) -> int:
        """What so many clients gave: each a vector of the size of the sum, and what is not summed."""
        vectors = clients * sum(np.asarray(value).nbytes for value in self.summed.values())
        return vectors + sum(np.asarray(value).nbytes for one in self.each for value in one.values())


@dataclasses.dataclass(frozen=True)
class Cohort:
    """How many clients a round can have.

    Attributes:
        expected: Expected number; what a private mean divides by, since the realised number is not public.
        largest: No round has more.
        population: Number of all clients.
        fixed: Every round has exactly `expected` clients; False: their number is random (Poisson sampling).
        names: Of all clients.
    """

    expected: float
    largest: int
    population: int
    fixed: bool = True
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Noise:
    """Gaussian noise that a sum must carry before anybody sees it.

    Attributes:
        noise_multiplier: Standard deviation divided by the sensitivity of the sum. Who adds the noise knows how it
            rounds, and counts that in the sensitivity.
        l2_norm_clip: L2 norm of what one client can add to the sum, before any rounding.
    """

    noise_multiplier: float
    l2_norm_clip: float


@dataclasses.dataclass(frozen=True)
class Total:
    """A sum over clients, opened.

    Attributes:
        update: Weighted sum of the updates, float64 [d].
        weight: What to divide by: the sum of the weights, or the expected number of clients.
        clients: Number of clients that count; None if nobody may know.
        measurements: Figures for the logs of the round.
    """

    update: np.ndarray
    weight: float
    clients: Optional[int] = None
    measurements: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> np.ndarray:
        """The weighted mean, float64 [d]; zeros if no client counts."""
        return self.update / self.weight if self.weight > 0 else np.zeros_like(self.update)


class Aggregator(abc.ABC):
    """Turns the update vectors of one round's clients into their mean.

    `encode` runs where a client's work runs, inside a graph of stock TensorFlow operations; `total` runs at the
    coordinator. Between them stand sums and, for what cannot be summed, lists.

    Attributes:
        weighted: The number of a client's examples is its weight; False: each client weighs 1.
        hides_updates: The coordinator is not meant to read a single client's update. Then nothing else of one
            client's training reaches it in the clear either: the engine sends no training metrics.
        private: The mean satisfies user-level differential privacy.
        lists_updates: `total` needs each client's update by itself, in the clear.
        draws_per_coordinate: Draws of Gaussian noise for a coordinate of a noisy sum, for accounting: each is off its
            law by a little.
    """

    weighted: bool = True
    hides_updates: bool = False
    private: bool = False
    lists_updates: bool = False
    draws_per_coordinate: int = 1

    def prepare(self, dimension: int, cohort: Cohort) -> None:  # noqa: B027 - not all have something to prepare
        """Called once before the first round of each `fit`.

        Args:
            dimension: Length d of an update.
            cohort: The size of a round.

        Raises:
            ConfigurationError: The aggregator cannot work with these.
        """

    @abc.abstractmethod
    def encode(self, update: tf.Tensor, weight: tf.Tensor, place: Place) -> tuple[Payload, Payload]:
        """What one client reports.

        Args:
            update: Weights after local training minus weights before, [d], d static; float32, or float64 from an
                aggregator around this one.
            weight: Weight of this client, scalar of the same dtype; 1 unless `weighted`, 0 for one without examples.
            place: The client and the round.

        Returns:
            What is summed over clients (float32, float64 or int64 of static shapes), and what is not.
        """

    @abc.abstractmethod
    def total(self, reports: Reports, round: Round, noise: Optional[Noise] = None) -> Total:
        """The sum over the round's clients.

        Args:
            reports: What the clients reported.
            round: The round.
            noise: Noise to add before anybody sees the sum.

        Raises:
            ConfigurationError: Noise is asked for and this aggregator cannot add it.
        """

    def check_noise(self, noise: Noise) -> None:  # noqa: B027 - as prepare
        """Called after `prepare` and before the first round, if sums will carry this noise.

        Raises:
            ConfigurationError: They cannot.
        """

    def close(self) -> None:  # noqa: B027 - as prepare
        """Ends what `prepare` started; called at the end of each `fit`, also after an exception."""

    @abc.abstractmethod
    def description(self) -> dict[str, Any]:
        """For reports: `name`, `protects_from` (a list), `simulated` (a list of what is), and the parameters."""


def finite_or_nothing(update: tf.Tensor, weight: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The update and its weight, or zeros for both if a coordinate or the weight is not finite, or the weight is 0.

    Returns:
        update: float32 [d].
        weight: float32 scalar.
        counts: 1 if the client counts, else 0; int64 scalar.
    """
    good = tf.reduce_all(tf.math.is_finite(update)) & tf.math.is_finite(weight) & (weight > 0)
    # Chosen before any product: NaN times zero is NaN.
    return (
        tf.where(good, update, tf.zeros_like(update)),
        tf.where(good, weight, tf.zeros_like(weight)),
        tf.cast(good, tf.int64),
    )


def refuse_noise(name: str, noise: Optional[Noise]) -> None:
    """For aggregators whose result is no sum of bounded terms."""
    if noise is not None:
        raise ConfigurationError(
            f"{name} has no sum that noise could be added to.",
            expected="Mean or SecureAggregation inside DPAggregator",
            remedy="Choose one of these.",
        )
