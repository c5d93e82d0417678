"""Nested structures of arrays whose first axis is the example."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import tensorflow as tf


def map_arrays(function: Callable[[np.ndarray], Any], structure: Any) -> Any:
    """Applies `function` to every array of a nested structure; None stays None."""
    return tf.nest.map_structure(lambda leaf: None if leaf is None else function(np.asarray(leaf)), structure)


def count_examples(structure: Any) -> int:
    return len(tf.nest.flatten(structure)[0])
