"""Conv2D."""

from __future__ import annotations

import tensorflow as tf

from ...errors import UnsupportedOpError
from ..kernels import ConvGeometry, Layout, conv2d_example_gradients, output_size, patches_over_time
from .matmul import over_time
from .registry import Contribution, Factored, Instantiated, Use, op_rule


@op_rule("Conv2D", slots=(1,))
def conv2d(use: Use) -> Contribution:
    """A convolution is a product of patches and the filter, over all output places (Rochette et al. 2019)."""
    op = use.op
    images, kernel = op.inputs
    height, width, channels, filters = kernel.shape.as_list()
    if op.get_attr("data_format") != b"NHWC" or images.shape[-1] not in (None, channels):
        raise UnsupportedOpError(
            f"operation '{op.name}' (Conv2D) has data format {op.get_attr('data_format').decode()} and "
            f"{images.shape[-1]} input channels for a kernel of {channels}.",
            expected="data_format 'channels_last' and groups=1",
            remedy="Use a convolution without groups, channels last.",
        )
    images = tf.ensure_shape(images, [None, None, None, channels])
    padding = op.get_attr("padding").decode()
    geometry = ConvGeometry(
        kernel_size=(height, width),
        strides=tuple(op.get_attr("strides")[1:3]),
        dilations=tuple(op.get_attr("dilations")[1:3]),
        padding=padding,
        explicit_paddings=tuple(op.get_attr("explicit_paddings")[2:6]) if padding == "EXPLICIT" else (),
    )
    # oneDNN's convolutions give an empty batch a wrong shape; for any other batch this changes nothing.
    places = output_size(images, geometry)
    output_gradient = tf.reshape(use.output_gradient, tf.stack([tf.shape(images)[0], *places, filters]))
    output_gradient.set_shape(use.output_gradient.shape)
    layout = Layout(use.before, use.batch, use.after)
    if _gram_saves_memory(use, height * width * channels, filters):
        return Factored(
            patches_over_time(images, geometry, layout), over_time(use.by_example(output_gradient))
        )
    gradient, squared_norms = conv2d_example_gradients(images, output_gradient, geometry, layout)
    return Instantiated(gradient, squared_norms)


def _gram_saves_memory(use: Use, rows: int, columns: int) -> bool:
    """Whether gradients that are never formed take less memory.

    Forming them is always fewer operations: the other way's weighted sum alone is as many, in float64. But it
    holds the patches as float32 and as float64, 12 bytes an entry, where a formed gradient has 4.
    """
    places = use.output_gradient.shape[1:3].num_elements()
    if places is None or not (isinstance(use.before, int) and isinstance(use.after, int)):
        return False
    positions = places * use.before * use.after
    return 3 * positions * (rows + columns) <= rows * columns
