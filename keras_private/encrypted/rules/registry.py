"""How one Keras layer is computed on shares: the interface of a rule, and which rule a layer has."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.shared import Shared
from keras_private.errors import ConfigurationError, UnsupportedLayerError

Values = Mapping[str, np.ndarray]
SharedValues = Mapping[str, Shared]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A number array of the model that is kept as shares.

    Attributes:
        value: float array, as the owner of the model has it now.
        variable: The Keras variable that it goes back to; None for one that was folded from several.
        trainable: Whether fit changes it.
    """

    value: np.ndarray
    variable: tf.Variable | None
    trainable: bool


class Rule(abc.ABC):
    """One stateless object for each Keras layer class; register it with @rule(LayerClass).

    The `activation` argument of a layer is applied after its rule, which must leave it out.

    Guarantees, locked by tests/encrypted/rules for every rule:
      * forward and backward agree with the layer and its gradient to the stated error.
      * check refuses every argument that forward does not honour.
      * bounds contain every result for inputs in the given ranges.
    """

    @abc.abstractmethod
    def check(self, layer: Any) -> None:
        """
        Raises:
            UnsupportedLayerError: An argument has no counterpart on shares.
        """

    def refusal_to_train(self, layer: Any) -> str:
        """Why the layer can predict on shares, but not be in a model that is trained; empty where it can."""
        return ""

    def parameters(self, layer: Any) -> dict[str, Parameter]:
        """The arrays that forward reads, by a name of the rule's own."""
        return {}

    regularized: ClassVar[Mapping[str, str]] = {}
    """For parameters that an L2 penalty may be on: the layer's argument that says so."""

    def summed_axes(self, layer: Any, name: str) -> list[tuple[int, ...]]:
        """Over which axes `bounds` and `backward_bounds` sum the magnitudes of a parameter; () is each element."""
        return [()]

    @abc.abstractmethod
    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        """Outputs, and whatever backward needs. All values have the fixed point's fraction."""

    @abc.abstractmethod
    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        """Gradients of the inputs (None where not needed) and of the trainable parameters.

        Those of inputs may have more bits after the point than the fixed point: k bits more for a layer that divides
        gradients by 2^k or more. Layers before it then see gradients 2^k times as large, and what they return is moved
        back. Those of parameters may have up to twice the fixed point's fraction: the optimizer truncates them once.
        """

    @abc.abstractmethod
    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        """Ranges of the outputs, after checking every intermediate number against `preflight`."""

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        """Largest magnitudes of the inputs' gradients from that of the output's; parameter gradients are checked.

        Where backward gives an input's gradient k bits more after the point, its magnitude counts 2^k times.
        """
        return [gradient for _ in inputs]


_rules: dict[type, Rule] = {}
_L2 = (tf.keras.regularizers.L2, tf.keras.regularizers.L1L2)


def rule(*layer_classes: type) -> Callable[[type[Rule]], type[Rule]]:
    """Registers a rule for layer classes."""

    def register(rule_class: type[Rule]) -> type[Rule]:
        for layer_class in layer_classes:
            register_rule(layer_class, rule_class())
        return rule_class

    return register


def register_rule(layer_class: type, with_rule: Rule) -> None:
    """Makes EncryptedModel compute layers of exactly this class by `with_rule`.

    Raises:
        ConfigurationError: The class has a rule already, or an argument has the wrong type.
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, tf.keras.layers.Layer)):
        raise ConfigurationError(f"{layer_class!r}", expected="a class of Keras layers", remedy="give the class")
    if not isinstance(with_rule, Rule):
        raise ConfigurationError(f"{with_rule!r}", expected="an instance of Rule", remedy="derive from Rule")
    if layer_class in _rules:
        raise ConfigurationError(
            f"{layer_class.__name__} has a rule already", expected="a class without", remedy="derive a class"
        )
    _rules[layer_class] = with_rule


def rule_of(layer: Any) -> Rule:
    """The rule of a layer's own class, after checking its arguments.

    Raises:
        UnsupportedLayerError: There is none, or an argument is not honoured.
    """
    found = _rules.get(type(layer))
    if found is None:
        raise UnsupportedLayerError(
            f"layer {layer.name!r} of class {type(layer).__name__} has no rule for computing on shares",
            expected=f"one of {', '.join(sorted(each.__name__ for each in _rules))}",
            remedy="replace the layer, or register a rule: keras_private.encrypted.register_rule",
        )
    policy = layer.compute_dtype
    if policy not in ("float32", "float64", None):
        raise unsupported(layer, f"dtype={policy!r}", "float32 or float64")
    if getattr(layer, "activity_regularizer", None) is not None:
        raise unsupported(layer, "activity_regularizer", "None")
    for name, value in vars(layer).items():
        if name.startswith("_") or not name.endswith(("_regularizer", "_constraint")) or value is None:
            continue
        if name not in found.regularized.values():
            raise unsupported(layer, name, "None")
        if type(value) not in _L2 or getattr(value, "l1", False):
            raise unsupported(layer, f"{name}={type(value).__name__}", "keras.regularizers.L2")
    found.check(layer)
    return found


def penalties_of(layer: Any, its_rule: Rule) -> dict[str, float]:
    """The factor of the sum of squares of each parameter that has a regularizer."""
    chosen = {name: getattr(layer, argument) for name, argument in its_rule.regularized.items()}
    parameters = its_rule.parameters(layer) if any(each is not None for each in chosen.values()) else {}
    return {name: float(each.l2) for name, each in chosen.items() if each is not None and name in parameters}


def unsupported(layer: Any, argument: str, expected: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"layer {layer.name!r} of class {type(layer).__name__} has {argument}, which has no rule on shares",
        expected=expected,
        remedy="change the argument or replace the layer",
    )


def require_channels_last(layer: Any) -> None:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise unsupported(layer, "data_format='channels_first'", "channels_last")


def pull(name: str, variable: Any, trainable: bool) -> dict[str, Parameter]:
    """One parameter that is a Keras variable."""
    return {name: Parameter(np.asarray(variable.numpy(), np.float64), variable, trainable)}


def magnitude(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0.0))
