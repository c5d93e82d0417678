"""The traced functions of a model on shares: training, evaluating and predicting a batch."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted import penalties
from keras_private.encrypted.data import Batch
from keras_private.encrypted.losses import Loss, Outcome
from keras_private.encrypted.lowering import Program
from keras_private.encrypted.optimizers import SGD, StepScale
from keras_private.encrypted.parties import EmbeddedParties
from keras_private.encrypted.protocol.comparison import is_negative
from keras_private.encrypted.protocol.functions import reduce_sum, with_fraction
from keras_private.encrypted.protocol.products import multiply
from keras_private.encrypted.protocol.sharing import reveal, share
from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import Shared, concat
from keras_private.encrypted.variables import SharedVariable

MODEL_OWNER = "model_owner"
Owners = tuple[tuple[str, ...], ...]
Limits = tuple[tuple[str, tuple[int, ...], float], ...]
"""(parameter, axes summed over, limit): what each sum of magnitudes must not exceed."""


class Steps:
    """Builds and keeps one traced function for each kind of step, number of rows and owners.

    Guarantees, locked by tests/encrypted/test_model.py:
      * A step opens nothing but predictions, to their owner, in `predict`.
      * Labels and inputs are encoded at the label of their owner, and leave it as shares only.
    """

    def __init__(self, program: Program, parties: EmbeddedParties, fixed_point: Any) -> None:
        self.program, self.parties, self.fixed_point = program, parties, fixed_point
        self.weights = {
            name: SharedVariable(name, parameter.value.shape, fixed_point.fraction)
            for name, parameter in program.parameters.items()
        }
        # Sums over the rows of an epoch: loss, and right answers.
        self.totals = {
            "loss": SharedVariable("total/loss", (), fixed_point.fraction),
            "correct": SharedVariable("total/correct", (), fixed_point.fraction),
        }
        self._traced: dict[Any, Any] = {}

    def traced(self, kind: str, key: Any, build: Callable[[], Any]) -> Any:
        """The function made for `key`, at the first call."""
        if (kind, key) not in self._traced:
            self._traced[kind, key] = build()
        return self._traced[kind, key]

    def forget(self, kind: str) -> None:
        self._traced = {key: value for key, value in self._traced.items() if key[0] != kind}

    def session(self) -> Session:
        return self.parties.session(self.fixed_point)

    def set_weights(self, values: Mapping[str, np.ndarray]) -> None:
        """The model's owner shares its weights."""

        @tf.function(autograph=False)
        def run(arrays: Mapping[str, tf.Tensor]) -> None:
            session = self.session()
            for name, array in arrays.items():
                self.weights[name].assign(share(session, array, MODEL_OWNER, name))

        arrays = {name: tf.constant(value, tf.float64) for name, value in values.items()}
        # Once for each call, which TensorFlow would warn of.
        run.get_concrete_function(arrays)(arrays)

    def get_weights(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Opens weights to the model's owner."""

        def build() -> Any:
            @tf.function(autograph=False)
            def run() -> list[tf.Tensor]:
                session = self.session()
                return [reveal(self.weights[name].read(session), MODEL_OWNER) for name in names]

            return run.get_concrete_function()

        opened = self.traced("get_weights", tuple(names), build)()
        return {name: value.numpy() for name, value in zip(names, opened)}

    def share_inputs(self, session: Session, parts: Any, owners: Owners) -> list[Shared]:
        shared = []
        for arrays, labels, depth in zip(parts, owners, self.program.input_depths):
            pieces = []
            for array, owner in zip(arrays, labels):
                if depth:
                    with session.at(owner):
                        rows = tf.one_hot(tf.cast(array, tf.int64), depth, dtype=tf.int64)
                    pieces.append(share(session, rows, owner, "an input", fraction=0))
                else:
                    pieces.append(share(session, array, owner, "an input"))
            # One-hot rows add an axis after that of the columns.
            shared.append(pieces[0] if len(pieces) == 1 else concat(pieces, -2 if depth else -1))
        return shared

    def parameters(self, session: Session) -> dict[str, Shared]:
        return {name: variable.read(session) for name, variable in self.weights.items()}

    def predict(self, batch: Batch) -> Any:
        def build() -> Any:
            @tf.function(autograph=False)
            def run(parts: Any) -> list[tf.Tensor]:
                session = self.session()
                inputs = self.share_inputs(session, parts, batch.owners)
                outputs, _ = self.program.forward(inputs, self.parameters(session), training=False)
                receiver = batch.owners[0][0]
                return [reveal(each, receiver) for each in outputs]

            return run.get_concrete_function(specs(batch.inputs))

        return self.traced("predict", (*_shapes(batch), batch.owners), build)

    def evaluate(self, batch: Batch, loss: Loss, wants: tuple[str, ...]) -> Any:
        def build() -> Any:
            @tf.function(autograph=False)
            def run(parts: Any, labels: tf.Tensor) -> None:
                session = self.session()
                inputs = self.share_inputs(session, parts, batch.owners)
                shared_labels = share(session, labels, batch.label_owner, "the labels")
                parameters = self.parameters(session)
                outputs, _ = self.program.forward(inputs, parameters, training=False, to_logits=loss.to_logits)
                outcome = loss(outputs[0], shared_labels, "loss" in wants, "correct" in wants)
                self._add_totals(session, outcome, parameters)

            return run.get_concrete_function(specs(batch.inputs), _spec(batch.labels))

        return self.traced("evaluate", (*_shapes(batch), batch.owners, batch.label_owner, wants), build)

    def train(
        self,
        batch: Batch,
        loss: Loss,
        wants: tuple[str, ...],
        optimizer: SGD,
        slots: Mapping[str, Mapping[str, SharedVariable]],
        bounds: Mapping[str, float],
        factor: float,
    ) -> tuple[Any, StepScale]:
        """The function of (inputs, labels, whole number of the learning rate), and the scale of that number."""
        # They decide how the function is traced. Parties see the function: of the labels they learn a power of two.
        bounds = {name: 2.0 ** math.ceil(math.log2(bound)) if bound > 0 else 0.0 for name, bound in bounds.items()}

        def build() -> Any:
            step_scale = StepScale(factor)

            @tf.function(autograph=False)
            def run(parts: Any, labels: tf.Tensor, whole: tf.Tensor) -> None:
                session = self.session()
                inputs = self.share_inputs(session, parts, batch.owners)
                shared_labels = share(session, labels, batch.label_owner, "the labels")
                parameters = self.parameters(session)
                outputs, tape = self.program.forward(inputs, parameters, training=True, to_logits=loss.to_logits)
                with tf.name_scope("loss"):
                    outcome = loss(outputs[0], shared_labels, "loss" in wants, "correct" in wants)
                    self._add_totals(session, outcome, parameters)
                gradients = self.program.backward(tape, [outcome.gradient])
                with tf.name_scope("update"):
                    rows = _averaged_over(outcome)
                    gradients = penalties.add_gradients(gradients, self.program.penalties, parameters, rows)
                    optimizer.update(self.weights, slots, gradients, bounds, step_scale, whole)

            concrete = run.get_concrete_function(specs(batch.inputs), _spec(batch.labels), tf.TensorSpec([], tf.int64))
            return concrete, step_scale

        key = (*_shapes(batch), batch.owners, batch.label_owner, wants, tuple(sorted(bounds.items())))
        found: tuple[Any, StepScale] = self.traced("train", key, build)
        if not found[1].within(factor):
            self._traced.pop(("train", key))
            found = self.traced("train", key, build)
        return found

    def _add_totals(self, session: Session, outcome: Outcome, parameters: Mapping[str, Shared]) -> None:
        if outcome.loss is not None:
            penalty = penalties.total(self.program.penalties, parameters, _averaged_over(outcome))
            if penalty is not None:
                loss = with_fraction(outcome.loss, penalty.fraction) + penalty
                outcome = dataclasses.replace(outcome, loss=loss)
        for name, summed in (("loss", outcome.loss), ("correct", outcome.correct)):
            if summed is not None:
                total = self.totals[name]
                total.assign(total.read(session) + with_fraction(summed, total.fraction))

    def clear_totals(self) -> None:
        for total in self.totals.values():
            total.put([[np.zeros((), np.int64)] * 2] * 3)

    def open_totals(self, names: tuple[str, ...]) -> dict[str, float]:
        """Opens the sums of these names to the model's owner."""

        def build() -> Any:
            @tf.function(autograph=False)
            def run() -> dict[str, tf.Tensor]:
                session = self.session()
                return {name: reveal(self.totals[name].read(session), MODEL_OWNER) for name in names}

            return run.get_concrete_function()

        return {name: float(value) for name, value in self.traced("totals", names, build)().items()}

    def weights_exceed(self, limits: Limits) -> bool:
        """Opens one bit: whether any sum of magnitudes is above its limit."""

        def build() -> Any:
            @tf.function(autograph=False)
            def run() -> tf.Tensor:
                session = self.session()
                names = list(dict.fromkeys(name for name, _, _ in limits))
                values = [self.weights[name].read(session) for name in names]
                flat = [value.local(lambda share: tf.reshape(share, [-1])) for value in values]
                together = concat(flat, 0)
                magnitudes = multiply(1 - is_negative(together).times_integer(2), together)
                sizes, start = {}, 0
                for name, value in zip(names, values):
                    end = start + value.shape.num_elements()
                    sizes[name] = magnitudes[start:end].local(functools.partial(tf.reshape, shape=value.shape))
                    start = end
                margins = []
                for name, axes, limit in limits:
                    summed = reduce_sum(sizes[name], list(axes)) if axes else sizes[name]
                    margins.append(limit - summed.local(lambda share: tf.reshape(share, [-1])))
                count = reduce_sum(is_negative(concat(margins, 0)), 0)
                return reveal(is_negative(-count), MODEL_OWNER)

            return run.get_concrete_function()

        return bool(self.traced("limits", limits, build)().numpy())


def _shapes(batch: Batch) -> tuple[Any, ...]:
    """What a traced function depends on: of one owner or several, each with its columns."""
    return tuple(tuple(part.shape for part in parts) for parts in batch.inputs)


def _averaged_over(outcome: Outcome) -> int:
    """Rows, times the positions of each that the loss is averaged over."""
    return math.prod(outcome.gradient.shape.as_list()[:-1])


def _spec(array: np.ndarray | None) -> tf.TensorSpec:
    assert array is not None
    return tf.TensorSpec(array.shape, tf.float64)


def specs(inputs: Any) -> Any:
    """Of what Batch.inputs_as_tensors gives."""
    return tuple(tuple(tf.TensorSpec(array.shape, tf.float64) for array in arrays) for arrays in inputs)
