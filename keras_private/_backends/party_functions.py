"""A stage of a party's graph as a function that runs at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context, execute
from tensorflow.python.framework import importer, ops

from keras_private._backends.party_graphs import PartyGraph, Stage, outside_name

Tensors = Sequence[Any]
_EXECUTOR = "SINGLE_THREADED_EXECUTOR"


def stage_function(graph: PartyGraph, stage: Stage, captured: Sequence[Any]) -> Callable[[Tensors], Tensors]:
    """From the values of `stage.needs` to those of `stage.gives`.

    Args:
        graph: Of the party.
        stage: One of its stages.
        captured: Captured inputs of the traced function that was cut: the resources of variables, in this process.
    """

    for function in stage.graph.library.function:
        # Named by content: one of that name is the same.
        if not context.context().has_function(function.signature.name):
            context.context().add_function_def(function)

    def body(*values: Any) -> list[Any]:
        given = {outside_name(key): value for key, value in zip(stage.needs, values)}
        default = tf.compat.v1.get_default_graph()
        for key, place in stage.resources:
            given[outside_name(key)] = default.capture(captured[place])
        own = [key for key in stage.gives if key not in stage.needs]
        found = importer.import_graph_def(stage.graph, input_map=given, return_elements=own, name="")
        return list(found)

    specs = [graph.specs[key] for key in stage.needs]
    concrete = tf.function(body, autograph=False).get_concrete_function(*specs)
    bound = list(concrete.captured_inputs)
    name = concrete.name.decode() if isinstance(concrete.name, bytes) else concrete.name
    count = len(concrete.outputs)
    # A stage has few operations, and other parties may share the cores.
    # Its operations run one after the other; functions that they call, and datasets, wait for threads of their own.
    simple = not stage.graph.library.function and not any("Dataset" in node.op for node in stage.graph.node)
    executor = _EXECUTOR if simple else None
    attributes = tuple(itertools.chain(*context.FunctionCallOptions(executor).as_attrs().items()))

    def run(values: Tensors) -> Tensors:
        here = context.context()
        # What concrete(...) ends in, without the checks of arguments in between: they cost more than most stages.
        return execute.quick_execute(name, count, [*values, *bound], attributes, here)

    # Keeps the function alive with its closure.
    run.concrete = concrete  # type: ignore[attr-defined]
    return run


def tensor_of(array: np.ndarray) -> Any:
    """An eager tensor of an array that nobody changes afterwards."""
    return ops.EagerTensor(array, _device(), None)


@functools.lru_cache
def _device() -> str:
    found = context.context()
    found.ensure_initialized()
    return str(found.device_name or tf.constant(0).device)
