"""ClientData of TensorFlow Federated, told from other data without importing that package."""

from __future__ import annotations

import sys
from typing import Any, Callable

import tensorflow as tf


def is_client_data(value: Any) -> bool:
    """Whether it is a `tff.simulation.datasets.ClientData`; without the package loaded nothing can be one."""
    federated = sys.modules.get("tensorflow_federated")
    return federated is not None and isinstance(value, federated.simulation.datasets.ClientData)


def names(data: Any) -> list[str]:
    return list(data.client_ids)


def element_spec(data: Any) -> Any:
    """Nested tf.TensorSpec of one element."""
    return data.element_type_structure


def mapped_spec(data: Any, example: Callable[..., Any]) -> Any:
    """Specification of what `example` makes of an element, found by tracing, without reading any client."""
    empty = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=element_spec(data))
    return empty.map(example).element_spec


def dataset(data: Any, name: str, example: Callable[..., Any]) -> tf.data.Dataset:
    """What `example` makes of the elements of one client."""
    return data.create_tf_dataset_for_client(name).map(example)
