"""Values shared among the three parties, and what each party computes on its shares without talking to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_private.encrypted.session import Session
from keras_private.errors import ConfigurationError

Pairs = tuple[tuple[tf.Tensor, tf.Tensor], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """x = x_0 + x_1 + x_2 modulo 2^64; party i holds (x_i, x_{i+1}).

    Attributes:
        session: The run that it belongs to.
        pairs: pairs[i] are the two int64 tensors of party i.
        fraction: Bits after the point: 0 for integers, such as bits.
    """

    session: Session
    pairs: Pairs
    fraction: int

    @property
    def shape(self) -> tf.TensorShape:
        return self.pairs[0][0].shape

    def local(self, function: Callable[[tf.Tensor], tf.Tensor], fraction: int | None = None) -> Shared:
        """Applies a linear map of the ring to each share, where it is."""
        return local(function, self, fraction=fraction)

    def __add__(self, other: Shared | float) -> Shared:
        if not isinstance(other, Shared):
            return add_public(self, self.session.fixed_point.integer_of(other, fraction=self.fraction))
        _check_alike(self, other, "+")
        return local(tf.add, self, other)

    __radd__ = __add__

    def __sub__(self, other: Shared | float) -> Shared:
        if not isinstance(other, Shared):
            return self + (-other)
        _check_alike(self, other, "-")
        return local(tf.subtract, self, other)

    def __rsub__(self, other: float) -> Shared:
        return -self + other

    def __neg__(self) -> Shared:
        return self.local(tf.negative)

    def times_integer(self, factor: int) -> Shared:
        """Exact, without communication; the bound on the value grows by `factor`."""
        return self.local(lambda share: share * tf.constant(factor, tf.int64))

    def scaled_by_power(self, exponent: int) -> Shared:
        """self * 2^exponent by moving the point, without communication: exact, with more or fewer fraction bits."""
        return dataclasses.replace(self, fraction=self.fraction - exponent)

    def __getitem__(self, index: Any) -> Shared:
        return self.local(lambda share: share[index])


def local(function: Callable[..., tf.Tensor], *values: Shared, fraction: int | None = None) -> Shared:
    """Applies a map that is linear in each ring element to the shares of several values at once."""
    session = values[0].session
    pairs = []
    for party in range(3):
        with session.at(party):
            pairs.append(tuple(function(*(value.pairs[party][place] for value in values)) for place in range(2)))
    return Shared(session, tuple(pairs), values[0].fraction if fraction is None else fraction)


def concat(values: Sequence[Shared], axis: int) -> Shared:
    for value in values[1:]:
        _check_alike(values[0], value, "concat")
    return local(lambda *shares: tf.concat(shares, axis), *values)


def stack(values: Sequence[Shared], axis: int = 0) -> Shared:
    for value in values[1:]:
        _check_alike(values[0], value, "stack")
    return local(lambda *shares: tf.stack(shares, axis), *values)


def add_public(value: Shared, constant: Any) -> Shared:
    """Adds ring elements that every party knows: to share 0, which parties 0 and 2 hold."""
    session = value.session
    pairs = [list(pair) for pair in value.pairs]
    for party, place in ((0, 0), (2, 1)):
        with session.at(party):
            pairs[party][place] = pairs[party][place] + tf.cast(constant, tf.int64)
    # Broadcasting may have changed the shape of share 0: bring the others along.
    shape = pairs[0][0].shape
    if shape != value.shape:
        for party, place in ((0, 1), (1, 0), (1, 1), (2, 0)):
            with session.at(party):
                pairs[party][place] = pairs[party][place] + tf.zeros_like(tf.cast(constant, tf.int64))
    return Shared(session, tuple((pair[0], pair[1]) for pair in pairs), value.fraction)


def zeros(session: Session, shape: Any, fraction: int) -> Shared:
    """A public zero, as shares."""
    pairs = []
    for party in range(3):
        with session.at(party):
            pairs.append((tf.zeros(shape, tf.int64), tf.zeros(shape, tf.int64)))
    return Shared(session, tuple(pairs), fraction)


def _check_alike(left: Shared, right: Shared, operation: str) -> None:
    if left.fraction != right.fraction:
        raise ConfigurationError(
            f"{operation} of values with {left.fraction} and {right.fraction} bits after the point",
            expected="the same number",
            remedy="truncate or rescale one of them",
        )
    if left.session is not right.session:
        raise ConfigurationError(
            f"{operation} of values of two sessions", expected="values of one run", remedy="share them in one session"
        )
