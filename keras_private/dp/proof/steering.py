"""Inputs that steer an operation: its axis, shape, bounds, sizes. What examples steer is no row of one example."""

from __future__ import annotations

from typing import Optional

import tensorflow as tf

from .facts import Fact, Kind
from .registry import Context, all_mixed, first_mixed, without_rows

REDUCTIONS = "All Any ArgMax ArgMin Cumprod Cumsum EuclideanNorm Max Mean Min Prod ReverseV2 Sum".split()
NOISE = (
    "ParameterizedTruncatedNormal RandomStandardNormal RandomUniform RandomUniformInt StatelessRandomNormal "
    "StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformV2 StatelessTruncatedNormal "
    "StatelessTruncatedNormalV2 TruncatedNormal"
).split()

# Which inputs steer, by operation type; -1 is the last.
STEERING: dict[str, tuple[int, ...]] = {
    "AvgPoolGrad": (0,),
    "BatchToSpaceND": (1, 2),
    "BroadcastTo": (1,),
    "ConcatV2": (-1,),
    "Conv2DBackpropInput": (0,),
    "Conv3DBackpropInputV2": (0,),
    "DepthwiseConv2dNativeBackpropInput": (0,),
    "ExpandDims": (1,),
    "Fill": (0,),
    "GatherV2": (2,),
    "InTopKV2": (2,),
    "MirrorPad": (1,),
    "MirrorPadGrad": (1,),
    "OneHot": (1, 2, 3),
    "Pad": (1,),
    "PadV2": (1,),
    "Reshape": (1,),
    "ResizeBilinear": (1,),
    "ResizeNearestNeighbor": (1,),
    "ResizeNearestNeighborGrad": (1,),
    "Slice": (1, 2),
    "SpaceToBatchND": (1, 2),
    "Split": (0,),
    "SplitV": (1, 2),
    "StridedSlice": (1, 2, 3),
    "StridedSliceGrad": (0, 1, 2, 3),
    "Tile": (1,),
    "TopKV2": (1,),
    "Transpose": (1,),
    **{name: (1,) for name in REDUCTIONS},
    **{name: (0,) for name in NOISE},
}
# Where the batch size may stand: as the length of the batch axis, which the rules check.
MAY_NAME_BATCH: dict[str, int] = {
    "AvgPoolGrad": 0,
    "BroadcastTo": 1,
    "Conv2DBackpropInput": 0,
    "Conv3DBackpropInputV2": 0,
    "DepthwiseConv2dNativeBackpropInput": 0,
    "Fill": 0,
    "Reshape": 1,
    "Slice": 2,
    "StridedSliceGrad": 0,
    **{name: 0 for name in NOISE},
}
# These make rows out of what is public, so that their own rules decide.
MAKES_ROWS = ("BroadcastTo", "Fill", *NOISE)
# Mixed inputs of these do not reach every output.
OWN_TAINT = ("IdentityN", "FusedBatchNormGradV3")


def settled(op: tf.Operation, facts: list[Fact], context: Context) -> Optional[list[Fact]]:
    """The outcome where no rule needs to look: mixed inputs, steering by examples, or steering of what is public."""
    tainted = first_mixed(facts)
    if tainted is not None and op.type not in OWN_TAINT:
        return [Fact(Kind.MIXED, reason=tainted.reason) for _ in op.outputs]
    slots = {slot % len(facts) for slot in STEERING.get(op.type, ())}
    if not slots:
        return None
    if any(facts[slot].is_row for slot in slots):
        return all_mixed(op, "lets values of examples decide its axis, shape, bounds or sizes")
    if not any(fact.is_row for fact in facts):
        return None if op.type in MAKES_ROWS else without_rows(op, facts, context)
    allowed = MAY_NAME_BATCH.get(op.type)
    if any(facts[slot].kind is Kind.SIZE and slot != allowed for slot in slots):
        return all_mixed(op, "lets the number of examples decide its axis, bounds or sizes")
    return None
