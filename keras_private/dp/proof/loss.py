"""Takes a scalar loss apart into per-example losses and public terms.

The accepted form is `loss = sum_i c * l_i + public terms` with a constant c: Keras's sum, mean and "none"
reductions, loss weights, regularizers and sums of several losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import tensorflow as tf

from ...errors import UnsupportedModelError
from .analysis import StepProof
from .dims import BATCH, ONE, Dim, product
from .facts import Fact, Kind
from .remedies import USE_KERAS_LOSS, remedy_for
from .values import integers

FORM = "a loss that is a sum or mean of per-example losses plus terms that do not depend on examples"
PASS_THROUGH = ("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "Snapshot", "PreventGradient")


@dataclass(frozen=True)
class LossTerm:
    """One summand of the loss.

    Attributes:
        tensor: Per-example losses [batch, ...] (or any row tensor that is summed), or a public scalar.
        factor: The constant it is multiplied with, element by element, the realised batch size left out.
        batch_power: The power of the realised batch size in the factor: 0 for sums, -1 for means.
    """

    tensor: tf.Tensor
    factor: Dim
    batch_power: int


@dataclass(frozen=True)
class LossTerms:
    per_example: tuple[LossTerm, ...]
    public: tuple[LossTerm, ...]


def take_apart(proof: StepProof, loss: tf.Tensor) -> LossTerms:
    """Walks from the loss back to per-example losses.

    Raises:
        UnsupportedModelError: The loss has another form; names the operation that mixes examples.
    """
    rows: list[LossTerm] = []
    public: list[LossTerm] = []
    waiting: list[tuple[tf.Tensor, Dim]] = [(loss, ONE)]
    while waiting:
        tensor, factor = waiting.pop()
        fact = proof.fact(tensor)
        if fact.is_public:
            if factor.has_batch and _is_zero(fact):
                continue
            if factor.has_batch:
                raise _refusal(tensor.op, "scales a term without examples by the realised batch size")
            public.append(LossTerm(tensor, factor, 0))
        elif fact.is_row:
            rows.append(_row_term(tensor, factor))
        else:
            waiting.extend(_step_back(proof, tensor.op, fact, factor))
    if not rows:
        raise UnsupportedModelError(
            f"loss '{loss.name}' does not depend on the batch of examples.",
            expected=FORM,
            remedy="Check that the loss uses the model's predictions on the batch that fit passes.",
        )
    if len({term.batch_power for term in rows}) > 1:
        raise UnsupportedModelError(
            "the loss adds a mean over examples to a sum over examples.",
            expected="one reduction for all losses, so that the weight of each is the same in every batch",
            remedy="Give all losses the same reduction.",
        )
    return LossTerms(tuple(rows), tuple(public))


def _is_zero(fact: Fact) -> bool:
    return fact.value is not None and all(dim.coefficient == 0 for dim in fact.value.reshape(-1))


def _row_term(tensor: tf.Tensor, factor: Dim) -> LossTerm:
    power = factor.power_of(BATCH)
    if power not in (0, -1):
        raise _refusal(tensor.op, f"enters the loss scaled by the realised batch size to the power {power}")
    return LossTerm(tensor, factor if power == 0 else factor * Dim.symbol(BATCH), power)


def _as_batch_multiple(proof: StepProof, count: Dim) -> Dim:
    """Writes a count over a static batch as a multiple of the batch symbol, as a mean needs it."""
    batch = proof.context.batch
    if batch.is_number and count.is_number and batch.divides_exactly(count):
        return count / batch * Dim.symbol(BATCH)
    return count


def _step_back(proof: StepProof, op: tf.Operation, fact: Fact, factor: Dim) -> list[tuple[tf.Tensor, Dim]]:
    """The data inputs of one tail operation, each with its constant factor."""
    if op.type in PASS_THROUGH:
        return [(op.inputs[0], factor)]
    if op.type in ("AddN", "AddV2", "Add"):
        return [(tensor, factor) for tensor in op.inputs]
    if op.type == "Neg":
        return [(op.inputs[0], factor * Dim.of(-1))]
    if op.type == "Sub":
        return [(op.inputs[0], factor), (op.inputs[1], factor * Dim.of(-1))]
    if op.type == "Sum":
        return [(op.inputs[0], factor)]
    if op.type == "L2Loss":
        # The same sum, written so that its summands, and with them the examples, can be told apart.
        return [(tf.square(op.inputs[0]), factor * Dim.of(0.5))]
    if op.type == "Mean":
        return [(op.inputs[0], factor / _reduced_elements(proof, op, fact))]
    if op.type in ("Mul", "RealDiv", "DivNoNan"):
        return [_scaled(proof, op, fact, factor)]
    raise _refusal(op, "mixes examples", fact)


def _reduced_elements(proof: StepProof, op: tf.Operation, fact: Fact) -> Dim:
    source, axes = proof.fact(op.inputs[0]), proof.fact(op.inputs[1])
    dims = source.known_dims or _static_dims(op.inputs[0])
    if dims is None or axes.value is None:
        raise _refusal(op, "is a mean over a number of elements that is not known while tracing", fact)
    count = product([dims[axis % len(dims)] for axis in integers(axes.value)])
    return _as_batch_multiple(proof, count)


def _static_dims(tensor: tf.Tensor) -> Optional[tuple[Dim, ...]]:
    if not tensor.shape.is_fully_defined():
        return None
    return tuple(Dim.of(size) for size in tensor.shape.as_list())


def _scaled(proof: StepProof, op: tf.Operation, fact: Fact, factor: Dim) -> tuple[tf.Tensor, Dim]:
    left, right = (proof.fact(tensor) for tensor in op.inputs)
    if right.kind in (Kind.PUBLIC, Kind.SIZE):
        scale, data = right, op.inputs[0]
    elif op.type == "Mul" and left.kind in (Kind.PUBLIC, Kind.SIZE):
        scale, data = left, op.inputs[1]
    else:
        across = (
            "divides the loss by a value computed across examples (a weight or mask sum)"
            if op.type != "Mul"
            else "multiplies the loss by a value computed across examples (mask renormalization, centring)"
        )
        raise _refusal(op, across, fact)
    if scale.value is None or scale.value.size != 1:
        how = "scales the loss by a value that is not a constant (a loss scale, a variable, a data statistic)"
        raise _refusal(op, how, fact)
    number = scale.value.item()
    if op.type == "Mul":
        return data, factor * number
    return data, factor / _as_batch_multiple(proof, number)


def _refusal(op: tf.Operation, how: str, fact: Optional[Fact] = None) -> UnsupportedModelError:
    cause = f" Cause: {fact.reason}." if fact is not None and fact.reason else ""
    return UnsupportedModelError(
        f"operation '{op.name}' ({op.type}) {how}, so that one example would change how much another "
        f"counts.{cause}",
        expected=FORM,
        remedy=remedy_for(cause or op.name, USE_KERAS_LOSS),
    )
