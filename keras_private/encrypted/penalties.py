"""L2 penalties on weights, which keras.regularizers.L2 adds to the loss: l2 times the sum of squares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import tensorflow as tf

from keras_private.encrypted.protocol.functions import with_fraction
from keras_private.encrypted.protocol.products import matmul, scale_by_constants
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.ranges import Preflight
from keras_private.encrypted.shared import Shared, concat

_FACTOR_BITS = 7
"""Of the whole number that stands for 2 l2: the gradient counts to 0.4 %."""

_MOST_BITS = 40
_SCALING_BITS = 20


def check(
    preflight: Preflight,
    penalties: Mapping[str, float],
    sizes: Mapping[str, np.ndarray],
    trained: Collection[str],
    batch: int,
    rows: int,
    wants: Sequence[str],
) -> None:
    """Whether penalties and their gradients stay in the ring; the latter add to the bounds on gradients.

    Args:
        preflight: Where it is noted.
        penalties: l2 by parameter.
        sizes: Magnitudes of the parameters.
        trained: Parameters that are updated.
        batch: Rows of a step.
        rows: Rows whose losses are added up.
        wants: What is opened.

    Raises:
        OverflowPreflightError: A number could leave the ring.
    """
    total = 0.0
    for full, l2 in penalties.items():
        layer, name = full.rsplit("/", 1)
        if full in trained:
            preflight.gradient(layer, name, 2 * l2 * batch * float(np.max(np.abs(sizes[full]), initial=0.0)))
        if "loss" in wants:
            squares = float(np.sum(np.square(sizes[full])))
            preflight.product(layer, f"the sum of squares of the {name}", squares)
            preflight.value(layer, f"the scaled sum of squares of the {name}", squares * 2.0**_SCALING_BITS)
            total += l2 * squares
    if total:
        preflight.value("loss", f"the penalties in the loss of all {rows} rows", total * rows)


def add_gradients(
    gradients: Mapping[str, Shared], penalties: Mapping[str, float], parameters: Mapping[str, Shared], rows: int
) -> dict[str, Shared]:
    """Gradients of the loss, summed over `rows`, with those of the penalties: rows * 2 l2 w.

    Local, unless 2 l2 rows is below 2^(_FACTOR_BITS - fraction): then one truncation.
    """
    found = dict(gradients)
    for name, l2 in penalties.items():
        if not l2 or name not in found:
            continue
        weight = parameters[name]
        factor, bits = 2 * l2 * rows, weight.fraction
        while factor * 2.0**bits < 2.0**_FACTOR_BITS and bits < _MOST_BITS:
            bits += 1
        wide = Shared(weight.session, weight.times_integer(round(factor * 2.0**bits)).pairs, weight.fraction + bits)
        fraction = 2 * weight.fraction
        found[name] = with_fraction(found[name], fraction) + with_fraction(wide, fraction)
    return found


def total(penalties: Mapping[str, float], parameters: Mapping[str, Shared], rows: int) -> Shared | None:
    """rows times the sum of all penalties; None without any. Two truncations of one number a parameter."""
    names = [name for name, l2 in penalties.items() if l2]
    if not names:
        return None
    with tf.name_scope("penalties"):
        squares = []
        for name in names:
            row = parameters[name].local(lambda share: tf.reshape(share, [1, -1]))
            squares.append(matmul(row, row, transpose_b=True, truncated=False))
        together = truncate(concat(squares, 0), parameters[names[0]].fraction)
        factors = np.array([[rows * penalties[name]] for name in names])
        return scale_by_constants(together, factors).local(tf.reduce_sum)
