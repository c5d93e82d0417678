"""Indexing, other shapes, and sums over axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.chain import Form
from keras_private.chain.checks import bad_index
from keras_private.encrypted.operations.bounds import Forms, Options, scaled, scaled_form, within
from keras_private.encrypted.shared import Shared
from keras_private.errors import ConfigurationError

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


def index_form(forms: Forms, options: Options) -> Form:
    form, index = forms[0], _index_of(options)
    try:
        shape = np.broadcast_to(np.int8(0), form.shape)[index].shape
    except (IndexError, ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"an index into the shape {form.shape}: {error}", expected="one that fits", remedy="check it"
        ) from error
    return dataclasses.replace(form, shape=shape)


def index(values: Sequence[Shared], options: Options) -> Shared:
    index = tuple(tf.newaxis if each is None else each for each in _index_of(options))
    return values[0].local(lambda share: share[index] if index else tf.identity(share))


def reshape_form(forms: Forms, options: Options) -> Form:
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


def reshape(values: Sequence[Shared], options: Options) -> Shared:
    form = Form(tuple(values[0].shape), 0, 0.0)
    shape = reshape_form([form], options).shape
    return values[0].local(lambda share: tf.reshape(share, shape))


def transpose_form(forms: Forms, options: Options) -> Form:
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


def sum_form(forms: Forms, options: Options) -> Form:
    shape, count = _reduced(forms[0], options)
    return Form(shape, forms[0].fraction, within("a sum", count * forms[0].bound, forms[0].fraction))


def total(values: Sequence[Shared], options: Options) -> Shared:
    return values[0].local(lambda share: tf.reduce_sum(share, options["axes"], options["keepdims"]))


def mean_form(forms: Forms, options: Options) -> Form:
    _, count = _reduced(forms[0], options)
    if not count:
        raise ConfigurationError("a mean of no elements", expected="at least one", remedy="check the shape")
    return scaled_form("a mean", sum_form(forms, options), 1 / count)


def mean(values: Sequence[Shared], options: Options) -> Shared:
    _, count = _reduced(Form(tuple(values[0].shape), 0, 0.0), options)
    return scaled(total(values, options), 1 / count)
