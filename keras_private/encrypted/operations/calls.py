"""A call that every party checks, and traces, by itself."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import tensorflow as tf

from keras_private.chain import DEFAULT_FRACTION, Form
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.kernels import Kernels
from keras_private.encrypted.operations.bounds import Forms, Options
from keras_private.encrypted.operations.catalogue import CATALOGUE
from keras_private.encrypted.protocol.sharing import masked
from keras_private.encrypted.session import SERVERS, Session
from keras_private.encrypted.shared import Shared, local
from keras_private.errors import ConfigurationError
from keras_private.random import SecureSource

OPEN = "open"
"""The name under which a value's masked summands are computed; it is no operation of a chain."""
_MOST_RANK = 12


@dataclasses.dataclass(frozen=True)
class Call:
    """What is to be computed, apart from the values.

    Attributes:
        name: Of the operation, or OPEN.
        options: As JSON text with sorted keys, so that equal calls are equal.
        forms: Of the values.
    """

    name: str
    options: str
    forms: tuple[Form, ...]

    @staticmethod
    def of(name: str, options: Options, forms: Forms) -> Call:
        return Call(name, json.dumps(options, sort_keys=True), tuple(forms))

    def result(self) -> Form:
        """The form of the result.

        Raises:
            ConfigurationError: There is no such operation, or its values or options do not fit.
            OverflowPreflightError: A number could leave the ring.
        """
        options = json.loads(self.options)
        if self.name == OPEN and len(self.forms) == 1 and options == {}:
            return self.forms[0]
        operation = CATALOGUE.get(self.name)
        if operation is None:
            raise ConfigurationError(
                f"the operation {self.name!r}", expected=f"one of {sorted(CATALOGUE)}", remedy="use one of them"
            )
        if len(self.forms) != operation.arity or set(options) != set(operation.options):
            raise ConfigurationError(
                f"{self.name} of {len(self.forms)} values with options {sorted(options)}",
                expected=f"{operation.arity} values, options {list(operation.options)}",
                remedy="use the methods of PrivateTensor",
            )
        found = operation.form(self.forms, options)
        if len(found.shape) > _MOST_RANK:
            raise ConfigurationError(f"a tensor of rank {len(found.shape)}", expected=f"{_MOST_RANK}", remedy="reshape")
        return found

    @property
    def program(self) -> Call:
        """The same without bounds: equal for calls that run the same program."""
        return dataclasses.replace(self, forms=tuple(dataclasses.replace(each, bound=0.0) for each in self.forms))

    @property
    def fixed_point(self) -> FixedPoint:
        """Of the run."""
        fraction = min(max([each.fraction for each in self.forms], default=0) or DEFAULT_FRACTION, 28)
        return FixedPoint(fraction, min(24, 52 - fraction))

    def trace(self, kernels: Kernels, source: SecureSource, servers: tuple[str, str, str] = SERVERS) -> Any:
        """A ConcreteFunction of a nest of pairs for each value; it gives three pairs, or for OPEN three summands."""
        form, options = self.result(), json.loads(self.options)

        @tf.function(autograph=False)
        def run(shares: Any) -> Any:
            session = Session(self.fixed_point, servers, kernels, source)
            values = [Shared(session, pairs, each.fraction) for pairs, each in zip(shares, self.forms)]
            if self.name == OPEN:
                # A reader learns the value and nothing of how it was computed.
                return masked(session, [pair[0] for pair in values[0].pairs], session.nonce())
            result = CATALOGUE[self.name].run(values, options)
            if (tuple(result.shape), result.fraction) != (form.shape, form.fraction):
                raise ConfigurationError(
                    f"{self.name} gave {result.shape} with {result.fraction} bits after the point",
                    expected=f"{form.shape} with {form.fraction}",
                    remedy="report this as a bug",
                )
            return local(tf.identity, result).pairs

        specs = tuple(tf.TensorSpec(each.shape, tf.int64) for each in self.forms)
        return run.get_concrete_function(tuple(((spec, spec),) * 3 for spec in specs))
