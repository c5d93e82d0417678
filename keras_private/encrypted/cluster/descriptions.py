"""What is published about a model: enough for each party to trace the same program by itself, and no weights.

A party runs no graph that it is sent. It builds the model of the architecture, lowers and traces it with its own copy
of this package, and cuts its own part out: what it sends is then what its own code says, whoever published the model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_private._backends.keras_operators import SYMBOLS
from keras_private._backends.party_cuts import cut
from keras_private._backends.party_graphs import PartyGraph
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.kernels import Kernels, PortableKernels, choose
from keras_private.encrypted.lowering import Program, lower
from keras_private.encrypted.protocol.sharing import masked
from keras_private.encrypted.session import SERVERS, Session
from keras_private.encrypted.shared import Shared
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, UnsupportedLayerError
from keras_private.random import PortableSource, SecureSource, secure_source

_MODULE = re.compile(r"keras(\.[a-zA-Z_][a-zA-Z0-9_]*)*\Z")
_REFUSED = {"Lambda", "RNN", "Wrapper", "TimeDistributed", "Bidirectional"}
BATCHES = (1, 16, 128)


@dataclasses.dataclass(frozen=True)
class Description:
    """A model to be served.

    Attributes:
        architecture: Keras's JSON of the model.
        fraction: Bits after the point.
        integer: Bits before the point of encoded numbers.
        batches: Numbers of rows that programs are made for, ascending.
        native: Whether all parties compute with the native kernels and generator; the results are the same without.
        logits: The client gets what enters the last softmax or sigmoid, and applies that function itself.
    """

    architecture: str
    fraction: int
    integer: int
    batches: tuple[int, ...]
    native: bool
    logits: bool = False

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "batches": list(self.batches)}

    @staticmethod
    def of_facts(facts: Any) -> Description:
        """
        Raises:
            ConfigurationError: A field is missing or has a wrong type.
        """
        try:
            found = Description(
                architecture=facts["architecture"],
                fraction=facts["fraction"],
                integer=facts["integer"],
                batches=tuple(facts["batches"]),
                native=facts["native"],
                logits=facts["logits"],
            )
        except (KeyError, TypeError) as error:
            raise _malformed(f"{error}") from error
        if not isinstance(found.architecture, str) or type(found.native) is not bool or type(found.logits) is not bool:
            raise _malformed("a field has a wrong type")
        check_batches(found.batches)
        return found

    @property
    def fixed_point(self) -> FixedPoint:
        return FixedPoint(self.fraction, self.integer)


def check_batches(batches: Sequence[Any]) -> None:
    """
    Raises:
        ConfigurationError: They are not ascending positive integers.
    """
    valid = all(type(each) is int and 0 < each <= 1 << 20 for each in batches) and len(batches) > 0
    if not valid or list(batches) != sorted(set(batches)):
        raise ConfigurationError(
            f"batch_sizes={tuple(batches)!r}",
            expected="ascending positive integers",
            remedy="give for example (1, 16, 128)",
        )


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One input of a model, as a client must share it.

    Attributes:
        shape: Of one row.
        depth: Rows of the table that it indexes, else 0: indices are shared as one-hot rows without a point.
        fraction: Bits after the point of its shares.
    """

    shape: tuple[int, ...]
    depth: int
    fraction: int

    def shares(self, rows: int) -> tuple[int, ...]:
        """Shape of the shares of so many rows."""
        return (rows, *self.shape, self.depth) if self.depth else (rows, *self.shape)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A description that was built: programs by number of rows, and where weights go.

    Attributes:
        inputs: What each request brings.
        outputs: (shape of a row, bits after the point) of what it gets.
        weights: Shared variables by name; a party fills its own pairs alone.
        graphs: For each number of rows, each party's part.
        captured: For each number of rows, the captured inputs of the traced function.
        last: "softmax" or "sigmoid" where the client has to apply it.
    """

    inputs: tuple[Inputs, ...]
    outputs: tuple[tuple[tuple[int, ...], int], ...]
    weights: dict[str, SharedVariable]
    graphs: dict[int, dict[str, PartyGraph]]
    captured: dict[int, Any]
    last: str


def trace(description: Description) -> Traced:
    """Builds, lowers, traces and cuts.

    Raises:
        UnsupportedLayerError: A layer has no rule, or is of a kind that parties do not build from a description.
        ConfigurationError: The description is malformed, or asks for native kernels that do not load here.
    """
    model = model_of(description.architecture)
    program = lower(model)
    fixed_point = description.fixed_point
    kernels, source = means(description.native)
    weights = {
        name: SharedVariable(name, parameter.value.shape, fixed_point.fraction)
        for name, parameter in program.parameters.items()
    }
    inputs = inputs_of(model, program, fixed_point)
    graphs, captured = {}, {}
    outputs: tuple[tuple[tuple[int, ...], int], ...] = ()
    for rows in description.batches:
        concrete, outputs = _traced(program, fixed_point, weights, inputs, rows, kernels, source, description.logits)
        graphs[rows] = cut(concrete, SERVERS)
        captured[rows] = concrete.captured_inputs
    return Traced(inputs, outputs, weights, graphs, captured, program.last if description.logits else "")


def inputs_of(model: Any, program: Program, fixed_point: FixedPoint) -> tuple[Inputs, ...]:
    """What each input of a lowered model looks like."""
    return tuple(
        Inputs(tuple(tensor.shape[1:]), depth, 0 if depth else fixed_point.fraction)
        for tensor, depth in zip(model.inputs, program.input_depths)
    )


def _traced(
    program: Program,
    fixed_point: FixedPoint,
    weights: dict[str, SharedVariable],
    inputs: Sequence[Inputs],
    rows: int,
    kernels: Kernels,
    source: SecureSource,
    logits: bool,
) -> tuple[Any, tuple[tuple[tuple[int, ...], int], ...]]:
    outputs: list[tuple[tuple[int, ...], int]] = []

    @tf.function(autograph=False)
    def run(shares: Any) -> list[list[tf.Tensor]]:
        session = Session(fixed_point, SERVERS, kernels, source)
        values = [Shared(session, pairs, each.fraction) for pairs, each in zip(shares, inputs)]
        parameters = {name: variable.read(session) for name, variable in weights.items()}
        found, _ = program.forward(values, parameters, training=False, to_logits=logits)
        outputs.extend((tuple(each.shape[1:].as_list()), each.fraction) for each in found)
        # The receiver learns the value and nothing of how it was computed.
        return [masked(session, [pair[0] for pair in each.pairs], session.nonce()) for each in found]

    specs = tuple(tf.TensorSpec(each.shares(rows), tf.int64) for each in inputs)
    concrete = run.get_concrete_function(tuple(((spec, spec),) * 3 for spec in specs))
    return concrete, tuple(outputs)


def means(native: bool) -> tuple[Kernels, SecureSource]:
    """What a party computes and draws with.

    Raises:
        ConfigurationError: Native ones are asked for and do not load here.
    """
    if not native:
        return PortableKernels(), PortableSource()
    kernels, source = choose(), secure_source()
    if kernels.name != "native" or source.name != "native":
        raise ConfigurationError(
            "the native kernels do not load in this process",
            expected="the library that the program was published for",
            remedy="run `python -m keras_private.native.build` here, or publish with native=False",
        )
    return kernels, source


def model_of(architecture: str) -> Any:
    """The Keras model of a JSON text that came from outside.

    Raises:
        UnsupportedLayerError: It names a class outside of Keras, or one that can carry code.
        ConfigurationError: It is no model.
    """
    try:
        found = json.loads(architecture)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"the architecture is no JSON: {error}") from error
    _check_classes(found)
    try:
        return tf.keras.models.model_from_json(architecture)
    except Exception as error:  # Keras raises whatever its layers raise.
        raise _malformed(f"Keras cannot build the architecture: {type(error).__name__}: {error}") from error


def _check_classes(found: Any) -> None:
    """Refuses what could make Keras import a module or run code that the text brings along."""
    if isinstance(found, list):
        for each in found:
            _check_classes(each)
    if not isinstance(found, dict):
        return
    if "class_name" in found:
        name, module = found["class_name"], found.get("module") or "keras"
        known = isinstance(name, str) and name in _classes() and found.get("registered_name") in (None, name)
        inside = isinstance(module, str) and _MODULE.match(module) is not None
        options = found.get("config")
        symbol = options.get("function") if name == "TFOpLambda" and isinstance(options, dict) else None
        if not known or not inside or (name == "TFOpLambda" and symbol not in SYMBOLS):
            raise UnsupportedLayerError(
                f"the architecture names {module}.{name} {symbol or ''}".rstrip(),
                expected="layers of Keras itself, without code of their own",
                remedy="build the model of layers that have a rule",
            )
    for each in found.values():
        _check_classes(each)


@functools.lru_cache
def _classes() -> frozenset[str]:
    spaces = (tf.keras.layers, tf.keras.initializers, tf.keras.regularizers, tf.keras.constraints)
    found = {name for space in spaces for name in dir(space) if isinstance(getattr(space, name), type)}
    return frozenset(found - _REFUSED | {"Functional", "Sequential", "TFOpLambda"})


def _malformed(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"a description of a model is malformed: {what}", expected="what serve sends", remedy="run the same version"
    )
