"""Poisson sampling of training examples, as a Keras Sequence."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ..errors import ConfigurationError

COARSE_BITS, FINE_BITS = 16, 64
CHUNK = 1 << 20


class PoissonSampler(tf.keras.utils.Sequence):
    """Gives `model.fit` batches in which each example appears independently with the same probability.

    Poisson sampling is what the amplification of Abadi et al. 2016 (section 3.1) and of every later accountant
    assumes. Batches of a shuffled data set do not have that law, however they are shuffled.

    Guarantees:
        - One item is one draw, one logical step and one charge. Nothing is cached: asking for the same index
          twice gives two independent draws.
        - Every example is in a draw with probability exactly `floor(batch_size * 2**80 / num_examples) / 2**80`,
          independently of all others; `sampling_probability` is that number, rounded up to a float.
        - Draws come from the operating system's generator at each item. There is no seed and no state, so that
          threads, forked workers and restarts cannot repeat a draw.
        - The item that Keras peeks at before training is a draw of its own and trains nothing.
        - Rows keep the order of the data. An empty draw is a batch of 0 rows with dtype and shape kept.

    Args:
        x: An array or eager tensor [num_examples, ...], or nested dicts, lists and tuples of them.
        y: Targets of the same form, or None.
        batch_size: Expected number of examples in a draw, a whole number in [1, num_examples].
        sample_weight: Weights of the same form, or None; needs `y`.
        steps_per_epoch: Draws that Keras counts as one epoch; by default ceil(num_examples / batch_size).

    Raises:
        ConfigurationError: The data is empty or of unequal lengths, or an argument is out of range.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        batch_size: int = 32,
        sample_weight: Any = None,
        steps_per_epoch: Optional[int] = None,
    ) -> None:
        if y is None and sample_weight is not None:
            raise ConfigurationError(
                "sample_weight was given without y.",
                expected="targets beside the weights, as in model.fit",
                remedy="Pass y too.",
            )
        parts = [("x", x), ("y", y), ("sample_weight", sample_weight)]
        self._parts = tuple(_arrays(name, part) for name, part in parts if part is not None)
        self._num_examples = _common_length([name for name, _ in parts], self._parts)
        self._batch_size = _whole("batch_size", batch_size, self._num_examples)
        default_steps = math.ceil(self._num_examples / self._batch_size)
        self._steps = default_steps if steps_per_epoch is None else _whole("steps_per_epoch", steps_per_epoch)
        threshold = (self._batch_size << (COARSE_BITS + FINE_BITS)) // self._num_examples
        self._coarse, self._fine = threshold >> FINE_BITS, threshold & ((1 << FINE_BITS) - 1)
        self._sampling_probability = _rounded_up(Fraction(threshold, 1 << (COARSE_BITS + FINE_BITS)))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("PoissonSampler is final: a subclass could change the law that epsilon is computed for.")

    @property
    def batch_size(self) -> int:
        """Expected number of examples in a draw."""
        return self._batch_size

    @property
    def num_examples(self) -> int:
        return self._num_examples

    @property
    def sampling_probability(self) -> float:
        """Probability that an example is in a draw, as drawn, rounded up to a float."""
        return self._sampling_probability

    @property
    def element_shapes(self) -> tuple[Any, ...]:
        """tf.TensorShape of each array in an item, the batch axis left open."""
        return tuple(
            tf.nest.map_structure(lambda array: tf.TensorShape([None, *array.shape[1:]]), part) for part in self._parts
        )

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One fresh draw: (x,), (x, y) or (x, y, sample_weight) with as many rows as were drawn.

        Raises:
            IndexError: `index` is not in [-len(self), len(self)).
        """
        if not -self._steps <= index < self._steps:
            raise IndexError(f"item {index} of a PoissonSampler with {self._steps} items")
        rows = self._draw()
        return tuple(tf.nest.map_structure(lambda array: array[rows], part) for part in self._parts)

    def _draw(self) -> np.ndarray:
        """Indices of one draw, ascending.

        Each example gets an 80-bit uniform integer and is in when that lies below the threshold. Its upper 16
        bits nearly always decide; the other 64 are drawn for the ties only.
        """
        found = []
        for start in range(0, self._num_examples, CHUNK):
            size = min(CHUNK, self._num_examples - start)
            coarse = np.frombuffer(os.urandom(2 * size), dtype=np.uint16)
            if self._coarse >= 1 << COARSE_BITS:
                found.append(np.arange(start, start + size))
                continue
            inside = coarse < self._coarse
            ties = np.flatnonzero(coarse == self._coarse)
            if ties.size:
                fine = np.frombuffer(os.urandom(8 * ties.size), dtype=np.uint64)
                inside[ties] = fine < np.uint64(self._fine)
            found.append(np.flatnonzero(inside) + start)
        return found[0] if len(found) == 1 else np.concatenate(found)


def _arrays(name: str, part: Any) -> Any:
    def as_array(leaf: Any) -> np.ndarray:
        array = leaf.numpy() if isinstance(leaf, tf.Tensor) and hasattr(leaf, "numpy") else leaf
        if not hasattr(array, "__array__") or tf.is_tensor(array):
            raise ConfigurationError(
                f"{name} holds a {type(leaf).__name__}.",
                expected="numpy arrays or eager tensors, alone or in dicts, lists and tuples",
                remedy="Convert it to an array whose first dimension counts the examples.",
            )
        return np.asarray(array)

    return tf.nest.map_structure(as_array, part)


def _common_length(names: list[str], parts: tuple[Any, ...]) -> int:
    shapes = {
        f"{name}[{number}]": array.shape
        for name, part in zip(names, parts)
        for number, array in enumerate(tf.nest.flatten(part))
    }
    lengths = {shape[0] if shape else None for shape in shapes.values()}
    if len(lengths) != 1 or not all(lengths):
        raise ConfigurationError(
            f"the arrays have shapes {shapes}.",
            expected="at least one array, all with the same first dimension, 1 or more",
            remedy="Pass one row per example in every array.",
        )
    return int(lengths.pop() or 0)


def _whole(argument: str, value: Any, largest: Optional[int] = None) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1 or (largest is not None and value > largest):
        raise ConfigurationError(
            f"{argument}={value!r} cannot be used.",
            expected="a whole number, 1 or more" + (f", at most {largest} (the examples)" if largest else ""),
            remedy=f"Pass another {argument}.",
        )
    return int(value)


def _rounded_up(exact: Fraction) -> float:
    nearest = float(exact)
    return nearest if Fraction(nearest) >= exact else float(np.nextafter(nearest, 2.0))
