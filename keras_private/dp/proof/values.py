"""Symbolic values of the small integer tensors that carry shapes, axes and element counts."""

from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from .dims import ONE, Dim, product
from .facts import Fact

MAX_ELEMENTS = 64
Array = np.ndarray
VALUE_RULES: dict[str, Callable[[tf.Operation, list[Array]], Optional[Array]]] = {}


def value_rule(*op_types: str) -> Callable[[Any], Any]:
    def register(rule: Any) -> Any:
        for op_type in op_types:
            VALUE_RULES[op_type] = rule
        return rule

    return register


def as_dims(numbers: Any) -> Array:
    array = np.asarray(numbers)
    flat = [Dim.of(number.item()) for number in array.reshape(-1)]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(array.shape)


def integers(array: Array) -> list[int]:
    """The entries as Python integers; ValueError if one of them is symbolic."""
    return [int(entry) for entry in array.reshape(-1)]


def static_value(tensor: tf.Tensor) -> Optional[Array]:
    """The value TensorFlow's constant folding finds, when it is small, numeric and finite."""
    if not (tensor.dtype.is_integer or tensor.dtype.is_floating):
        return None
    size = tensor.shape.num_elements()
    if size is None or size > MAX_ELEMENTS:
        return None
    found = tf.get_static_value(tensor)
    if found is None or not np.all(np.isfinite(np.asarray(found, dtype=np.float64))):
        return None
    return as_dims(np.asarray(found).astype(np.float64 if tensor.dtype.is_floating else np.int64))


def shape_value(fact: Fact) -> Optional[Array]:
    dims = fact.known_dims
    if dims is None:
        return None
    result = np.empty(len(dims), dtype=object)
    result[:] = dims
    return result


def evaluate(op: tf.Operation, facts: list[Fact]) -> list[Optional[Array]]:
    """The symbolic value of each output of the operation, None where it is not known."""
    if op.type in ("Shape", "ShapeN"):
        return [shape_value(fact) for fact in facts]
    if op.type == "ConcatOffset":
        return _concat_offsets([fact.value for fact in facts])
    return [_single_value(op, facts)] + [None] * (len(op.outputs) - 1)


def _single_value(op: tf.Operation, facts: list[Fact]) -> Optional[Array]:
    if op.type in ("Size", "Rank"):
        dims = facts[0].known_dims
        if dims is None:
            return None
        return _scalar(product(dims) if op.type == "Size" else Dim.of(len(dims)))
    rule = VALUE_RULES.get(op.type)
    values: list[Any] = [fact.value for fact in facts]
    if rule is None or any(value is None for value in values):
        return None
    try:
        result: Any = rule(op, values)
        return _scalar(result) if isinstance(result, Dim) else result
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        return None


def _concat_offsets(values: list[Optional[Array]]) -> list[Optional[Array]]:
    """Where each input of a concatenation begins in its result."""
    if any(value is None for value in values):
        return [None] * (len(values) - 1)
    axis = integers(values[0])[0]  # type: ignore[arg-type]
    offsets: list[Optional[Array]] = []
    begin = Dim.of(0)
    for shape in values[1:]:
        offset = as_dims([0] * len(shape))  # type: ignore[arg-type]
        offset[axis] = begin
        offsets.append(offset)
        try:
            begin = _sum(begin, shape[axis])  # type: ignore[index]
        except ValueError:
            return [None] * (len(values) - 1)
    return offsets


def _scalar(dim: Dim) -> Array:
    result = np.empty((), dtype=object)
    result[()] = dim
    return result


def _map(function: Callable[..., Dim]) -> Callable[[tf.Operation, list[Array]], Array]:
    vectorized = np.frompyfunc(function, 2, 1)

    def rule(op: tf.Operation, values: list[Array]) -> Array:
        return np.asarray(vectorized(*values), dtype=object)

    return rule


def _sum(left: Dim, right: Dim) -> Dim:
    if left.powers == right.powers:
        return Dim(left.coefficient + right.coefficient, left.powers)
    if left.coefficient == 0 or right.coefficient == 0:
        return right if left.coefficient == 0 else left
    raise ValueError("sum of unlike sizes")


def _difference(left: Dim, right: Dim) -> Dim:
    return _sum(left, right * Dim.of(-1))


def _floor_div(left: Dim, right: Dim) -> Dim:
    if left.is_number and right.is_number:
        return Dim.of(left.coefficient // right.coefficient)
    if right.divides_exactly(left):
        return left / right
    raise ValueError("inexact division of sizes")


def _floor_mod(left: Dim, right: Dim) -> Dim:
    if left.is_number and right.is_number:
        return Dim.of(left.coefficient % right.coefficient)
    if right.divides_exactly(left):
        return Dim.of(0)
    raise ValueError("inexact division of sizes")


def _divide(left: Dim, right: Dim) -> Dim:
    return left / right


def _maximum(left: Dim, right: Dim) -> Dim:
    if left.is_number and right.is_number:
        return max(left, right, key=lambda dim: dim.coefficient)
    # A product of sizes is 0 only when the tensor is empty, and then nothing is computed from it.
    if right.is_number and right.coefficient <= 1 <= left.coefficient:
        return left
    if left.is_number and left.coefficient <= 1 <= right.coefficient:
        return right
    raise ValueError("maximum of unlike sizes")


value_rule("Add", "AddV2")(_map(_sum))
value_rule("Sub")(_map(_difference))
value_rule("Mul")(_map(lambda left, right: left * right))
value_rule("FloorDiv")(_map(_floor_div))
value_rule("FloorMod")(_map(_floor_mod))
value_rule("RealDiv", "DivNoNan")(_map(_divide))
value_rule("Maximum")(_map(_maximum))


@value_rule("Identity", "Cast", "StopGradient", "Snapshot", "PreventGradient")
def _same(op: tf.Operation, values: list[Array]) -> Optional[Array]:
    if op.outputs[0].dtype == tf.bool or op.inputs[0].dtype == tf.bool:
        return None
    if op.inputs[0].dtype.is_floating and op.outputs[0].dtype.is_integer:
        integers(values[0])
    return values[0]


@value_rule("Reciprocal")
def _reciprocal(op: tf.Operation, values: list[Array]) -> Array:
    return np.asarray(np.frompyfunc(Dim.inverse, 1, 1)(values[0]), dtype=object)


@value_rule("Prod")
def _prod(op: tf.Operation, values: list[Array]) -> Array:
    array, axes = values
    if array.ndim != 1 or integers(axes) not in ([0], [-1]) or op.get_attr("keep_dims"):
        raise ValueError("only whole vectors")
    return _scalar(product(list(array)))


@value_rule("Pack")
def _pack(op: tf.Operation, values: list[Array]) -> Array:
    return np.stack(values, axis=op.get_attr("axis"))


@value_rule("ConcatV2")
def _concat(op: tf.Operation, values: list[Array]) -> Array:
    return np.concatenate(values[:-1], axis=integers(values[-1])[0])


@value_rule("ExpandDims")
def _expand_dims(op: tf.Operation, values: list[Array]) -> Array:
    return np.expand_dims(values[0], integers(values[1])[0])


@value_rule("Squeeze")
def _squeeze(op: tf.Operation, values: list[Array]) -> Array:
    return np.squeeze(values[0], axis=tuple(op.get_attr("squeeze_dims")) or None)


@value_rule("Reshape")
def _reshape(op: tf.Operation, values: list[Array]) -> Array:
    return values[0].reshape(integers(values[1]))


@value_rule("Transpose")
def _transpose(op: tf.Operation, values: list[Array]) -> Array:
    return np.transpose(values[0], integers(values[1]))


@value_rule("GatherV2")
def _gather(op: tf.Operation, values: list[Array]) -> Array:
    indices = np.asarray(integers(values[1])).reshape(values[1].shape)
    return np.take(values[0], indices, axis=integers(values[2])[0])


@value_rule("Slice")
def _slice(op: tf.Operation, values: list[Array]) -> Array:
    begins, sizes = integers(values[1]), integers(values[2])
    return values[0][tuple(slice(b, None if s < 0 else b + s) for b, s in zip(begins, sizes))]


@value_rule("Range")
def _range(op: tf.Operation, values: list[Array]) -> Array:
    return as_dims(np.arange(*(integers(value)[0] for value in values)))


@value_rule("Fill")
def _fill(op: tf.Operation, values: list[Array]) -> Array:
    result = np.empty(integers(values[0]), dtype=object)
    result[...] = values[1].item()
    return result


@value_rule("OnesLike", "ZerosLike")
def _constant_like(op: tf.Operation, values: list[Array]) -> Array:
    result = np.empty(values[0].shape, dtype=object)
    result[...] = ONE if op.type == "OnesLike" else Dim.of(0)
    return result


@value_rule("DynamicStitch")
def _dynamic_stitch(op: tf.Operation, values: list[Array]) -> Array:
    half = len(values) // 2
    placed: dict[int, Dim] = {}
    for indices, data in zip(values[:half], values[half:]):
        placed.update(zip(integers(indices), data.reshape(-1)))
    result = np.empty(max(placed) + 1, dtype=object)
    result[:] = [placed[position] for position in range(len(placed))]
    return result


@value_rule("InvertPermutation")
def _invert_permutation(op: tf.Operation, values: list[Array]) -> Array:
    return as_dims(np.argsort(integers(values[0])))


@value_rule("StridedSlice")
def _strided_slice(op: tf.Operation, values: list[Array]) -> Array:
    return values[0][python_slices(op, values[1:4])]


def python_slices(op: tf.Operation, bounds: list[Array]) -> tuple[Any, ...]:
    """The NumPy index that a StridedSlice operation with constant bounds stands for."""
    begins, ends, strides = (integers(bound) for bound in bounds)
    masks = {
        name: op.get_attr(f"{name}_mask") for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    index: list[Any] = []
    for position, (begin, end, stride) in enumerate(zip(begins, ends, strides)):
        bit = 1 << position
        if masks["ellipsis"] & bit:
            index.append(Ellipsis)
        elif masks["new_axis"] & bit:
            index.append(np.newaxis)
        elif masks["shrink_axis"] & bit:
            index.append(begin)
        else:
            index.append(
                slice(None if masks["begin"] & bit else begin, None if masks["end"] & bit else end, stride)
            )
    return tuple(index)


def broadcast_gradient_axes(left: list[Dim], right: list[Dim]) -> tuple[list[int], list[int]]:
    """Symbolic BroadcastGradientArgs: the axes over which each side's gradient is summed.

    ValueError when equality of two sizes cannot be decided.
    """
    rank = max(len(left), len(right))
    left, right = [ONE] * (rank - len(left)) + left, [ONE] * (rank - len(right)) + right
    reduce_left, reduce_right = [], []
    for axis, (one, other) in enumerate(zip(left, right)):
        if one == other:
            continue
        if one.is_one:
            reduce_left.append(axis)
        elif other.is_one:
            reduce_right.append(axis)
        else:
            raise ValueError("sizes that may or may not agree")
    return reduce_left, reduce_right
