"""Numbers of an owner or client as shares, made in its own process, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.random import SecureSource, secure_source


def share_out(encoded: np.ndarray, source: SecureSource | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """int64 ring elements as three pairs, the i-th for party i: (x_i, x_{i+1}) of x = x_0 + x_1 + x_2.

    Each pair alone is uniform and independent of x: x_0 and x_1 come from the secure source (Mohassel and Rindal 2018,
    section 3.2.2).
    """
    source = source or secure_source()
    first, second = (source.uniform_full(list(encoded.shape), tf.int64).numpy() for _ in range(2))
    with np.errstate(over="ignore"):
        parts = [first, second, encoded - first - second]
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


def opened(summands: Sequence[np.ndarray], fraction: int) -> np.ndarray:
    """float64 numbers of the three parties' summands."""
    total = summands[0].copy()
    for summand in summands[1:]:
        total += summand
    return total.astype(np.float64) * 2.0**-fraction
