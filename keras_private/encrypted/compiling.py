"""What compile leaves for fit and evaluate: optimizer, loss and metrics as they are computed on shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.losses import Loss, loss_of
from keras_private.encrypted.lowering import Program
from keras_private.encrypted.optimizers import SGD, update_rule
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError

REVEAL = ("loss", "metrics")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One call of compile.

    Attributes:
        optimizer: Keras's, for its learning rate and number of steps.
        rule: Its update on shares.
        loss: On shares.
        accuracy: Name of the metric, or "".
        reveal: Of REVEAL, what is opened.
        slots: State of the optimizer on shares, by parameter and kind.
    """

    optimizer: Any
    rule: SGD
    loss: Loss
    accuracy: str
    reveal: tuple[str, ...]
    slots: Mapping[str, Mapping[str, SharedVariable]]

    @property
    def wants(self) -> tuple[str, ...]:
        """The totals that are computed, and opened: "loss", "correct"."""
        wants = ("loss",) if "loss" in self.reveal else ()
        return (*wants, "correct") if "metrics" in self.reveal and self.accuracy else wants


def compiled(
    program: Program,
    outputs: Any,
    values: Mapping[str, np.ndarray],
    optimizer: Any,
    loss: Any,
    metrics: Any,
    reveal: Sequence[str],
) -> Compiled:
    """Checks what compile was given.

    Args:
        program: The lowered model.
        outputs: Shape of its output.
        values: Its parameters, for their shapes.
        optimizer: As Keras takes it.
        loss: Name or object.
        metrics: Of one name, or none.
        reveal: A subset of REVEAL.

    Raises:
        ConfigurationError: An argument has no rule on shares.
    """
    found = tf.keras.optimizers.get(optimizer)
    rule = update_rule(found)
    rule.check(found)
    if set(reveal) - set(REVEAL) or isinstance(reveal, str):
        raise ConfigurationError(f"reveal={reveal!r}", expected=f"a subset of {REVEAL}", remedy="name what is opened")
    if len(program.outputs) != 1:
        raise ConfigurationError("a model of several outputs", expected="one output", remedy="train one of them")
    on_shares = loss_of(loss, program.last)
    names = [metrics] if isinstance(metrics, str) else list(metrics or [])
    known = on_shares.metrics(int(outputs[-1]))
    if len(names) > 1 or any(each not in known for each in names):
        raise ConfigurationError(f"metrics={metrics!r}", expected=f"one of {known}, or none", remedy="leave out others")
    return Compiled(
        optimizer=found,
        rule=rule,
        loss=on_shares,
        accuracy=names[0] if names else "",
        reveal=tuple(each for each in REVEAL if each in reveal),
        slots={name: rule.slots(name, values[name].shape) for name in program.trainable},
    )
