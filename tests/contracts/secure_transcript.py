"""What every protocol must show of the messages that a party receives.

A protocol under test gives `messages(secret)`: for one execution of one traced function, a dict from the name of each
message to (receiver, array); the same function at each call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
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
