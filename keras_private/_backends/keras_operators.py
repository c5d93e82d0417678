"""Operators between Keras tensors, `x + y` or `x / 255`, as the Keras layers that compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

_OF_TENSORS = {
    "__operators__.add": tf.keras.layers.Add,
    "math.add": tf.keras.layers.Add,
    "math.subtract": tf.keras.layers.Subtract,
    "math.multiply": tf.keras.layers.Multiply,
    "math.maximum": tf.keras.layers.Maximum,
    "math.minimum": tf.keras.layers.Minimum,
}
SYMBOLS = frozenset({*_OF_TENSORS, "math.negative", "math.truediv", "concat", "nn.relu"})
"""All operators that `twin` knows some calls of."""


def twin(node: Any) -> Any:
    """A layer for the call of an operator; None when it has none, or an argument that the layer would not honour."""
    symbol = getattr(node.layer, "symbol", None)
    arguments = [*node.call_args, *(value for name, value in node.call_kwargs.items() if name != "name")]
    name = node.layer.name
    shapes = [tuple(each.shape) for each in node.keras_inputs]
    if symbol == "concat" and len(arguments) == 2 and isinstance(arguments[1], int):
        of_tensors = len(shapes) == len(arguments[0]) and arguments[1] % len(shapes[0]) != 0
        return tf.keras.layers.Concatenate(axis=arguments[1], name=name) if of_tensors else None
    if symbol == "nn.relu" and len(arguments) == 1:
        return tf.keras.layers.ReLU(name=name)
    if len(arguments) == 2 and len(shapes) == 2 and shapes[0] == shapes[1] and symbol in _OF_TENSORS:
        return _OF_TENSORS[symbol](name=name)
    if len(shapes) != 1:
        return None
    line = _line(symbol, arguments)
    return None if line is None else tf.keras.layers.Rescaling(*line, name=name)


def _line(symbol: Any, arguments: list[Any]) -> tuple[float, float] | None:
    """(a, b) of a x + b."""
    if symbol == "math.negative" and len(arguments) == 1:
        return -1.0, 0.0
    if len(arguments) != 2:
        return None
    first, second = (_number(each) for each in arguments)
    if (first is None) == (second is None):
        return None
    number, first_is_number = (second, False) if first is None else (first, True)
    assert number is not None
    if symbol in ("__operators__.add", "math.add"):
        return 1.0, number
    if symbol == "math.multiply":
        return number, 0.0
    if symbol == "math.subtract":
        return (-1.0, number) if first_is_number else (1.0, -number)
    if symbol == "math.truediv" and not first_is_number and number:
        return 1.0 / number, 0.0
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float, np.ndarray, np.generic, tf.Tensor)) and np.ndim(value) == 0:
        return float(value)
    return None
