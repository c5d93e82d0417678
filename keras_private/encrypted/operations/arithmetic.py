"""Sums, products, comparisons and functions of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_private.chain import DEFAULT_FRACTION, Form
from keras_private.encrypted.operations.bounds import (
    Forms,
    Options,
    aligned,
    broadcast,
    number_of,
    product_bound,
    scaled_form,
    unit,
    with_point,
    within,
)
from keras_private.encrypted.protocol import comparison, functions
from keras_private.encrypted.shared import Shared, add_public, local
from keras_private.errors import ConfigurationError

# Sums and products.


def add_form(forms: Forms, options: Options) -> Form:
    fraction = max(each.fraction for each in forms)
    bound = within("a sum", sum(each.bound for each in forms), fraction)
    return Form(broadcast("a sum", forms), fraction, bound)


def add(values: Sequence[Shared], options: Options) -> Shared:
    return local(tf.add, *aligned(values))


def subtract(values: Sequence[Shared], options: Options) -> Shared:
    return local(tf.subtract, *aligned(values))


def add_number_form(forms: Forms, options: Options) -> Form:
    (form,), number = forms, number_of(options)
    fraction = form.fraction if form.fraction or number.is_integer() else DEFAULT_FRACTION
    bound = within("a sum", form.bound + abs(number) + unit(fraction), fraction)
    return Form(form.shape, fraction, bound)


def add_number(values: Sequence[Shared], options: Options) -> Shared:
    number = number_of(options)
    value = values[0] if number.is_integer() else with_point(values[0])
    return value + number


def same_form(forms: Forms, options: Options) -> Form:
    return forms[0]


def multiply_form(forms: Forms, options: Options) -> Form:
    left, right = forms
    bound = product_bound("a product", left.bound * right.bound, left.fraction, right.fraction)
    return Form(broadcast("a product", forms), max(left.fraction, right.fraction), bound)


def matmul_form(forms: Forms, options: Options) -> Form:
    left, right = forms
    if len(left.shape) != 2 or len(right.shape) != 2 or left.shape[1] != right.shape[0] or not left.shape[1]:
        raise ConfigurationError(
            f"a matrix product of shapes {left.shape} and {right.shape}",
            expected="two matrices [m, k] and [k, n]",
            remedy="reshape or transpose",
        )
    magnitude = left.shape[1] * left.bound * right.bound
    bound = product_bound("a matrix product", magnitude, left.fraction, right.fraction)
    return Form((left.shape[0], right.shape[1]), max(left.fraction, right.fraction), bound)


def multiply_number_form(forms: Forms, options: Options) -> Form:
    return scaled_form("a product", forms[0], number_of(options))


# Comparisons.


def less_form(forms: Forms, options: Options) -> Form:
    # Of both aligned values, and of their difference.
    add_form(forms, options)
    return Form(broadcast("a comparison", forms), 0, 1.0)


def is_less(left: Shared, right: Shared) -> Shared:
    return comparison.is_negative(local(tf.subtract, *aligned([left, right])))


def less_number_form(forms: Forms, options: Options) -> Form:
    number = number_of(options)
    within("a difference", forms[0].bound + abs(number) + unit(forms[0].fraction), forms[0].fraction)
    return Form(forms[0].shape, 0, 1.0)


def less_number(values: Sequence[Shared], options: Options, rounded: Callable[[float], int]) -> Shared:
    """1 where the ring element is below rounded(number in units): exact for every encoded value."""
    value = values[0]
    return comparison.is_negative(add_public(value, -rounded(number_of(options) * 2.0**value.fraction)))


def next_above(number: float) -> int:
    return math.floor(number) + 1


# Functions.


def relu(values: Sequence[Shared], options: Options) -> Shared:
    return comparison.relu(values[0])[0]


def sigmoid_form(forms: Forms, options: Options) -> Form:
    form = forms[0]
    fraction = form.fraction or DEFAULT_FRACTION
    # Compared with numbers of size 14, and moved by 4 bits.
    within("an argument of sigmoid", form.bound + 16.0, fraction)
    if fraction > functions.GUARDED:
        raise ConfigurationError(
            f"sigmoid with {fraction} bits after the point",
            expected=f"at most {functions.GUARDED}",
            remedy="encrypt with fewer",
        )
    return Form(form.shape, fraction, 1.0 + 16 * unit(fraction))


def sigmoid(values: Sequence[Shared], options: Options) -> Shared:
    return functions.sigmoid(with_point(values[0]))
