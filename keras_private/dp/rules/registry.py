"""Per-example gradient rules: one small function per supported operation, found by operation type.

A rule receives one use of a trainable variable, y = op(a, v), with the gradient g of the per-example losses
with respect to y, and says what each example adds to the gradient of v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Union

import tensorflow as tf


@dataclass(frozen=True)
class Factored:
    """Example i adds sum_t left[i, t] outer right[i, t].

    Attributes:
        left: [batch, positions, d].
        right: [batch, positions, p].
    """

    left: tf.Tensor
    right: tf.Tensor


@dataclass(frozen=True)
class Instantiated:
    """Example i adds gradient[i].

    Attributes:
        gradient: [batch, ...], the rest as many entries as the variable has, in its order.
        squared_norms: [batch] float64, of `gradient`, where forming it gave them too.
    """

    gradient: tf.Tensor
    squared_norms: Optional[tf.Tensor] = None


Contribution = Union[Factored, Instantiated]


@dataclass(frozen=True)
class Use:
    """One use of a trainable variable by an operation.

    Attributes:
        op: The operation.
        slot: Which input of the operation the variable feeds.
        output_gradient: Gradient of the summed per-example losses with respect to the operation's output.
        batch: Scalar int32 tensor: the number of examples in this batch.
        before, after: Axis 0 of data and output gradient is [before, batch, after]; numbers, or scalar
            int32 tensors where known only at run time.
    """

    op: tf.Operation
    slot: int
    output_gradient: tf.Tensor
    batch: tf.Tensor
    before: Union[int, tf.Tensor] = 1
    after: Union[int, tf.Tensor] = 1

    def by_example(self, tensor: tf.Tensor) -> tf.Tensor:
        """Splits axis 0 of `tensor` into examples: [batch, entries, ...], as float32 or float64."""
        if tensor.dtype in (tf.float16, tf.bfloat16):
            tensor = tf.cast(tensor, tf.float32)
        inner = tf.shape(tensor)[1:]
        split = tf.reshape(tensor, tf.concat([[self.before, self.batch, self.after], inner], axis=0))
        if not (isinstance(self.before, int) and self.before == 1):
            split = tf.transpose(split, [1, 0, *range(2, tensor.shape.rank + 2)])
        result = tf.reshape(split, tf.concat([[self.batch, self.before * self.after], inner], axis=0))
        static = isinstance(self.before, int) and isinstance(self.after, int)
        entries = self.before * self.after if static else None
        result.set_shape(tf.TensorShape([None, entries]).concatenate(tensor.shape[1:]))
        return result


Rule = Callable[[Use], Contribution]


@dataclass(frozen=True)
class OpRule:
    """How one operation type uses variables.

    Attributes:
        slots: Input slots in which a variable may stand; its data stands in the other of the two.
        contribution: The rule itself.
    """

    slots: tuple[int, ...]
    contribution: Rule


OP_RULES: dict[str, OpRule] = {}


def op_rule(*op_types: str, slots: tuple[int, ...]) -> Callable[[Rule], Rule]:
    """Registers the decorated function for these operation types and variable slots."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            OP_RULES[op_type] = OpRule(slots=slots, contribution=rule)
        return rule

    return register
