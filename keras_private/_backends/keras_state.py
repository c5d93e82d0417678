"""State of Keras models that training changes without gradients."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def moving_state(model: Any) -> list[tf.Variable]:
    """Variables that layers change by themselves in training, such as moving averages; floating point only.

    Weights of frozen layers are not among them, nor counters and states of random generators.
    """
    found: list[tf.Variable] = []
    for layer in model._flatten_layers():
        for variable in getattr(layer, "_non_trainable_weights", []):
            if layer.trainable and variable.dtype.is_floating and not any(variable is known for known in found):
                found.append(variable)
    return found


def overrides_train_step(model: Any) -> bool:
    """Whether the model's class brings a training step of its own."""
    return type(model).train_step is not tf.keras.Model.train_step


def compiled_metrics(model: Any) -> Any:
    """The metrics that compile was given; None if it was given none."""
    container = getattr(model, "compiled_metrics", None)
    return None if container is None else container._user_metrics
