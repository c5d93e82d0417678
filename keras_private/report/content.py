"""What a privacy report is made of: values without behaviour, each checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from ..errors import ConfigurationError

NOTHING, SHARES, NOISY, TOTALS, CLEAR = "nothing", "shares", "noisy", "totals", "clear"
LEVELS: dict[str, str] = {
    NOTHING: "gets nothing of it",
    SHARES: "gets words that are uniform to it alone",
    NOISY: "gets it with noise; epsilon says what that tells",
    TOTALS: "gets exact sums or functions over several examples or clients",
    CLEAR: "reads it",
}
"""How much an adversary sees, from least to most."""

EXAMPLE, CLIENT = "example", "client"
UNITS = (EXAMPLE, CLIENT)
"""What one guarantee protects: a row of the data, or a client with all its rows."""

ADD_OR_REMOVE, ZERO_OUT = "add or remove", "zero out"
RELATIONS = (ADD_OR_REMOVE, ZERO_OUT)
"""How neighbouring data differ, in one unit."""

RELEASE, COHORT, COORDINATOR = "release", "cohort", "coordinator"
OBSERVERS: dict[str, str] = {
    RELEASE: "whoever gets the models",
    COHORT: "whoever also sees who took part",
    COORDINATOR: "the coordinator, and the parties if there are any",
}
"""Whom an epsilon holds against, from least to most that they see."""


@dataclass(frozen=True)
class Sight:
    """What one adversary sees of one thing.

    Attributes:
        item: The thing, such as "examples".
        level: A key of LEVELS.
        note: What qualifies it.
    """

    item: str
    level: str
    note: str = ""

    def __post_init__(self) -> None:
        _one_of("level", self.level, LEVELS)


@dataclass(frozen=True)
class View:
    """What one adversary sees, of everything that the report speaks of.

    Attributes:
        adversary: Who.
        sights: One for each thing.
        assumes: What must hold for this view to be true, such as a second party that keeps apart.
    """

    adversary: str
    sights: tuple[Sight, ...]
    assumes: str = ""

    def __post_init__(self) -> None:
        items = [sight.item for sight in self.sights]
        if len(set(items)) < len(items):
            raise _wrong("sights", items, "each thing once")

    def of(self, item: str) -> Sight:
        """What is seen of one thing.

        Raises:
            KeyError: The view does not speak of it.
        """
        return {sight.item: sight for sight in self.sights}[item]


@dataclass(frozen=True)
class Spending:
    """One differential-privacy guarantee.

    Attributes:
        unit: What is protected, of UNITS.
        observer: Against whom, a key of OBSERVERS.
        epsilon: 0 or more; infinite: there is no guarantee.
        delta: In [0, 1).
        adjacency: The neighbouring relation: "add or remove one example", "zero out one client" and so on.
        samplers: How steps chose their data, such as "poisson".
        accountant: Such as "pld".
        steps: Noisy releases that were counted.
        steps_are: "steps" or "rounds".
        mechanism: What ran, by name and figure.
    """

    unit: str
    observer: str
    epsilon: float
    delta: float
    adjacency: str
    samplers: tuple[str, ...] = ()
    accountant: str = ""
    steps: int = 0
    steps_are: str = "steps"
    mechanism: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("unit", self.unit, UNITS)
        _one_of("observer", self.observer, OBSERVERS)
        if not _is_number(self.epsilon) or math.isnan(self.epsilon) or self.epsilon < 0:
            raise _wrong("epsilon", self.epsilon, "a number, 0 or more, or infinity")
        if not _is_number(self.delta) or not 0 <= self.delta < 1:
            raise _wrong("delta", self.delta, "a number in [0, 1)")
        relations = [f"{relation} one {self.unit}" for relation in RELATIONS]
        _one_of("adjacency", self.adjacency, relations)

    @property
    def shown(self) -> str:
        """Epsilon, rounded up."""
        return f"{math.ceil(self.epsilon * 1e3) / 1e3:.3f}" if math.isfinite(self.epsilon) else "infinite"


@dataclass(frozen=True)
class Protocol:
    """How something is hidden, and what that rests on.

    Attributes:
        name: Such as "ABY3".
        assumptions: What must hold.
        source: Paper and section.
    """

    name: str
    assumptions: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Cost:
    """What it took; None where it was not measured.

    Attributes:
        seconds: By the clock.
        bytes: Sent between those whom the report names.
        rounds: Messages that wait for one another, or rounds of training.
        says: What exactly was counted.
    """

    seconds: Optional[float] = None
    bytes: Optional[int] = None
    rounds: Optional[int] = None
    says: str = ""


@dataclass(frozen=True)
class Series:
    """Figures over the course of training.

    Attributes:
        name: Such as "epsilon" or "val_accuracy".
        x: Numbers of epochs or rounds, ascending.
        y: One figure for each.
        x_is: "epoch" or "round".
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_is: str = "epoch"

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise _wrong("y", f"{len(self.y)} figures", f"{len(self.x)}, one for each {self.x_is}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _one_of(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise _wrong(name, value, f"one of {', '.join(known)}")


def _wrong(name: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r} in a privacy report.", expected=expected, remedy=f"Correct {name}.")
