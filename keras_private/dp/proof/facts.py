"""What is known about one tensor of the traced step."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any, Optional

from .dims import ONE, Dim


class Kind(enum.Enum):
    """How a tensor depends on the batch of private examples.

    PUBLIC: no private example among its ancestors.
    SIZE: depends on how many examples were drawn and on nothing else of them.
    ROW: along one axis, entries belong to single examples and depend on that example alone.
    MIXED: anything else.
    """

    PUBLIC = "Public"
    SIZE = "Size"
    ROW = "Row"
    MIXED = "Mixed"


@dataclass(frozen=True)
class Share:
    """Which entries of the batch axis one example owns.

    The axis is read as [before, batch, after]: after consecutive entries, in each of before blocks. Merging
    time into the batch gives after = time; SpaceToBatchND (dilated convolution) gives before = blocks.
    """

    before: Dim = ONE
    after: Dim = ONE

    @property
    def entries(self) -> Dim:
        return self.before * self.after

    def __str__(self) -> str:
        return str(self.entries)


SINGLE = Share()


@dataclass(frozen=True)
class Fact:
    """The proven type of one tensor.

    Attributes:
        kind: See `Kind`.
        axis: For ROW, the axis that holds the examples.
        share: For ROW, which entries of that axis one example owns.
        dims: The symbolic shape where known; an entry is None where that size is not known.
        value: For small integer tensors and scalars, their symbolic value (object array of `Dim`).
        positionless: For PUBLIC, whether every entry has one and the same law (a constant fill, fresh
            noise), so that pairing entries with examples by position gives no example a say on another.
        reason: For MIXED, which operation mixed examples, and how.
    """

    kind: Kind
    axis: int = 0
    share: Share = SINGLE
    dims: Optional[tuple[Optional[Dim], ...]] = None
    value: Any = None
    positionless: bool = False
    reason: str = ""

    @property
    def is_row(self) -> bool:
        return self.kind is Kind.ROW

    @property
    def is_mixed(self) -> bool:
        return self.kind is Kind.MIXED

    @property
    def is_public(self) -> bool:
        return self.kind is Kind.PUBLIC

    @property
    def touches_data(self) -> bool:
        return self.kind in (Kind.ROW, Kind.MIXED)

    def with_dims(self, dims: Optional[tuple[Optional[Dim], ...]]) -> Fact:
        return replace(self, dims=dims)

    @property
    def known_dims(self) -> Optional[tuple[Dim, ...]]:
        """The shape when every entry is known, else None."""
        if self.dims is None or any(dim is None for dim in self.dims):
            return None
        return tuple(dim for dim in self.dims if dim is not None)


def mixed(op: Any, how: str) -> Fact:
    return Fact(Kind.MIXED, reason=f"operation '{op.name}' ({op.type}) {how}")
