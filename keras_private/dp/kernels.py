"""Per-example gradients and their sums by the native operations, or by stock ones where those are missing.

Both ways compute the same to float32 rounding of the gradients. Squared norms are float64 sums over the very gradient
that is returned, so NaN and Inf anywhere in it reach them; the native operations compute what is float32, stock ones
the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Optional, Union

import tensorflow as tf

from .. import native
from ..errors import BackendError

_NATIVE_OPS = (
    "keras_private_conv2d_example_gradients",
    "keras_private_conv2d_example_norms",
    "keras_private_masked_weighted_sum",
    "keras_private_outer_example_gradients",
    "keras_private_row_squared_norms",
)


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution of channels-last images, with the meaning of Conv2D's attributes.

    Attributes:
        kernel_size, strides, dilations: Height and width.
        padding: "SAME", "VALID" or "EXPLICIT".
        explicit_paddings: Top, bottom, left, right, for "EXPLICIT" only.
    """

    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    explicit_paddings: tuple[int, ...] = ()


class Layout(NamedTuple):
    """Axis 0 of data and output gradient is [before, batch, after]; numbers or scalar int32 tensors."""

    before: Union[int, tf.Tensor]
    batch: Union[int, tf.Tensor]
    after: Union[int, tf.Tensor]


def available() -> bool:
    """Whether the native operations can be used in this process."""
    return _ops() is not None


def conv2d_example_gradients(
    images: tf.Tensor, output_gradient: tf.Tensor, geometry: ConvGeometry, layout: Layout
) -> tuple[tf.Tensor, tf.Tensor]:
    """The filter's gradient for each example, summed over the entries that the example owns.

    Args:
        images: [before * batch * after, height, width, channels].
        output_gradient: [before * batch * after, output height, output width, filters].
        geometry: The convolution.
        layout: How axis 0 of both is made up.

    Returns:
        Gradients [batch, kernel height * kernel width * channels, filters], and squared norms [batch], float64.
    """
    images, output_gradient = _widened(images), _widened(output_gradient)
    ops = _ops(images, output_gradient)
    if ops is not None:
        return tuple(
            ops.keras_private_conv2d_example_gradients(
                **_conv_inputs(images, output_gradient, geometry, layout)
            )
        )
    gradients = tf.matmul(
        _over_time(_patches(images, geometry), layout), _over_time(output_gradient, layout), transpose_a=True
    )
    return gradients, _stock_squared_norms(gradients, [1, 2])


def output_size(images: tf.Tensor, geometry: ConvGeometry) -> list[tf.Tensor]:
    """Height and width of what a convolution makes of `images`, as scalar int32 tensors."""
    sizes = []
    for axis in (0, 1):
        size, stride = tf.shape(images)[1 + axis], geometry.strides[axis]
        if geometry.padding == "SAME":
            sizes.append((size + stride - 1) // stride)
            continue
        if geometry.padding == "EXPLICIT":
            size += sum(geometry.explicit_paddings[2 * axis : 2 * axis + 2])
        reach = (geometry.kernel_size[axis] - 1) * geometry.dilations[axis] + 1
        sizes.append(tf.maximum((size - reach) // stride + 1, 0))
    return sizes


def conv2d_example_norms(
    images: tf.Tensor, output_gradient: tf.Tensor, geometry: ConvGeometry, layout: Layout
) -> tf.Tensor:
    """The squared norms of `conv2d_example_gradients`; natively no gradient is kept, so memory stays small."""
    images, output_gradient = _widened(images), _widened(output_gradient)
    ops = _ops(images, output_gradient)
    if ops is not None:
        return ops.keras_private_conv2d_example_norms(
            **_conv_inputs(images, output_gradient, geometry, layout)
        )
    return conv2d_example_gradients(images, output_gradient, geometry, layout)[1]


def patches_over_time(images: tf.Tensor, geometry: ConvGeometry, layout: Layout) -> tf.Tensor:
    """The patches that a convolution multiplies with its filter: [batch, positions of all entries, patch size]."""
    return _over_time(_patches(_widened(images), geometry), layout)


def outer_example_gradients(left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """sum_t left[i, t] outer right[i, t] for [batch, positions, d] and [batch, positions, p], and squared norms."""
    left, right = _widened(left), _widened(right)
    ops = _ops(left, right)
    if ops is not None:
        return tuple(ops.keras_private_outer_example_gradients(left=left, right=right))
    gradients = tf.matmul(left, right, transpose_a=True)
    return gradients, _stock_squared_norms(gradients, [1, 2])


def row_squared_norms(rows: tf.Tensor) -> tf.Tensor:
    """Squared norm of each row of [batch, size], float64."""
    rows = _widened(rows)
    ops = _ops(rows)
    return (
        ops.keras_private_row_squared_norms(rows=rows) if ops is not None else _stock_squared_norms(rows, [1])
    )


def masked_weighted_sum(gradients: tf.Tensor, weights: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """sum_i weights[i] gradients[i] over the rows that `keep` marks; nothing the others hold reaches the sum.

    Args:
        gradients: [batch, size].
        weights: [batch]; what stands at dropped rows is ignored.
        keep: [batch], bool.
    """
    gradients = _widened(gradients)
    weights = tf.cast(weights, gradients.dtype)
    ops = _ops(gradients)
    if ops is not None:
        return ops.keras_private_masked_weighted_sum(gradients=gradients, weights=weights, keep=keep)
    rows = tf.where(keep[:, tf.newaxis], gradients, tf.zeros([], gradients.dtype))
    kept_weights = tf.where(keep, weights, tf.zeros([], weights.dtype))
    return tf.linalg.matvec(rows, kept_weights, transpose_a=True)


def _ops(*tensors: tf.Tensor) -> Optional[Any]:
    """The module of native operations, if there is one and all tensors are what it computes with."""
    if any(tensor.dtype != tf.float32 for tensor in tensors):
        return None
    try:
        module = native.load()
    except BackendError:
        return None
    # A library built before these operations were written has the others.
    return module if all(hasattr(module, name) for name in _NATIVE_OPS) else None


def _widened(tensor: tf.Tensor) -> tf.Tensor:
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(tensor, tf.float32) if tensor.dtype in (tf.float16, tf.bfloat16) else tensor


def _conv_inputs(
    images: tf.Tensor, output_gradient: tf.Tensor, geometry: ConvGeometry, layout: Layout
) -> dict[str, Any]:
    return {
        "images": images,
        "out_backprop": output_gradient,
        "layout": tf.stack(list(layout)),
        "kernel_size": geometry.kernel_size,
        "strides": geometry.strides,
        "dilations": geometry.dilations,
        "padding": geometry.padding,
        "explicit_paddings": geometry.explicit_paddings,
    }


def _patches(images: tf.Tensor, geometry: ConvGeometry) -> tf.Tensor:
    padding = geometry.padding
    if padding == "EXPLICIT":
        top, bottom, left, right = geometry.explicit_paddings
        images, padding = tf.pad(images, [[0, 0], [top, bottom], [left, right], [0, 0]]), "VALID"
    return tf.raw_ops.ExtractImagePatches(
        images=images,
        ksizes=[1, *geometry.kernel_size, 1],
        strides=[1, *geometry.strides, 1],
        rates=[1, *geometry.dilations, 1],
        padding=padding,
    )


def _over_time(tensor: tf.Tensor, layout: Layout) -> tf.Tensor:
    """[before * batch * after, height, width, d] to [batch, positions of all entries, d]."""
    before, batch, after = layout
    _, height, width, size = tf.unstack(tf.shape(tensor))
    split = tf.reshape(tensor, tf.stack([before, batch, after * height * width, size]))
    grouped = tf.transpose(split, [1, 0, 2, 3])
    return tf.reshape(grouped, tf.stack([batch, before * after * height * width, size]))


def _stock_squared_norms(tensor: tf.Tensor, axes: list[int]) -> tf.Tensor:
    # In float64 from the squares on, as natively: a square overflows float32 long before its root does.
    return tf.reduce_sum(tf.square(tf.cast(tensor, tf.float64)), axis=axes)
