"""The operations of the tensor chain: for each a rule for shape and bound, and a function on shares.

Every party applies both to a description, an operation's name and its options, with its own copy of this file: what is
refused is refused by each of them, and what is computed is traced by each of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.chain import DEFAULT_FRACTION, Form
from keras_private.chain.checks import bad_index
from keras_private.encrypted.fixed_point import TRUNCATION_BITS, FixedPoint
from keras_private.encrypted.kernels import Kernels
from keras_private.encrypted.protocol import comparison, functions, products
from keras_private.encrypted.protocol.functions import with_fraction
from keras_private.encrypted.protocol.sharing import masked
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.session import SERVERS, Session
from keras_private.encrypted.shared import Shared, add_public, local
from keras_private.errors import ConfigurationError, OverflowPreflightError
from keras_private.random import SecureSource

OPEN = "open"
"""The name under which a value's masked summands are computed; it is no operation of a chain."""
VALUE_BITS = 61
"""Kept values stay below 2^61 in the ring: the difference of two of them has the right sign, and is truncated right."""
_RELATIVE_BITS = 20
_MOST_RANK = 12

Forms = Sequence[Form]
Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One entry of the catalogue.

    Attributes:
        arity: Number of values.
        options: Names of its options.
        form: From forms and options to the result's form; raises OverflowPreflightError if the result or a number on
            the way could leave the ring, ConfigurationError if shapes or options do not fit.
        run: From shared values and options to the result, which has that form.
    """

    arity: int
    options: tuple[str, ...]
    form: Callable[[Forms, Options], Form]
    run: Callable[[Sequence[Shared], Options], Shared]


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


# Bounds.


def _within(what: str, magnitude: float, fraction: int, bits: int = VALUE_BITS) -> float:
    """magnitude, if it stays below 2^bits in the ring.

    Raises:
        OverflowPreflightError: It does not.
    """
    if not magnitude < 2.0 ** (bits - fraction):
        raise OverflowPreflightError(
            f"{what} could reach {magnitude:.3g} in absolute value",
            expected=f"less than {2.0 ** (bits - fraction):.3g}, by the bounds of its operands",
            remedy="encrypt with a smaller bound=, or with fewer bits after the point",
        )
    return magnitude


def _unit(fraction: int) -> float:
    return 2.0**-fraction


def _product(what: str, magnitude: float, left: int, right: int) -> float:
    """The bound on a sum of products after its truncation; FixedPoint.product_bound where both fractions are equal."""
    surplus = min(left, right)
    _within(f"{what}, before truncation,", magnitude, left + right, TRUNCATION_BITS if surplus else VALUE_BITS)
    return _within(what, magnitude + (_unit(max(left, right)) if surplus else 0.0), max(left, right))


def _factor(number: float) -> tuple[int, int]:
    """number = k 2^-bits: exactly for integers and short binary fractions, else within 2^-20 of it."""
    if not number or float(number).is_integer():
        return int(number), 0
    bits = max(1, min(40, _RELATIVE_BITS - math.ceil(math.log2(abs(number)))))
    whole = round(number * 2.0**bits)
    while whole and whole % 2 == 0 and bits:
        whole, bits = whole // 2, bits - 1
    return whole, bits


def _scaled_form(what: str, form: Form, number: float) -> Form:
    whole, bits = _factor(number)
    fraction = (form.fraction or DEFAULT_FRACTION) if bits else form.fraction
    magnitude = form.bound * abs(whole)
    _within(f"{what}, before truncation,", magnitude, fraction, TRUNCATION_BITS if bits else VALUE_BITS)
    bound = magnitude * 2.0**-bits + (_unit(fraction) if bits else 0.0)
    return Form(form.shape, fraction, _within(what, bound, fraction))


def _scaled(value: Shared, number: float) -> Shared:
    whole, bits = _factor(number)
    if not bits:
        return value.times_integer(whole)
    value = _with_point(value)
    wide = value.times_integer(whole)
    return truncate(Shared(value.session, wide.pairs, value.fraction + bits), bits)


def _with_point(value: Shared) -> Shared:
    """Integers get bits after the point."""
    return value if value.fraction else with_fraction(value, DEFAULT_FRACTION)


def _aligned(values: Sequence[Shared]) -> list[Shared]:
    fraction = max(each.fraction for each in values)
    return [with_fraction(each, fraction) for each in values]


def _broadcast(what: str, forms: Forms) -> tuple[int, ...]:
    try:
        return tuple(np.broadcast_shapes(*(each.shape for each in forms)))
    except ValueError as error:
        shapes = " and ".join(str(each.shape) for each in forms)
        raise ConfigurationError(
            f"{what} of shapes {shapes}", expected="shapes that broadcast", remedy="reshape"
        ) from error


def _number(options: Options) -> float:
    number = options["number"]
    if type(number) not in (int, float) or not math.isfinite(number):
        raise ConfigurationError(f"the number {number!r}", expected="a finite number", remedy="check it")
    return float(number)


# Sums and products.


def _add_form(forms: Forms, options: Options) -> Form:
    fraction = max(each.fraction for each in forms)
    bound = _within("a sum", sum(each.bound for each in forms), fraction)
    return Form(_broadcast("a sum", forms), fraction, bound)


def _add(values: Sequence[Shared], options: Options) -> Shared:
    return local(tf.add, *_aligned(values))


def _subtract(values: Sequence[Shared], options: Options) -> Shared:
    return local(tf.subtract, *_aligned(values))


def _add_number_form(forms: Forms, options: Options) -> Form:
    (form,), number = forms, _number(options)
    fraction = form.fraction if form.fraction or number.is_integer() else DEFAULT_FRACTION
    bound = _within("a sum", form.bound + abs(number) + _unit(fraction), fraction)
    return Form(form.shape, fraction, bound)


def _add_number(values: Sequence[Shared], options: Options) -> Shared:
    number = _number(options)
    value = values[0] if number.is_integer() else _with_point(values[0])
    return value + number


def _same_form(forms: Forms, options: Options) -> Form:
    return forms[0]


def _multiply_form(forms: Forms, options: Options) -> Form:
    left, right = forms
    bound = _product("a product", left.bound * right.bound, left.fraction, right.fraction)
    return Form(_broadcast("a product", forms), max(left.fraction, right.fraction), bound)


def _matmul_form(forms: Forms, options: Options) -> Form:
    left, right = forms
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0] or not left.shape[1]:
        raise ConfigurationError(
            f"a matrix product of shapes {left.shape} and {right.shape}",
            expected="two matrices [m, k] and [k, n]",
            remedy="reshape or transpose",
        )
    magnitude = left.shape[1] * left.bound * right.bound
    bound = _product("a matrix product", magnitude, left.fraction, right.fraction)
    return Form((left.shape[0], right.shape[1]), max(left.fraction, right.fraction), bound)


def _multiply_number_form(forms: Forms, options: Options) -> Form:
    return _scaled_form("a product", forms[0], _number(options))


# Comparisons.


def _less_form(forms: Forms, options: Options) -> Form:
    # Of both aligned values, and of their difference.
    _add_form(forms, options)
    return Form(_broadcast("a comparison", forms), 0, 1.0)


def _is_less(left: Shared, right: Shared) -> Shared:
    return comparison.is_negative(local(tf.subtract, *_aligned([left, right])))


def _less_number_form(forms: Forms, options: Options) -> Form:
    number = _number(options)
    _within("a difference", forms[0].bound + abs(number) + _unit(forms[0].fraction), forms[0].fraction)
    return Form(forms[0].shape, 0, 1.0)


def _less_number(values: Sequence[Shared], options: Options, rounded: Callable[[float], int]) -> Shared:
    """1 where the ring element is below rounded(number in units): exact for every encoded value."""
    value = values[0]
    return comparison.is_negative(add_public(value, -rounded(_number(options) * 2.0**value.fraction)))


def _up(number: float) -> int:
    return math.ceil(number)


def _above(number: float) -> int:
    return math.floor(number) + 1


# Shapes.


def _index_of(options: Options) -> tuple[Any, ...]:
    given = options["index"]
    if not isinstance(given, list):
        raise bad_index(given)
    found: list[Any] = []
    for each in given:
        if type(each) is int:
            found.append(each)
        elif each in ("new", "..."):
            found.append(None if each == "new" else Ellipsis)
        elif isinstance(each, list) and len(each) == 3 and all(part is None or type(part) is int for part in each):
            found.append(slice(*each))
        else:
            raise bad_index(each)
    return tuple(found)


def _index_form(forms: Forms, options: Options) -> Form:
    form, index = forms[0], _index_of(options)
    try:
        shape = np.broadcast_to(np.int8(0), form.shape)[index].shape
    except (IndexError, ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"an index into the shape {form.shape}: {error}", expected="one that fits", remedy="check it"
        ) from error
    return dataclasses.replace(form, shape=shape)


def _index(values: Sequence[Shared], options: Options) -> Shared:
    index = tuple(tf.newaxis if each is None else each for each in _index_of(options))
    return values[0].local(lambda share: share[index] if index else tf.identity(share))


def _reshape_form(forms: Forms, options: Options) -> Form:
    form, given = forms[0], options["shape"]
    valid = isinstance(given, list) and all(type(each) is int and each >= -1 for each in given)
    if valid and given.count(-1) == 1:
        others = math.prod(each for each in given if each != -1)
        given = [(form.size // others if others else 0) if each == -1 else each for each in given]
    if not valid or -1 in given or math.prod(given) != form.size:
        raise ConfigurationError(
            f"{form.shape} reshaped to {given}", expected=f"sizes whose product is {form.size}", remedy="check them"
        )
    return dataclasses.replace(form, shape=tuple(given))


def _reshape(values: Sequence[Shared], options: Options) -> Shared:
    form = Form(tuple(values[0].shape), 0, 0.0)
    shape = _reshape_form([form], options).shape
    return values[0].local(lambda share: tf.reshape(share, shape))


def _transpose_form(forms: Forms, options: Options) -> Form:
    return dataclasses.replace(forms[0], shape=forms[0].shape[::-1])


# Sums over axes.


def _reduced(form: Form, options: Options) -> tuple[tuple[int, ...], int]:
    """The shape of a sum over axes, and of how many elements."""
    axes, keepdims = options["axes"], options["keepdims"]
    rank = len(form.shape)
    valid = isinstance(axes, list) and all(type(each) is int and 0 <= each < rank for each in axes)
    if not valid or len(set(axes)) != len(axes) or type(keepdims) is not bool:
        raise ConfigurationError(f"axes {axes!r}", expected=f"different axes below {rank}", remedy="check them")
    sizes = [(1 if place in axes else size) for place, size in enumerate(form.shape)]
    shape = sizes if keepdims else [size for place, size in enumerate(form.shape) if place not in axes]
    return tuple(shape), math.prod(form.shape[each] for each in axes)


def _sum_form(forms: Forms, options: Options) -> Form:
    shape, count = _reduced(forms[0], options)
    return Form(shape, forms[0].fraction, _within("a sum", count * forms[0].bound, forms[0].fraction))


def _sum(values: Sequence[Shared], options: Options) -> Shared:
    return values[0].local(lambda share: tf.reduce_sum(share, options["axes"], options["keepdims"]))


def _mean_form(forms: Forms, options: Options) -> Form:
    _, count = _reduced(forms[0], options)
    if not count:
        raise ConfigurationError("a mean of no elements", expected="at least one", remedy="check the shape")
    return _scaled_form("a mean", _sum_form(forms, options), 1 / count)


def _mean(values: Sequence[Shared], options: Options) -> Shared:
    _, count = _reduced(Form(tuple(values[0].shape), 0, 0.0), options)
    return _scaled(_sum(values, options), 1 / count)


# Functions.


def _relu(values: Sequence[Shared], options: Options) -> Shared:
    return comparison.relu(values[0])[0]


def _sigmoid_form(forms: Forms, options: Options) -> Form:
    form = forms[0]
    fraction = form.fraction or DEFAULT_FRACTION
    # Compared with numbers of size 14, and moved by 4 bits.
    _within("an argument of sigmoid", form.bound + 16.0, fraction)
    if fraction > functions.GUARDED:
        raise ConfigurationError(
            f"sigmoid with {fraction} bits after the point",
            expected=f"at most {functions.GUARDED}",
            remedy="encrypt with fewer",
        )
    return Form(form.shape, fraction, 1.0 + 16 * _unit(fraction))


def _sigmoid(values: Sequence[Shared], options: Options) -> Shared:
    return functions.sigmoid(_with_point(values[0]))


CATALOGUE: dict[str, Operation] = {
    "add": Operation(2, (), _add_form, _add),
    "add_number": Operation(1, ("number",), _add_number_form, _add_number),
    "subtract": Operation(2, (), _add_form, _subtract),
    "negative": Operation(1, (), _same_form, lambda values, _: -values[0]),
    "multiply": Operation(2, (), _multiply_form, lambda values, _: products.multiply(values[0], values[1])),
    "multiply_number": Operation(
        1, ("number",), _multiply_number_form, lambda values, options: _scaled(values[0], _number(options))
    ),
    "matmul": Operation(2, (), _matmul_form, lambda values, _: products.matmul(values[0], values[1])),
    "less": Operation(2, (), _less_form, lambda values, _: _is_less(values[0], values[1])),
    "greater": Operation(2, (), _less_form, lambda values, _: _is_less(values[1], values[0])),
    "less_equal": Operation(2, (), _less_form, lambda values, _: 1 - _is_less(values[1], values[0])),
    "greater_equal": Operation(2, (), _less_form, lambda values, _: 1 - _is_less(values[0], values[1])),
    "less_number": Operation(
        1, ("number",), _less_number_form, lambda values, options: _less_number(values, options, _up)
    ),
    "less_equal_number": Operation(
        1, ("number",), _less_number_form, lambda values, options: _less_number(values, options, _above)
    ),
    "greater_number": Operation(
        1, ("number",), _less_number_form, lambda values, options: 1 - _less_number(values, options, _above)
    ),
    "greater_equal_number": Operation(
        1, ("number",), _less_number_form, lambda values, options: 1 - _less_number(values, options, _up)
    ),
    "index": Operation(1, ("index",), _index_form, _index),
    "reshape": Operation(1, ("shape",), _reshape_form, _reshape),
    "transpose": Operation(1, (), _transpose_form, lambda values, _: values[0].local(tf.transpose)),
    "sum": Operation(1, ("axes", "keepdims"), _sum_form, _sum),
    "mean": Operation(1, ("axes", "keepdims"), _mean_form, _mean),
    "relu": Operation(1, (), _same_form, _relu),
    "sigmoid": Operation(1, (), _sigmoid_form, _sigmoid),
}
