"""The server's step: the mean of the updates, applied by a Keras optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import AggregationError, ConfigurationError
from .local_work import LocalWork
from .yogi import Yogi

_NAMED: dict[str, Callable[[], Any]] = {
    "sgd": lambda: tf.keras.optimizers.SGD(1.0),
    "adam": lambda: tf.keras.optimizers.Adam(0.01, beta_2=0.99, epsilon=1e-3),
    "adagrad": lambda: tf.keras.optimizers.Adagrad(0.1, epsilon=1e-3),
    "yogi": lambda: Yogi(0.01, epsilon=1e-3),
    "rmsprop": lambda: tf.keras.optimizers.RMSprop(0.01),
}


def server_optimizer_of(given: Any) -> Any:
    """The optimizer that applies the mean update as if its negative were a gradient (Reddi et al. 2021).

    Names have learning rates that fit updates instead of gradients: "sgd" 1.0 (FedAvg), "adam" and "yogi" 0.01 and
    "adagrad" 0.1, with epsilon 1e-3 as in the paper, "rmsprop" 0.01.

    Raises:
        ConfigurationError: No name and no optimizer of Keras.
    """
    if isinstance(given, str) and given.lower() in _NAMED:
        return _NAMED[given.lower()]()
    return fresh_optimizer(given, "server_optimizer")


def fresh_optimizer(given: Any, argument: str) -> Any:
    """An optimizer of the same settings that has taken no step.

    Raises:
        ConfigurationError: No name and no optimizer of Keras.
    """
    if getattr(given, "is_dp_optimizer", False):
        raise ConfigurationError(
            f"{argument} is a DPOptimizer.",
            expected="a Keras optimizer; compile(client_optimizer=DPOptimizer(...)) protects the examples of clients",
            remedy="Give 'sgd' or 'adam'.",
        )
    try:
        found = tf.keras.optimizers.get(given)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{argument} is {given!r}.", expected="a Keras optimizer or its name", remedy="Give 'sgd' or 'adam'."
        ) from error
    if not isinstance(found, tf.keras.optimizers.Optimizer):
        raise ConfigurationError(
            f"{argument} is a {type(found).__name__} of {type(found).__module__}.",
            expected="an optimizer of tf.keras.optimizers, not of its legacy module",
            remedy=f"Use tf.keras.optimizers.{type(found).__name__}.",
        )
    return type(found).from_config(found.get_config())


class ServerStep:
    """Applies the mean of a round to the model.

    Guarantees:
        - A mean with a coordinate that is not finite changes nothing.
        - What layers change by themselves in training becomes its mean over the clients.
    """

    def __init__(self, model: Any, work: LocalWork, optimizer: Any, client_optimizer: Any) -> None:
        self._work, self._optimizer, self._client_optimizer = work, optimizer, client_optimizer
        optimizer.build(model.trainable_variables)

    def apply(self, mean: np.ndarray) -> None:
        """One step.

        Args:
            mean: Mean update, float64 [d].

        Raises:
            AggregationError: It is not finite.
        """
        if not np.all(np.isfinite(mean)):
            raise AggregationError(
                f"{int(np.sum(~np.isfinite(mean)))} of {mean.size} coordinates of the mean update are not finite; the "
                "model is as it was before the round.",
                expected="a finite mean: one client's update may be too large for a sum in float32",
                remedy="Lower the client's learning rate, or bound updates by Zeroing or DPAggregator.",
            )
        trained, averaged = list(self._work.trained), list(self._work.averaged)
        pieces = []
        at = 0
        for variable in [*trained, *averaged, *(trained if self._work.extra else [])]:
            size = int(variable.shape.num_elements())
            pieces.append(tf.cast(tf.reshape(tf.constant(mean[at : at + size]), variable.shape), variable.dtype))
            at += size
        changes, moved, gradients = (
            pieces[: len(trained)],
            pieces[len(trained) : len(trained) + len(averaged)],
            pieces[len(trained) + len(averaged) :],
        )
        if gradients:
            before = [variable.numpy() for variable in trained]
            self._client_optimizer.apply_gradients(zip(gradients, trained))
            for variable, value in zip(trained, before):
                variable.assign(value)
        self._optimizer.apply_gradients([(-change, variable) for change, variable in zip(changes, trained)])
        for variable, change in zip(averaged, moved):
            variable.assign_add(change)
