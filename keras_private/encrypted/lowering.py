"""From a Keras model to a program on shares: one node for each layer call, one more for its activation."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private._backends.keras_graph import LayerCall, call_shapes, layer_calls
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.protocol.functions import with_fraction
from keras_private.encrypted.ranges import Preflight, Range, symmetric
from keras_private.encrypted.rules import Parameter, Rule, penalties_of, rule_of
from keras_private.encrypted.rules.activations import ActivationRule, Relu, Sigmoid, Softmax
from keras_private.encrypted.rules.pooling import GlobalMaxRule, MaxPoolingRule
from keras_private.encrypted.shared import Shared
from keras_private.errors import ConfigurationError, UnsupportedLayerError

_ACTIVATION = ActivationRule()


@dataclasses.dataclass(frozen=True)
class Node:
    """One call of a rule. Values are numbered.

    Attributes:
        predicting: The call says training=False: it does what prediction does in training too.
    """

    name: str
    layer: Any
    rule: Rule
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    predicting: bool = False


@dataclasses.dataclass(frozen=True)
class Tape:
    """What a forward pass leaves for the backward pass."""

    values: Mapping[int, Shared]
    saved: Sequence[Any]
    parameters: Mapping[str, Shared]


@dataclasses.dataclass(frozen=True)
class Program:
    """A model on shares.

    Attributes:
        nodes: In topological order.
        inputs: Values that enter.
        input_depths: For each input, the number of rows of the table that it indexes (its owner shares it as one-hot
            rows), else 0.
        outputs: Values that leave.
        parameters: By "layer/name"; one entry for a layer that is called several times.
        penalties: Factor of the sum of squares of a parameter that the loss has, by the parameter's name.
        moved: Values between a pool and the ReLU that it was moved before: not those of the layer calls.
        last: "softmax" or "sigmoid" when the only output is this function of another value, else "".
    """

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    input_depths: tuple[int, ...]
    outputs: tuple[int, ...]
    parameters: Mapping[str, Parameter]
    last: str
    moved: frozenset[int] = frozenset()
    penalties: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def trainable(self) -> list[str]:
        return [name for name, parameter in self.parameters.items() if parameter.trainable]

    def forward(
        self, inputs: Sequence[Shared], parameters: Mapping[str, Shared], training: bool, to_logits: bool = False
    ) -> tuple[list[Shared], Tape]:
        """Outputs on shares.

        Args:
            inputs: One for each of `self.inputs`.
            parameters: Of the names of `self.parameters`.
            training: Whether Dropout drops, and what backward needs is kept.
            to_logits: Leave out the last function: the output is its input.
        """
        values = dict(zip(self.inputs, inputs))
        saved = []
        nodes = self.nodes[:-1] if to_logits and self.last else self.nodes
        for node in nodes:
            with tf.name_scope(node.name):
                arguments = [values[each] for each in node.inputs]
                trains = training and not node.predicting
                outputs, kept = node.rule.forward(node.layer, arguments, _own(node, parameters), trains)
            values.update(zip(node.outputs, outputs))
            saved.append(kept)
        leaving = self.nodes[-1].inputs if to_logits and self.last else self.outputs
        return [values[each] for each in leaving], Tape(values, saved, parameters)

    def backward(self, tape: Tape, gradients: Sequence[Shared]) -> dict[str, Shared]:
        """Gradients of the trainable parameters from those of what `forward` returned.

        A layer that divides gradients by a large number may move their point instead: rules see the same ring values
        with the fixed point's fraction, as if nothing had been divided, and what they return is moved back.
        """
        nodes = self.nodes[: len(tape.saved)]
        leaving = self.outputs if len(nodes) == len(self.nodes) else self.nodes[-1].inputs
        needed = self._needing_gradients(nodes)
        at: dict[int, Shared] = {}
        for value, gradient in zip(leaving, gradients):
            at[value] = gradient if value not in at else _added(at[value], gradient)
        found: dict[str, Shared] = {}
        for node, kept in zip(reversed(nodes), reversed(tape.saved)):
            if node.outputs[0] not in at or not (needed & set(node.outputs)):
                continue
            wants_input = bool(needed & set(node.inputs))
            with tf.name_scope(f"gradient_{node.name}"):
                point = min(at[each].fraction for each in node.outputs)
                moved = point - at[node.outputs[0]].session.fixed_point.fraction
                seen = [with_fraction(at[each], point).scaled_by_power(moved) for each in node.outputs]
                to_inputs, to_parameters = node.rule.backward(
                    node.layer, kept, seen, _own(node, tape.parameters), wants_input
                )
                for value, back in zip(node.inputs, to_inputs):
                    if back is not None and value in needed:
                        back = back.scaled_by_power(-moved)
                        at[value] = back if value not in at else _added(at[value], back)
                for name, back in to_parameters.items():
                    full, back = f"{node.layer.name}/{name}", back.scaled_by_power(-moved)
                    found[full] = back if full not in found else _added(found[full], back)
        return found

    def _needing_gradients(self, nodes: Sequence[Node]) -> set[int]:
        """Values on the way from a trainable parameter."""
        needed: set[int] = set()
        for node in nodes:
            own = any(name.startswith(f"{node.layer.name}/") for name in self.trainable if node.rule is not _ACTIVATION)
            if own or needed & set(node.inputs):
                needed.update(node.outputs)
        return needed

    def check_training(self) -> None:
        """
        Raises:
            UnsupportedLayerError: A layer can predict only, or nothing can be trained.
        """
        for node in self.nodes:
            reason = node.rule.refusal_to_train(node.layer)
            if reason:
                raise UnsupportedLayerError(
                    f"layer {node.layer.name!r} of class {type(node.layer).__name__} cannot be trained on shares",
                    expected="layers whose training has a rule",
                    remedy=reason,
                )
        if not self.trainable:
            raise UnsupportedLayerError(
                "the model has no trainable parameters", expected="at least one", remedy="set layer.trainable = True"
            )

    def check_ranges(
        self,
        fixed_point: FixedPoint,
        input_ranges: Sequence[tuple[float, float]],
        values: Mapping[str, np.ndarray],
        output_gradient: Callable[[float], float] | None = None,
        batch: int = 1,
        to_logits: bool = True,
        either_sign: bool = False,
    ) -> Preflight:
        """Bounds on every intermediate number; with `output_gradient` for training, with weights of either sign.

        Args:
            fixed_point: Whose limits count.
            input_ranges: Of each input.
            values: Parameters; for training their largest magnitudes.
            output_gradient: From the largest magnitude of the outputs, or of what enters the last softmax or sigmoid,
                to that of the loss's gradient.
            batch: Rows that gradients are summed over.
            to_logits: The loss works on what enters the last softmax or sigmoid.
            either_sign: `values` are magnitudes, as in training.

        Raises:
            OverflowPreflightError: Something could leave the ring; names the layer.
        """
        preflight = Preflight(fixed_point)
        ranges = {
            value: Range(0.0, 1.0)
            if depth
            else Range(*given)
            if output_gradient is None and not either_sign
            else symmetric(max(map(abs, given)))
            for value, depth, given in zip(self.inputs, self.input_depths, input_ranges)
        }
        for place, found in enumerate(ranges.values()):
            limit = fixed_point.input_bound
            preflight.require("input", f"the declared range of input {place}", found.magnitude, limit)
        for node in self.nodes:
            outputs = node.rule.bounds(
                node.layer, [ranges[each] for each in node.inputs], _own(node, values), preflight
            )
            for value, found in zip(node.outputs, outputs):
                if output_gradient is not None or either_sign:
                    found = symmetric(found.magnitude)
                preflight.value(node.layer.name, "the output", found.magnitude)
                ranges[value] = found
        leaving = self.nodes[-1].inputs if self.last and to_logits else self.outputs
        preflight.outputs = max(ranges[each].magnitude for each in leaving)
        if output_gradient is not None:
            self._check_gradients(preflight, ranges, values, output_gradient, batch, to_logits)
        return preflight

    def _check_gradients(
        self,
        preflight: Preflight,
        ranges: Mapping[int, Range],
        values: Mapping[str, np.ndarray],
        output_gradient: Callable[[float], float],
        batch: int,
        to_logits: bool,
    ) -> None:
        preflight.batch = batch
        cut = self.last and to_logits
        nodes, leaving = (self.nodes[:-1], self.nodes[-1].inputs) if cut else (self.nodes, self.outputs)
        at = {each: output_gradient(ranges[each].magnitude) for each in leaving}
        for node in reversed(nodes):
            gradient = max(at.get(each, 0.0) for each in node.outputs)
            inputs = [ranges[each] for each in node.inputs]
            back = node.rule.backward_bounds(node.layer, inputs, gradient, _own(node, values), batch, preflight)
            for value, bound in zip(node.inputs, back):
                at[value] = at.get(value, 0.0) + bound
                preflight.value(node.layer.name, "the gradient of the input", at[value])


def _added(one: Shared, other: Shared) -> Shared:
    point = min(one.fraction, other.fraction)
    return with_fraction(one, point) + with_fraction(other, point)


def _own(node: Node, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if node.rule is _ACTIVATION:
        return {}
    prefix = f"{node.layer.name}/"
    return {name[len(prefix) :]: value for name, value in parameters.items() if name.startswith(prefix)}


def lower(model: Any) -> Program:
    """The program of a built functional or Sequential model.

    Raises:
        ConfigurationError: It is no Keras model.
        UnsupportedLayerError: The model is subclassed or not built, or a layer, an argument or a call of one has no
            rule; named in the message. Nothing has been shared then.
    """
    if not isinstance(model, tf.keras.Model):
        raise ConfigurationError(
            f"model is a {model.__name__ if isinstance(model, type) else type(model).__name__}, which has no graph of "
            "layers to compute on shares",
            expected="a Keras model",
            remedy="give its .model, the Keras model inside"
            if isinstance(getattr(model, "model", None), tf.keras.Model)
            else "build one with Keras first",
        )
    read = layer_calls(model)
    if read is None:
        raise UnsupportedLayerError(
            f"model {getattr(model, 'name', model)!r} has no graph of layers",
            expected="a functional model, or a Sequential one with a known input shape",
            remedy="build it of keras.Input and layer calls, or give its first layer an input_shape",
        )
    nodes: list[Node] = []
    parameters: dict[str, Parameter] = {}
    penalties: dict[str, float] = {}
    owners: dict[str, Any] = {}
    fresh = 1 + max([*read.inputs, *(each for call in read.calls for each in call.outputs)])
    for call in read.calls:
        layer = call.layer
        if isinstance(layer, tf.keras.Model):
            _check_call(call)
        found = rule_of(layer)
        _check_call(call)
        for shapes in (shape for pair in call_shapes(layer) for shape in (*pair[0], *pair[1])):
            if None in shapes[1:]:
                raise UnsupportedLayerError(
                    f"layer {layer.name!r} has an axis of unknown length: {shapes}",
                    expected="sizes that are known, but for the batch",
                    remedy="build the model with full input shapes",
                )
        if owners.setdefault(layer.name, layer) is not layer:
            raise UnsupportedLayerError(
                f"two layers are called {layer.name!r}", expected="a name for each", remedy="rename one"
            )
        for name, parameter in found.parameters(layer).items():
            parameters[f"{layer.name}/{name}"] = parameter
        penalties.update({f"{layer.name}/{name}": factor for name, factor in penalties_of(layer, found).items()})
        if isinstance(found, ActivationRule):
            nodes.append(Node(layer.name, layer, _ACTIVATION, call.inputs, call.outputs))
        elif getattr(layer, "activation", None) in (None, tf.keras.activations.linear):
            nodes.append(Node(layer.name, layer, found, call.inputs, call.outputs, call.training is False))
        else:
            _ACTIVATION.check(layer)
            nodes.append(Node(layer.name, layer, found, call.inputs, (fresh,), call.training is False))
            nodes.append(Node(f"{layer.name}_activation", layer, _ACTIVATION, (fresh,), call.outputs))
            fresh += 1
    if len(model.losses) != len(penalties):
        raise UnsupportedLayerError(
            f"model {model.name!r} adds losses of its own",
            expected="the loss that compile gets, and L2 penalties on weights",
            remedy="build it without add_loss and layers that call it",
        )
    reordered, moved = _pools_first(nodes, set(read.outputs))
    ordered = tuple(reordered)
    return Program(
        nodes=ordered,
        inputs=read.inputs,
        input_depths=_depths(ordered, read.inputs, read.outputs),
        outputs=read.outputs,
        parameters=parameters,
        last=_last(ordered, read.outputs),
        moved=frozenset(moved),
        penalties=penalties,
    )


def _check_call(call: LayerCall) -> None:
    if call.options:
        raise UnsupportedLayerError(
            f"layer {call.layer.name!r} is called with {', '.join(call.options)}",
            expected="calls with inputs alone",
            remedy="build the model without masks and extra arguments",
        )
    if call.training and "training" in inspect.signature(type(call.layer).call).parameters:
        raise UnsupportedLayerError(
            f"layer {call.layer.name!r} is called with training=True, which would hold in predictions too",
            expected="calls that leave `training` to fit and predict, or say training=False",
            remedy="build the model without training=True",
        )


def _last(nodes: Sequence[Node], outputs: Sequence[int]) -> str:
    if not nodes or len(outputs) != 1 or nodes[-1].outputs != tuple(outputs) or nodes[-1].rule is not _ACTIVATION:
        return ""
    if any(set(outputs) & set(node.inputs) for node in nodes):
        return ""
    function = _ACTIVATION.function(nodes[-1].layer)
    return "softmax" if isinstance(function, Softmax) else "sigmoid" if isinstance(function, Sigmoid) else ""


def _pools_first(nodes: list[Node], outputs: set[int]) -> tuple[list[Node], set[int]]:
    """ReLU and then a maximum is the maximum and then ReLU, with fewer signs to find."""
    nodes = list(nodes)
    moved: set[int] = set()
    for place in range(len(nodes) - 1):
        relu, pool = nodes[place], nodes[place + 1]
        is_relu = relu.rule is _ACTIVATION and isinstance(_ACTIVATION.function(relu.layer), Relu)
        readers = sum(relu.outputs[0] in node.inputs for node in nodes) + (relu.outputs[0] in outputs)
        is_pool = isinstance(pool.rule, (MaxPoolingRule, GlobalMaxRule))
        if is_relu and is_pool and pool.inputs == relu.outputs and readers == 1:
            nodes[place] = dataclasses.replace(pool, inputs=relu.inputs, outputs=relu.outputs)
            nodes[place + 1] = dataclasses.replace(relu, inputs=relu.outputs, outputs=pool.outputs)
            moved.update(relu.outputs)
    return nodes, moved


def _depths(nodes: Sequence[Node], inputs: Sequence[int], outputs: Sequence[int]) -> tuple[int, ...]:
    depths = []
    for value in inputs:
        readers = [node for node in nodes if value in node.inputs]
        tables = {node.layer.input_dim for node in readers if isinstance(node.layer, tf.keras.layers.Embedding)}
        others = [node for node in readers if not isinstance(node.layer, tf.keras.layers.Embedding)]
        if tables and (others or len(tables) > 1 or value in outputs):
            raise UnsupportedLayerError(
                "an input is read by an Embedding and by something else",
                expected="indices that one table, or tables of one size, read",
                remedy="give the model an input of its own for them",
            )
        depths.append(tables.pop() if tables else 0)
    for node in nodes:
        if isinstance(node.layer, tf.keras.layers.Embedding) and node.inputs[0] not in inputs:
            raise UnsupportedLayerError(
                f"Embedding {node.layer.name!r} reads the result of another layer",
                expected="an input of the model, which its owner shares as one-hot rows",
                remedy="let it read the model's input",
            )
    return tuple(depths)
