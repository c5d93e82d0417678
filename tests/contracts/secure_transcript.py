"""What every protocol must show of the messages that a party receives.

A protocol under test gives `messages(secret)`: for one execution of one traced function, a dict from the name of each
message to (receiver, array); the same function at each call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from scipy import stats

Messages = Mapping[str, tuple[str, np.ndarray]]
LEAST = 1e-12
"""A probability below this, among some hundred thousand tests, is no accident."""


def assert_fresh(run: Callable[[], Messages]) -> None:
    """Two executions on the same input have no message in common, beyond what chance gives."""
    first, second = run(), run()
    assert first and first.keys() == second.keys()
    for name, (_, one) in first.items():
        other = second[name][1]
        alike = np.mean(one == other)
        chance = 1.0 / _values(one, other)
        spread = np.sqrt(chance * (1 - chance) / one.size)
        assert alike <= chance + 6 * spread + 1 / one.size, f"{name}: {alike:.3%} of the words repeat"


def assert_uniform(run: Callable[[], Messages]) -> None:
    """Each message, and the difference of any two that one party receives, is uniform over all words."""
    found = run()
    assert found
    by_receiver: dict[str, list[tuple[str, np.ndarray]]] = {}
    for name, (receiver, words) in found.items():
        _assert_uniform(name, words)
        by_receiver.setdefault(receiver, []).append((name, words))
    for received in by_receiver.values():
        for (name, one), (other_name, other) in itertools.combinations(received, 2):
            if one.dtype == other.dtype and one.size == other.size:
                _assert_uniform(f"{name} - {other_name}", one.reshape(-1) ^ other.reshape(-1))
                if one.dtype == np.int64:
                    _assert_uniform(f"{name} - {other_name}", one.reshape(-1) - other.reshape(-1))


def assert_keys_drawn(graph: tf.Graph) -> None:
    """What feeds an operation's key or seed was drawn in the same run, by a stateful operation of the graph."""
    used = 0
    for operation in graph.get_operations():
        for place, argument in enumerate(operation.op_def.input_arg):
            if argument.name.startswith(("key", "seed")):
                used += 1
                drawn = any(each.op_def.is_stateful for each in _ancestors(operation.inputs[place].op))
                assert drawn, f"{operation.name}: its {argument.name} is the same in every run"
    assert used


def _ancestors(operation: tf.Operation) -> Iterator[tf.Operation]:
    """The operation, and all that it is computed of; sizes are not followed."""
    waiting, seen = [operation], set()
    while waiting:
        each = waiting.pop()
        if each.name not in seen:
            seen.add(each.name)
            yield each
            if each.type not in ("Shape", "Size"):
                waiting += [tensor.op for tensor in each.inputs]


def _values(*arrays: np.ndarray) -> float:
    """How many values a word of these messages can have: containers may use a few low bits only."""
    if arrays[0].dtype != np.int8:
        return 256.0 ** arrays[0].dtype.itemsize
    largest = max(int(np.max(array.view(np.uint8), initial=0)) for array in arrays)
    return 2.0 if largest <= 1 else 16.0 if largest <= 15 else 256.0


def _assert_uniform(name: str, words: np.ndarray) -> None:
    flat = np.ascontiguousarray(words.reshape(-1))
    count = int(min(_values(flat), 256))
    octets = flat.view(np.uint8).reshape(len(flat), flat.dtype.itemsize)
    for place in range(flat.dtype.itemsize):
        seen = np.bincount(octets[:, place], minlength=count)
        assert seen.size <= count
        if seen.sum() >= 5 * count:
            assert stats.chisquare(seen).pvalue > LEAST, f"byte {place} of {name} is not uniform"
