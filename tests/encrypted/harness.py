"""Runs a protocol function on plaintext inputs: share, compute, reveal, in one traced function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.protocol.sharing import reveal, share
from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import Shared

OWNER = "owner"


def traced(
    function: Callable[..., Any], shapes: list[Any], fixed_point: FixedPoint | None = None, **options: Any
) -> Any:
    """A ConcreteFunction from float64 inputs to the revealed results of `function(*shared)`."""

    @tf.function(autograph=False)
    def run(*values: tf.Tensor) -> list[tf.Tensor]:
        session = Session(fixed_point, **options)
        shared = [share(session, value, OWNER, f"input {place}") for place, value in enumerate(values)]
        results = function(*shared)
        results = results if isinstance(results, (list, tuple)) else [results]
        return [reveal(result, OWNER) for result in results]

    return run.get_concrete_function(*(tf.TensorSpec(shape, tf.float64) for shape in shapes))


def compute(
    function: Callable[[Shared], Any], *values: Any, fixed_point: FixedPoint | None = None, **options: Any
) -> Any:
    """The revealed result, or list of results, of `function` on shares of the values."""
    arrays = [np.asarray(value, np.float64) for value in values]
    run = traced(function, [array.shape for array in arrays], fixed_point, **options)
    results = [result.numpy() for result in run(*(tf.constant(array) for array in arrays))]
    return results[0] if len(results) == 1 else results
