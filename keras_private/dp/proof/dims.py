"""Symbolic sizes: monomials such as 196 * batch, so that shapes of a traced step can be compared exactly."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Union

BATCH = "batch"

Number = Union[int, float, Fraction]


@dataclass(frozen=True)
class Dim:
    """`coefficient * product(symbol ** power)`.

    Attributes:
        coefficient: An exact rational number.
        powers: Sorted (symbol, non-zero power) pairs; `BATCH` is the realised batch size.
    """

    coefficient: Fraction
    powers: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def of(number: Number) -> Dim:
        return Dim(Fraction(number))

    @staticmethod
    def symbol(name: str) -> Dim:
        return Dim(Fraction(1), ((name, 1),))

    @property
    def is_number(self) -> bool:
        return not self.powers

    @property
    def is_one(self) -> bool:
        return self.is_number and self.coefficient == 1

    def power_of(self, symbol: str) -> int:
        return dict(self.powers).get(symbol, 0)

    @property
    def has_batch(self) -> bool:
        return self.power_of(BATCH) != 0

    def __int__(self) -> int:
        if not self.is_number or self.coefficient.denominator != 1:
            raise ValueError(f"{self} is not an integer")
        return int(self.coefficient)

    def __mul__(self, other: Dim) -> Dim:
        powers = dict(self.powers)
        for name, power in other.powers:
            powers[name] = powers.get(name, 0) + power
        kept = tuple(sorted((name, power) for name, power in powers.items() if power))
        return Dim(self.coefficient * other.coefficient, kept)

    def inverse(self) -> Dim:
        return Dim(1 / self.coefficient, tuple((name, -power) for name, power in self.powers))

    def __truediv__(self, other: Dim) -> Dim:
        return self * other.inverse()

    def divides_exactly(self, other: Dim) -> bool:
        """Whether other / self is a whole multiple for every value of the symbols."""
        if self.coefficient == 0:
            return False
        quotient = other / self
        return quotient.coefficient.denominator == 1 and all(power > 0 for _, power in quotient.powers)

    def __str__(self) -> str:
        names = [name if power == 1 else f"{name}^{power}" for name, power in self.powers]
        if self.coefficient != 1 or not names:
            names.insert(0, str(self.coefficient))
        return "*".join(names)


ONE = Dim.of(1)


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    result = ONE
    for dim in dims:
        result = result * dim
    return result
