"""Transfer rules: one small function per kind of TensorFlow operation, found by operation type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Optional

import tensorflow as tf

from .dims import Dim
from .facts import Fact, Kind, Share, mixed


@dataclass
class Context:
    """What the transfer rules share within one traced step.

    Attributes:
        batch: Size of the batch axis: a symbol, or a number where the data has a static batch.
        origins: Which axis of which tensor a symbol stands for.
    """

    batch: Dim
    origins: dict[str, tuple[tf.Tensor, int]] = field(default_factory=dict)

    def symbol_for(self, tensor: tf.Tensor, axis: int) -> Dim:
        name = f"{tensor.name}[{axis}]"
        self.origins[name] = (tensor, axis)
        return Dim.symbol(name)

    def static_dims(self, tensor: tf.Tensor) -> Optional[tuple[Optional[Dim], ...]]:
        """Sizes that TensorFlow's own shape inference knows."""
        if tensor.shape.rank is None:
            return None
        return tuple(None if size is None else Dim.of(size) for size in tensor.shape.as_list())

    def row(
        self,
        tensor: tf.Tensor,
        axis: int,
        share: Share,
        dims: Optional[tuple[Optional[Dim], ...]] = None,
    ) -> Fact:
        """A ROW fact with the best known symbolic shape of `tensor`.

        Sizes that nobody knows get a symbol of their own: two of them are never taken for equal.
        """
        static = self.static_dims(tensor)
        if static is None:
            static = dims
        if static is None or axis >= len(static):
            return Fact(Kind.MIXED, reason=f"'{tensor.name}' has an unknown number of axes")
        if dims is not None and len(dims) != len(static):
            dims = None
        known = list(static)
        for position, inferred in enumerate(static):
            if position == axis:
                known[position] = share.entries * self.batch
            elif inferred is not None and inferred.is_number:
                continue
            elif dims is not None and dims[position] is not None:
                known[position] = dims[position]
            elif inferred is None:
                known[position] = self.symbol_for(tensor, position) if tensor.shape.rank else None
        if any(dim is not None and dim.has_batch for place, dim in enumerate(known) if place != axis):
            return Fact(Kind.MIXED, reason=f"'{tensor.name}' has a second axis as long as the batch")
        return Fact(Kind.ROW, axis=axis, share=share, dims=tuple(known))


# Operations that treat all entries alike: entries that all had one law keep having one.
ALIKE = (
    "BroadcastTo ExpandDims Max Mean Min Prod Reshape Slice Squeeze StridedSlice Sum Tile Transpose"
).split()

TransferRule = Callable[[tf.Operation, list[Fact], Context], list[Fact]]
RULES: dict[str, TransferRule] = {}


def transfer(*op_types: str) -> Callable[[TransferRule], TransferRule]:
    """Registers the decorated function as the transfer rule of these operation types."""

    def register(rule: TransferRule) -> TransferRule:
        for op_type in op_types:
            if op_type in RULES:
                raise ValueError(f"two transfer rules for {op_type}")
            RULES[op_type] = rule
        return rule

    return register


def first_mixed(facts: list[Fact]) -> Optional[Fact]:
    return next((fact for fact in facts if fact.is_mixed), None)


def without_rows(op: tf.Operation, facts: list[Fact], context: Context) -> Optional[list[Fact]]:
    """The outcome that needs no rule: no input holds rows, or one is mixed already."""
    tainted = first_mixed(facts)
    if tainted is not None:
        return [Fact(Kind.MIXED, reason=tainted.reason) for _ in op.outputs]
    if any(fact.is_row for fact in facts):
        return None
    kind = Kind.SIZE if any(fact.kind is Kind.SIZE for fact in facts) else Kind.PUBLIC
    alike = kind is Kind.PUBLIC and op.type in ALIKE and facts[0].positionless
    return [Fact(kind, dims=context.static_dims(output), positionless=alike) for output in op.outputs]


def all_mixed(op: tf.Operation, how: str) -> list[Fact]:
    return [mixed(op, how) for _ in op.outputs]
