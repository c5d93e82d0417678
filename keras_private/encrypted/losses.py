"""Losses on shares: the gradient of the sum over a batch, and, where they are wanted, loss and accuracy."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.comparison import is_positive_or_zero, largest
from keras_private.encrypted.protocol.functions import (
    exp_of_nonpositive,
    logarithm,
    reciprocal,
    reduce_sum,
    sigmoid,
    with_fraction,
)
from keras_private.encrypted.protocol.products import multiply, scale
from keras_private.encrypted.ranges import Preflight
from keras_private.encrypted.shared import Shared, local
from keras_private.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one batch; sums over its rows, at the outputs' fraction (correct: at 0)."""

    gradient: Shared
    loss: Shared | None
    correct: Shared | None


class Loss(abc.ABC):
    """Labels reach it as a float array [n, outputs], made by the owner of the labels.

    Attributes:
        to_logits: It works on what enters the last softmax or sigmoid.
        averages: Sums over the outputs of a row are divided by their number.
        gradient_bound: Of the largest element of its gradient, from the bound on the outputs.
    """

    to_logits = False
    averages = True

    def metrics(self, outputs: int) -> tuple[str, ...]:
        """Names of the metrics for a model of so many outputs."""
        return ()

    @abc.abstractmethod
    def labels(self, y: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
        """
        Raises:
            ConfigurationError: Shape or values do not fit.
        """

    @abc.abstractmethod
    def __call__(self, outputs: Shared, labels: Shared, loss: bool, correct: bool) -> Outcome: ...

    @abc.abstractmethod
    def gradient_bound(self, outputs: float, labels: float) -> float: ...

    @abc.abstractmethod
    def row_bound(self, outputs: float, labels: float) -> float:
        """Of the loss of one row, and of the mean of every number on the way to it that is not a product."""

    def product_bound(self, outputs: float, labels: float) -> float:
        """Of a product on the way to the loss, before its truncation."""
        return outputs * max(labels, 1.0)

    def check(
        self,
        preflight: Preflight,
        outputs: float,
        labels: float,
        width: int,
        batch: int,
        rows: int,
        wants: Sequence[str],
    ) -> None:
        """Whether loss, its gradient and metrics stay in the ring.

        Args:
            preflight: Where it is noted.
            outputs: Bound on the outputs' magnitude.
            labels: On the labels'.
            width: Outputs of a row.
            batch: Rows of a step, each position of outputs of higher rank counting as one.
            rows: Rows whose losses are added up, likewise.
            wants: "loss", "correct", or both.

        Raises:
            OverflowPreflightError: A number could leave it.
        """
        preflight.require("loss", "a label", labels, preflight.fixed_point.input_bound)
        preflight.value("loss", "a difference of outputs and labels", 2 * (outputs + labels))
        count = width if self.averages else 1
        preflight.scaled("loss", "the gradient of a row", self.gradient_bound(outputs, labels), 1.0 / count)
        if "loss" in wants:
            preflight.product("loss", "a product", self.product_bound(outputs, labels))
            bound = self.row_bound(outputs, labels)
            preflight.scaled("loss", f"the sum over {count} outputs of a row", bound * count, 1.0 / count)
            preflight.value("loss", f"the loss of {batch} rows", bound * batch)
            preflight.value("loss", f"the loss of all {rows} rows", bound * rows)
        if "correct" in wants:
            preflight.scaled("loss", "the right answers of a row", (labels + 1) * count, 1.0 / count)
            preflight.value("loss", "the right answers", (labels + 1) * rows)


class MeanSquaredError(Loss):
    """mean over the last axis of (prediction - label)^2; gradient 2 (prediction - label) / outputs."""

    def labels(self, y: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
        return _same_shape(y, outputs)

    def __call__(self, outputs: Shared, labels: Shared, loss: bool, correct: bool) -> Outcome:
        difference = outputs - labels
        count = outputs.shape[-1]
        total = None
        if loss:
            # Row by row: the sum of a batch need not leave room for the factor.
            total = _sum(scale(reduce_sum(multiply(difference, difference), -1), 1.0 / count))
        return Outcome(scale(difference, 2.0 / count), total, None)

    def gradient_bound(self, outputs: float, labels: float) -> float:
        return 2 * (outputs + labels)

    def row_bound(self, outputs: float, labels: float) -> float:
        return (outputs + labels) ** 2

    def product_bound(self, outputs: float, labels: float) -> float:
        return (outputs + labels) ** 2


class CategoricalCrossentropy(Loss):
    """-log softmax(logits)[label]; gradient softmax(logits) - label."""

    to_logits = True
    averages = False

    def __init__(self, sparse: bool) -> None:
        self.sparse = sparse

    def metrics(self, outputs: int) -> tuple[str, ...]:
        return ("accuracy", "acc")

    def labels(self, y: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
        if not self.sparse:
            found = _same_shape(y, outputs)
            if not np.allclose(found.sum(-1), 1.0, atol=1e-5) or np.any(found < 0):
                raise ConfigurationError(
                    "labels of a row that do not add up to 1",
                    expected="one-hot rows, or probabilities",
                    remedy="check the labels, or use sparse_categorical_crossentropy for integers",
                )
            return found
        classes = outputs[-1]
        flat = y.reshape(len(y), -1) if len(y) else y.reshape(0, 1)
        if flat.shape[1] != 1 or len(outputs) != 2:
            raise ConfigurationError(
                f"labels of shape {y.shape}", expected="one integer a row", remedy="use sparse labels of shape [n]"
            )
        integers = flat[:, 0].astype(np.int64)
        if not np.array_equal(integers, flat[:, 0]) or (len(y) and not 0 <= integers.min() <= integers.max() < classes):
            raise ConfigurationError(
                "a label is no class", expected=f"integers from 0 to {classes - 1}", remedy="check the labels"
            )
        return np.eye(classes)[integers]

    def __call__(self, outputs: Shared, labels: Shared, loss: bool, correct: bool) -> Outcome:
        top, winner = largest(outputs, one_hot=correct)
        exponentials = exp_of_nonpositive(local(lambda share, best: share - best[..., None], outputs, top))
        total = reduce_sum(exponentials, -1, keepdims=True)
        classes = outputs.shape[-1]
        probabilities = multiply(exponentials, reciprocal(total, 1.0, float(classes)))
        gradient = with_fraction(probabilities, outputs.fraction) - labels
        summed = right = None
        if loss:
            logarithms = with_fraction(logarithm(total, float(classes)), outputs.fraction)
            of_label = reduce_sum(multiply(labels, outputs), -1)
            summed = _sum(logarithms.local(lambda share: share[..., 0]) + top - of_label)
        if correct:
            # Labels of 0 and 1 are integers times 2^fraction.
            assert winner is not None
            right = _sum(multiply(winner, labels))
        return Outcome(gradient, summed, right)

    def gradient_bound(self, outputs: float, labels: float) -> float:
        return 1.01 + labels

    def row_bound(self, outputs: float, labels: float) -> float:
        # Labels of a row add up to one, and the logarithm of the number of classes is below 15.
        return 15.0 + 2 * outputs


class BinaryCrossentropy(Loss):
    """-label log p - (1 - label) log(1 - p), p = sigmoid(logits), mean over the last axis; gradient (p - label) / n."""

    to_logits = True

    def metrics(self, outputs: int) -> tuple[str, ...]:
        # Of several outputs, Keras takes "accuracy" for that of one class among them.
        return ("accuracy", "acc", "binary_accuracy") if outputs == 1 else ("binary_accuracy",)

    def labels(self, y: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
        return _same_shape(y, outputs)

    def __call__(self, outputs: Shared, labels: Shared, loss: bool, correct: bool) -> Outcome:
        count = outputs.shape[-1]
        difference = sigmoid(outputs) - labels
        gradient = scale(difference, 1.0 / count) if count > 1 else difference
        summed = right = None
        if loss or correct:
            positive = is_positive_or_zero(outputs)
        if loss:
            # log(1 + e^x) = max(x, 0) + log(1 + e^-|x|).
            rectified = multiply(positive, outputs)
            size = rectified.times_integer(2) - outputs
            soft = logarithm(exp_of_nonpositive(-size) + 1.0, 2.0)
            each = rectified + with_fraction(soft, outputs.fraction) - multiply(labels, outputs)
            summed = _sum(scale(reduce_sum(each, -1), 1.0 / count))
        if correct:
            # For bits b and labels y: 1 - (b - y)^2 = 1 - b - y + 2 b y, summed, over the outputs of a row.
            agree = multiply(positive.times_integer(2) - 1, labels) - with_fraction(positive, labels.fraction) + 1.0
            right = _sum(scale(reduce_sum(agree, -1), 1.0 / count)) if count > 1 else _sum(agree)
        return Outcome(gradient, summed, right)

    def gradient_bound(self, outputs: float, labels: float) -> float:
        return 1.01 + labels

    def row_bound(self, outputs: float, labels: float) -> float:
        return 1.0 + 2 * outputs * (1 + labels)


_CLASSES = {
    "mse": tf.keras.losses.MeanSquaredError,
    "mean_squared_error": tf.keras.losses.MeanSquaredError,
    "binary_crossentropy": tf.keras.losses.BinaryCrossentropy,
    "categorical_crossentropy": tf.keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": tf.keras.losses.SparseCategoricalCrossentropy,
}


def loss_of(given: Any, last: str) -> Loss:
    """The loss on shares of a Keras name or object, for a model that ends with `last` ("softmax", "sigmoid" or "").

    Raises:
        ConfigurationError: There is none, an argument is not honoured, or the model's last function does not fit.
    """
    if isinstance(given, str):
        given = _CLASSES[given]() if given in _CLASSES else given
    kind = type(given)
    if kind not in _CLASSES.values():
        raise ConfigurationError(
            f"the loss {given!r} has no rule on shares",
            expected=f"one of {sorted(_CLASSES)}",
            remedy="use one of these",
        )
    config = given.get_config()
    if config["reduction"] not in ("auto", "sum_over_batch_size"):
        raise _refused(f"reduction={config['reduction']!r}", "sum_over_batch_size")
    if config.get("label_smoothing"):
        raise _refused(f"label_smoothing={config['label_smoothing']}", "0")
    if config.get("ignore_class") is not None:
        raise _refused("ignore_class", "None")
    if kind is tf.keras.losses.MeanSquaredError:
        return MeanSquaredError()
    wanted = "sigmoid" if kind is tf.keras.losses.BinaryCrossentropy else "softmax"
    from_logits = bool(config["from_logits"])
    if from_logits == (last == wanted) or (last and last != wanted):
        raise ConfigurationError(
            f"the model ends with {last or 'no softmax or sigmoid'}, and the loss has from_logits={from_logits}",
            expected=f"{wanted} as last function, or from_logits=True without it",
            remedy="change one of the two",
        )
    if wanted == "sigmoid":
        return BinaryCrossentropy()
    return CategoricalCrossentropy(sparse=kind is tf.keras.losses.SparseCategoricalCrossentropy)


def _refused(argument: str, expected: str) -> ConfigurationError:
    return ConfigurationError(f"the loss has {argument}", expected=expected, remedy="leave the argument out")


def _same_shape(y: np.ndarray, outputs: tuple[int, ...]) -> np.ndarray:
    if y.shape[1:] != tuple(outputs[1:]):
        if y.ndim == 1 and tuple(outputs[1:]) == (1,):
            return y[:, None]
        raise ConfigurationError(
            f"labels of shape {y.shape}", expected=f"[n, {', '.join(map(str, outputs[1:]))}]", remedy="reshape them"
        )
    return y


def _sum(value: Shared) -> Shared:
    return value.local(tf.reduce_sum)
