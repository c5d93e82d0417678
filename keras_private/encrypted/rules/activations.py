"""Activation functions: as layers, and as the `activation` argument of others."""

from __future__ import annotations

import abc
import math
from typing import Any

import tensorflow as tf

from keras_private.encrypted.protocol import functions
from keras_private.encrypted.protocol.comparison import is_negative
from keras_private.encrypted.protocol.products import multiply, scale
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import Rule, SharedValues, Values, rule, unsupported
from keras_private.encrypted.shared import Shared, local


class Function(abc.ABC):
    """An elementwise function, or softmax, with what its derivative needs."""

    slope = 1.0
    """Bound on the derivative."""

    scales_input = False
    """Whether the input is multiplied by a number with a point."""

    scales_gradient = True
    """Whether the gradient is; otherwise by bits alone."""

    @abc.abstractmethod
    def forward(self, x: Shared) -> tuple[Shared, Any]: ...

    @abc.abstractmethod
    def backward(self, saved: Any, gradient: Shared) -> Shared: ...

    @abc.abstractmethod
    def bounds(self, x: Range) -> Range: ...


def rectified(x: Shared) -> tuple[Shared, Shared]:
    """(max(x, 0), the bit x > 0), exactly; at 0 the derivative is 0, as Keras has it.

    It matters: blank parts of images give exact zeros by the thousand.
    """
    bit = is_negative(-x)
    return multiply(bit, x), bit


class Linear(Function):
    scales_gradient = False

    def forward(self, x: Shared) -> tuple[Shared, Any]:
        return x, None

    def backward(self, saved: Any, gradient: Shared) -> Shared:
        return gradient

    def bounds(self, x: Range) -> Range:
        return x


class Relu(Function):
    scales_gradient = False

    def forward(self, x: Shared) -> tuple[Shared, Any]:
        return rectified(x)

    def backward(self, saved: Any, gradient: Shared) -> Shared:
        return multiply(saved, gradient)

    def bounds(self, x: Range) -> Range:
        return Range(max(x.low, 0.0), max(x.high, 0.0))


class LeakyRelu(Function):
    """max(x, alpha x), 0 <= alpha < 1."""

    scales_input = True

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def forward(self, x: Shared) -> tuple[Shared, Any]:
        positive, bit = rectified(x)
        return positive + scale(x - positive, self.alpha), bit

    def backward(self, saved: Any, gradient: Shared) -> Shared:
        kept = multiply(saved, gradient)
        return kept + scale(gradient - kept, self.alpha)

    def bounds(self, x: Range) -> Range:
        ends = [each if each > 0 else self.alpha * each for each in (x.low, x.high)]
        return Range(ends[0], ends[1])


class CappedRelu(Function):
    """min(max(x, 0), cap)."""

    scales_gradient = False

    def __init__(self, cap: float) -> None:
        self.cap = cap

    def forward(self, x: Shared) -> tuple[Shared, Any]:
        positive, above = rectified(x)
        over, exceeds = rectified(positive - self.cap)
        return positive - over, above - exceeds

    def backward(self, saved: Any, gradient: Shared) -> Shared:
        return multiply(saved, gradient)

    def bounds(self, x: Range) -> Range:
        return Range(*(min(max(each, 0.0), self.cap) for each in (x.low, x.high)))


class Sigmoid(Function):
    slope = 0.25

    def forward(self, x: Shared) -> tuple[Shared, Any]:
        y = functions.sigmoid(x)
        return y, y

    def backward(self, saved: Any, gradient: Shared) -> Shared:
        return multiply(multiply(saved, 1.0 - saved), gradient)

    def bounds(self, x: Range) -> Range:
        return Range(-0.01, 1.01)


class Tanh(Function):
    def forward(self, x: Shared) -> tuple[Shared, Any]:
        y = functions.tanh(x)
        return y, y

    def backward(self, saved: Any, gradient: Shared) -> Shared:
        return multiply(1.0 - multiply(saved, saved), gradient)

    def bounds(self, x: Range) -> Range:
        return Range(-1.01, 1.01)


class Softmax(Function):
    """Along the last axis."""

    slope = 2.0

    def forward(self, x: Shared) -> tuple[Shared, Any]:
        y = functions.softmax(x)
        return y, y

    def backward(self, saved: Any, gradient: Shared) -> Shared:
        mean = functions.reduce_sum(multiply(saved, gradient), -1, keepdims=True)
        return multiply(saved, local(tf.subtract, gradient, mean))

    def bounds(self, x: Range) -> Range:
        return Range(-0.01, 1.01)


_NAMED: dict[str, Function] = {
    "linear": Linear(),
    "relu": Relu(),
    "sigmoid": Sigmoid(),
    "softmax": Softmax(),
    "tanh": Tanh(),
    "leaky_relu": LeakyRelu(0.2),
    "relu6": CappedRelu(6.0),
}


def function_of(layer: Any) -> Function:
    """The function of a layer's `activation` argument.

    Raises:
        UnsupportedLayerError: It is not one of Keras's own that have a rule.
    """
    activation = layer.activation
    if activation is None:
        return _NAMED["linear"]
    if isinstance(activation, tf.keras.layers.Layer):
        return layer_function(activation)
    name = getattr(activation, "__name__", str(activation))
    # TensorFlow's own softmax has the name of its version.
    name = "softmax" if activation is tf.nn.softmax else name
    known = _NAMED.get(name)
    own = (getattr(tf.nn, name, None), getattr(tf.keras.activations, name, None))
    if known is None or not any(activation is each for each in own):
        raise unsupported(layer, f"the activation {name!r}", f"one of {', '.join(sorted(_NAMED))}")
    return known


def layer_function(layer: Any) -> Function:
    """The function of an activation layer."""
    kind = type(layer)
    if kind is tf.keras.layers.Activation:
        return function_of(layer)
    if kind is tf.keras.layers.Softmax:
        axis = layer.axis
        if axis not in (-1, (-1,), [-1]):
            raise unsupported(layer, f"axis={axis}", "-1, the last axis")
        return _NAMED["softmax"]
    if kind is tf.keras.layers.LeakyReLU:
        return _leaky(layer, float(layer.alpha))
    if kind is tf.keras.layers.ReLU:
        if float(layer.threshold or 0.0) != 0.0:
            raise unsupported(layer, f"threshold={layer.threshold}", "0")
        slope = float(layer.negative_slope or 0.0)
        if layer.max_value is None:
            return _leaky(layer, slope)
        if slope:
            raise unsupported(layer, "max_value and negative_slope", "one of the two")
        return CappedRelu(float(layer.max_value))
    raise unsupported(layer, "an activation without a rule", "ReLU, LeakyReLU, Softmax or Activation")


def _leaky(layer: Any, alpha: float) -> Function:
    if not (math.isfinite(alpha) and 0 <= alpha < 1):
        raise unsupported(layer, f"a slope of {alpha}", "0 <= slope < 1")
    return LeakyRelu(alpha) if alpha else _NAMED["relu"]


@rule(
    tf.keras.layers.ReLU,
    tf.keras.layers.LeakyReLU,
    tf.keras.layers.Softmax,
    tf.keras.layers.Activation,
)
class ActivationRule(Rule):
    """ReLU (max_value or negative_slope), LeakyReLU, Softmax on the last axis, Activation by name.

    Also the rule of the `activation` argument of every other layer, as a node of its own.
    """

    def check(self, layer: Any) -> None:
        self.function(layer)

    def function(self, layer: Any) -> Function:
        return layer_function(layer) if type(layer) in _LAYERS else function_of(layer)

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        output, saved = self.function(layer).forward(inputs[0])
        return [output], saved

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        return [self.function(layer).backward(saved, gradients[0]) if needs_input else None], {}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        check = preflight.product if self.function(layer).scales_input else preflight.value
        check(layer.name, "the input of the activation", inputs[0].magnitude)
        return [self.function(layer).bounds(inputs[0])]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        check = preflight.product if self.function(layer).scales_gradient else preflight.value
        check(layer.name, "the gradient of the activation", gradient * self.function(layer).slope)
        return [gradient * self.function(layer).slope]


_LAYERS = (
    tf.keras.layers.ReLU,
    tf.keras.layers.LeakyReLU,
    tf.keras.layers.Softmax,
    tf.keras.layers.Activation,
)
