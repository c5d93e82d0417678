"""Adam and AMSGrad on shares (Kingma and Ba 2015, "Adam", algorithm 1; Reddi, Kale and Kumar 2018, "On the
convergence of Adam and beyond", algorithm 2)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.optimizers import SGD, StepScale, scaled
from keras_private.encrypted.protocol.comparison import clip, maximum
from keras_private.encrypted.protocol.products import multiply
from keras_private.encrypted.protocol.roots import divided_by_root
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import Shared, concat
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError

LARGEST_GRADIENT = 15.0
"""Elements of a batch's mean gradient beyond this count as this."""

FLOOR = 2.0**-32
"""Added to the mean square: as an epsilon of 2^-16."""

_MEAN_FRACTION = 24
_SQUARE_FRACTION = 36
_LARGEST_EPSILON = 1e-5
_LARGEST_BETA_1 = 0.99
_LARGEST_BETA_2 = 0.9999
_RATE, _FIRST, _SECOND, _DECAY = 11, 16, 19, 17
"""Bits of the numbers in a step's public word: 63 in all."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Public numbers of step t: m <- m + first (g - m), v <- v + second (g^2 - v), and V <- V - decay V."""

    first: int
    second: int
    decay: int


class Adam(SGD):
    """Adam with the averages kept as if corrected for their start, which is the same algorithm:

      m <- m + (1 - beta_1) / (1 - beta_1^t) (g - m),  v <- v + (1 - beta_2) / (1 - beta_2^t) (g^2 - v),
      w <- w - rate m / sqrt(v + FLOOR).

    So v has the size of g^2 from the first step on, and does not vanish below the point. AMSGrad keeps the largest v
    before that correction: V <- max(V (1 - beta_2^(t-1)) / (1 - beta_2^t), v).

    Where it differs from Keras: epsilon counts as 2^-16, inside the root; the rate counts to 0.2 %, 1 - beta_2 = 0.001
    to 0.05 %; a mean gradient beyond LARGEST_GRADIENT counts as that. v is rounded to 2^-36, so that weights whose
    gradients stay below about 1e-4 take smaller steps than Keras's.

    Args:
        beta_1: At most 0.99.
        beta_2: At most 0.9999.
        epsilon: At most 1e-5.
        amsgrad: As in Keras.
        rows: Of a batch; from `of_rows`.

    Raises:
        ConfigurationError: A number is out of these bounds.
    """

    def __init__(self, beta_1: float, beta_2: float, epsilon: float, amsgrad: bool, rows: int = 0) -> None:
        super().__init__()
        for name, value, most in (
            ("beta_1", beta_1, _LARGEST_BETA_1),
            ("beta_2", beta_2, _LARGEST_BETA_2),
            ("epsilon", epsilon, _LARGEST_EPSILON),
        ):
            if not 0 <= value <= most:
                raise ConfigurationError(
                    f"Adam has {name}={value}", expected=f"from 0 to {most} on shares", remedy=f"change {name}"
                )
        self.beta_1, self.beta_2, self.epsilon, self.amsgrad, self.rows = beta_1, beta_2, epsilon, amsgrad, rows

    def check(self, optimizer: Any) -> None:
        """
        Raises:
            ConfigurationError: It has taken steps, of which this model has no averages.
        """
        if int(optimizer.iterations):
            raise ConfigurationError(
                f"an Adam that has taken {int(optimizer.iterations)} steps, whose averages are not here",
                expected="a new one",
                remedy="compile with Adam.from_config(optimizer.get_config())",
            )

    def of_rows(self, rows: int) -> Adam:
        return Adam(self.beta_1, self.beta_2, self.epsilon, self.amsgrad, rows)

    def factor(self, rate: float, rows: int) -> float:
        return rate

    def moments(self, step: int) -> Moments:
        first = (1 - self.beta_1) / (1 - self.beta_1**step)
        second = (1 - self.beta_2) / (1 - self.beta_2**step)
        decay = self.beta_2 ** (step - 1) * second
        return Moments(
            round(first * 2 ** (_FIRST - 1)), round(second * 2 ** (_SECOND - 1)), round(decay * 2 ** (_DECAY - 1))
        )

    def public(self, whole: int, step: int) -> int:
        """The rate's whole number and the moments, in one word."""
        moments = self.moments(step)
        word, start = 0, 0
        for number, bits in (
            (whole, _RATE),
            (moments.first, _FIRST),
            (moments.second, _SECOND),
            (moments.decay, _DECAY),
        ):
            word |= number << start
            start += bits
        return word

    def slots(self, name: str, shape: tuple[int, ...]) -> dict[str, SharedVariable]:
        kinds = {"mean": _MEAN_FRACTION, "square": _SQUARE_FRACTION}
        if self.amsgrad:
            kinds["largest"] = _SQUARE_FRACTION
        return {kind: SharedVariable(f"{name}/{kind}", shape, fraction) for kind, fraction in kinds.items()}

    def update(
        self,
        weights: Mapping[str, SharedVariable],
        slots: Mapping[str, Mapping[str, SharedVariable]],
        gradients: Mapping[str, Shared],
        bounds: Mapping[str, float],
        step_scale: StepScale,
        whole: tf.Tensor,
    ) -> None:
        names = list(gradients)
        session = gradients[names[0]].session
        share = StepScale(1.0 / self.rows)
        means = scaled(gradients, bounds, share, np.int64(share.whole(1.0 / self.rows)), _MEAN_FRACTION)
        gradient = _joined([means[name] for name in names])
        if max(bounds[name] for name in names) / self.rows > LARGEST_GRADIENT:
            gradient = clip(gradient, -LARGEST_GRADIENT, LARGEST_GRADIENT)

        def read(kind: str) -> Shared:
            return _joined([slots[name][kind].read(session) for name in names])

        mean, square = read("mean"), read("square")
        mean = mean + _fraction_of(gradient - mean, whole, _RATE, _FIRST)
        squared = multiply(gradient, gradient, truncated=False)
        squared = truncate(squared, squared.fraction - _SQUARE_FRACTION)
        square = square + _fraction_of(squared - square, whole, _RATE + _FIRST, _SECOND)
        kept = {"mean": mean, "square": square}
        if self.amsgrad:
            before = read("largest")
            decayed = before - _fraction_of(before, whole, _RATE + _FIRST + _SECOND, _DECAY)
            square, _ = maximum(square, decayed)
            kept["largest"] = square
        direction = divided_by_root(mean, square + FLOOR, FLOOR, LARGEST_GRADIENT**2 + 1)
        moved = _times(direction, whole, 0, _RATE)
        step = Shared(session, moved.pairs, moved.fraction + step_scale.exponent)
        fraction = weights[names[0]].fraction
        if step.fraction < fraction:
            step = Shared(session, step.times_integer(2 ** (fraction - step.fraction)).pairs, fraction)
        step = truncate(step, step.fraction - fraction)
        start = 0
        for name in names:
            end = start + int(np.prod(weights[name].shape))
            shaped = functools.partial(tf.reshape, shape=weights[name].shape)
            for kind, value in kept.items():
                slots[name][kind].assign(value[start:end].local(shaped))
            weights[name].assign(weights[name].read(session) - step[start:end].local(shaped))
            start = end


def _joined(values: list[Shared]) -> Shared:
    flat = [value.local(lambda share: tf.reshape(share, [-1])) for value in values]
    return concat(flat, 0) if len(flat) > 1 else flat[0]


def _number(session: Session, party: int, word: tf.Tensor, start: int, bits: int) -> tf.Tensor:
    """One of the public numbers of a word, as this party reads it."""
    with session.at(party):
        shifted = tf.bitwise.right_shift(tf.identity(word), tf.constant(start, tf.int64))
        return tf.bitwise.bitwise_and(shifted, tf.constant(2**bits - 1, tf.int64))


def _times(value: Shared, word: tf.Tensor, start: int, bits: int) -> Shared:
    pairs = []
    for party in range(3):
        number = _number(value.session, party, word, start, bits)
        with value.session.at(party):
            pairs.append(tuple(share * number for share in value.pairs[party]))
    return Shared(value.session, tuple(pairs), value.fraction)  # type: ignore[arg-type]


def _fraction_of(value: Shared, word: tf.Tensor, start: int, bits: int) -> Shared:
    """value times one of the public numbers, which has bits - 1 bits after the point, so that 1 fits."""
    wide = _times(value, word, start, bits)
    return truncate(Shared(value.session, wide.pairs, value.fraction + bits - 1), bits - 1)
