"""Transfer rules of elementwise operations, with broadcasting."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import tensorflow as tf

from .dims import Dim
from .facts import Fact, Kind
from .registry import Context, all_mixed, transfer, without_rows

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil CheckNumerics Cos Cosh Digamma Elu EnsureShape "
    "Erf Erfc Erfinv Exp Expm1 Floor Identity Inv IsFinite IsInf IsNan LeakyRelu Lgamma Log Log1p LogicalNot Neg "
    "OnesLike PreventGradient Reciprocal Relu Relu6 Rint Round Rsqrt Selu Sigmoid Sign Sin Sinh Snapshot "
    "Softplus Softsign Sqrt Square StopGradient Tan Tanh ZerosLike"
).split()
BROADCASTING = (
    "Add AddN AddV2 ApproximateEqual Atan2 DivNoNan EluGrad Equal FloorDiv FloorMod Greater GreaterEqual "
    "InvGrad LeakyReluGrad Less LessEqual LogicalAnd LogicalOr Maximum Minimum Mul MulNoNan NotEqual Pow "
    "RealDiv ReciprocalGrad Relu6Grad ReluGrad RsqrtGrad Select SelectV2 SeluGrad SigmoidGrad SoftplusGrad "
    "SoftsignGrad SqrtGrad SquaredDifference Sub TanhGrad TruncateDiv Xdivy Xlog1py Xlogy"
).split()


def _positionless(op: tf.Operation, facts: list[Fact], context: Context) -> Optional[list[Fact]]:
    """The outcome without rows; entrywise functions of positionless tensors and scalars stay positionless."""
    done = without_rows(op, facts, context)
    if done is None or not all(fact.is_public for fact in done):
        return done
    keeps = all(fact.positionless or fact.dims == () for fact in facts)
    return [replace(fact, positionless=keeps) for fact in done]


@transfer(*UNARY)
def unary(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = _positionless(op, facts, context)
    if done is not None:
        return done
    fact = facts[0]
    return [context.row(op.outputs[0], fact.axis, fact.share, fact.dims)]


@transfer("IdentityN")
def identity_n(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    """Each output is its own input: a custom gradient's wrapper must not tie them together."""
    return list(facts)


def broadcast_dims(facts: list[Fact], rank: int) -> tuple[Optional[Dim], ...]:
    result: list[Optional[Dim]] = []
    for from_right in range(rank, 0, -1):
        candidates = [
            fact.dims[len(fact.dims) - from_right]
            for fact in facts
            if fact.dims is not None and len(fact.dims) >= from_right
        ]
        larger = {dim for dim in candidates if dim is None or not dim.is_one}
        # A size known only at run time may be 1 there, and stretched to any other.
        numbers = {dim for dim in larger if dim is not None and dim.is_number}
        known = numbers or larger or set(candidates)
        result.append(known.pop() if len(known) == 1 else None)
    return tuple(result)


@transfer(*BROADCASTING)
def broadcasting(op: tf.Operation, facts: list[Fact], context: Context) -> list[Fact]:
    done = _positionless(op, facts, context)
    if done is not None:
        return done
    output = op.outputs[0]
    if output.shape.rank is None or any(fact.dims is None for fact in facts):
        return all_mixed(op, "has an input of unknown rank")
    if op.type == "Select" and len({len(fact.dims or ()) for fact in facts}) > 1:
        return all_mixed(op, "pairs a condition of fewer axes with the first axis (use tf.where)")
    rows = [fact for fact in facts if fact.is_row]
    from_right = {len(fact.dims or ()) - fact.axis for fact in rows}
    if len(from_right) > 1 or len({fact.share for fact in rows}) > 1:
        return all_mixed(op, "lines up different examples: its inputs hold the batch on different axes")
    position = from_right.pop()
    for fact in facts:
        if fact.kind is Kind.SIZE:
            return all_mixed(op, "scales rows by a value that depends on how many examples were drawn")
        dims = fact.dims or ()
        if fact.is_public and not fact.positionless and len(dims) >= position:
            size = dims[len(dims) - position]
            if size is None or not size.is_one:
                return all_mixed(op, "pairs the batch axis with a constant that has an entry per position")
    rank = output.shape.rank
    dims = broadcast_dims(facts, rank)
    return [context.row(output, rank - position, rows[0].share, dims)]
