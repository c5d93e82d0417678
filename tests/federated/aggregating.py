"""Rounds of an aggregator without a federation: each client's graph is traced and run here, and summed in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from keras_private.federated.aggregators.base import Aggregator, Cohort, Noise, Place, Reports, Round, Total

SESSION = "0123456789abcdef" * 2


def cohort_of(clients: int, population: int = 100, expected: Optional[float] = None) -> Cohort:
    """Rounds in which `clients` are expected, unless said otherwise, out of more; not drawn at random."""
    wanted = float(max(clients, 1)) if expected is None else expected
    return Cohort(wanted, population, population, True, tuple(f"client{index}" for index in range(population)))


def traced(aggregator: Aggregator, dimension: int) -> Any:
    """`encode` as a concrete function of (update, weight, client, session, round)."""

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([dimension], tf.float32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([], tf.int64),
        ],
    )
    def encode(update, weight, client, session, number):
        return aggregator.encode(update, weight, Place(client, session, number))

    return encode.get_concrete_function()


def reports_of(
    aggregator: Aggregator,
    updates: np.ndarray,
    weights: Optional[Sequence[float]] = None,
    names: Optional[Sequence[str]] = None,
    number: int = 1,
    session: str = SESSION,
) -> tuple[Reports, Round]:
    """What the clients of a round report; float sums in float64, int64 sums wrap.

    Args:
        updates: float32 [clients, d].
        weights: Numbers of examples; 1 each if None. An unweighted aggregator gets 1, and 0 for no examples.
    """
    updates = np.asarray(updates, np.float32)
    count, dimension = updates.shape
    examples = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    weights = examples if aggregator.weighted else (examples > 0).astype(np.float64)
    names = tuple(f"client{index}" for index in range(count)) if names is None else tuple(names)
    encode = traced(aggregator, dimension)
    summed: dict[str, Any] = {name: np.zeros(item.shape, item.dtype.as_numpy_dtype)
                              for name, item in encode.structured_outputs[0].items()}  # fmt: skip
    each = []
    for update, weight, name in zip(updates, weights, names):
        one, other = encode(
            tf.constant(update),
            tf.constant(weight, tf.float32),
            tf.constant(name),
            tf.constant(session),
            tf.constant(number, tf.int64),
        )
        with np.errstate(over="ignore"):
            summed = {key: summed[key] + value.numpy() for key, value in one.items()}
        each.append({key: value.numpy() for key, value in other.items()})
    return Reports(summed, tuple(each)), Round(session, number, names)


def simulate(
    aggregator: Aggregator,
    updates: np.ndarray,
    weights: Optional[Sequence[float]] = None,
    names: Optional[Sequence[str]] = None,
    cohort: Optional[Cohort] = None,
    noise: Optional[Noise] = None,
) -> Total:
    """One round, from `prepare` to `close`."""
    updates = np.asarray(updates, np.float32)
    aggregator.prepare(updates.shape[1], cohort_of(len(updates)) if cohort is None else cohort)
    try:
        reports, round = reports_of(aggregator, updates, weights, names)
        return aggregator.total(reports, round) if noise is None else aggregator.total(reports, round, noise)
    finally:
        aggregator.close()
