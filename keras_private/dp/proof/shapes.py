"""Transfer rules of operations that move entries without computing on them."""

from __future__ import annotations

from typing import Optional

import numpy as np
import tensorflow as tf

from .dims import Dim, product
from .facts import Fact, Kind, Share
from .registry import Context, all_mixed, first_mixed, transfer, without_rows
from .values import Array, integers, python_slices

UNKNOWN_SHAPE = "moves entries by a shape that is not known while tracing"
ACROSS_BATCH = "moves entries along the batch axis"


def keep_axis(op: tf.Operation, fact: Fact, axis: int, context: Context) -> list[Fact]:
    return [context.row(output, axis, fact.share) for output in op.outputs]


@transfer("Shape", "Size", "Rank", "ShapeN")
def shape_of(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    # Values are worked out in values.py; without one, a shape is taken to depend on the batch size.
    if op.type == "Rank" or not any(fact.touches_data or fact.kind is Kind.SIZE for fact in facts):
        return [Fact(Kind.PUBLIC, dims=context.static_dims(output)) for output in op.outputs]
    return [Fact(Kind.SIZE, dims=context.static_dims(output)) for output in op.outputs]


def resolve_shape(target: Array, before: tuple[Optional[Dim], ...]) -> list[Optional[Dim]]:
    """The shape that a Reshape asks for; an entry -1 becomes a size where the division is exact, else None."""
    dims: list[Optional[Dim]] = list(target.reshape(-1))
    unknown = [axis for axis, dim in enumerate(dims) if dim == Dim.of(-1)]
    if unknown:
        rest = product([dim for axis, dim in enumerate(dims) if axis not in unknown and dim is not None])
        total = product([dim for dim in before if dim is not None])
        exact = None not in before and len(unknown) == 1 and rest.divides_exactly(total)
        dims[unknown[0]] = total / rest if exact else None
    return dims


@transfer("Reshape")
def reshape(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    """Entries keep their order, so an axis is the batch axis when the sizes before it agree.

    Sizes after it need no proof: a Reshape that runs keeps the number of entries, hence the entries an example owns.
    """
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact, target = facts
    before = fact.dims
    if before is None or target.value is None or None in before[: fact.axis + 1]:
        return all_mixed(op, UNKNOWN_SHAPE)
    after = resolve_shape(target.value, before)
    leading = product([dim for dim in before[: fact.axis] if dim is not None])
    for axis, size in enumerate(after):
        ahead = [dim for dim in after[:axis] if dim is not None]
        if size is None or len(ahead) < axis or product(ahead) != leading:
            continue
        if size == before[fact.axis]:
            return [context.row(op.outputs[0], axis, fact.share, tuple(after))]
        if fact.share.before.is_one and context.batch.divides_exactly(size):
            return [context.row(op.outputs[0], axis, Share(after=size / context.batch), tuple(after))]
    return all_mixed(op, "merges the batch axis with an axis before it")


@transfer("ExpandDims")
def expand_dims(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact = facts[0]
    if facts[1].value is None or fact.dims is None:
        return all_mixed(op, UNKNOWN_SHAPE)
    position = integers(facts[1].value)[0] % (len(fact.dims) + 1)
    dims = fact.dims[:position] + (Dim.of(1),) + fact.dims[position:]
    return [context.row(op.outputs[0], fact.axis + (position <= fact.axis), fact.share, dims)]


@transfer("Squeeze")
def squeeze(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    fact = facts[0]
    if fact.dims is None or not op.get_attr("squeeze_dims"):
        return all_mixed(op, "removes axes that are not named, which may be the batch axis")
    removed = {axis % len(fact.dims) for axis in op.get_attr("squeeze_dims")}
    if fact.axis in removed:
        return all_mixed(op, "removes the batch axis")
    dims = tuple(dim for axis, dim in enumerate(fact.dims) if axis not in removed)
    axis = fact.axis - sum(other < fact.axis for other in removed)
    return [context.row(op.outputs[0], axis, fact.share, dims)]


@transfer("Transpose")
def transpose(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact = facts[0]
    if facts[1].value is None or fact.dims is None:
        return all_mixed(op, UNKNOWN_SHAPE)
    order = integers(facts[1].value)
    dims = tuple(fact.dims[axis] for axis in order)
    return [context.row(op.outputs[0], order.index(fact.axis), fact.share, dims)]


def _common_row(facts: list[Fact]) -> Optional[Fact]:
    """The fact that all inputs share, when every one holds the same examples on the same axis."""
    first = facts[0]
    same = all(fact.is_row and fact.axis == first.axis and fact.share == first.share for fact in facts)
    return first if same else None


@transfer("ConcatV2", "Pack")
def join(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    inputs = facts[:-1] if op.type == "ConcatV2" else facts
    done = without_rows(op, inputs, context)
    if done is not None:
        return done
    fact = _common_row(inputs)
    if fact is None or fact.dims is None:
        return all_mixed(op, "joins tensors that do not all hold the same examples on the same axis")
    if op.type == "Pack":
        axis = op.get_attr("axis") % (len(fact.dims) + 1)
        return keep_axis(op, fact, fact.axis + (axis <= fact.axis), context)
    if facts[-1].value is None:
        return all_mixed(op, UNKNOWN_SHAPE)
    axis = integers(facts[-1].value)[0] % len(fact.dims)
    if axis == fact.axis:
        return all_mixed(op, "concatenates along the batch axis")
    dims = tuple(None if position == axis else dim for position, dim in enumerate(fact.dims))
    return [context.row(op.outputs[0], fact.axis, fact.share, dims)]


@transfer("Unpack")
def unpack(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    fact = facts[0]
    axis = op.get_attr("axis") % len(fact.dims or ())
    if axis == fact.axis:
        return all_mixed(op, "takes the batch axis apart")
    return keep_axis(op, fact, fact.axis - (axis < fact.axis), context)


@transfer("Split", "SplitV")
def split(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    fact, axis_fact = (facts[1], facts[0]) if op.type == "Split" else (facts[0], facts[2])
    done = without_rows(op, [fact], context)
    if done is not None:
        return done
    if axis_fact.value is None or fact.dims is None:
        return all_mixed(op, UNKNOWN_SHAPE)
    if integers(axis_fact.value)[0] % len(fact.dims) == fact.axis:
        return all_mixed(op, ACROSS_BATCH)
    return keep_axis(op, fact, fact.axis, context)


@transfer("StridedSlice")
def strided_slice(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact = facts[0]
    bounds = [bound.value for bound in facts[1:4]]
    if fact.dims is None or any(bound is None for bound in bounds):
        return all_mixed(op, UNKNOWN_SHAPE)
    # The index is applied to an array that names its own axes: what is left shows where the batch went.
    index = list(python_slices(op, bounds))
    if Ellipsis not in index:
        index.append(Ellipsis)
    consuming = sum(entry is not Ellipsis and entry is not np.newaxis for entry in index)
    place = index.index(Ellipsis)
    index[place : place + 1] = [slice(None)] * (len(fact.dims) - consuming)
    source, result = 0, 0
    for entry in index:
        if entry is np.newaxis:
            result += 1
            continue
        if source == fact.axis:
            if entry != slice(None) and entry != slice(None, None, 1):
                return all_mixed(op, "picks examples by their position in the batch")
            return keep_axis(op, fact, result, context)
        source += 1
        result += isinstance(entry, slice)
    return all_mixed(op, ACROSS_BATCH)


@transfer("StridedSliceGrad")
def strided_slice_grad(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[4:], context)
    if done is not None:
        return done
    shape, begin, end, strides, grad = facts
    plain = not (op.get_attr("new_axis_mask") or op.get_attr("shrink_axis_mask"))
    bounds = [bound.value for bound in (begin, end, strides)]
    if shape.value is None or any(bound is None for bound in bounds):
        return all_mixed(op, UNKNOWN_SHAPE)
    dims = tuple(shape.value.reshape(-1))
    index = list(python_slices(op, bounds))
    whole_batch = grad.axis == 0 and bool(index) and index[0] in (slice(None), slice(None, None, 1), Ellipsis)
    if not (whole_batch and (plain or index[0] is not Ellipsis)) or dims[0] != (
        grad.share.entries * context.batch
    ):
        return all_mixed(op, ACROSS_BATCH)
    return [context.row(op.outputs[0], 0, grad.share, dims)]


@transfer("Slice")
def slice_(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact, begin, size = facts
    if fact.dims is None or begin.value is None or size.value is None:
        return all_mixed(op, UNKNOWN_SHAPE)
    if any(dim.has_batch for place, dim in enumerate(size.value.reshape(-1)) if place != fact.axis):
        return all_mixed(op, "lets the number of examples decide how much it takes of another axis")
    start, length = begin.value.reshape(-1)[fact.axis], size.value.reshape(-1)[fact.axis]
    whole = length == Dim.of(-1) or length == fact.dims[fact.axis]
    if start != Dim.of(0) or not whole:
        return all_mixed(op, ACROSS_BATCH)
    return keep_axis(op, fact, fact.axis, context)


@transfer("Pad", "PadV2", "MirrorPad", "MirrorPadGrad")
def pad(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    tainted = first_mixed(facts)
    if tainted is not None or not facts[0].is_row:
        return without_rows(op, facts, context) or all_mixed(op, "pads with values of examples")
    fact, paddings = facts[0], facts[1].value
    if paddings is None or (len(facts) > 2 and not facts[2].is_public):
        return all_mixed(op, UNKNOWN_SHAPE)
    if integers(paddings[fact.axis]) != [0, 0]:
        return all_mixed(op, "pads the batch axis")
    return keep_axis(op, fact, fact.axis, context)


@transfer("Tile")
def tile(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    return _stretched(op, facts, context, repeats=True)


@transfer("BroadcastTo")
def broadcast_to(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    return _stretched(op, facts, context, repeats=False)


def _stretched(op: tf.Operation, facts: list[Fact], context: Context, repeats: bool) -> list[Fact]:
    tainted = first_mixed(facts[:1])
    if tainted is not None:
        return [tainted]
    fact, target = facts[0], facts[1].value
    if not fact.is_row:
        if fact.is_public and not repeats and target is not None:
            return [_spread(op, fact, target, context)]
        return without_rows(op, facts, context) or all_mixed(op, UNKNOWN_SHAPE)
    if target is None or fact.dims is None:
        return all_mixed(op, UNKNOWN_SHAPE)
    wanted = list(target.reshape(-1))
    shift = len(wanted) - len(fact.dims)
    size = fact.dims[fact.axis]
    kept = wanted[shift + fact.axis] == (Dim.of(1) if repeats else size)
    if not kept:
        return all_mixed(op, "repeats the batch axis")
    dims = (
        tuple(None if dim is None else dim * times for dim, times in zip(fact.dims, wanted))
        if repeats
        else tuple(wanted)
    )
    return [context.row(op.outputs[0], shift + fact.axis, fact.share, dims)]


def _spread(op: tf.Operation, fact: Fact, target: Array, context: Context) -> Fact:
    """BroadcastTo of a constant: rows only where the axis that holds the batch was stretched."""
    dims = fact.dims
    wanted = tuple(target.reshape(-1))
    if dims == () or fact.positionless:
        return filled(op, target, context)
    if dims is not None:
        for axis, size in enumerate(dims):
            if wanted[len(wanted) - len(dims) + axis].has_batch and not (size is not None and size.is_one):
                return all_mixed(op, UNKNOWN_SHAPE)[0]
        result = filled(op, target, context)
        return result if result.is_row else Fact(Kind.PUBLIC, dims=wanted)
    return all_mixed(op, UNKNOWN_SHAPE)[0]


def filled(op: tf.Operation, target: Array, context: Context) -> Fact:
    """A constant, or fresh noise, spread over a shape: rows when that shape holds the batch."""
    dims = tuple(target.reshape(-1))
    holding = [axis for axis, dim in enumerate(dims) if dim.has_batch]
    if not holding:
        return Fact(Kind.PUBLIC, dims=dims, positionless=True)
    if len(holding) > 1 or not context.batch.divides_exactly(dims[holding[0]]):
        return all_mixed(op, UNKNOWN_SHAPE)[0]
    axis = holding[0]
    return context.row(op.outputs[0], axis, Share(after=dims[axis] / context.batch), dims)


@transfer("Fill")
def fill(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    shape, value = facts
    if value.touches_data or shape.touches_data or value.kind is Kind.SIZE:
        return without_rows(op, facts, context) or all_mixed(op, "spreads one example's value over others")
    if shape.value is None:
        return without_rows(op, facts, context) or all_mixed(op, UNKNOWN_SHAPE)
    return [filled(op, shape.value, context)]


@transfer("SpaceToBatchND", "BatchToSpaceND")
def space_to_batch(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    """Dilated convolutions put the blocks of an image in front of the batch, and back."""
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact, blocks = facts[0], facts[1].value
    if blocks is None or fact.axis != 0:
        return all_mixed(op, UNKNOWN_SHAPE)
    count = product(list(blocks.reshape(-1)))
    if op.type == "BatchToSpaceND":
        if not count.divides_exactly(fact.share.before):
            return all_mixed(op, "moves examples into the image")
        count = count.inverse()
    return [context.row(op.outputs[0], 0, Share(fact.share.before * count, fact.share.after))]
