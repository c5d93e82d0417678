"""What stands behind a chain: the form of a value, the parties' runtime, and what encodes and shares."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_private.errors import BackendError, ConfigurationError

Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """What is public of a shared value.

    Attributes:
        shape: Of the value.
        fraction: Bits after the point; 0 for integers.
        bound: No element is larger in absolute value.
    """

    shape: tuple[int, ...]
    fraction: int
    bound: float

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {"shape": list(self.shape), "fraction": self.fraction, "bound": self.bound}

    @staticmethod
    def of_facts(facts: Any) -> Form:
        """
        Raises:
            ConfigurationError: They are not what `facts` gives.
        """
        try:
            shape, fraction, bound = facts["shape"], facts["fraction"], facts["bound"]
            valid = type(fraction) is int and 0 <= fraction <= 62 and type(bound) in (int, float)
            valid = valid and math.isfinite(bound) and bound >= 0
            valid = valid and isinstance(shape, list) and all(type(each) is int and each >= 0 for each in shape)
        except (KeyError, TypeError):
            valid = False
        if not valid:
            raise ConfigurationError("malformed facts of a value", expected="shape, fraction, bound", remedy="check it")
        return Form(tuple(shape), fraction, float(bound))

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a runtime says of a value that the parties have.

    Attributes:
        id: 128 bits as hexadecimal digits. Who knows it may compute with the value, and no more.
        form: Public facts.
        owners: Names of those whose data it was computed from.
        readers: Names of those it may be opened to.
        history: How it was computed, from the ids of its sources.
    """

    id: str
    form: Form
    owners: tuple[str, ...]
    readers: tuple[str, ...]
    history: str


class Runtime(abc.ABC):
    """Three parties, as one name speaks to them. tests/encrypted/test_operations.py holds for every implementation.

    Attributes:
        name: On whose behalf.
        parties: Their names, in the protocol's order.
        simulated: Whether all three run where whoever runs this process can read their memory.
        place: Equal for runtimes whose values can be computed with together.
    """

    name: str
    parties: tuple[str, ...]
    simulated: bool
    place: Any

    @abc.abstractmethod
    def location(self, party: str) -> str:
        """Where a party is, for a reader."""

    @abc.abstractmethod
    def put(self, pairs: Sequence[Pair], form: Form, readers: Sequence[str]) -> Stored:
        """Gives each party its pair."""

    @abc.abstractmethod
    def compute(self, operation: str, options: Mapping[str, Any], inputs: Sequence[Stored]) -> Stored:
        """Has the parties compute; the result stays with them.

        Raises:
            OverflowPreflightError: By the bounds of the inputs, a number could leave the ring.
        """

    @abc.abstractmethod
    def open(self, value: Stored) -> list[np.ndarray]:
        """Masked summands of a value, one of each party.

        Raises:
            AccessError: `name` is none of its readers.
        """

    @abc.abstractmethod
    def release(self, value: Stored, names: Sequence[str]) -> Stored:
        """Consents, as one of its owners, that `names` read it; they may when all owners have consented."""

    @abc.abstractmethod
    def look(self, value_id: str) -> Stored:
        """What the parties say of a value.

        Raises:
            PartiesError: They do not have it, or say different things.
        """

    @abc.abstractmethod
    def drop(self, ids: Sequence[str]) -> None:
        """Has the parties overwrite values that this runtime made."""

    @abc.abstractmethod
    def forget(self, value_id: str) -> None:
        """The same, at the next call: also for use while memory is being freed."""


class Backend(abc.ABC):
    """Encodes and shares, and knows runtimes."""

    @abc.abstractmethod
    def encode(self, values: np.ndarray, fraction: int, bound: float, name: str) -> np.ndarray:
        """Ring elements, int64, of numbers within `bound`."""

    @abc.abstractmethod
    def decode(self, ring: np.ndarray, fraction: int) -> np.ndarray:
        """The inverse, float64."""

    @abc.abstractmethod
    def replicated(self, ring: np.ndarray) -> list[Pair]:
        """Three pairs of shares, drawn afresh."""

    @abc.abstractmethod
    def additive(self, ring: np.ndarray, count: int) -> list[np.ndarray]:
        """`count` summands, drawn afresh; any count - 1 of them are uniform."""

    @abc.abstractmethod
    def joined(self, summands: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse."""

    @abc.abstractmethod
    def runtime(self, cluster: Any, name: str) -> Runtime:
        """Of three party processes, or None: of the parties embedded in this process."""


_backends: list[Backend] = []


def register_backend(found: Backend) -> None:
    """Makes `found` the one that chains use."""
    _backends[:] = [found]


def backend() -> Backend:
    """The one that is registered.

    Raises:
        BackendError: There is none.
    """
    if not _backends:
        raise BackendError(
            "nothing is registered that encodes and shares",
            expected="keras_private.encrypted",
            remedy="use kp.PrivateTensor or kp.encrypt, or import keras_private.encrypted.encryption",
        )
    return _backends[0]
