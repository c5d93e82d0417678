"""Shares that outlive a run: weights, optimizer state, running totals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import Shared


class SharedVariable:
    """For each party two int64 variables: its pair of shares.

    Args:
        name: Of the value.
        shape: Of the value.
        fraction: Bits after the point.
    """

    def __init__(self, name: str, shape: Sequence[int], fraction: int) -> None:
        self.name, self.shape, self.fraction = name, tuple(shape), fraction
        self.pairs = tuple(
            tuple(
                tf.Variable(tf.zeros(self.shape, tf.int64), trainable=False, name=f"server{party}/{name}/{place}")
                for place in range(2)
            )
            for party in range(3)
        )

    def read(self, session: Session) -> Shared:
        """The value in this run."""
        pairs = []
        for party in range(3):
            with session.at(party):
                pairs.append(tuple(variable.read_value() for variable in self.pairs[party]))
        return Shared(session, tuple(pairs), self.fraction)  # type: ignore[arg-type]

    def assign(self, value: Shared) -> None:
        """Each party keeps its pair."""
        if value.fraction != self.fraction:
            raise ValueError(f"{self.name} has {self.fraction} bits after the point, the value {value.fraction}")
        for party in range(3):
            with value.session.at(party):
                for variable, share in zip(self.pairs[party], value.pairs[party]):
                    variable.assign(share, read_value=False)

    def shares(self) -> list[tuple[np.ndarray, ...]]:
        """Each party's pair as arrays, to be stored by that party."""
        return [tuple(variable.numpy() for variable in pair) for pair in self.pairs]

    def put(self, shares: Sequence[Sequence[Any]]) -> None:
        """The inverse of `shares`."""
        for pair, arrays in zip(self.pairs, shares):
            for variable, array in zip(pair, arrays):
                variable.assign(array)
