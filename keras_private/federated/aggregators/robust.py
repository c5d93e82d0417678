"""Aggregators that a minority of bad clients cannot steer: trimmed mean, median, and updates that are too large."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ...errors import ConfigurationError
from ..checks import is_number, require
from .base import Aggregator, Cohort, Noise, Payload, Place, Reports, Round, Total, finite_or_nothing, refuse_noise
from .mean import Mean

BLOCK = 1 << 16
"""Coordinates that are sorted at a time, so that the updates are not held twice."""


class _CoordinateWise(Aggregator, abc.ABC):
    """A statistic of each coordinate by itself, over the clients that count; each client weighs 1."""

    weighted = False
    lists_updates = True
    _dimension: Optional[int] = None

    def prepare(self, dimension: int, cohort: Cohort) -> None:
        self._dimension = dimension

    def encode(self, update: tf.Tensor, weight: tf.Tensor, place: Place) -> tuple[Payload, Payload]:
        update, _, counts = finite_or_nothing(update, weight)
        return {"clients": counts}, {"update": update, "counts": counts}

    def total(self, reports: Reports, round: Round, noise: Optional[Noise] = None) -> Total:
        refuse_noise(type(self).__name__, noise)
        updates = [np.asarray(item["update"]) for item in reports.each if int(item["counts"])]
        figures = {"left_out": float(len(round.clients) - len(updates)), **self._measured(len(updates))}
        if not updates:
            return Total(np.zeros(_known(self._dimension)), 0.0, 0, figures)
        found = [
            self._statistic(np.stack([update[start : start + BLOCK] for update in updates]).astype(np.float64))
            for start in range(0, updates[0].size, BLOCK)
        ]
        return Total(np.concatenate(found), 1.0, len(updates), figures)

    def _measured(self, clients: int) -> dict[str, float]:
        return {}

    @abc.abstractmethod
    def _statistic(self, values: np.ndarray) -> np.ndarray:
        """Of float64 [clients, coordinates]; at least one client."""


class Trimmed(_CoordinateWise):
    """The coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-robust distributed learning", definition 2).

    Of the k values of a coordinate the floor(trim k) largest and as many of the smallest are left out, and the rest
    are averaged.

    Args:
        trim: Share that is left out at each end, in [0, 0.5).

    Guarantees:
        - While at most floor(trim k) of k clients lie, each coordinate of the mean is between the smallest and the
          largest value of the clients that do not.
        - A client whose update is not finite, or that has no examples, counts for nothing.

    Not guaranteed:
        - Any protection from the coordinator, which reads every update: not inside SecureAggregation, and no noise.
        - Anything against liars if trim k is below 1; `prepare` warns of that.

    Raises:
        ConfigurationError: `trim` is out of range.
    """

    def __init__(self, trim: float = 0.1) -> None:
        if not is_number(trim) or not 0 <= trim < 0.5:
            raise ConfigurationError(
                f"trim is {trim!r}.", expected="a share from 0 to below 0.5", remedy="Give 0.1, say."
            )
        self._trim = float(trim)

    def prepare(self, dimension: int, cohort: Cohort) -> None:
        super().prepare(dimension, cohort)
        if self._trim > 0 and self._cut(int(cohort.expected)) == 0:
            warnings.warn(
                f"Trimmed({self._trim:g}) leaves nothing out of {cohort.expected:g} clients a round.", stacklevel=2
            )

    def _cut(self, clients: int) -> int:
        # The decimal number that was written: 0.29 of 100 clients are 29.
        return math.floor(Fraction(str(self._trim)) * clients)

    def _measured(self, clients: int) -> dict[str, float]:
        return {"trimmed": float(2 * self._cut(clients))}

    def _statistic(self, values: np.ndarray) -> np.ndarray:
        clients, cut = len(values), self._cut(len(values))
        if cut:
            values = np.partition(values, (cut, clients - cut - 1), axis=0)[cut : clients - cut]
        return values.mean(axis=0)

    def description(self) -> dict[str, Any]:
        return {
            "name": "Trimmed",
            "trim": self._trim,
            "protects_from": _liars("floor(trim * clients)"),
            "simulated": [],
        }


class Median(_CoordinateWise):
    """The coordinate-wise median (Yin et al. 2018, "Byzantine-robust distributed learning", definition 1).

    Guarantees:
        - While fewer than half of the clients lie, each coordinate of the mean is between the smallest and the largest
          value of the clients that do not.
        - A client whose update is not finite, or that has no examples, counts for nothing.

    Not guaranteed:
        - Any protection from the coordinator, which reads every update: not inside SecureAggregation, and no noise.
        - The mean of honest clients whose examples differ: the median of skewed values is another number.
    """

    def _statistic(self, values: np.ndarray) -> np.ndarray:
        return np.median(values, axis=0)

    def description(self) -> dict[str, Any]:
        return {"name": "Median", "protects_from": _liars("fewer than half"), "simulated": []}


class Zeroing(Aggregator):
    """Updates whose L2 norm is above a bound count for nothing; the others go to another aggregator.

    Args:
        inner: The other aggregator; `Mean()` if None.
        l2_norm_bound: The bound. None: `multiple` times the `quantile` of the norms of the round's clients, which the
            coordinator works out, so that it needs every update in the clear. A quantile of the round itself stands
            while fewer than 1 - quantile of the clients lie (the idea of an adaptive bound is that of Andrew et al.
            2021, "Differentially private learning with adaptive clipping"; theirs follows earlier rounds).
        quantile: In [0, 1]; only without `l2_norm_bound`.
        multiple: Above 0; only without `l2_norm_bound`.

    Guarantees:
        - An update above the bound, or not finite, changes neither the mean nor what it is divided by.
        - With `l2_norm_bound` a client decides by itself: any aggregator may be inside, SecureAggregation too.

    Raises:
        ConfigurationError: An argument is out of range, or `inner` must not see updates that are in the clear.
    """

    def __init__(
        self,
        inner: Optional[Aggregator] = None,
        l2_norm_bound: Optional[float] = None,
        quantile: float = 0.5,
        multiple: float = 4.0,
    ) -> None:
        inner = Mean() if inner is None else inner
        require(isinstance(inner, Aggregator), "inner", inner, "an aggregator")
        require(l2_norm_bound is None or (is_number(l2_norm_bound) and l2_norm_bound > 0),
                 "l2_norm_bound", l2_norm_bound, "a number above 0, or None")  # fmt: skip
        require(is_number(quantile) and 0 <= quantile <= 1, "quantile", quantile, "a number from 0 to 1")
        require(is_number(multiple) and multiple > 0, "multiple", multiple, "a number above 0")
        if inner.private:
            raise ConfigurationError(
                "DPAggregator stands inside Zeroing.",
                expected="it outermost, where its rounds are charged; it bounds every update by itself",
                remedy="DPAggregator(Zeroing(..., l2_norm_bound=...)), or DPAggregator alone.",
            )
        if l2_norm_bound is None and inner.hides_updates:
            raise ConfigurationError(
                f"Zeroing by a quantile reads every update, which {type(inner).__name__} does not allow.",
                expected="l2_norm_bound, which each client compares with by itself",
                remedy="Zeroing(inner, l2_norm_bound=...)",
            )
        self._inner, self._bound = inner, None if l2_norm_bound is None else float(l2_norm_bound)
        self._quantile, self._multiple = float(quantile), float(multiple)
        self.weighted, self.hides_updates = inner.weighted, inner.hides_updates
        self.lists_updates = inner.lists_updates or l2_norm_bound is None
        self.draws_per_coordinate = inner.draws_per_coordinate
        self._dimension: Optional[int] = None

    @property
    def inner(self) -> Aggregator:
        return self._inner

    def prepare(self, dimension: int, cohort: Cohort) -> None:
        self._dimension = dimension
        self._inner.prepare(dimension, cohort)

    def check_noise(self, noise: Noise) -> None:
        if self._bound is None:
            refuse_noise("Zeroing by a quantile", noise)
        self._inner.check_noise(noise)

    def close(self) -> None:
        self._inner.close()

    def encode(self, update: tf.Tensor, weight: tf.Tensor, place: Place) -> tuple[Payload, Payload]:
        if self._bound is None:
            update, weight, counts = finite_or_nothing(update, weight)
            norm = _norm(update)
            return {"clients": counts}, {"update": update, "weight": weight, "norm": norm, "counts": counts}
        # The comparison is false for NaN.
        small = _norm(update) <= tf.constant(self._bound, tf.float64)
        update = tf.where(small, update, tf.zeros_like(update))
        return self._inner.encode(update, tf.where(small, weight, tf.zeros_like(weight)), place)

    def total(self, reports: Reports, round: Round, noise: Optional[Noise] = None) -> Total:
        if self._bound is not None:
            return self._inner.total(reports, round, noise)
        refuse_noise("Zeroing by a quantile", noise)
        norms = [float(item["norm"]) for item in reports.each if int(item["counts"])]
        bound = self._multiple * float(np.quantile(norms, self._quantile)) if norms else 0.0
        found = self._inner.total(self._reports_of_inner(reports, round, bound), round)
        zeroed = sum(norm > bound for norm in norms)
        figures = {**found.measurements, "zeroed": float(zeroed), "norm_bound": bound}
        return Total(found.update, found.weight, found.clients, figures)

    def _reports_of_inner(self, reports: Reports, round: Round, bound: float) -> Reports:
        """What the clients would have reported to the inner aggregator."""
        nobody = np.zeros(_known(self._dimension), np.float32)
        summed = _as_arrays(self._encode_here(nobody, 0.0, round, "")[0])
        each = []
        for name, item in zip(round.clients, reports.each):
            small = bool(int(item["counts"])) and float(item["norm"]) <= bound
            weight = float(item["weight"]) if small else 0.0
            one, other = self._encode_here(np.asarray(item["update"]) if small else nobody, weight, round, name)
            for key, value in one.items():
                summed[key] = summed[key] + value.numpy()
            each.append(_as_arrays(other))
        return Reports(summed, tuple(each))

    def _encode_here(self, update: np.ndarray, weight: float, round: Round, name: str) -> tuple[Payload, Payload]:
        place = Place(tf.constant(name), tf.constant(round.session), tf.constant(round.number, tf.int64))
        return self._inner.encode(tf.constant(update), tf.constant(weight, tf.float32), place)

    def description(self) -> dict[str, Any]:
        inner = self._inner.description()
        by = {"quantile": self._quantile, "multiple": self._multiple} if self._bound is None else {}
        return {
            "name": "Zeroing",
            "l2_norm_bound": self._bound,
            **by,
            "inner": inner,
            "protects_from": ["updates of clients that are larger than the bound", *inner["protects_from"]],
            "simulated": list(inner["simulated"]),
        }


def _norm(update: tf.Tensor) -> tf.Tensor:
    """L2 norm in float64, where the squares of float32 neither overflow nor vanish."""
    return tf.sqrt(tf.reduce_sum(tf.square(tf.cast(update, tf.float64))))


def _as_arrays(payload: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in payload.items()}


def _known(dimension: Optional[int]) -> int:
    if dimension is None:
        raise ConfigurationError(
            "The aggregator was not prepared.", expected="prepare before total", remedy="Call prepare."
        )
    return dimension


def _liars(how_many: str) -> list[str]:
    return [f"clients that send what they like, {how_many} of them in a round"]
