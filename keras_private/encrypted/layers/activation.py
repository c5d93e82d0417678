"""EncryptedActivation."""

from __future__ import annotations

from typing import Any, Callable

import tensorflow as tf

from keras_private.encrypted.layers.base import OnParties
from keras_private.encrypted.layers.outsourcing import elementwise, once_differentiable
from keras_private.encrypted.protocol import comparison, functions
from keras_private.encrypted.shared import Shared
from keras_private.errors import ConfigurationError


def _relu(value: Shared) -> Shared:
    return comparison.relu(value)[0]


_FORWARD: dict[str, Callable[[Shared], Shared]] = {
    "relu": _relu,
    "sigmoid": functions.sigmoid,
    "softmax": functions.softmax,
}


def _derivative(name: str, output: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """From the activation's own output, at the client, who has it."""
    if name == "relu":
        return tf.where(output > 0, upstream, tf.zeros_like(upstream))
    if name == "sigmoid":
        return upstream * output * (1 - output)
    return output * (upstream - tf.reduce_sum(upstream * output, -1, keepdims=True))


@tf.keras.utils.register_keras_serializable(package="keras_private")
class EncryptedActivation(OnParties, tf.keras.layers.Activation):
    """tf.keras.layers.Activation ("relu", "sigmoid", "softmax"), computed by three parties on shares.

    The parties see neither input nor output; the process that runs Keras sees both, and forms the derivative from the
    output. Numbers have 16 bits after the point and must stay below 2^24. Argument `parties`: as in EncryptedDense.

    Raises:
        ConfigurationError: Another activation.
        tf.errors.InvalidArgumentError: When run: an input is NaN, infinite or too large.
        PartiesError: This process knows no parties of that name.
    """

    def _refuse_unsupported(self) -> None:
        super()._refuse_unsupported()
        self._function = getattr(self.activation, "__name__", "")
        if self._function not in _FORWARD or self.activation is not tf.keras.activations.get(self._function):
            raise ConfigurationError(
                f"{self.name} has the activation {self.activation!r}",
                expected=f"one of {sorted(_FORWARD)}",
                remedy="use one of these, or tf.keras.layers.Activation for another",
            )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        name: str = self._function
        layer: Any = self.name
        inputs = tf.cast(inputs, self.compute_dtype)
        forward = elementwise(_FORWARD[name], self.parties, layer)

        @tf.custom_gradient
        def run(x: tf.Tensor) -> tf.Tensor:
            output = forward(x)

            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                return once_differentiable(_derivative(name, output, upstream), layer)

            return output, gradient

        outputs = run(inputs)
        outputs.set_shape(inputs.shape)
        return outputs
