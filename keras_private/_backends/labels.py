"""Labels that say which party runs an operation of a traced function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.core.framework.attr_value_pb2 import AttrValue

PARTY_ATTRIBUTE = "_keras_private_party"


@contextlib.contextmanager
def at_party(name: str) -> Iterator[None]:
    """Operations created inside carry `name` as a node attribute; grappler merges none across attributes.

    Works in a traced function only: eagerly executed operations belong to no party.
    """
    graph = tf.compat.v1.get_default_graph()
    with graph._attr_scope({PARTY_ATTRIBUTE: AttrValue(s=name.encode())}):
        yield


def party_of(op: tf.Operation) -> str | None:
    """The label of an operation, or None."""
    try:
        return op.get_attr(PARTY_ATTRIBUTE).decode()
    except ValueError:
        return None
