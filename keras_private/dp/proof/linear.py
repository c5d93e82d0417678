"""Transfer rules of products, convolutions, pools, softmax and their gradients."""

from __future__ import annotations

import tensorflow as tf

from .dims import Dim
from .facts import Fact, Kind
from .registry import Context, all_mixed, transfer, without_rows

ZERO = Dim.of(0)

# Every operation here treats axis 0 of its data inputs as a list of independent entries.
BATCH_FIRST = (
    "AvgPool AvgPoolGrad Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 DepthToSpace "
    "DepthwiseConv2dNative DepthwiseConv2dNativeBackpropInput ExtractImagePatches LRN MaxPool MaxPoolGrad "
    "ResizeBilinear ResizeBilinearGrad ResizeNearestNeighbor ResizeNearestNeighborGrad SpaceToDepth"
).split()
SHAPE_INPUTS = {
    "AvgPoolGrad": (0,),
    "Conv2DBackpropInput": (0,),
    "Conv3DBackpropInputV2": (0,),
    "DepthwiseConv2dNativeBackpropInput": (0,),
    "ResizeBilinear": (1,),
    "ResizeNearestNeighbor": (1,),
    "ResizeNearestNeighborGrad": (1,),
}
WEIGHT_INPUTS = {
    "Conv2D": (1,),
    "Conv2DBackpropInput": (1,),
    "Conv3D": (1,),
    "Conv3DBackpropInputV2": (1,),
    "DepthwiseConv2dNative": (1,),
    "DepthwiseConv2dNativeBackpropInput": (1,),
}


@transfer(*BATCH_FIRST)
def batch_first(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    shapes, weights = SHAPE_INPUTS.get(op.type, ()), WEIGHT_INPUTS.get(op.type, ())
    values = [fact for position, fact in enumerate(facts) if position not in shapes]
    done = without_rows(op, values, context)
    if done is not None:
        return done
    rows = [fact for position, fact in enumerate(facts) if position not in shapes + weights]
    if any(not facts[position].is_public for position in weights):
        return all_mixed(op, "uses a filter that depends on examples")
    for position in shapes:
        named = facts[position]
        if named.kind is Kind.SIZE and (
            named.value is None or any(dim.has_batch for dim in named.value.reshape(-1)[1:])
        ):
            return all_mixed(op, "lets the number of examples decide the size of an image")
    if not all(fact.is_row and fact.axis == 0 for fact in rows):
        return all_mixed(op, "needs the batch on axis 0 of every data input")
    if len({fact.share for fact in rows}) > 1:
        return all_mixed(op, "pairs different numbers of entries per example")
    return [context.row(output, 0, rows[0].share) for output in op.outputs]


@transfer("BiasAdd")
def bias_add(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    data, bias = facts
    channel_first = op.get_attr("data_format") == b"NCHW"
    channel = 1 if channel_first else len(data.dims or ()) - 1
    if not (data.is_row and bias.is_public) or data.axis == channel:
        return all_mixed(op, "adds along the batch axis")
    return [context.row(op.outputs[0], data.axis, data.share, data.dims)]


@transfer("MatMul")
def mat_mul(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    left, right = facts
    if left.is_row and right.is_public and left.axis == (1 if op.get_attr("transpose_a") else 0):
        return [context.row(op.outputs[0], 0, left.share)]
    if right.is_row and left.is_public and right.axis == (0 if op.get_attr("transpose_b") else 1):
        return [context.row(op.outputs[0], 1, right.share)]
    return all_mixed(op, "sums over the batch axis or multiplies examples with each other")


@transfer("BatchMatMul", "BatchMatMulV2")
def batch_mat_mul(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    output, rank = op.outputs[0], op.outputs[0].shape.rank
    if rank is None or any(fact.dims is None or fact.kind is Kind.SIZE for fact in facts):
        return all_mixed(op, "has an input of unknown rank")
    ends = []
    for fact, flag in zip(facts, ("adj_x", "adj_y")):
        from_right = len(fact.dims or ()) - fact.axis
        ends.append((3 - from_right if op.get_attr(flag) else from_right) if from_right <= 2 else from_right)
    rows = [fact for fact in facts if fact.is_row]
    if len(rows) == 1:
        position = facts.index(rows[0])
        if ends[position] == (2 if position == 0 else 1):
            return [context.row(output, rank - ends[position], rows[0].share)]
        if ends[position] <= 2 or not _pairs_alike(rows[0], facts[1 - position], ends[position]):
            return all_mixed(op, "sums over the batch axis")
    elif min(ends) <= 2 or ends[0] != ends[1] or rows[0].share != rows[1].share:
        return all_mixed(op, "multiplies examples with each other")
    return [context.row(output, rank - ends[facts.index(rows[0])], rows[0].share)]


def _pairs_alike(row: Fact, public: Fact, from_right: int) -> bool:
    """Whether every example meets the same of `public`: one entry for all, or one for each and all of one law."""
    dims, length = public.dims or (), (row.dims or ())[row.axis]
    shared = dims[len(dims) - from_right] if len(dims) >= from_right else Dim.of(1)
    return shared is not None and (shared.is_one or (public.positionless and shared == length))


@transfer("Softmax", "LogSoftmax", "TopKV2", "InTopKV2")
def along_last_axis(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    fact = facts[0]
    if not fact.is_row:
        return all_mixed(op, "pairs examples with what is public")
    if op.type == "InTopKV2" and not (facts[1].is_row and facts[1].share == fact.share):
        return all_mixed(op, "pairs predictions and labels of different examples")
    if fact.dims is None or fact.axis == len(fact.dims) - 1:
        return all_mixed(op, "computes along the batch axis")
    dims = fact.dims if op.type in ("Softmax", "LogSoftmax") else None
    return [context.row(output, fact.axis, fact.share, dims) for output in op.outputs]


@transfer("SparseSoftmaxCrossEntropyWithLogits", "SoftmaxCrossEntropyWithLogits")
def cross_entropy(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    logits, labels = facts
    public_labels = labels.is_public and labels.dims is not None and bool(labels.dims)
    broadcast = public_labels and labels.dims[0] is not None and labels.dims[0].is_one  # type: ignore[index]
    paired = labels.is_row and labels.axis == 0 and labels.share == logits.share
    if not (logits.is_row and logits.axis == 0 and (paired or broadcast or labels.positionless)):
        return all_mixed(op, "pairs logits and labels of different examples")
    return [context.row(output, 0, logits.share) for output in op.outputs]


@transfer("FusedBatchNormV3", "FusedBatchNormV2", "FusedBatchNorm")
def fused_batch_norm(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = without_rows(op, facts, context)
    if done is not None:
        return done
    if op.get_attr("is_training"):
        return _per_channel(op, facts, context)
    if not (facts[0].is_row and facts[0].axis == 0 and all(fact.is_public for fact in facts[1:])):
        return all_mixed(op, "normalizes with values that depend on examples")
    rest = [Fact(Kind.PUBLIC, dims=context.static_dims(output)) for output in op.outputs[1:]]
    return [context.row(op.outputs[0], 0, facts[0].share), *rest]


def _per_channel(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    """Statistics are taken per channel: LayerNormalization puts the examples on the channel axis."""
    data = [fact for fact, tensor in zip(facts, op.inputs) if tensor.shape.rank == 4]
    vectors = [fact for fact, tensor in zip(facts, op.inputs) if tensor.shape.rank == 1]
    channel = 1 if op.get_attr("data_format") == b"NCHW" else 3
    share = next(fact.share for fact in facts if fact.is_row)
    on_channel = all(fact.is_row and fact.axis == channel and fact.share == share for fact in data)
    paired = all(
        (fact.is_row and fact.share == share) or (fact.is_public and fact.positionless) or fact.dims == (ZERO,)
        for fact in vectors
    )
    if not (on_channel and paired):
        return all_mixed(op, "is BatchNormalization in training: it normalizes with statistics of the batch")
    return [
        context.row(output, channel, share, data[0].dims)
        if output.shape.rank == 4
        else context.row(output, 0, share)
        if output.shape.rank == 1
        else Fact(Kind.MIXED, reason=f"'{output.name}' is internal to {op.type}")
        for output in op.outputs
    ]


def _frozen_grad(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    """With fixed statistics the gradient is scaled channel by channel; those of scale and offset sum the batch."""
    done = without_rows(op, facts[:5], context)
    if done is not None:
        return done
    rows, parameters = facts[:2], facts[2:5]
    shares = {fact.share for fact in rows}
    apart = all(fact.is_row and fact.axis == 0 for fact in rows) and len(shares) == 1
    if not (apart and all(fact.is_public for fact in parameters)):
        return all_mixed(op, "normalizes with values that depend on examples")
    return [context.row(op.outputs[0], 0, shares.pop(), rows[1].dims), *all_mixed(op, "sums over the batch")[1:]]


@transfer("FusedBatchNormGradV3")
def fused_batch_norm_grad(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    if not op.get_attr("is_training"):
        return _frozen_grad(op, facts, context)
    internal = facts[5]
    done = without_rows(op, facts[:5], context)
    if done is not None:
        return done
    results = _per_channel(op, [*facts[:5], facts[3] if internal.is_mixed else internal], context)
    return results
