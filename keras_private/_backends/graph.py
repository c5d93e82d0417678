"""Private parts of TensorFlow graphs that the differential-privacy engine needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.ops.control_flow_v2_func_graphs import CondBranchFuncGraph

DECLARED_ROWS = "keras_private_declared_rows"
FUNCTION_ATTRIBUTES = ("f", "body", "cond", "then_branch", "else_branch", "branches")


def captures_by_placeholder(graph: tf.Graph) -> dict[str, Any]:
    """Maps the name of each placeholder that stands for an outer tensor to that tensor."""
    if not isinstance(graph, FuncGraph):
        return {}
    return {placeholder.name: external for external, placeholder in graph.captures}


def resource_inside(graph: tf.Graph, handle: Any) -> Any:
    """The tensor that stands for a variable's handle in `graph`, or None if it is not used there."""
    if not isinstance(graph, FuncGraph):
        return None
    for external, placeholder in graph.captures:
        if external is handle:
            return placeholder
        if not is_concrete(external) and resource_inside(external.graph, handle) is external:
            return placeholder
    return None


def declare_rows(tensor: tf.Tensor) -> tf.Tensor:
    """Declares `tensor` to hold one example per row, by construction, for proofs about its graph."""
    declared = tf.identity(tensor)
    declared.graph.add_to_collection(DECLARED_ROWS, declared.op.name)
    return declared


def declared_rows(graph: tf.Graph) -> set[str]:
    """Names of the operations that `declare_rows` made in this graph."""
    return set(graph.get_collection(DECLARED_ROWS))


def is_concrete(tensor: Any) -> bool:
    return isinstance(tensor, tf.__internal__.EagerTensor)


def is_nested(graph: tf.Graph) -> bool:
    """Whether `graph` is the body of a function that another traced function calls."""
    return isinstance(graph, FuncGraph) and isinstance(graph.outer_graph, FuncGraph)


def is_branch(graph: Any) -> bool:
    """Whether `graph`, or one around it, is a branch of tf.cond or tf.case: whether it runs is decided elsewhere."""
    while isinstance(graph, FuncGraph):
        if isinstance(graph, CondBranchFuncGraph):
            return True
        graph = graph.outer_graph
    return False


def is_function_call(op: tf.Operation) -> bool:
    names = {attribute.name for attribute in op.op_def.attr}
    return any(name in names for name in FUNCTION_ATTRIBUTES)


def is_stateful(op: tf.Operation) -> bool:
    return bool(op.op_def.is_stateful)


def made_by_keras_metric(op: tf.Operation) -> bool:
    """Whether the operation was created inside the update_state of a Keras metric."""
    wrapper = os.path.join("utils", "metrics_utils.py")
    return any(
        frame.name == "decorated" and frame.filename.endswith(wrapper) and "keras" in frame.filename
        for frame in op.traceback
    )


@contextlib.contextmanager
def inlined_functions() -> Iterator[None]:
    """Traces the bodies of tf.functions into the enclosing graph, where the proof can see them."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)
