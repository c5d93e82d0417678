"""What a privacy report is made of: values without behaviour, each checked when it is made."""

from __future__ import annotations

import dataclasses
import decimal
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

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

Fact = Union[str, int, float]
"""A figure or a name, as JSON has them."""


def one_of(names: Iterable[str]) -> dict[str, Any]:
    """Metadata of a field that has one of a few values; the schema of the JSON says so too."""
    return {"one_of": tuple(names)}


def at_least(least: float) -> dict[str, Any]:
    """Metadata of a field with a number that is never less."""
    return {"at_least": least}


@dataclass(frozen=True)
class Sight:
    """What one adversary sees of one thing.

    Attributes:
        item: The thing, such as "examples".
        level: A key of LEVELS.
        note: What qualifies it.
    """

    item: str
    level: str = field(metadata=one_of(LEVELS))
    note: str = ""

    def __post_init__(self) -> None:
        _check_choices(self)


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
        epsilon: 0 or more; infinite: no guarantee is known.
        delta: In [0, 1).
        adjacency: The neighbouring relation: "add or remove one example", "zero out one client" and so on.
        samplers: How steps chose their data, such as "poisson".
        accountant: Such as "pld".
        steps: Noisy releases that were counted.
        steps_are: What they are called: "steps", "rounds" and so on.
        mechanism: What ran, by name and figure.
    """

    unit: str = field(metadata=one_of(UNITS))
    observer: str = field(metadata=one_of(OBSERVERS))
    epsilon: float = field(metadata=at_least(0))
    delta: float = field(metadata=at_least(0))
    adjacency: str
    samplers: tuple[str, ...] = ()
    accountant: str = ""
    steps: int = field(default=0, metadata=at_least(0))
    steps_are: str = "steps"
    mechanism: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choices(self)
        if not _is_number(self.epsilon) or math.isnan(self.epsilon) or self.epsilon < 0:
            raise _wrong("epsilon", self.epsilon, "a number, 0 or more, or infinity")
        if not _is_number(self.delta) or not 0 <= self.delta < 1:
            raise _wrong("delta", self.delta, "a number in [0, 1)")
        _one_of("adjacency", self.adjacency, [f"{relation} one {self.unit}" for relation in RELATIONS])
        if not isinstance(self.steps, int) or self.steps < 0:
            raise _wrong("steps", self.steps, "a whole number, 0 or more")
        for name, value in self.mechanism.items():
            if not (isinstance(value, str) or (_is_number(value) and math.isfinite(value))):
                raise _wrong(f"mechanism[{name!r}]", value, "a text or a finite number")

    @property
    def shown(self) -> str:
        """Epsilon, rounded up."""
        return _rounded_up(self.epsilon, places=3) if math.isfinite(self.epsilon) else "infinite"

    @property
    def shown_delta(self) -> str:
        """Delta, rounded up."""
        return _rounded_up(self.delta, digits=3)


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

    seconds: Optional[float] = field(default=None, metadata=at_least(0))
    bytes: Optional[int] = field(default=None, metadata=at_least(0))
    rounds: Optional[int] = field(default=None, metadata=at_least(0))
    says: str = ""

    def __post_init__(self) -> None:
        for name in ("seconds", "bytes", "rounds"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < math.inf):
                raise _wrong(name, value, "None or a finite number, 0 or more")


@dataclass(frozen=True)
class Series:
    """Figures over the course of training.

    Attributes:
        name: Such as "epsilon" or "val_accuracy".
        x: Numbers of epochs or rounds, ascending.
        y: One figure for each; may be infinite or not a number, as losses may.
        x_is: "epoch" or "round".
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    x_is: str = "epoch"

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise _wrong("y", f"{len(self.y)} figures", f"{len(self.x)}, one for each {self.x_is}")
        if not all(one < other for one, other in zip(self.x, self.x[1:])):
            raise _wrong("x", self.x, "ascending numbers")
        # One object for all that is not a number, so that equal series compare as equal.
        object.__setattr__(self, "y", tuple(math.nan if value != value else value for value in self.y))


def _rounded_up(value: float, places: int = 0, digits: int = 0) -> str:
    """Never below the value: to so many places after the point, or to so many digits."""
    # Of its shortest text, so that 1e-5 stays what it is.
    exact = decimal.Decimal(repr(float(value)))
    context = decimal.Context(prec=digits or 400, rounding=decimal.ROUND_CEILING)
    if places:
        return f"{exact.quantize(decimal.Decimal(10) ** -places, context=context):f}"
    rounded = context.create_decimal(exact)
    text = f"{float(rounded):.{digits}g}"
    # The smallest floats have fewer digits than that.
    return text if decimal.Decimal(text) >= exact else str(rounded)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_choices(value: Any) -> None:
    for name, choices in choices_of(type(value)).items():
        _one_of(name, getattr(value, name), choices)


def choices_of(kind: Any) -> dict[str, tuple[str, ...]]:
    """The fields of a class that have one of a few values."""
    return {each.name: each.metadata["one_of"] for each in dataclasses.fields(kind) if "one_of" in each.metadata}


def _one_of(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        raise _wrong(name, value, f"one of {', '.join(known)}")


def _wrong(name: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r} in a privacy report.", expected=expected, remedy=f"Correct {name}.")
