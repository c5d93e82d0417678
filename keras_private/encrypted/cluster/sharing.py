"""Numbers of an owner or client as shares, made in its own process, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.random import SecureSource, secure_source


def split(encoded: np.ndarray, count: int, source: SecureSource | None = None) -> list[np.ndarray]:
    """int64 ring elements as `count` summands: all but the last come from the secure source."""
    source = source or secure_source()
    parts = [source.uniform_full(list(encoded.shape), tf.int64).numpy() for _ in range(count - 1)]
    last = np.array(encoded, np.int64)
    for part in parts:
        # In place: of a scalar too, where the sum would warn of what modular arithmetic wants.
        np.subtract(last, part, out=last)
    return [*parts, last]


def share_out(encoded: np.ndarray, source: SecureSource | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """int64 ring elements as three pairs, the i-th for party i: (x_i, x_{i+1}) of x = x_0 + x_1 + x_2.

    Each pair alone is uniform and independent of x: x_0 and x_1 come from the secure source (Mohassel and Rindal 2018,
    section 3.2.2).
    """
    parts = split(encoded, 3, source)
    return [(parts[party], parts[(party + 1) % 3]) for party in range(3)]


def encoded(array: Any, fixed_point: FixedPoint, name: str) -> np.ndarray:
    """Real numbers as ring elements.

    Raises:
        EncodingError: A value is NaN, infinite or too large.
    """
    return fixed_point.encode(tf.constant(np.asarray(array, np.float64)), name).numpy()


def one_hot(indices: np.ndarray, depth: int) -> np.ndarray:
    """Indices as rows of a table with a single one each."""
    return (np.asarray(indices, np.int64)[..., None] == np.arange(depth)).astype(np.int64)


def joined(summands: Sequence[np.ndarray]) -> np.ndarray:
    """The ring elements of all their summands."""
    total = np.array(summands[0], np.int64)
    for summand in summands[1:]:
        np.add(total, summand, out=total)
    return total


def decoded(ring: np.ndarray, fraction: int) -> np.ndarray:
    """float64 numbers of ring elements."""
    return np.asarray(ring).astype(np.float64) * 2.0**-fraction
