"""Conv2D."""

from __future__ import annotations

import tensorflow as tf

from ...errors import UnsupportedOpError
from .matmul import over_time
from .registry import Contribution, Factored, Use, op_rule


@op_rule("Conv2D", slots=(1,))
def conv2d(use: Use) -> Contribution:
    """A convolution is a product of patches and the filter, over all output places (Rochette et al. 2019)."""
    op = use.op
    images, kernel = op.inputs
    height, width, channels, _ = kernel.shape.as_list()
    if op.get_attr("data_format") != b"NHWC" or images.shape[-1] not in (None, channels):
        raise UnsupportedOpError(
            f"operation '{op.name}' (Conv2D) has data format {op.get_attr('data_format').decode()} and "
            f"{images.shape[-1]} input channels for a kernel of {channels}.",
            expected="data_format 'channels_last' and groups=1",
            remedy="Use a convolution without groups, channels last.",
        )
    images = tf.ensure_shape(images, [None, None, None, channels])
    padding = op.get_attr("padding").decode()
    if padding == "EXPLICIT":
        pairs = op.get_attr("explicit_paddings")
        images = tf.pad(images, [pairs[place : place + 2] for place in range(0, 8, 2)])
        padding = "VALID"
    patches = tf.raw_ops.ExtractImagePatches(
        images=images,
        ksizes=[1, height, width, 1],
        strides=op.get_attr("strides"),
        rates=op.get_attr("dilations"),
        padding=padding,
    )
    return Factored(over_time(use.by_example(patches)), over_time(use.by_example(use.output_gradient)))
