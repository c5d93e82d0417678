"""Plaintext data and who owns it, checked before anything is shared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.lowering import Program
from keras_private.encrypted.session import SERVERS
from keras_private.errors import ConfigurationError, EncodingError

DEFAULT_OWNER = "data_owner"


@dataclasses.dataclass(frozen=True)
class Owned:
    """An array and the label of the player who holds it and shares it.

    Args:
        owner: Any name but those of the three servers.
        array: Of numbers; the first axis is rows.
    """

    owner: str
    array: Any

    def __post_init__(self) -> None:
        if not isinstance(self.owner, str) or not self.owner or self.owner in SERVERS:
            raise ConfigurationError(
                f"the owner {self.owner!r}", expected="a name other than those of the servers", remedy="choose a name"
            )


class _Split:
    def __init__(self, *parts: Owned) -> None:
        if len(parts) < 2 or not all(isinstance(part, Owned) for part in parts):
            raise ConfigurationError(
                f"{type(self).__name__} of {len(parts)} parts",
                expected="two Owned or more",
                remedy="wrap each in Owned",
            )
        self.parts = parts


class Vertical(_Split):
    """The same rows, columns of the last axis from several owners, in this order; each shares its own."""


class Horizontal(_Split):
    """The same columns, rows from several owners; every batch comes from one of them."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of one step: for each model input the parts of its owners, and the labels."""

    inputs: tuple[tuple[np.ndarray, ...], ...]
    labels: np.ndarray | None
    owners: tuple[tuple[str, ...], ...]
    label_owner: str

    @property
    def rows(self) -> int:
        return len(self.inputs[0][0])

    def inputs_as_tensors(self) -> Any:
        return tuple(tuple(tf.constant(part) for part in parts) for parts in self.inputs)

    def with_labels(self, labels: np.ndarray) -> Batch:
        return dataclasses.replace(self, labels=labels)


class Rows:
    """Data as columns of parts, with one block for each owner of rows."""

    def __init__(self, blocks: Sequence[Batch]) -> None:
        self.blocks = [block for block in blocks if block.rows]
        self.rows = sum(block.rows for block in self.blocks)

    def batches(self, batch_size: int, shuffle: bool) -> Iterator[Batch]:
        """Batches of one block each; the last of a block may be smaller."""
        plan = []
        for number, block in enumerate(self.blocks):
            order = np.random.permutation(block.rows) if shuffle else np.arange(block.rows)
            plan += [(number, order[start : start + batch_size]) for start in range(0, block.rows, batch_size)]
        if shuffle and len(self.blocks) > 1:
            # Full batches of all owners, mixed; what is left over comes last.
            plan = [plan[place] for place in np.random.permutation(len(plan))]
        for number, rows in plan:
            yield take(self.blocks[number], rows)

    def forms(self, batch_size: int) -> Iterator[Batch]:
        """The first batch of each number of rows in each block: `batches` gives none of another form."""
        for block in self.blocks:
            for size in dict.fromkeys((min(batch_size, block.rows), block.rows % batch_size)):
                if size:
                    yield take(block, np.arange(size))

    def steps(self, batch_size: int) -> int:
        return sum(-(-block.rows // batch_size) for block in self.blocks)

    def split(self, fraction: float) -> tuple[Rows, Rows]:
        """The first rows of each block, and the last `fraction` of them."""
        first, last = [], []
        for block in self.blocks:
            edge = block.rows - int(block.rows * fraction)
            first.append(take(block, np.arange(edge)))
            last.append(take(block, np.arange(edge, block.rows)))
        return Rows(first), Rows(last)


def take(block: Batch, rows: np.ndarray) -> Batch:
    inputs = tuple(tuple(part[rows] for part in parts) for parts in block.inputs)
    return dataclasses.replace(block, inputs=inputs, labels=None if block.labels is None else block.labels[rows])


def read(
    program: Program, shapes: Sequence[tuple[int | None, ...]], ranges: Sequence[tuple[float, float]], x: Any, y: Any
) -> Rows:
    """Checks and arranges what fit, evaluate or predict was given.

    Args:
        program: The lowered model.
        shapes: Of its inputs, batch axis first.
        ranges: Declared ranges of its inputs.
        x: An array, or a list of them for several inputs, or Owned, Vertical or Horizontal; a tf.data.Dataset of x or
            (x, y).
        y: Labels, or None.

    Raises:
        ConfigurationError: A shape, dtype or number of rows does not fit.
        EncodingError: A value is NaN, infinite, or outside of the declared range.
    """
    if isinstance(x, (tf.keras.utils.Sequence, Mapping)):
        raise ConfigurationError(
            f"x is a {type(x).__name__}, which names batches, clients or inputs and no rows to share",
            expected="an array or a list of arrays; Owned, Vertical or Horizontal of several owners; a tf.data.Dataset",
            remedy="give the arrays themselves; fit draws and shuffles batches by itself, without amplifying anything",
        )
    if isinstance(x, tf.data.Dataset):
        if y is not None:
            raise ConfigurationError("a Dataset and labels", expected="labels in the Dataset", remedy="leave y out")
        x, y = _gathered(x)
    if isinstance(x, Horizontal) or isinstance(y, Horizontal):
        return Rows(_horizontal(program, shapes, ranges, x, y))
    return Rows([_block(program, shapes, ranges, x, y)])


def _horizontal(program: Program, shapes: Any, ranges: Any, x: Any, y: Any) -> list[Batch]:
    labels = [None] * len(x.parts) if y is None else getattr(y, "parts", None)
    if not isinstance(x, Horizontal) or labels is None or len(labels) != len(x.parts):
        raise ConfigurationError(
            "rows of several owners, and labels that are not split likewise",
            expected="Horizontal for both",
            remedy="give y=Horizontal(...) of the same owners",
        )
    return [_block(program, shapes, ranges, part, label) for part, label in zip(x.parts, labels)]


def _block(program: Program, shapes: Any, ranges: Any, x: Any, y: Any) -> Batch:
    given = list(x) if isinstance(x, (list, tuple)) else [x]
    if len(given) != len(program.inputs):
        raise ConfigurationError(
            f"{len(given)} arrays of inputs", expected=f"{len(program.inputs)}, one a model input", remedy="check x"
        )
    inputs, owners = [], []
    for place, each in enumerate(given):
        parts = (
            each.parts
            if isinstance(each, Vertical)
            else [each if isinstance(each, Owned) else Owned(DEFAULT_OWNER, each)]
        )
        name = f"input {place}" if len(given) > 1 else "x"
        depth = program.input_depths[place]
        arrays = tuple(_numbers(part.array, name) for part in parts)
        _check_shape(arrays, shapes[place], name)
        for array in arrays:
            _check_values(array, ranges[place], depth, name)
        inputs.append(arrays)
        owners.append(tuple(part.owner for part in parts))
    label_owner = DEFAULT_OWNER
    if isinstance(y, Owned):
        label_owner, y = y.owner, y.array
    labels = None if y is None else _numbers(y, "y")
    counts = {len(part) for parts in inputs for part in parts} | ({len(labels)} if labels is not None else set())
    if len(counts) != 1:
        raise ConfigurationError(
            f"numbers of rows: {sorted(counts)}", expected="the same of all inputs and labels", remedy="check x and y"
        )
    if labels is not None and not np.all(np.isfinite(labels)):
        raise EncodingError("y holds NaN or an infinity", expected="finite labels", remedy="clean the labels")
    return Batch(tuple(inputs), labels, tuple(owners), label_owner)


def _numbers(array: Any, name: str) -> np.ndarray:
    found = np.asarray(array)
    if found.dtype.kind not in "fiub":
        raise ConfigurationError(
            f"{name} has the dtype {found.dtype}", expected="floats or integers", remedy="convert it to numbers"
        )
    if found.ndim == 0:
        raise ConfigurationError(f"{name} is a single number", expected="rows", remedy="add a batch axis")
    return found.astype(np.float64)


def _check_shape(arrays: Sequence[np.ndarray], shape: tuple[int | None, ...], name: str) -> None:
    found = (*arrays[0].shape[1:-1], sum(array.shape[-1] if array.ndim > 1 else 0 for array in arrays))
    if len(arrays) == 1:
        found = arrays[0].shape[1:]
    alike = all(array.shape[:-1] == arrays[0].shape[:-1] for array in arrays)
    if found != tuple(shape[1:]) or not alike:
        got = " and ".join(str(array.shape) for array in arrays)
        raise ConfigurationError(
            f"{name} has the shape {got}", expected=f"(rows, {', '.join(map(str, shape[1:]))})", remedy="reshape it"
        )


def _check_values(array: np.ndarray, declared: tuple[float, float], depth: int, name: str) -> None:
    if not array.size:
        return
    if depth:
        if not np.array_equal(array, np.floor(array)) or array.min() < 0 or array.max() >= depth:
            raise EncodingError(
                f"{name} holds what is no index", expected=f"integers from 0 to {depth - 1}", remedy="check the indices"
            )
        return
    low, high = float(np.min(array)), float(np.max(array))
    # A NaN makes both comparisons false.
    if not (low >= declared[0] and high <= declared[1]):
        raise EncodingError(
            f"{name} holds NaN or values in [{low:.6g}, {high:.6g}]",
            expected=f"finite numbers in the declared range [{declared[0]:.6g}, {declared[1]:.6g}]",
            remedy="scale or clean the data, or declare input_range=(low, high)",
        )


def _gathered(dataset: tf.data.Dataset) -> tuple[Any, Any]:
    """All rows of a batched dataset of x or (x, y)."""
    elements = list(dataset.as_numpy_iterator())
    if not elements:
        raise ConfigurationError("an empty Dataset", expected="rows", remedy="check the Dataset")
    if not isinstance(elements[0], tuple):
        return np.concatenate(elements), None
    if len(elements[0]) != 2:
        raise ConfigurationError(
            f"a Dataset of {len(elements[0])}-tuples", expected="x or (x, y)", remedy="leave sample weights out"
        )
    first = elements[0][0]
    labels = np.concatenate([element[1] for element in elements])
    if isinstance(first, (tuple, list)):
        return [np.concatenate([element[0][place] for element in elements]) for place in range(len(first))], labels
    return np.concatenate([element[0] for element in elements]), labels
