"""Which clients take part in a round."""

from __future__ import annotations

import abc
import secrets
from collections.abc import Sequence
from typing import Optional

import numpy as np

from ..errors import ConfigurationError
from .aggregators.base import Cohort
from .checks import is_whole

FIXED, POISSON = "fixed", "poisson"


class ClientSampler(abc.ABC):
    """Draws the clients of each round.

    Guarantees:
        - Draws come from the operating system's generator, unless a seed is given.
    """

    @property
    @abc.abstractmethod
    def cohort(self) -> Cohort:
        """The size of a round."""

    @abc.abstractmethod
    def draw(self) -> list[str]:
        """Names of one round's clients, in the order of the population."""


class FixedSampler(ClientSampler):
    """As many clients in each round, all subsets alike."""

    def __init__(self, names: Sequence[str], size: int, generator: Optional[np.random.Generator]) -> None:
        self._names, self._size, self._generator = list(names), size, generator

    @property
    def cohort(self) -> Cohort:
        return Cohort(float(self._size), self._size, len(self._names), True, tuple(self._names))

    def draw(self) -> list[str]:
        everyone = range(len(self._names))
        if self._generator is None:
            chosen = secrets.SystemRandom().sample(everyone, self._size)
        else:
            chosen = self._generator.choice(len(self._names), self._size, replace=False).tolist()
        return [self._names[index] for index in sorted(chosen)]


class PoissonClients(ClientSampler):
    """Each client by itself, with one probability: the sampling that amplifies user-level privacy."""

    def __init__(self, names: Sequence[str], expected: float, generator: Optional[np.random.Generator]) -> None:
        self._names, self._generator = list(names), generator
        self.probability = expected / len(self._names)

    @property
    def cohort(self) -> Cohort:
        population = len(self._names)
        names = tuple(self._names)
        return Cohort(self.probability * population, population, population, self.probability >= 1.0, names)

    def draw(self) -> list[str]:
        if self.probability >= 1.0:
            return list(self._names)
        if self._generator is None:
            draws = [secrets.randbits(53) * 2.0**-53 for _ in self._names]
        else:
            draws = self._generator.random(len(self._names)).tolist()
        return [name for name, draw in zip(self._names, draws) if draw < self.probability]


def sampler_of(
    kind: str, names: Sequence[str], clients_per_round: Optional[int], generator: Optional[np.random.Generator]
) -> ClientSampler:
    """The sampler that `fit` uses.

    Args:
        kind: "fixed" or "poisson".
        names: Of all clients.
        clients_per_round: How many, in expectation for "poisson"; None: all.
        generator: None for the operating system's.

    Raises:
        ConfigurationError: An unknown kind, or a number of clients that there are not.
    """
    size = len(names) if clients_per_round is None else clients_per_round
    if not is_whole(size) or not 1 <= size <= len(names):
        raise ConfigurationError(
            f"clients_per_round is {clients_per_round!r}.",
            expected=f"a whole number from 1 to {len(names)}, the number of clients",
            remedy="Give fewer, or None for all of them.",
        )
    if kind not in (FIXED, POISSON):
        raise ConfigurationError(
            f"The sampling is {kind!r}.", expected=f"{FIXED!r} or {POISSON!r}", remedy="Choose one of these."
        )
    if kind == POISSON:
        return PoissonClients(names, float(size), generator)
    return FixedSampler(names, int(size), generator)
