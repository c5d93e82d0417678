"""The proof against numbers: what it calls a row must depend on one example only, whatever the graph."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Optional

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from keras_private.dp.engine import _size
from keras_private.dp.proof import BATCH, Dim, Fact, Kind, StepProof
from keras_private.dp.proof.dims import product
from keras_private.dp.proof.facts import Share
from keras_private.dp.proof.values import broadcast_gradient_axes
from tests.dp.helpers import fact_of, floats

# Symbolic sizes.

SYMBOLS = ("batch", "t", "u")
dims = st.builds(
    lambda number, powers: product([Dim.of(number), *(Dim.symbol(name) for name in powers)]),
    st.integers(1, 12),
    st.lists(st.sampled_from(SYMBOLS), max_size=3),
)
sizes = st.fixed_dictionaries({name: st.integers(1, 7) for name in SYMBOLS})


def number(dim: Dim, values: dict[str, int]) -> Fraction:
    result = dim.coefficient
    for name, power in dim.powers:
        result *= Fraction(values[name]) ** power
    return result


@given(dims, dims, sizes)
def test_products_and_quotients_are_those_of_numbers(one, other, values):
    assert number(one * other, values) == number(one, values) * number(other, values)
    assert number(one / other, values) == number(one, values) / number(other, values)
    assert one * other == other * one and (one * other) / other == one


@given(dims, dims, sizes)
def test_exact_division_is_exact_for_all_sizes(one, other, values):
    if one.divides_exactly(other):
        assert (number(other, values) / number(one, values)).denominator == 1
    assert one.divides_exactly(one * other)


@given(dims, dims, sizes)
def test_equal_dims_are_equal_for_all_sizes_and_unlike_ones_differ_for_some(one, other, values):
    if one == other:
        assert number(one, values) == number(other, values)
    else:
        primes = {"batch": 2003, "t": 3001, "u": 5003}
        assert number(one, primes) != number(other, primes)


def test_a_size_zero_divides_nothing():
    assert not Dim.of(0).divides_exactly(Dim.of(6))
    with pytest.raises(ValueError, match="not an integer"):
        int(Dim.symbol(BATCH))


shapes = st.lists(st.sampled_from([1, 1, 2, 3]), max_size=4)


@given(shapes, shapes)
def test_symbolic_broadcast_gradient_axes_equal_tensorflows(left, right):
    rank = max(len(left), len(right))
    padded = [[1] * (rank - len(item)) + item for item in (left, right)]
    if any(a != b and 1 not in (a, b) for a, b in zip(*padded)):
        return
    found = broadcast_gradient_axes([Dim.of(n) for n in left], [Dim.of(n) for n in right])
    expected = tf.raw_ops.BroadcastGradientArgs(s0=tf.constant(left, tf.int32), s1=tf.constant(right, tf.int32))
    for mine, theirs, shape in zip(found, expected, padded):
        both_one = {axis for axis in range(rank) if padded[0][axis] == padded[1][axis] == 1}
        assert set(mine) - both_one == set(theirs.numpy()) - both_one, shape


def test_broadcast_of_sizes_that_may_agree_or_not_is_undecided():
    with pytest.raises(ValueError, match="may or may not"):
        broadcast_gradient_axes([Dim.symbol(BATCH)], [Dim.of(3)])


# Facts of single operations.

ROW = (None, 3, 4)


def data_number(x: tf.Tensor, below: int = 4) -> tf.Tensor:
    """A whole number that all examples decide."""
    return tf.cast(tf.math.floormod(tf.reduce_sum(tf.abs(x)), float(below)), tf.int32)


MIXING: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "mean over the batch": lambda x: tf.reduce_mean(x, axis=0),
    "sum of all": tf.reduce_sum,
    "centring": lambda x: x - tf.reduce_mean(x, axis=0, keepdims=True),
    "cumsum": lambda x: tf.cumsum(x, axis=0),
    "reverse": lambda x: tf.reverse(x, [0]),
    "roll": lambda x: tf.roll(x, 1, axis=0),
    "sort": lambda x: tf.sort(x, axis=0),
    "unique": lambda x: tf.unique(tf.reshape(x, [-1]))[0],
    "inverse": lambda x: tf.linalg.inv(x[:, :, :3]),
    "softmax over the batch": lambda x: tf.nn.softmax(x, axis=0),
    "first example": lambda x: x[0],
    "shifted pair": lambda x: x[1:] * x[:-1],
    "every other example": lambda x: x[::2],
    "gather of examples": lambda x: tf.gather(x, [0, 0, 1]),
    "boolean mask": lambda x: tf.boolean_mask(x, x[:, 0, 0] > 0),
    "concatenated batch": lambda x: tf.concat([x, x], axis=0),
    "padded batch": lambda x: tf.pad(x, [[1, 0], [0, 0], [0, 0]]),
    "tiled batch": lambda x: tf.tile(x, [2, 1, 1]),
    "Gram over examples": lambda x: tf.matmul(x[:, 0], x[:, 0], transpose_b=True),
    "product with a transposed batch": lambda x: x[:, 0, :3] @ tf.transpose(x[:, 0, :3]),
    "covariance": lambda x: tf.matmul(x[:, 0], x[:, 0], transpose_a=True),
    "time before batch, merged": lambda x: tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, 4]),
    "entries spilled across examples": lambda x: tf.reshape(x, [4, -1, 3]),
    "half of the batch to another axis": lambda x: tf.reshape(x, [-1, 2, 3, 4]),
    "unknown axis count squeezed": lambda x: tf.squeeze(x[:, :1]),
    "scaled by the batch size": lambda x: x / tf.cast(tf.shape(x)[0], tf.float32),
    "numbered by position": lambda x: x * tf.reshape(tf.cast(tf.range(tf.shape(x)[0]), tf.float32), [-1, 1, 1]),
    "py_function": lambda x: tf.ensure_shape(tf.py_function(lambda y: y - tf.reduce_mean(y), [x], tf.float32), ROW),
    "numpy_function": lambda x: tf.ensure_shape(tf.numpy_function(lambda y: y[::-1], [x], tf.float32), ROW),
    "map_fn": lambda x: tf.map_fn(lambda row: 2.0 * row, x),
    "while loop": lambda x: tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y[::-1]), [0, x])[1],
    "cond": lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x),
    "nested function": lambda x: tf.function(lambda y: y - tf.reduce_mean(y))(x),
    "batch norm": lambda x: tf.compat.v1.nn.fused_batch_norm(x[:, None], tf.ones(4), tf.zeros(4))[0],
    "moments": lambda x: tf.nn.moments(x, [0])[1],
    "segment sum": lambda x: tf.math.unsorted_segment_sum(x[:, 0, 0], tf.cast(x[:, 0, 1], tf.int32), 3),
    "scatter": lambda x: tf.scatter_nd(tf.cast(x[:, :1, 0], tf.int32), x[:, 0], [3, 4]),
    "batch to space into the image": lambda x: tf.batch_to_space(x, [3], [[0, 0]]),
    "dynamic partition": lambda x: tf.dynamic_partition(x, tf.cast(x[:, 0, 0] > 0, tf.int32), 2)[0],
    "fixed mask of noise": lambda x: x * tf.random.stateless_uniform(tf.shape(x), [1, 2]),
    "noise whose scale depends on data": lambda x: tf.random.gamma([3], tf.reduce_sum(x)),
    "einsum over the batch": lambda x: tf.einsum("btd,btd->td", x, x),
    "softmax cross entropy of shifted labels": lambda x: tf.nn.softmax_cross_entropy_with_logits(
        labels=tf.reverse(x[:, 0], [0]), logits=x[:, 1]
    ),
}

KEEPING: dict[str, tuple[Callable[[tf.Tensor], tf.Tensor], int, str]] = {
    "entrywise": (lambda x: tf.exp(-tf.square(x)), 0, "1"),
    "transposed": (lambda x: tf.transpose(x, [2, 0, 1]), 1, "1"),
    "time merged into batch": (lambda x: tf.reshape(x, [-1, 4]), 0, "3"),
    "merged and split again": (lambda x: tf.reshape(tf.reshape(x, [-1, 4]), [-1, 3, 4]), 0, "1"),
    "all merged": (lambda x: tf.reshape(x, [-1]), 0, "12"),
    "split by half an example": (lambda x: tf.reshape(x, [-1, 6]), 0, "2"),
    "one more axis in front": (lambda x: x[tf.newaxis], 1, "1"),
    "reduced beside the batch": (lambda x: tf.reduce_max(x, axis=[1, -1]), 0, "1"),
    "reduced before the batch": (lambda x: tf.reduce_sum(tf.transpose(x, [1, 0, 2]), axis=0), 0, "1"),
    "space to batch": (lambda x: tf.space_to_batch(x, [3], [[0, 0]]), 0, "3"),
    "there and back": (
        lambda x: tf.batch_to_space(tf.space_to_batch(x, [3], [[0, 0]]), [3], [[0, 0]]),
        0,
        "1",
    ),
    "own softmax": (lambda x: tf.nn.softmax(x, axis=1), 0, "1"),
    "looked up": (lambda x: tf.gather(tf.constant(floats(9, 2)), tf.argmax(x, -1)), 0, "1"),
    "own Gram": (lambda x: tf.matmul(x, x, transpose_b=True), 0, "1"),
    "attended": (lambda x: tf.nn.softmax(tf.matmul(x, x, transpose_b=True)) @ x, 0, "1"),
    "dropout": (lambda x: tf.nn.dropout(x, 0.5), 0, "1"),
    "top k": (lambda x: tf.math.top_k(x, 2)[0], 0, "1"),
    "class token": (lambda x: tf.concat([tf.zeros([tf.shape(x)[0], 1, 4]), x], axis=1), 0, "1"),
    "positions": (lambda x: x + tf.constant(floats(3, 4)), 0, "1"),
    "picked along time": (lambda x: x[:, ::-1, 1:3], 0, "1"),
    "stacked": (lambda x: tf.stack([x, 2.0 * x], axis=0), 1, "1"),
    "left product": (lambda x: tf.constant(floats(2, 3)) @ x, 0, "1"),
    "right of a product": (lambda x: tf.matmul(tf.constant(floats(2, 4)), x[:, 0], transpose_b=True), 1, "1"),
    "clipped": (lambda x: tf.clip_by_value(x, -1.0, 1.0), 0, "1"),
    "norms": (lambda x: tf.linalg.norm(x, axis=-1), 0, "1"),
    "sorted within": (lambda x: tf.sort(x, axis=1), 0, "1"),
    "stop gradient": (tf.stop_gradient, 0, "1"),
}


@pytest.mark.parametrize("name", MIXING)
def test_what_mixes_examples_is_no_row(name):
    fact = fact_of(MIXING[name], ROW)
    assert fact.is_mixed, fact
    assert "operation" in fact.reason


@pytest.mark.parametrize("name", KEEPING)
def test_what_keeps_examples_apart_is_a_row(name):
    function, axis, share = KEEPING[name]
    fact = fact_of(function, ROW)
    assert fact.is_row, fact.reason
    assert (fact.axis, str(fact.share)) == (axis, share)


def test_which_entries_an_example_owns():
    merged = fact_of(lambda x: tf.reshape(x, [-1, 4]), ROW)
    assert merged.share == Share(after=Dim.of(3))
    spaced = fact_of(lambda x: tf.space_to_batch(x, [3], [[0, 0]]), ROW)
    assert spaced.share == Share(before=Dim.of(3))
    both = fact_of(lambda x: tf.space_to_batch(tf.reshape(x, [-1, 2, 3]), [2], [[0, 0]]), ROW)
    assert both.share == Share(before=Dim.of(2), after=Dim.of(2))
    dynamic = fact_of(lambda x: tf.reshape(x, [-1, 4]), (None, None, 4))
    assert str(dynamic.share).endswith("[1]"), "the number of positions is a symbol of its own"


def test_public_and_size():
    assert fact_of(lambda x: tf.constant(2.0) * tf.ones([3]), ROW).kind is Kind.PUBLIC
    assert fact_of(lambda x: tf.cast(tf.shape(x)[0], tf.float32), ROW).kind is Kind.SIZE
    assert fact_of(lambda x: tf.cast(tf.shape(x)[1], tf.float32), ROW).kind is Kind.PUBLIC
    assert fact_of(lambda x: tf.cast(tf.size(x), tf.float32) / 12.0, ROW).kind is Kind.SIZE
    assert fact_of(lambda x: tf.cast(tf.shape(x)[0] // tf.shape(x)[0], tf.float32), ROW).kind is Kind.PUBLIC
    assert fact_of(lambda x: tf.random.normal([3]), ROW).kind is Kind.PUBLIC
    assert fact_of(lambda x: tf.random.normal(tf.shape(x)), ROW).kind is Kind.ROW


def test_a_static_batch_does_not_let_constants_pair_with_examples():
    for function in (
        lambda x: x * tf.constant(floats(4, 1, 1)),
        lambda x: tf.where(tf.constant([True, False, True, True])[:, None, None], x, 0.0),
        lambda x: x @ tf.constant(floats(4, 4, 2)),
    ):
        assert fact_of(function, (4, 3, 4)).is_mixed
    assert fact_of(lambda x: x * tf.ones([4, 1, 1]), (4, 3, 4)).is_row, "all entries alike pair with nobody"


def test_data_without_a_batch_axis_is_mixed():
    assert fact_of(lambda x, scale: x * scale, ROW, ()).is_mixed
    assert fact_of(lambda x: x + 1.0, tf.TensorSpec(None)).is_mixed


# What a transfer rule does not look at. Each entry decides by all examples where or how many entries are taken.


def select_by_row(x: tf.Tensor) -> tf.Tensor:
    """Version 1 of Select pairs a vector condition with axis 0, not with the last axis as broadcasting does."""
    rows = tf.transpose(x[:, 0])
    return tf.raw_ops.Select(condition=x[:, 0, 0] > 0, x=rows, y=-rows)


TABLE = floats(4, 4)
DECIDED_BY_ALL: dict[str, tuple[Callable[[tf.Tensor], tf.Tensor], tuple[Optional[int], ...]]] = {
    "index of a constant": (lambda x: tf.constant(TABLE)[data_number(x)], ROW),
    "slice of a constant": (lambda x: tf.slice(tf.constant(TABLE), [data_number(x), 0], [1, 4]), ROW),
    "reshape of a constant": (lambda x: tf.reshape(tf.constant(TABLE), [1 + data_number(x, 2), -1])[0], ROW),
    "axis of a sum": (lambda x: tf.reduce_sum(tf.constant(TABLE), axis=data_number(x, 2)), ROW),
    "axis of a reverse": (lambda x: tf.reverse(tf.constant(TABLE), [data_number(x, 2)]), ROW),
    "axis of a cumsum": (lambda x: tf.cumsum(tf.constant(TABLE), data_number(x, 2)), ROW),
    "axis of a concatenation": (lambda x: tf.concat([tf.constant(TABLE)] * 2, data_number(x, 2))[:2], ROW),
    "order of a transpose": (
        lambda x: tf.transpose(tf.constant(TABLE), tf.stack([data_number(x, 2), 1 - data_number(x, 2)])),
        ROW,
    ),
    "value of a one-hot": (lambda x: tf.one_hot([0, 1], 3, on_value=tf.reduce_sum(x)), ROW),
    "depth of a one-hot": (lambda x: tf.one_hot([0, 1], 1 + data_number(x)), ROW),
    "k of a constant's top": (lambda x: tf.math.top_k(tf.constant(TABLE), 1 + data_number(x))[0], ROW),
    "k of a row's top": (lambda x: tf.math.top_k(x, 1 + data_number(x))[0], ROW),
    "sizes of a row's split": (
        lambda x: tf.split(x, tf.stack([data_number(x), 4 - data_number(x)]), axis=2)[0],
        ROW,
    ),
    "size of an image": (lambda x: tf.image.resize(x[..., None], tf.stack([1 + data_number(x), 3])), ROW),
    "size of a constant image": (
        lambda x: tf.image.resize(tf.constant(TABLE)[None, ..., None], tf.stack([1 + data_number(x), 3])),
        ROW,
    ),
    "crops of batch to space": (
        lambda x: tf.batch_to_space(
            tf.space_to_batch(x, [3], [[0, 0]]), [3], tf.stack([tf.stack([data_number(x, 2), 0])])
        ),
        ROW,
    ),
    "condition of a first-version select": (select_by_row, (4, 3, 4)),
    "bound of random integers": (
        lambda x: x * tf.cast(tf.random.uniform(tf.shape(x), 0, tf.shape(x)[0], tf.int32), tf.float32),
        ROW,
    ),
    "gradient of a slice of a constant": (
        lambda x: tf.raw_ops.StridedSliceGrad(
            shape=[4], begin=[data_number(x)], end=[data_number(x) + 1], strides=[1], dy=tf.constant([1.0])
        ),
        ROW,
    ),
}


@pytest.mark.parametrize("name", DECIDED_BY_ALL)
def test_an_index_axis_or_size_that_all_examples_decide_is_seen(name):
    function, shape = DECIDED_BY_ALL[name]
    fact = fact_of(function, shape)
    assert fact.is_mixed, fact


def test_a_size_that_broadcasting_may_stretch_is_not_known():
    """With one position at run time the sum has 5: what is then called one example's entry is five."""

    def stretched(x: tf.Tensor) -> tf.Tensor:
        wide = tf.transpose(x + tf.constant(floats(5)))
        return tf.reshape(wide, tf.stack([tf.shape(x)[1], -1]))

    assert fact_of(stretched, (None, None)).is_mixed


@pytest.mark.parametrize(
    "function",
    [lambda x: tf.bitcast(x, tf.uint8), lambda x: tf.random.gamma(tf.shape(x)[:1], [1.0, 2.0]) * x[:, 0, :2]],
)
def test_no_operation_makes_the_proof_fail_with_a_bare_error(function):
    try:
        assert isinstance(fact_of(function, ROW, dtype=tf.float32), Fact)
    except IndexError as error:
        raise AssertionError("a bare IndexError reached the user") from error


# The fuzzer: random graphs, every claim checked by numbers.


@dataclass(frozen=True)
class Claim:
    fact: Fact
    tensor: tf.Tensor
    before: Any
    after: Any


class Graph:
    """Grows a random graph from data; operations that TensorFlow refuses at once are skipped."""

    def __init__(self, seed: int, operations: Sequence[Callable[[Graph], Any]]) -> None:
        self.random = random.Random(seed)
        self.operations = operations
        self.pool: list[tf.Tensor] = []
        self.history: list[str] = []

    def grow(self, data: Sequence[tf.Tensor], steps: int) -> None:
        self.pool = list(data)
        for _ in range(steps):
            operation = self.random.choice(self.operations)
            try:
                result = operation(self)
            except (ValueError, TypeError, tf.errors.InvalidArgumentError, IndexError, LookupError):
                continue
            for tensor in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(tensor, tf.Tensor) and tensor.shape.rank is not None and tensor.shape.rank <= 5:
                    self.pool.append(tf.cast(tensor, tf.float32))
                    self.history.append(tensor.op.type)

    def pick(self, rank: Optional[int] = None) -> tf.Tensor:
        recent = self.pool[-4:] if self.random.random() < 0.7 else self.pool
        fitting = [tensor for tensor in recent if rank is None or tensor.shape.rank == rank]
        return self.random.choice(fitting or [tensor for tensor in self.pool if tensor.shape.rank == rank])

    def axis(self, tensor: tf.Tensor) -> int:
        return self.random.randrange(tensor.shape.rank)

    def constant(self, *shape: int) -> tf.Tensor:
        return tf.constant(floats(*shape, seed=self.random.randrange(99)))


OPERATIONS: list[Callable[[Graph], Any]] = []


def operation(function: Callable[[Graph], Any]) -> Callable[[Graph], Any]:
    OPERATIONS.append(function)
    return function


@operation
def entrywise(graph: Graph) -> Any:
    functions = [
        tf.nn.relu,
        tf.tanh,
        tf.abs,
        tf.square,
        tf.sign,
        tf.floor,
        tf.nn.softplus,
        tf.zeros_like,
        tf.nn.elu,
    ]
    return graph.random.choice(functions)(graph.pick())


@operation
def combined(graph: Graph) -> Any:
    functions = [tf.add, tf.multiply, tf.subtract, tf.maximum, tf.math.divide_no_nan]
    return graph.random.choice(functions)(graph.pick(), graph.pick())


@operation
def chosen(graph: Graph) -> Any:
    return tf.where(graph.pick() > 0, graph.pick(), graph.pick())


@operation
def with_constant(graph: Graph) -> Any:
    tensor = graph.pick()
    shape = [graph.random.choice([1, size or 1, size or 4]) for size in tensor.shape]
    shape = shape[graph.random.randrange(len(shape) + 1) :]
    return graph.random.choice([tf.add, tf.multiply])(tensor, graph.constant(*shape))


@operation
def with_alike(graph: Graph) -> Any:
    tensor = graph.pick()
    return graph.random.choice([tf.ones, tf.random.normal])(tf.shape(tensor)) + tensor


@operation
def transposed(graph: Graph) -> Any:
    tensor = graph.pick()
    order = list(range(tensor.shape.rank))
    graph.random.shuffle(order)
    return tf.transpose(tensor, order)


@operation
def reshaped(graph: Graph) -> Any:
    tensor = graph.pick()
    static, dynamic = tensor.shape.as_list(), tf.shape(tensor)
    sizes = [dynamic[axis] if size is None else size for axis, size in enumerate(static)]
    place = graph.axis(tensor)
    merged = [*sizes[:place], sizes[place] * sizes[place + 1], *sizes[place + 2 :]] if place + 1 < len(sizes) else [-1]
    factor = graph.random.choice([2, 3, 4])
    targets = [
        [-1],
        [-1, sizes[-1]],
        [sizes[0], -1],
        [-1, factor],
        [factor, -1],
        merged,
        [*sizes[:-1], factor, -1],
        [*sizes[:place], -1, factor, *sizes[place + 1 :]],
        [*sizes[:place], factor, -1, *sizes[place + 1 :]],
        [*sizes[:place], 1, *sizes[place:]],
        list(reversed(sizes)),
        graph.random.sample(sizes, len(sizes)),
    ]
    target = graph.random.choice(targets)
    return tf.reshape(tensor, target if all(isinstance(size, int) for size in target) else tf.stack(target))


@operation
def expanded(graph: Graph) -> Any:
    tensor = graph.pick()
    return tf.expand_dims(tensor, graph.random.randrange(tensor.shape.rank + 1))


@operation
def squeezed(graph: Graph) -> Any:
    tensor = graph.pick()
    ones = [axis for axis, size in enumerate(tensor.shape) if size == 1]
    return tf.squeeze(tensor, graph.random.choice(ones))


@operation
def reduced(graph: Graph) -> Any:
    tensor = graph.pick()
    function = graph.random.choice([tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_prod])
    return function(tensor, axis=graph.axis(tensor), keepdims=graph.random.random() < 0.5)


@operation
def along(graph: Graph) -> Any:
    tensor = graph.pick()
    axis = graph.axis(tensor)
    functions = [
        lambda: tf.cumsum(tensor, axis, exclusive=True),
        lambda: tf.reverse(tensor, [axis]),
        lambda: tf.nn.softmax(tensor, axis),
        lambda: tf.roll(tensor, 1, axis),
        lambda: tf.argmax(tensor, axis),
        lambda: tf.one_hot(tf.cast(tensor, tf.int32), 3, axis=axis),
        lambda: tf.math.top_k(tensor, 2)[graph.random.randrange(2)],
        lambda: tf.nn.log_softmax(tensor),
        lambda: tf.sort(tensor, axis),
        lambda: tf.linalg.norm(tensor, axis=axis),
    ]
    return graph.random.choice(functions)()


@operation
def joined(graph: Graph) -> Any:
    one = graph.pick()
    other = graph.random.choice([one, graph.pick(one.shape.rank), tf.zeros_like(one), 2.0 * one])
    if graph.random.random() < 0.5:
        return tf.stack([one, other], axis=graph.random.randrange(one.shape.rank + 1))
    return tf.concat([one, other], axis=graph.axis(one))


@operation
def cut(graph: Graph) -> Any:
    tensor = graph.pick()
    axis = graph.axis(tensor)
    index: list[Any] = [slice(None)] * tensor.shape.rank
    index[axis] = graph.random.choice([0, -1, slice(1, None), slice(None, 2), slice(None, None, -1), slice(0, 4, 2)])
    if graph.random.random() < 0.3:
        index.insert(graph.random.randrange(len(index)), tf.newaxis)
    if graph.random.random() < 0.3:
        index = [*index[: axis + 1], Ellipsis]
    functions = [
        lambda: tensor[tuple(index)],
        lambda: tf.split(tensor, 2, axis)[graph.random.randrange(2)],
        lambda: tf.unstack(tensor, axis=axis)[-1],
        lambda: tf.slice(tensor, [0] * tensor.shape.rank, [2 if n == axis else -1 for n in range(tensor.shape.rank)]),
        lambda: tf.gather(tensor, graph.random.choice([[0], [1, 0, 1], [[0, 1], [1, 1]]]), axis=axis),
    ]
    return graph.random.choice(functions)()


@operation
def stretched(graph: Graph) -> Any:
    tensor = graph.pick()
    rank, axis = tensor.shape.rank, graph.axis(tensor)
    times = [2 if place == axis else 1 for place in range(rank)]
    pads = [[1, 0] if place == axis else [0, 0] for place in range(rank)]
    functions = [
        lambda: tf.tile(tensor, times),
        lambda: tf.pad(tensor, pads),
        lambda: tf.repeat(tensor, 2, axis=axis),
        lambda: tf.broadcast_to(tensor, tf.concat([[2], tf.shape(tensor)], 0)),
        lambda: tf.broadcast_to(graph.constant(tensor.shape[-1]), tf.shape(tensor)),
        lambda: tf.broadcast_to(tf.expand_dims(graph.pick(), 0), tf.shape(tensor)),
    ]
    return graph.random.choice(functions)()


@operation
def looked_up(graph: Graph) -> Any:
    indices = tf.cast(tf.clip_by_value(graph.pick(), 0.0, 1.0), tf.int32)
    table = graph.random.choice([graph.constant(2, 3), graph.pick()])
    functions = [lambda: tf.gather(table, indices, axis=graph.axis(table))]
    # TensorFlow's own shape inference aborts the process where batch_dims exceeds a rank.
    if min(table.shape.rank, indices.shape.rank) >= 2:
        functions.append(lambda: tf.gather(table, indices, batch_dims=1, axis=1))
    if table.shape.rank >= 3 and indices.shape.rank >= 2:
        functions.append(lambda: tf.gather(table, indices, batch_dims=2))
    return graph.random.choice(functions)()


@operation
def steered(graph: Graph) -> Any:
    """A whole number that several examples, one example each, or their count decide, as an index or a size."""
    source, tensor = graph.pick(), graph.random.choice([graph.pick(), graph.constant(4, 4)])
    steer = graph.random.choice([data_number(source, 2), tf.shape(source)[0] % 2, tf.cast(source, tf.int32)])
    functions = [
        lambda: tensor[..., steer],
        lambda: tensor[steer],
        lambda: tf.reduce_sum(tensor, axis=steer),
        lambda: tf.cumsum(tensor, steer),
        lambda: tf.math.top_k(tensor, 1 + steer)[0],
        lambda: tf.one_hot(tf.cast(tensor, tf.int32), 2, on_value=tf.cast(steer, tf.float32)),
        lambda: tf.pad(tensor, tf.stack([tf.stack([0, steer])] * tensor.shape.rank)),
        lambda: tf.fill([2, 2], tf.cast(steer, tf.float32)),
        lambda: tf.gather(tensor, steer, axis=graph.axis(tensor)),
        lambda: tf.where(steer > 0, tensor, 2.0 * tensor),
    ]
    # TensorFlow's own shape inference aborts the process where sizes that it can fold are no vector.
    if steer.shape.rank == 0:
        functions.append(lambda: tf.split(tensor, tf.stack([1 + steer, tensor.shape[-1] - 1 - steer]), axis=-1)[0])
    return tf.cast(graph.random.choice(functions)(), tf.float32)


@operation
def multiplied(graph: Graph) -> Any:
    one, other = graph.pick(), graph.pick()
    flags = {"transpose_a": graph.random.random() < 0.3, "transpose_b": graph.random.random() < 0.3}
    functions = [
        lambda: tf.matmul(one, graph.constant(one.shape[-1], 2)),
        lambda: tf.matmul(graph.constant(2, one.shape[-2]), one),
        lambda: tf.matmul(graph.constant(one.shape[-2], 2), one, transpose_a=True),
        lambda: tf.matmul(one, other, **flags),
        lambda: tf.matmul(one, one, transpose_b=True),
        lambda: tf.tensordot(one, graph.constant(one.shape[-1], 3), 1),
        lambda: tf.linalg.matvec(one, other),
        lambda: tf.einsum("bij,bkj->bik", one, other),
    ]
    return graph.random.choice(functions)()


@operation
def blocked(graph: Graph) -> Any:
    tensor = graph.pick()
    block = graph.random.choice([2, 3, 4])
    functions = [
        lambda: tf.space_to_batch(tensor, [block], [[0, 0]]),
        lambda: tf.batch_to_space(tensor, [block], [[0, 0]]),
        lambda: tf.batch_to_space(tf.nn.relu(tf.space_to_batch(tensor, [block], [[0, 0]])), [block], [[0, 0]]),
    ]
    return graph.random.choice(functions)()


@operation
def convolved(graph: Graph) -> Any:
    images = graph.pick(4)
    kernel = graph.constant(2, 2, images.shape[-1], 2)
    functions = [
        lambda: tf.nn.conv2d(images, kernel, 1, "SAME"),
        lambda: tf.nn.avg_pool2d(images, 2, 1, "SAME"),
        lambda: tf.nn.max_pool2d(images, 2, 1, "SAME"),
        lambda: tf.image.resize(images, [2, 3]),
        lambda: tf.nn.space_to_depth(images, 2),
    ]
    return graph.random.choice(functions)()


@operation
def normalized(graph: Graph) -> Any:
    images = graph.pick(4)
    layout, channel = graph.random.choice([("NHWC", 3), ("NHWC", 3)])
    size = tf.shape(images)[channel]
    return tf.raw_ops.FusedBatchNormV3(
        x=images, scale=tf.ones([size]), offset=tf.zeros([size]), mean=[], variance=[], data_format=layout
    ).y


@operation
def compared(graph: Graph) -> Any:
    logits = graph.pick(2)
    functions = [
        lambda: tf.nn.softmax_cross_entropy_with_logits(labels=graph.pick(2), logits=logits),
        lambda: tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(graph.pick(1) > 0, tf.int32), logits),
        lambda: tf.nn.in_top_k(tf.cast(graph.pick(1) > 0, tf.int32), logits, 1),
    ]
    return graph.random.choice(functions)()


@operation
def sized(graph: Graph) -> Any:
    tensor = graph.pick()
    functions = [
        lambda: tf.cast(tf.shape(tensor)[graph.axis(tensor)], tf.float32),
        lambda: tf.cast(tf.range(tf.shape(tensor)[graph.axis(tensor)]), tf.float32),
        lambda: tf.fill(tf.shape(tensor)[:1], 2.0),
        lambda: tf.reduce_mean(tf.ones_like(tensor)),
    ]
    return graph.random.choice(functions)()


@operation
def differentiated(graph: Graph) -> Any:
    source, target = graph.random.choice(graph.pool), graph.pick()
    return tf.gradients(target, source, grad_ys=tf.raw_ops.OnesLike(x=target) * 2.0)[0]


for _ in range(3):
    OPERATIONS.extend([transposed, reshaped, reduced, with_constant, differentiated])


@pytest.fixture
def unoptimized() -> Iterator[None]:
    """Runs graphs as they were traced: the optimizer folds away errors of shapes that do not fit."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **before})


def check(seed: int, signature: Sequence[tuple[Optional[int], ...]], steps: int = 14) -> tuple[int, int]:
    """Builds one graph and checks every claim of the proof on it; returns how many were checked, and rows."""
    graph = Graph(seed, OPERATIONS)
    claims: list[Claim] = []

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in signature], autograph=False)
    def trace(*data: tf.Tensor) -> Any:
        graph.grow(data, steps)
        proof = StepProof(data[0].graph)
        results = []
        for tensor in dict.fromkeys(id(item) for item in graph.pool):
            tensor = next(item for item in graph.pool if id(item) == tensor)
            fact = proof.fact(tensor)
            if fact.is_mixed:
                continue
            if fact.is_row:
                before, after = (size_of(proof, dim) for dim in (fact.share.before, fact.share.after))
            else:
                before = after = tf.constant(1)
            claims.append(Claim(fact, tensor, before, after))
            results.append((tensor, before, after))
        return results

    concrete = trace.get_concrete_function()
    if not claims:
        return 0, 0
    # Noise is the same function of nothing in every run: leave out what draws it.
    noisy = {claim.tensor.name for claim in claims if draws(claim.tensor)}
    checked = rows = 0
    for batch in (4, 3, 5) if signature[0][0] is None else (4,):
        generator = np.random.default_rng(seed)
        data = [
            generator.normal(size=[batch, *(3 if n is None else n for n in shape[1:])]).astype(np.float32)
            for shape in signature
        ]
        try:
            base = concrete(*map(tf.constant, data))
            variants = []
            for j in (0, batch - 1):
                changed = [item.copy() for item in data]
                for item in changed:
                    item[j] = 3.0 * generator.normal(size=item[j].shape) + 1.0
                variants.append((j, concrete(*map(tf.constant, changed))))
        except tf.errors.InvalidArgumentError:
            continue  # a size or index that does not fit this batch; static shape inference could not know
        for place, claim in enumerate(claims):
            if claim.tensor.name in noisy:
                continue
            value, before, after = (np.asarray(item) for item in base[place])
            where = f"seed {seed}, {signature}, batch {batch}: {claim.tensor.op.type} {claim.tensor.name}"
            check_dims(claim.fact, value, batch, where)
            for j, result in variants:
                other = np.asarray(result[place][0])
                assert other.shape == value.shape, where
                if claim.fact.is_row:
                    value_rows, other_rows = (
                        np.delete(split(item, claim.fact.axis, before, batch, after, where), j, axis=1)
                        for item in (value, other)
                    )
                    np.testing.assert_array_equal(value_rows, other_rows, err_msg=where)
                    rows += 1
                else:
                    np.testing.assert_array_equal(value, other, err_msg=where)
                checked += 1
    return checked, rows


def size_of(proof: StepProof, dim: Dim) -> tf.Tensor:
    assert dim.coefficient.denominator == 1 and all(power > 0 for _, power in dim.powers), f"share {dim}"
    return _size(proof, dim)


def split(value: np.ndarray, axis: int, before: int, batch: int, after: int, where: str) -> np.ndarray:
    """[before, batch, after, rest] as the claim reads the tensor."""
    moved = np.moveaxis(value, axis, 0)
    assert moved.shape[0] == before * batch * after, (
        f"{where}: {value.shape} axis {axis} is not {before}*{batch}*{after}"
    )
    return moved.reshape(int(before), batch, int(after), -1)


def check_dims(fact: Fact, value: np.ndarray, batch: int, where: str) -> None:
    for axis, dim in enumerate(fact.dims or ()):
        if dim is not None and all(name == BATCH for name, _ in dim.powers):
            assert number(dim, {BATCH: batch}) == value.shape[axis], f"{where}: claims size {dim} on axis {axis}"


def draws(tensor: tf.Tensor) -> bool:
    waiting, seen = [tensor.op], set()
    while waiting:
        op = waiting.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        if "Random" in op.type:
            return True
        waiting.extend(item.op for item in op.inputs)
    return False


SIGNATURES = [
    ((None, 3, 4), (None, 4)),
    ((None, 4, 4), (None,)),
    ((None, 4, 3, 2), (None, 3)),
    ((4, 4, 4), (4, 3)),
    ((4, 2, 3, 4), (4,)),
    ((None, None, 4), (None, 3)),
]
GRAPHS = 40


@pytest.mark.parametrize("place", range(len(SIGNATURES)))
def test_random_graphs(unoptimized, place):
    """Soundness: no claim of the proof is refuted by changing one example."""
    counts = [check(1000 * place + seed, SIGNATURES[place]) for seed in range(GRAPHS)]
    checked, rows = (sum(column) for column in zip(*counts))
    assert checked > 5 * GRAPHS and rows > 2 * GRAPHS, "the fuzzer has stopped finding claims to check"


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(SIGNATURES)))
def test_many_random_graphs(unoptimized, place):
    counts = [check(100_000 * (place + 1) + seed, SIGNATURES[place], steps=20) for seed in range(1500)]
    assert sum(rows for _, rows in counts) > 3000


def test_the_fuzzer_finds_a_rule_that_lies(unoptimized, monkeypatch):
    """Its power: with a wrong rule in the table, it must report."""
    from keras_private.dp.proof.registry import RULES

    def lie(op: tf.Operation, facts: list[Fact], context: Any) -> list[Fact]:
        return [facts[0]] if facts[0].is_row else RULES["Sum"](op, facts, context)

    monkeypatch.setitem(RULES, "Cumsum", lie)
    with pytest.raises(AssertionError):
        for seed in range(400):
            check(seed, SIGNATURES[0])
