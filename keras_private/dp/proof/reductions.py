"""Transfer rules of reductions, lookups and selections along an axis."""

from __future__ import annotations

import tensorflow as tf

from .facts import Fact
from .registry import Context, all_mixed, transfer, without_rows
from .values import integers

UNKNOWN_AXIS = "works along an axis that is not known while tracing"


@transfer("Sum", "Mean", "Prod", "Max", "Min", "All", "Any", "EuclideanNorm", "ArgMax", "ArgMin")
def reduction(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact = facts[0]
    if facts[1].value is None or fact.dims is None:
        return all_mixed(op, UNKNOWN_AXIS)
    rank = len(fact.dims)
    reduced = {axis % rank for axis in integers(facts[1].value)}
    if fact.axis in reduced:
        return all_mixed(op, "reduces over the batch axis")
    keeps = op.type not in ("ArgMax", "ArgMin") and op.get_attr("keep_dims")
    axis = fact.axis if keeps else fact.axis - sum(other < fact.axis for other in reduced)
    dims = None if keeps else tuple(dim for place, dim in enumerate(fact.dims) if place not in reduced)
    return [context.row(op.outputs[0], axis, fact.share, dims)]


@transfer("Cumsum", "Cumprod", "ReverseV2")
def along_axis(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact = facts[0]
    if facts[1].value is None or fact.dims is None:
        return all_mixed(op, UNKNOWN_AXIS)
    if fact.axis in {axis % len(fact.dims) for axis in integers(facts[1].value)}:
        return all_mixed(op, "accumulates along the batch axis")
    return [context.row(op.outputs[0], fact.axis, fact.share, fact.dims)]


@transfer("OneHot")
def one_hot(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts[:1], context)
    if done is not None:
        return done
    fact = facts[0]
    if fact.dims is None or not all(other.is_public for other in facts[1:]):
        return all_mixed(op, "encodes with values that depend on examples")
    position = op.get_attr("axis") % (len(fact.dims) + 1)
    return [context.row(op.outputs[0], fact.axis + (position <= fact.axis), fact.share)]


@transfer("GatherV2")
def gather(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    table, indices, axis_fact = facts
    if axis_fact.value is None or table.dims is None or indices.dims is None:
        return all_mixed(op, UNKNOWN_AXIS)
    axis, batch_dims = integers(axis_fact.value)[0] % len(table.dims), op.get_attr("batch_dims")
    if table.is_public and indices.is_row and batch_dims == 0:
        return [context.row(op.outputs[0], axis + indices.axis, indices.share)]
    if table.is_row and indices.is_public and table.axis != axis and batch_dims == 0:
        shift = len(indices.dims) - 1 if axis < table.axis else 0
        return [context.row(op.outputs[0], table.axis + shift, table.share)]
    both = table.is_row and indices.is_row and table.axis == indices.axis < batch_dims
    if both and table.share == indices.share:
        return [context.row(op.outputs[0], table.axis, table.share)]
    return all_mixed(op, "picks entries along the batch axis")
