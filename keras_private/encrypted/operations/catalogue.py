"""Every operation by its name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_private.chain import Form
from keras_private.encrypted.operations import arithmetic, shapes
from keras_private.encrypted.operations.bounds import Forms, Options, number_of, scaled
from keras_private.encrypted.protocol import products
from keras_private.encrypted.shared import Shared


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


CATALOGUE: dict[str, Operation] = {
    "add": Operation(2, (), arithmetic.add_form, arithmetic.add),
    "add_number": Operation(1, ("number",), arithmetic.add_number_form, arithmetic.add_number),
    "subtract": Operation(2, (), arithmetic.add_form, arithmetic.subtract),
    "negative": Operation(1, (), arithmetic.same_form, lambda values, _: -values[0]),
    "multiply": Operation(2, (), arithmetic.multiply_form, lambda values, _: products.multiply(values[0], values[1])),
    "multiply_number": Operation(
        1, ("number",), arithmetic.multiply_number_form, lambda values, options: scaled(values[0], number_of(options))
    ),
    "matmul": Operation(2, (), arithmetic.matmul_form, lambda values, _: products.matmul(values[0], values[1])),
    "less": Operation(2, (), arithmetic.less_form, lambda values, _: arithmetic.is_less(values[0], values[1])),
    "greater": Operation(2, (), arithmetic.less_form, lambda values, _: arithmetic.is_less(values[1], values[0])),
    "less_equal": Operation(
        2, (), arithmetic.less_form, lambda values, _: 1 - arithmetic.is_less(values[1], values[0])
    ),
    "greater_equal": Operation(
        2, (), arithmetic.less_form, lambda values, _: 1 - arithmetic.is_less(values[0], values[1])
    ),
    "less_number": Operation(
        1,
        ("number",),
        arithmetic.less_number_form,
        lambda values, options: arithmetic.less_number(values, options, math.ceil),
    ),
    "less_equal_number": Operation(
        1,
        ("number",),
        arithmetic.less_number_form,
        lambda values, options: arithmetic.less_number(values, options, arithmetic.next_above),
    ),
    "greater_number": Operation(
        1,
        ("number",),
        arithmetic.less_number_form,
        lambda values, options: 1 - arithmetic.less_number(values, options, arithmetic.next_above),
    ),
    "greater_equal_number": Operation(
        1,
        ("number",),
        arithmetic.less_number_form,
        lambda values, options: 1 - arithmetic.less_number(values, options, math.ceil),
    ),
    "index": Operation(1, ("index",), shapes.index_form, shapes.index),
    "reshape": Operation(1, ("shape",), shapes.reshape_form, shapes.reshape),
    "transpose": Operation(1, (), shapes.transpose_form, lambda values, _: values[0].local(tf.transpose)),
    "sum": Operation(1, ("axes", "keepdims"), shapes.sum_form, shapes.total),
    "mean": Operation(1, ("axes", "keepdims"), shapes.mean_form, shapes.mean),
    "relu": Operation(1, (), arithmetic.same_form, arithmetic.relu),
    "sigmoid": Operation(1, (), arithmetic.sigmoid_form, arithmetic.sigmoid),
}
