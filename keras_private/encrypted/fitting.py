"""Epochs and evaluations of a compiled model: which steps run, what is opened, and when an epoch is undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from keras_private._backends.keras_rates import current_rate
from keras_private.encrypted.compiling import Compiled
from keras_private.encrypted.data import Batch, Rows
from keras_private.encrypted.optimizers import StepScale
from keras_private.encrypted.ranges import Preflight
from keras_private.encrypted.steps import Limits, Steps
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, EncodingError


class Fitting:
    """Steps of one compiled model.

    Guarantees, locked by tests/encrypted/test_model.py:
      * Nothing is opened but the totals that `compiled` wants, and one bit an epoch.
      * An epoch that ends early, or whose weights exceed their limits, leaves everything as it was before.

    Args:
        steps: Its traced functions.
        compiled: What compile was given.
        positions: Of each row, over which the loss is averaged as over rows.
        kept: All that an epoch may change.
    """

    def __init__(self, steps: Steps, compiled: Compiled, positions: int, kept: Mapping[str, SharedVariable]) -> None:
        self.steps, self.compiled, self.positions, self.kept = steps, compiled, positions, kept

    def traced(self, batch: Batch, preflight: Preflight) -> tuple[Any, StepScale, float]:
        """The function of a step with the learning rate of now, the scale of its public number, and that number.

        Raises:
            ConfigurationError: The learning rate is negative or not finite.
        """
        compiled, count = self.compiled, batch.rows * self.positions
        rate = current_rate(compiled.optimizer)
        rule = compiled.rule.of_rows(count)
        factor = rule.factor(rate, count)
        if not (math.isfinite(factor) and factor >= 0):
            raise ConfigurationError(f"the learning rate {rate}", expected="finite, not negative", remedy="set it")
        step, scale = self.steps.train(
            batch, compiled.loss, compiled.wants, rule, compiled.slots, preflight.gradients_of(batch.rows), factor
        )
        return step, scale, factor

    def step(self, batch: Batch, preflight: Preflight) -> None:
        step, scale, factor = self.traced(batch, preflight)
        iterations = self.compiled.optimizer.iterations
        rule = self.compiled.rule.of_rows(batch.rows * self.positions)
        public = rule.public(scale.whole(factor), int(iterations) + 1)
        step(batch.inputs_as_tensors(), tf.constant(batch.labels), tf.constant(public, tf.int64))
        iterations.assign_add(1)

    def epoch(
        self,
        number: int,
        rows: Rows,
        batch_size: int,
        shuffle: bool,
        preflight: Preflight,
        limits: Limits,
        follow: Any,
        after_step: Callable[[], Any],
    ) -> dict[str, float]:
        """Trains on all rows once.

        Args:
            number: Of the epoch, from 0.
            rows: To train on.
            batch_size: Rows of a step.
            shuffle: Whether rows are shuffled.
            preflight: Bounds in training.
            limits: On the weights, which the bounds assume.
            follow: Keras's callbacks.
            after_step: Called after each step.

        Returns:
            What is opened.

        Raises:
            EncodingError: The weights have grown past the limits.
            OverflowPreflightError: A step with the learning rate of now could leave the ring.
        """
        iterations = self.compiled.optimizer.iterations
        before = {variable: variable.shares() for variable in self.kept.values()}
        taken = int(iterations)
        kept = False
        try:
            follow.on_epoch_begin(number)
            # What cannot be traced is refused before the first step.
            for batch in rows.forms(batch_size):
                self.traced(batch, preflight)
            self.steps.clear_totals()
            for place, batch in enumerate(rows.batches(batch_size, shuffle)):
                follow.on_train_batch_begin(place)
                self.step(batch, preflight)
                after_step()
                follow.on_train_batch_end(place, {})
            kept = not self.steps.weights_exceed(limits)
        finally:
            # What was not checked is not kept either.
            if not kept:
                for variable, shares in before.items():
                    variable.put(shares)
                iterations.assign(taken)
        if not kept:
            raise EncodingError(
                f"weights have grown past what the overflow preflight assumed, in epoch {number + 1}",
                expected="weights within a multiple of their first size; the epoch is undone",
                remedy="use a smaller learning rate, or leave room: a narrower input_range, a smaller batch",
            )
        return self.opened(rows.rows)

    def evaluate(self, rows: Rows, batch_size: int) -> dict[str, float]:
        """What is opened of these rows."""
        wants = self.compiled.wants
        if not wants:
            return {}
        self.steps.clear_totals()
        for batch in rows.batches(batch_size, shuffle=False):
            run = self.steps.evaluate(batch, self.compiled.loss, wants)
            run(batch.inputs_as_tensors(), tf.constant(batch.labels))
        return self.opened(rows.rows)

    def opened(self, rows: int) -> dict[str, float]:
        """The totals of so many rows, as means."""
        wants = self.compiled.wants
        if not wants:
            return {}
        totals = self.steps.open_totals(wants)
        names = {"loss": "loss", "correct": self.compiled.accuracy}
        return {names[each]: totals[each] / (rows * self.positions) for each in wants}


def callback_list(callbacks: Any, model: Any, verbose: int, epochs: int, steps: int) -> Any:
    """Keras's, with its History and progress bar."""
    if isinstance(callbacks, tf.keras.callbacks.CallbackList):
        return callbacks
    return tf.keras.callbacks.CallbackList(
        callbacks, add_history=True, add_progbar=verbose != 0, model=model, verbose=verbose, epochs=epochs, steps=steps
    )
