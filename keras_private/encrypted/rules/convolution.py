"""Conv1D, Conv2D and DepthwiseConv2D."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from keras_private._backends.keras_graph import call_shapes
from keras_private.encrypted import ranges
from keras_private.encrypted.geometry import Windows, padded
from keras_private.encrypted.protocol.functions import reduce_sum, with_fraction
from keras_private.encrypted.protocol.products import convolution
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import (
    Parameter,
    Rule,
    SharedValues,
    Values,
    magnitude,
    pull,
    require_channels_last,
    rule,
    unsupported,
)
from keras_private.encrypted.shared import Shared, local


@rule(tf.keras.layers.Conv2D)
class Conv2DRule(Rule):
    """Strides, padding "valid" and "same", dilation; groups=1, channels last."""

    kernel = "conv2d"
    variable = "kernel"
    regularized: ClassVar[Mapping[str, str]] = {"kernel": "kernel_regularizer", "bias": "bias_regularizer"}

    def check(self, layer: Any) -> None:
        require_channels_last(layer)
        if getattr(layer, "groups", 1) != 1:
            raise unsupported(layer, f"groups={layer.groups}", "1")

    def parameters(self, layer: Any) -> dict[str, Parameter]:
        found = pull("kernel", getattr(layer, self.variable), layer.trainable)
        return {**found, **pull("bias", layer.bias, layer.trainable)} if layer.use_bias else found

    def windows(self, layer: Any, shape: tf.TensorShape) -> Windows:
        return padded(
            layer.padding,
            (shape[1], shape[2]),
            tuple(layer.kernel_size),
            tuple(layer.strides),
            tuple(layer.dilation_rate),
        )

    def summed_axes(self, layer: Any, name: str) -> list[tuple[int, ...]]:
        if name != "kernel":
            return [()]
        last = len(getattr(layer, self.variable).shape) - 1
        return [tuple(range(last)), (*range(last - 1), last)]

    def channels(self, kernel: tf.TensorShape) -> int:
        return kernel[3]

    def as_images(self, value: Shared) -> Shared:
        return value

    def as_filter(self, value: Shared) -> Shared:
        return value

    def as_outputs(self, value: Shared) -> Shared:
        return value

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        images, kernel = self.as_images(inputs[0]), self.as_filter(parameters["kernel"])
        windows = self.windows(layer, images.shape)
        shape = [images.shape[0], *windows.places, self.channels(kernel.shape)]
        output = convolution(self.kernel, images, kernel, lambda x, w: tf.constant(shape), **windows.options)
        if "bias" in parameters:
            output = local(tf.add, output, parameters["bias"])
        return [self.as_outputs(output)], (images, windows, inputs[0].shape)

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        images, windows, shape = saved
        gradient, kernel = self.as_images(gradients[0]), self.as_filter(parameters["kernel"])
        found = {}
        if layer.trainable:
            of_kernel = convolution(
                f"{self.kernel}_filter",
                images,
                gradient,
                lambda x, g: tf.constant(kernel.shape.as_list()),
                truncated=False,
                filter_size=windows.size,
                **windows.options,
            )
            found["kernel"] = of_kernel.local(lambda share: tf.reshape(share, parameters["kernel"].shape))
            if "bias" in parameters:
                found["bias"] = with_fraction(reduce_sum(gradient, [0, 1, 2]), of_kernel.fraction)
        if not needs_input:
            return [None], found
        back = convolution(
            f"{self.kernel}_input",
            kernel,
            gradient,
            lambda w, g: tf.constant(images.shape.as_list()),
            input_size=windows.image,
            **windows.options,
        )
        return [back.local(lambda share: tf.reshape(share, shape))], found

    def columns(self, values: Values) -> np.ndarray:
        """The kernel as a matrix: summed terms by output channels."""
        return values["kernel"].reshape(-1, values["kernel"].shape[-1])

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        columns = self.columns(values)
        products = ranges.affine(inputs[0], columns)
        preflight.product(layer.name, "the sum of products", products.magnitude)
        return [ranges.affine(inputs[0], columns, values["bias"] if layer.use_bias else 0.0)]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        places = batch * max(math.prod(shapes[0][1:-1]) for _, shapes in call_shapes(layer))
        preflight.gradient(layer.name, "kernel", places * inputs[0].magnitude * gradient)
        if layer.use_bias:
            preflight.gradient(layer.name, "bias", places * gradient)
        kernel = np.abs(values["kernel"])
        axes = tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2)
        back = gradient * magnitude(kernel.sum(axes))
        preflight.product(layer.name, "the gradient of the input", back)
        return [back]


@rule(tf.keras.layers.Conv1D)
class Conv1DRule(Conv2DRule):
    """As a convolution of images of height 1; padding "causal" too."""

    def windows(self, layer: Any, shape: tf.TensorShape) -> Windows:
        return padded(
            layer.padding,
            (1, shape[2]),
            (1, layer.kernel_size[0]),
            (1, layer.strides[0]),
            (1, layer.dilation_rate[0]),
        )

    def as_images(self, value: Shared) -> Shared:
        return value.local(lambda share: share[:, None])

    def as_filter(self, value: Shared) -> Shared:
        return value.local(lambda share: share[None])

    def as_outputs(self, value: Shared) -> Shared:
        return value.local(lambda share: share[:, 0])


@rule(tf.keras.layers.DepthwiseConv2D)
class DepthwiseConv2DRule(Conv2DRule):
    """Strides, padding "valid" and "same", dilation, depth_multiplier; channels last."""

    kernel = "depthwise"
    variable = "depthwise_kernel"
    regularized: ClassVar[Mapping[str, str]] = {"kernel": "depthwise_regularizer", "bias": "bias_regularizer"}

    def check(self, layer: Any) -> None:
        require_channels_last(layer)

    def summed_axes(self, layer: Any, name: str) -> list[tuple[int, ...]]:
        return [(0, 1), (0, 1, 3)] if name == "kernel" else [()]

    def channels(self, kernel: tf.TensorShape) -> int:
        return kernel[2] * kernel[3]

    def columns(self, values: Values) -> np.ndarray:
        height, width, channels, multiplier = values["kernel"].shape
        return values["kernel"].reshape(height * width, channels * multiplier)
