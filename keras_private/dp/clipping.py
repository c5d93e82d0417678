"""Per-example norms and the clipped sum, from what each example adds to each variable's gradient."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import tensorflow as tf

from . import kernels
from .rules import Contribution, Factored, Instantiated

# A bound for how far the float32 computation of one example's norm, and of its clipped contribution, may
# lead beyond l2_norm_clip. The noise is scaled up by it (mechanisms.py).
FLOAT_SLACK = 2.0**-9
UNIT_ROUNDOFF = 2.0**-53


class ExampleGradients(abc.ABC):
    """The gradients of one variable for all examples of a batch, in some compact form."""

    @abc.abstractmethod
    def squared_norms(self) -> tf.Tensor:
        """Squared L2 norm of each example's gradient, never too small: [batch], float64."""

    @abc.abstractmethod
    def weighted_sum(self, weights: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
        """sum_i weights[i] gradient_i over the examples that `keep` marks.

        Args:
            weights: [batch] float32, finite, 0 for examples that are dropped.
            keep: [batch], bool; what is not kept is replaced by zeros before any product, so that NaN and
                Inf in one example touch no other.
        """


def _weighted(tensor: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Row i times weights[i]; a row of weight 0 becomes zeros even if it holds NaN or Inf."""
    shape = tf.concat([tf.shape(weights), tf.ones([tensor.shape.rank - 1], tf.int32)], axis=0)
    return tf.math.multiply_no_nan(tensor, tf.reshape(tf.cast(weights, tensor.dtype), shape))


@dataclass(frozen=True)
class OuterProducts(ExampleGradients):
    """Example i's gradient is left[i] outer right[i]; left [batch, d], right [batch, p]."""

    left: tf.Tensor
    right: tf.Tensor

    def squared_norms(self) -> tf.Tensor:
        return kernels.row_squared_norms(self.left) * kernels.row_squared_norms(self.right)

    def weighted_sum(self, weights: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
        kept = _weighted(self.left, tf.cast(keep, tf.float32))
        return tf.matmul(kept, _weighted(self.right, weights), transpose_a=True)


@dataclass(frozen=True)
class Sequences(ExampleGradients):
    """Example i's gradient is sum_t left[i, t] outer right[i, t], never formed; norms by Gram matrices.

    Both sums run in float64: in float32 the Gram sum of a sequence whose terms cancel can report zero for a
    large gradient. Its float64 rounding error, bounded by a multiple of (sum_t |left_t| |right_t|)^2, is added.
    """

    left: tf.Tensor
    right: tf.Tensor

    def squared_norms(self) -> tf.Tensor:
        left, right = tf.cast(self.left, tf.float64), tf.cast(self.right, tf.float64)
        gram_left = tf.matmul(left, left, transpose_b=True)
        gram_right = tf.matmul(right, right, transpose_b=True)
        squared = tf.maximum(tf.reduce_sum(gram_left * gram_right, axis=[1, 2]), 0.0)
        lengths = tf.sqrt(tf.linalg.diag_part(gram_left) * tf.linalg.diag_part(gram_right))
        total = tf.reduce_sum(lengths, axis=1)
        positions = tf.cast(tf.shape(left)[1], tf.float64)
        width = tf.cast(tf.shape(left)[2] + tf.shape(right)[2], tf.float64)
        rounding = 4.0 * UNIT_ROUNDOFF * (width + positions * positions) * tf.square(total)
        # NaN must stay NaN: tf.maximum passes it on, so such an example is recognized and dropped.
        return squared + rounding

    def weighted_sum(self, weights: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
        left = _weighted(tf.cast(self.left, tf.float64), tf.cast(keep, tf.float64))
        right = _weighted(tf.cast(self.right, tf.float64), weights)
        flat_left = tf.reshape(left, tf.stack([-1, tf.shape(left)[2]]))
        flat_right = tf.reshape(right, tf.stack([-1, tf.shape(right)[2]]))
        return tf.cast(tf.matmul(flat_left, flat_right, transpose_a=True), self.left.dtype)


@dataclass(frozen=True)
class Formed(ExampleGradients):
    """Every example's gradient as a tensor: [batch, ...]."""

    gradient: tf.Tensor
    known_norms: Optional[tf.Tensor] = None

    def _rows(self) -> tf.Tensor:
        shape = tf.shape(self.gradient)
        return tf.reshape(self.gradient, tf.stack([shape[0], tf.reduce_prod(shape[1:])]))

    def squared_norms(self) -> tf.Tensor:
        return kernels.row_squared_norms(self._rows()) if self.known_norms is None else self.known_norms

    def weighted_sum(self, weights: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
        return kernels.masked_weighted_sum(self._rows(), weights, keep)


def form(contribution: Contribution) -> Formed:
    """Forms W_i = sum_t left[i, t] outer right[i, t] for every example."""
    if isinstance(contribution, Instantiated):
        return Formed(contribution.gradient, contribution.squared_norms)
    return Formed(*kernels.outer_example_gradients(contribution.left, contribution.right))


def combine(contributions: Sequence[Contribution], shape: tf.TensorShape) -> ExampleGradients:
    """The cheapest exact form for all uses of one variable.

    Several uses that are products are one product over more positions, which is exact. Otherwise, and where
    the Gram matrices would cost more than the gradients themselves, the gradients are formed.

    Args:
        contributions: What each use of the variable adds.
        shape: Shape of the variable, to which formed gradients of different uses are brought.
    """
    factored = [item for item in contributions if isinstance(item, Factored)]
    widths = {(item.left.shape[2], item.right.shape[2]) for item in factored}
    if len(factored) == len(contributions) and len(widths) == 1 and None not in next(iter(widths)):
        rows, columns = widths.pop()
        left, right = (
            tf.concat([getattr(item, side) for item in factored], axis=1)
            if len(factored) > 1
            else getattr(factored[0], side)
            for side in ("left", "right")
        )
        positions = left.shape[1] if left.shape[1] is not None else right.shape[1]
        if positions == 1:
            return OuterProducts(left[:, 0, :], right[:, 0, :])
        if positions is not None and positions * (rows + columns) <= rows * columns:
            return Sequences(left, right)
        return form(Factored(left, right))
    if len(contributions) == 1:
        return form(contributions[0])
    sizes = tf.constant(shape.as_list(), tf.int32)
    formed = [form(item).gradient for item in contributions]
    return Formed(tf.add_n([tf.reshape(item, tf.concat([tf.shape(item)[:1], sizes], 0)) for item in formed]))


def clip_factors(squared_norms: Sequence[tf.Tensor], l2_norm_clip: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales that bring every example's whole gradient within `l2_norm_clip`.

    Args:
        squared_norms: Per variable, [batch] float64.
        l2_norm_clip: The bound C.

    Returns:
        Scales min(1, C / norm) as float32 [batch], 0 where dropped; and which examples are kept: bool
        [batch]. An example whose norm is NaN or Inf is dropped.
    """
    total = tf.add_n(list(squared_norms))
    keep = tf.math.is_finite(total)
    norm = tf.sqrt(tf.where(keep, total, tf.ones([], tf.float64)))
    scale = l2_norm_clip / tf.maximum(norm, l2_norm_clip)
    return tf.cast(tf.where(keep, scale, tf.zeros([], tf.float64)), tf.float32), keep
