"""Optimizers on shares: SGD, with momentum and Nesterov's; adaptive.py has Adam."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_private.encrypted.fixed_point import TRUNCATION_BITS, FixedPoint
from keras_private.encrypted.protocol.functions import with_fraction
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.shared import Shared, concat
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, OverflowPreflightError

_FACTOR_BITS = 10
_LEAST_FACTOR_BITS = 8
_LARGEST_EXPONENT = 38
_MOMENTUM_BITS = 12
_MOST_TRUNCATED = 54
VELOCITY_FRACTION = 24


class StepScale:
    """The public number learning rate / rows of the batch, as a whole number times a power of two.

    It is a whole number of 8 to 10 bits, so that the learning rate counts to 0.2 %; factors below 2^-30 count to
    2^-38. `exponent` is fixed while tracing; `within` tells whether another rate still fits that trace.
    """

    def __init__(self, factor: float) -> None:
        exponent = _FACTOR_BITS - 1 - math.floor(math.log2(factor)) if factor > 0 else 0
        self.exponent = min(exponent, _LARGEST_EXPONENT)

    def within(self, factor: float) -> bool:
        # A factor of 0 is a whole number at any exponent.
        whole = factor * 2.0**self.exponent
        least = 0 if self.exponent == _LARGEST_EXPONENT else 2 ** (_LEAST_FACTOR_BITS - 1)
        return factor == 0 or least <= whole <= 2**_FACTOR_BITS

    def whole(self, factor: float) -> int:
        return round(factor * 2.0**self.exponent)


class SGD:
    """w <- w - rate g; with momentum: v <- momentum v - rate g, w <- w + v (Keras's own form).

    Velocities have VELOCITY_FRACTION bits after the point.
    """

    def __init__(self, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.momentum, self.nesterov = momentum, nesterov

    def check(self, optimizer: Any) -> None:
        """Whether compile can take the Keras optimizer as it stands: SGD counts no steps.

        Raises:
            ConfigurationError: Velocities would never fade.
        """
        if self.momentum and round(self.momentum * 2**_MOMENTUM_BITS) >= 2**_MOMENTUM_BITS:
            raise ConfigurationError(
                f"momentum={self.momentum}",
                expected=f"at most 1 - 2^-{_MOMENTUM_BITS}, which it is rounded to",
                remedy="use a smaller momentum",
            )

    def of_rows(self, rows: int) -> SGD:
        """The rule for batches of so many rows."""
        return self

    def factor(self, rate: float, rows: int) -> float:
        """The public number that StepScale encodes."""
        return rate / rows

    def public(self, whole: int, step: int) -> int:
        """The public word of a step, below 2^63.

        Args:
            whole: The factor's whole number.
            step: Number of the step, from 1.
        """
        return whole

    def slots(self, name: str, shape: tuple[int, ...]) -> dict[str, SharedVariable]:
        if not self.momentum:
            return {}
        return {"velocity": SharedVariable(f"{name}/velocity", shape, VELOCITY_FRACTION)}

    def update(
        self,
        weights: Mapping[str, SharedVariable],
        slots: Mapping[str, Mapping[str, SharedVariable]],
        gradients: Mapping[str, Shared],
        bounds: Mapping[str, float],
        step_scale: StepScale,
        whole: tf.Tensor,
    ) -> None:
        """Assigns new weights and slots.

        Args:
            weights: By name.
            slots: By name, from `slots`.
            gradients: Sums over the batch, by name.
            bounds: On their magnitude, by name.
            step_scale: Of the learning rate over the rows of the batch.
            whole: int64 scalar, from `public`.
        """
        fixed_point = next(iter(gradients.values())).session.fixed_point
        fraction = VELOCITY_FRACTION if self.momentum else fixed_point.fraction
        if self.momentum:
            self._check_velocities(bounds, step_scale)
        steps = scaled(gradients, bounds, step_scale, whole, fraction)
        for name, step in steps.items():
            variable = weights[name]
            session = step.session
            if self.momentum:
                slot = slots[name]["velocity"]
                velocity = _times_public(slot.read(session), self.momentum) - step
                slot.assign(velocity)
                step = step - _times_public(velocity, self.momentum) if self.nesterov else -velocity
                step = with_fraction(step, fixed_point.fraction)
            variable.assign(variable.read(session) - step)

    def _check_velocities(self, bounds: Mapping[str, float], step_scale: StepScale) -> None:
        """
        Raises:
            OverflowPreflightError: A velocity, the sum of all steps with falling weights, could leave the ring.
        """
        fading = 1 - round(self.momentum * 2**_MOMENTUM_BITS) / 2**_MOMENTUM_BITS
        most = max(bounds.values()) * 2.0 ** (_FACTOR_BITS - step_scale.exponent) / fading
        limit = 2.0 ** (TRUNCATION_BITS - VELOCITY_FRACTION - _MOMENTUM_BITS - 1)
        if not most < limit:
            raise OverflowPreflightError(
                f"velocities could reach {most:.3g}",
                expected=f"less than {limit:.3g}, by the gradients' bounds, the learning rate and the momentum",
                remedy="use a smaller learning rate, momentum or input_range",
            )


def _times_public(value: Shared, factor: float) -> Shared:
    """value times a public number below 1, which counts to 2^-13: what is left for the value is 2^25."""
    integer = round(factor * 2**_MOMENTUM_BITS)
    return truncate(
        Shared(value.session, value.times_integer(integer).pairs, value.fraction + _MOMENTUM_BITS), _MOMENTUM_BITS
    )


def scaled(
    gradients: Mapping[str, Shared],
    bounds: Mapping[str, float],
    step_scale: StepScale,
    whole: Any,
    fraction: int,
) -> dict[str, Shared]:
    """whole g with `fraction` bits after the point, by one truncation for parameters whose gradients have one point.

    Args:
        gradients: By name.
        bounds: On them, as the preflight counts them: of gradients with more than twice the fixed point's fraction, as
            if their point had not moved.
        step_scale: Of `whole`.
        whole: int64 scalar.
        fraction: Of the results.

    Raises:
        OverflowPreflightError: A product could leave the ring.
    """
    alike: dict[int, list[str]] = {}
    for name, gradient in gradients.items():
        alike.setdefault(gradient.fraction, []).append(name)
    found = {}
    for own, names in alike.items():
        least = gradients[names[0]].session.fixed_point.fraction
        bound = max(max(bounds[name] for name in names) * 2.0 ** -max(own - 2 * least, 0), 2.0**-TRUNCATION_BITS)
        room = math.ceil(TRUNCATION_BITS - _FACTOR_BITS - math.log2(bound)) - 1
        if room < least:
            raise OverflowPreflightError(
                f"gradients could reach {bound:.3g}",
                expected=f"less than {2.0 ** (TRUNCATION_BITS - least - _FACTOR_BITS):.3g}",
                remedy="use a smaller batch or input_range",
            )
        point = min(own, room, max(fraction + _MOST_TRUNCATED - step_scale.exponent, least))
        found.update(_scaled_alike(gradients, names, point, step_scale, whole, fraction))
    return {name: found[name] for name in gradients}


def _scaled_alike(
    gradients: Mapping[str, Shared],
    names: list[str],
    point: int,
    step_scale: StepScale,
    whole: Any,
    fraction: int,
) -> dict[str, Shared]:
    flat = [gradients[name].local(lambda share: tf.reshape(share, [-1])) for name in names]
    together = with_fraction(concat(flat, 0) if len(flat) > 1 else flat[0], point)
    session = together.session
    pairs = []
    for party in range(3):
        with session.at(party):
            factor = tf.identity(whole)
            pairs.append(tuple(share * factor for share in together.pairs[party]))
    wide = Shared(session, tuple(pairs), point + step_scale.exponent)  # type: ignore[arg-type]
    steps = truncate(wide, wide.fraction - fraction) if wide.fraction > fraction else with_fraction(wide, fraction)
    found, start = {}, 0
    for name in names:
        shape = gradients[name].shape
        end = start + shape.num_elements()
        found[name] = steps[start:end].local(functools.partial(tf.reshape, shape=shape))
        start = end
    return found


def update_rule(optimizer: Any) -> SGD:
    """The rule on shares of a Keras optimizer.

    Raises:
        ConfigurationError: There is none, or an argument is not honoured.
    """
    if type(optimizer) not in (tf.keras.optimizers.SGD, tf.keras.optimizers.Adam):
        raise ConfigurationError(
            f"the optimizer {type(optimizer).__name__} has no rule on shares",
            expected="SGD, with or without momentum, or Adam",
            remedy="use tf.keras.optimizers.SGD or Adam",
        )
    config = optimizer.get_config()
    for name in ("clipnorm", "global_clipnorm", "clipvalue", "weight_decay"):
        if config.get(name):
            raise _refused(name, config[name])
    if config.get("use_ema"):
        raise _refused("use_ema", True)
    if isinstance(optimizer, tf.keras.optimizers.Adam):
        from keras_private.encrypted.adaptive import Adam

        return Adam(float(config["beta_1"]), float(config["beta_2"]), float(config["epsilon"]), bool(config["amsgrad"]))
    return SGD(float(config["momentum"]), bool(config["nesterov"]))


def _refused(name: str, value: Any) -> ConfigurationError:
    return ConfigurationError(
        f"the optimizer has {name}={value}, which has no rule on shares", expected="its default", remedy="leave it out"
    )


def room(fixed_point: FixedPoint) -> float:
    """Bound on summed gradients that the update can scale at all."""
    return 2.0 ** (TRUNCATION_BITS - fixed_point.fraction - _FACTOR_BITS)
