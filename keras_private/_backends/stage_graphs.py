"""The operations of a stage as a graph of their own, which is the same wherever the program is traced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.graph_pb2 import GraphDef

from keras_private._backends.party_graphs import outside_name


def with_sources(operation: Any, found: dict[str, Any]) -> None:
    """Adds an operation and all that it depends on, sources first."""
    if operation.name in found:
        return
    for tensor in operation.inputs:
        with_sources(tensor.op, found)
    found[operation.name] = operation


def graph_of(operations: Iterable[Any], here: set[str], keys: dict[str, str], versions: Any, library: Any) -> GraphDef:
    """The operations as a graph; what comes from outside is named by its key.

    Args:
        operations: Sources first.
        here: Names of all of them.
        keys: From names of tensors that come from outside to their keys.
        versions: Of the graph that they are taken from.
        library: Its functions.
    """
    graph = GraphDef()
    graph.versions.CopyFrom(versions)
    for operation in operations:
        node = graph.node.add()
        node.CopyFrom(operation.node_def)
        del node.input[:]
        for tensor in operation.inputs:
            node.input.append(tensor.name if tensor.op.name in here else outside_name(keys[tensor.name]))
        for control in operation.control_inputs:
            if control.name in here:
                node.input.append(f"^{control.name}")
    _with_functions(graph, library)
    return graph


def _with_functions(graph: GraphDef, library: Any) -> None:
    """Adds the functions that the nodes call, named by their content: the same wherever the program is traced."""
    known = {function.signature.name: function for function in library.function}
    named: dict[str, str] = {}

    def rename(nodes: Iterable[Any]) -> None:
        for node in nodes:
            if node.op in known:
                node.op = add(node.op)
            for attribute in sorted(node.attr):
                value = node.attr[attribute]
                for called in [value.func] if value.HasField("func") else value.list.func:
                    if called.name in known:
                        called.name = add(called.name)

    def add(name: str) -> str:
        if name not in named:
            copy = FunctionDef()
            copy.CopyFrom(known[name])
            copy.signature.name = ""
            rename(copy.node_def)
            content = copy.SerializeToString(deterministic=True)
            copy.signature.name = named[name] = f"keras_private_{hashlib.sha256(content).hexdigest()[:32]}"
            graph.library.function.append(copy)
        return named[name]

    rename(graph.node)
