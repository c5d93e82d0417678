"""The layer calls of a functional or Sequential model, read from Keras's own nodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from keras_private._backends.keras_operators import twin


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """One call of a layer; inputs and outputs are numbers of values."""

    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[str, ...]
    """Names of arguments of the call other than the inputs and `training`."""

    training: bool | None
    """What the call, or the call of the model around it, fixes `training` to."""


@dataclasses.dataclass(frozen=True)
class LayerCalls:
    """Calls in topological order, and the values that enter and leave the model."""

    calls: tuple[LayerCall, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: dict[int, Any]
    """Keras's symbolic tensors of the values of the outermost model."""


def layer_calls(model: Any) -> LayerCalls | None:
    """None for a model whose graph Keras does not know, or does not follow: subclassed, or not built."""
    if not _is_graph(model):
        return None
    reader = _Reader()
    entered = [reader.new() for _ in model.inputs]
    outputs = reader.read(model, entered, None, outermost=True)
    return LayerCalls(tuple(reader.calls), tuple(entered), tuple(outputs), reader.tensors)


def plain_of(model: Any) -> Any:
    """The same graph of the same layers, without the class around it that adds a fit or a train_step of its own."""
    sequential, functional = tf.keras.Sequential.__mro__[:2]
    if type(model) in (sequential, functional) or not _is_graph(model):
        return model
    return tf.keras.Model(model.inputs, model.outputs, name=model.name)


def _is_graph(model: Any) -> bool:
    """Whether calling the model runs its graph of layers, and nothing else."""
    if not getattr(model, "_is_graph_network", False):
        return False
    sequential, functional = tf.keras.Sequential.__mro__[:2]
    return all(
        getattr(type(model), name) in (getattr(sequential, name), getattr(functional, name))
        for name in ("call", "__call__")
    )


class _Reader:
    def __init__(self) -> None:
        self.calls: list[LayerCall] = []
        self.tensors: dict[int, Any] = {}
        self._values = 0
        self._twins: dict[int, Any] = {}

    def new(self) -> int:
        self._values += 1
        return self._values - 1

    def read(self, model: Any, entered: list[int], training: bool | None, outermost: bool = False) -> list[int]:
        known = {id(tensor): value for tensor, value in zip(model.inputs, entered)}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                inputs = [known[id(tensor)] for tensor in node.keras_inputs]
                outputs = self._call(node, inputs, training)
                for tensor, value in zip(_flat(node.outputs), outputs):
                    known[id(tensor)] = value
                    if outermost:
                        self.tensors[value] = tensor
        return [known[id(tensor)] for tensor in model.outputs]

    def _call(self, node: Any, inputs: list[int], training: bool | None) -> list[int]:
        layer = node.layer
        given = node.call_kwargs.get("training")
        # What a call fixes comes before what the call of the model around it fixes.
        training = training if given is None else given
        operator = self._twins.setdefault(id(layer), twin(node)) if _is_operator(layer) else None
        options: tuple[str, ...] = ()
        if operator is None:
            options = tuple(
                name for name, value in sorted(node.call_kwargs.items()) if name != "training" and value is not None
            )
            # Positional arguments after the first, such as a second operand, are options too.
            options += tuple(f"argument {place}" for place in range(1, len(node.call_args)))
        if training not in (None, False, True):
            options += ("training",)
        if _is_graph(layer) and not options:
            return self.read(layer, inputs, training)
        outputs = [self.new() for _ in _flat(node.outputs)]
        self.calls.append(LayerCall(operator or layer, tuple(inputs), tuple(outputs), options, training))
        return outputs


def _is_operator(layer: Any) -> bool:
    return type(layer).__name__ == "TFOpLambda"


def _flat(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def call_shapes(layer: Any) -> list[tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]]:
    """Input and output shapes of each call of the layer, batch axis included."""
    return [(_shapes(node.input_shapes), _shapes(node.output_shapes)) for node in layer.inbound_nodes]


def _shapes(found: Any) -> list[tuple[Any, ...]]:
    several = isinstance(found, list)
    return [tuple(shape) for shape in found] if several else [tuple(found)]
