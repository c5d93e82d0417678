"""A traced function moved into another graph, with variables of its own.

A worker runs graphs that were made elsewhere. What a Keras model traces refers to variables of this process; moved,
each of them becomes a variable that lives for one run of the graph and starts from a tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import UnsupportedModelError

# TensorFlow's own name for a resource that is made anew each time its operation runs.
_ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"


@dataclasses.dataclass(frozen=True)
class MovableFunction:
    """A traced function, and what it takes from outside.

    Attributes:
        graph_def: The traced graph with the functions it calls.
        inputs: Names of the arguments' tensors.
        variables: Variables that the graph reads or changes, and the names of their handles.
        constants: Names and values of tensors from outside that never change.
        outputs: Names of the results.
        structure: How the results are nested.
    """

    graph_def: Any
    inputs: tuple[str, ...]
    variables: tuple[tuple[tf.Variable, str], ...]
    constants: tuple[tuple[str, np.ndarray], ...]
    outputs: tuple[str, ...]
    structure: Any


def movable(concrete: Any) -> MovableFunction:
    """Takes a concrete function apart.

    Args:
        concrete: A tf.function's concrete function; every argument a tensor.

    Raises:
        UnsupportedModelError: The function uses a resource that is no variable, such as a lookup table, or an
            operation that only exists in this process.
    """
    graph = concrete.graph
    handles = {id(variable.handle): variable for variable in graph.variables}
    variables, constants = [], []
    for outer, inner in graph.captures:
        if id(outer) in handles:
            variables.append((handles[id(outer)], inner.name))
        elif outer.dtype in (tf.resource, tf.variant):
            raise _unmovable(f"a resource that is no variable ({getattr(outer, 'name', outer.dtype.name)})")
        else:
            constants.append((inner.name, outer.numpy()))
    graph_def = graph.as_graph_def()
    nodes = list(graph_def.node) + [node for function in graph_def.library.function for node in function.node_def]
    for node in nodes:
        if node.op in ("PyFunc", "EagerPyFunc", "PyFuncStateless") or node.op.startswith("KerasPrivate"):
            raise _unmovable(f"the operation {node.op} ({node.name}), which other processes do not have")
        # Where an operation ran here says nothing about the machine it is sent to.
        node.device = ""
    count = len(graph.inputs) - len(graph.captures)
    return MovableFunction(
        graph_def,
        tuple(tensor.name for tensor in graph.inputs[:count]),
        tuple(variables),
        tuple(constants),
        tuple(tensor.name for tensor in graph.outputs),
        concrete.structured_outputs,
    )


def place(function: MovableFunction, inputs: Sequence[tf.Tensor], start: Mapping[int, tf.Tensor]) -> Any:
    """Puts the function into the current graph.

    Args:
        function: What `movable` gave.
        inputs: One tensor per argument.
        start: id of a variable -> the tensor it starts from.

    Returns:
        The function's results.
    """
    arguments: dict[str, tf.Tensor] = dict(zip(function.inputs, inputs))
    for name, value in function.constants:
        arguments[name] = tf.constant(value)
    for variable, name in function.variables:
        handle = tf.raw_ops.VarHandleOp(dtype=variable.dtype, shape=variable.shape, shared_name=_ANONYMOUS)
        assigned = tf.raw_ops.AssignVariableOp(resource=handle, value=start[id(variable)])
        with tf.control_dependencies([assigned]):
            arguments[name] = tf.identity(handle)
    results = tf.graph_util.import_graph_def(
        function.graph_def, input_map=arguments, return_elements=list(function.outputs), name="moved"
    )
    return tf.nest.pack_sequence_as(function.structure, results, expand_composites=True)


def _unmovable(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The model's step uses {what}.",
        expected="stock TensorFlow operations on variables, which any worker can run",
        remedy="Leave it out of the model: preprocess the clients' data before, or use layers of Keras.",
    )
