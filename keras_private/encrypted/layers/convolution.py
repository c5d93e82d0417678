"""EncryptedConv2D and EncryptedDepthwiseConv2D."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_private.encrypted.geometry import padded
from keras_private.encrypted.layers.base import OnParties, image_size
from keras_private.encrypted.layers.outsourcing import once_differentiable, product


@tf.keras.utils.register_keras_serializable(package="keras_private")
class EncryptedConv2D(OnParties, tf.keras.layers.Conv2D):
    """tf.keras.layers.Conv2D whose convolutions, forward and backward, are computed by three parties on shares.

    Who sees what, guarantees and the argument `parties`: those of EncryptedDense. groups must be 1 and data_format
    channels_last; strides, both paddings and dilations are as in Keras.

    Raises:
        ConfigurationError: groups, data_format or dtype cannot be served.
        PartiesError: This process knows no parties of that name.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return _convolved("conv2d", self, inputs, tf.convert_to_tensor(kernel))


@tf.keras.utils.register_keras_serializable(package="keras_private")
class EncryptedDepthwiseConv2D(OnParties, tf.keras.layers.DepthwiseConv2D):
    """tf.keras.layers.DepthwiseConv2D, computed by three parties on shares, forward and backward.

    Who sees what, guarantees and the argument `parties`: those of EncryptedDense.

    Raises:
        ConfigurationError: data_format or dtype cannot be served.
        PartiesError: This process knows no parties of that name.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        outputs = _convolved("depthwise", self, inputs, tf.convert_to_tensor(self.depthwise_kernel))
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


def _convolved(name: str, layer: Any, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    inputs = tf.cast(inputs, layer.compute_dtype)
    windows = padded(
        layer.padding,
        image_size(layer, inputs),
        tuple(layer.kernel_size),
        tuple(layer.strides),
        tuple(layer.dilation_rate),
    )
    geometry = tuple(windows.options.items())

    def by_parties(kernel_name: str, left: tf.Tensor, right: tf.Tensor, *more: tuple[str, Any]) -> tf.Tensor:
        return product(kernel_name, (*more, *geometry), layer.parties, layer.name)(left, right)

    @tf.custom_gradient
    def run(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            to_x = by_parties(f"{name}_input", w, upstream, ("input_size", windows.image))
            to_w = by_parties(f"{name}_filter", x, upstream, ("filter_size", windows.size))
            return once_differentiable(to_x, layer.name), once_differentiable(to_w, layer.name)

        return by_parties(name, x, w), gradient

    outputs = run(inputs, kernel)
    channels = kernel.shape[3] if name == "conv2d" else kernel.shape[2] * kernel.shape[3]
    outputs.set_shape([inputs.shape[0], *windows.places, channels])
    return outputs
