"""What the fit of a private model accepts: arrays that can be sampled, and callbacks without a second budget."""

from __future__ import annotations

import math
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ..errors import ConfigurationError
from .arrays import count_examples, map_arrays
from .callbacks import PrivacyBudget
from .sampling import PoissonSampler

USE_ARRAYS = "Pass arrays (x, y), or a keras_private.PoissonSampler over them."


def callback_list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    if isinstance(callbacks, tf.keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    found = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    if any(isinstance(callback, PrivacyBudget) for callback in found):
        raise ConfigurationError(
            "a PrivacyBudget was passed to the fit of a private model, which has its own.",
            expected="the budget given to make_private(model, epsilon, delta, ledger=...)",
            remedy="Leave PrivacyBudget out of callbacks.",
        )
    return found


def sampler_over(
    x: Any, y: Any, batch_size: Optional[int], sample_weight: Any, steps: Optional[int]
) -> PoissonSampler:
    if isinstance(x, PoissonSampler):
        given = {"y": y, "batch_size": batch_size, "sample_weight": sample_weight, "steps_per_epoch": steps}
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise ConfigurationError(
                f"{', '.join(extra)} came together with a PoissonSampler.",
                expected="these in the PoissonSampler",
                remedy="PoissonSampler(x, y, batch_size=..., sample_weight=..., steps_per_epoch=...)",
            )
        return x
    arrays = all(hasattr(leaf, "__array__") or isinstance(leaf, (list, tuple)) for leaf in tf.nest.flatten(x))
    if x is None or not arrays or isinstance(x, (tf.data.Dataset, tf.keras.utils.Sequence)):
        raise ConfigurationError(
            f"data of type {type(x).__name__} does not say how it samples its batches.",
            expected="arrays, or a PoissonSampler",
            remedy=USE_ARRAYS,
        )
    return PoissonSampler(
        x,
        y,
        batch_size=32 if batch_size is None else batch_size,
        sample_weight=sample_weight,
        steps_per_epoch=steps,
    )


def split_arrays(
    x: Any, y: Any, sample_weight: Any, fraction: float
) -> tuple[tuple[Any, Any, Any], tuple[Any, ...]]:
    if not 0 < fraction < 1:
        raise ConfigurationError(
            f"validation_split={fraction!r} leaves nothing to train or to validate on.",
            expected="a number between 0 and 1",
            remedy="Pass another validation_split.",
        )
    count = count_examples(x)
    at = math.floor(count * (1.0 - fraction))

    def part(rows: slice) -> tuple[Any, Any, Any]:
        cut = map_arrays(lambda array: array[rows], (x, y, sample_weight))
        return cut[0], cut[1], cut[2]

    tail = part(slice(at, None))
    return part(slice(None, at)), tuple(item for item in tail if item is not None)


def fold_class_weight(y: Any, sample_weight: Any, class_weight: Optional[dict[int, float]]) -> Any:
    """The weight of each example: its class's weight, times its own where it has one.

    Args:
        y: Labels [examples] or [examples, 1] of class numbers, or one-hot rows.
        sample_weight: [examples, ...], or None.
        class_weight: Weight by class number, as Keras takes it; a class that is missing weighs 1.
    """
    if class_weight is None:
        return sample_weight
    if tf.nest.is_nested(y) or y is None:
        raise ConfigurationError(
            "class_weight came for a model with several outputs.",
            expected="one array of labels",
            remedy="Pass sample_weight instead.",
        )
    labels = np.asarray(y)
    if labels.ndim > 1:
        labels = labels.argmax(axis=-1) if labels.shape[-1] > 1 else labels[..., 0]
    weights = np.ones(labels.shape, np.float32)
    for number, weight in class_weight.items():
        weights[labels == number] = weight
    if sample_weight is None:
        return weights
    own = np.asarray(sample_weight)
    return own * weights.reshape(weights.shape + (1,) * max(own.ndim - weights.ndim, 0))
