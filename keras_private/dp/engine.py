"""One private gradient: proof, plan, one backward pass, clipping, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional, Union

import tensorflow as tf

from .._backends import graph as tf_graph
from ..errors import UnsupportedModelError
from .clipping import ExampleGradients, clip_factors, combine
from .mechanisms import GaussianMechanism
from .outside import refuse_outside_reads
from .plan import Plan, VariableUse, make_plan, require_row
from .proof import Dim, LossTerm, LossTerms, StepProof, take_apart
from .rules import OP_RULES, Contribution, Use
from .state import refuse_data_dependent_state


def coordinates_of(variables: Sequence[tf.Variable]) -> int:
    return sum(int(variable.shape.num_elements()) for variable in variables)


@dataclass(frozen=True)
class TracedStep:
    """A training step whose proof succeeded: what its private gradient is computed from.

    Attributes:
        proof: Facts about the graph.
        terms: The loss, taken apart.
        plan: All uses of trainable variables.
        gradients: Gradient at the output of each covered operation, by operation name.
        batch: Scalar int32 tensor: the realised number of examples.
    """

    proof: StepProof
    terms: LossTerms
    plan: Plan
    gradients: dict[str, tf.Tensor]
    batch: tf.Tensor

    def contributions(self, variable: tf.Variable) -> list[Contribution]:
        return [
            _contribution(self.proof, use, self.gradients[use.op.name], self.batch) for use in self.plan.of(variable)
        ]

    def examples(self, variable: tf.Variable) -> ExampleGradients:
        """The per-example gradients of one covered variable."""
        return combine(self.contributions(variable), variable.shape)

    def describe(self) -> list[str]:
        """One line for each tensor of `rows`."""
        return [
            f"{use.variable.name} in {use.op.name} ({use.op.type}), {side}"
            for use in self.plan.uses
            for side in ("input", "output gradient")
        ]

    def rows(self) -> list[tf.Tensor]:
        """Input and output gradient of each use, grouped by example: [batch, entries, ...]."""
        result = []
        for use in self.plan.uses:
            grouped = _use(self.proof, use, self.gradients[use.op.name], self.batch)
            result.append(grouped.by_example(use.op.inputs[1 - use.slot]))
            result.append(grouped.by_example(self.gradients[use.op.name]))
        return result


def traced_step(loss: tf.Tensor, variables: Sequence[tf.Variable]) -> TracedStep:
    """Proves a traced loss private and takes its one backward pass.

    Raises:
        UnsupportedModelError: The step cannot be proven private; says where and why.
    """
    proof = StepProof(loss.graph)
    terms = take_apart(proof, loss)
    leaves = [term.tensor for term in terms.per_example]
    plan = make_plan(proof, leaves, variables)
    refuse_outside_reads(proof.graph, [term.tensor for term in terms.public], variables)
    refuse_data_dependent_state(proof, leaves)
    gradients = _backward(proof, terms.per_example, plan)
    return TracedStep(proof, terms, plan, gradients, _batch_size(proof, leaves[0]))


def private_gradients(
    loss: tf.Tensor, variables: Sequence[tf.Variable], mechanism: GaussianMechanism, divisor: float
) -> list[Optional[tf.Tensor]]:
    """Gradients of a traced loss: clipped per example, summed, noised, divided; public terms added plainly.

    Args:
        loss: Scalar, or per-example losses, in the graph of the traced step.
        variables: The trainable variables.
        mechanism: Clip norm and noise.
        divisor: The expected batch size.

    Returns:
        One tensor per variable, or None where the loss does not depend on the variable at all.

    Raises:
        UnsupportedModelError: The step cannot be proven private; says where and why.
    """
    step = traced_step(loss, variables)
    examples = {variable.ref(): step.examples(variable) for variable in variables if step.plan.of(variable)}
    public = _public_gradients(step.proof, step.terms.public, variables)
    if not examples:
        return public
    scales, keep = clip_factors([item.squared_norms() for item in examples.values()], mechanism.l2_norm_clip)
    covered = [variable for variable in variables if variable.ref() in examples]
    sums = [tf.reshape(examples[variable.ref()].weighted_sum(scales, keep), variable.shape) for variable in covered]
    released = {
        variable.ref(): tf.cast(noisy, variable.dtype)
        for variable, noisy in zip(covered, mechanism.release(sums, divisor))
    }
    return [_added(released.get(variable.ref()), plain) for variable, plain in zip(variables, public)]


def _added(released: Optional[tf.Tensor], plain: Optional[tf.Tensor]) -> Optional[tf.Tensor]:
    if released is None or plain is None:
        return plain if released is None else released
    return released + plain


def _batch_size(proof: StepProof, leaf: tf.Tensor) -> tf.Tensor:
    fact = proof.fact(leaf)
    entries = tf.shape(leaf)[fact.axis]
    owned = fact.share.entries
    return entries if owned.is_one else tf.math.floordiv(entries, _size(proof, owned))


def _size(proof: StepProof, dim: Dim) -> tf.Tensor:
    """A symbolic size as an int32 tensor."""
    sizes = [tf.constant(int(dim.coefficient), tf.int32)]
    for symbol, power in dim.powers:
        tensor, axis = proof.context.origins[symbol]
        sizes.extend([tf.shape(tensor)[axis]] * power)
    return tf.reduce_prod(tf.stack(sizes))


def _number_or_size(proof: StepProof, dim: Dim) -> Union[int, tf.Tensor]:
    return int(dim) if dim.is_number else _size(proof, dim)


def _seed(proof: StepProof, term: LossTerm) -> tf.Tensor:
    """The gradient of the summed per-example losses with respect to the row tensor of one term."""
    dtype = term.tensor.dtype
    factor = tf.constant(float(term.factor.coefficient), dtype)
    for symbol, power in term.factor.powers:
        tensor, axis = proof.context.origins[symbol]
        factor = factor * tf.cast(tf.shape(tensor)[axis], dtype) ** power
    # The raw operation stays in the graph even for static shapes, where tf.ones_like becomes a constant.
    return tf.raw_ops.OnesLike(x=term.tensor) * factor


def _backward(proof: StepProof, terms: Sequence[LossTerm], plan: Plan) -> dict[str, tf.Tensor]:
    """Gradients with respect to the outputs of all covered operations, by operation name."""
    operations = list({use.op.name: use.op for use in plan.uses}.values())
    found = tf.gradients(
        [term.tensor for term in terms],
        [op.outputs[0] for op in operations],
        grad_ys=[_seed(proof, term) for term in terms],
    )
    gradients = {}
    for op, gradient in zip(operations, found):
        if gradient is None:
            raise UnsupportedModelError(
                f"operation '{op.name}' ({op.type}) uses a trainable variable and reaches the loss, but no "
                "gradient with respect to its output comes back: a custom gradient (tf.recompute_grad, "
                "tf.custom_gradient) computes its weights' gradient elsewhere, or a function without a "
                "gradient stands between.",
                expected="ordinary back-propagation from the loss to every trainable variable",
                remedy="Remove recompute_grad or the custom gradient around layers with weights, or freeze them.",
            )
        gradients[op.name] = tf.convert_to_tensor(gradient)
    return gradients


def _use(proof: StepProof, use: VariableUse, gradient: tf.Tensor, batch: tf.Tensor) -> Use:
    """Checks that input and output gradient are rows of the same examples (contract b)."""
    data = require_row(proof.fact(use.op.inputs[1 - use.slot]), "the input", use.op)
    rows = require_row(proof.fact(gradient), "the gradient at the output", use.op)
    if rows.share != data.share:
        raise UnsupportedModelError(
            f"operation '{use.op.name}' ({use.op.type}) has {data.share} input rows but "
            f"{rows.share} output rows per example.",
            expected="as many output as input rows for each example",
            remedy="Keep the batch on axis 0 of the layer's input and output.",
        )
    before, after = (_number_or_size(proof, dim) for dim in (rows.share.before, rows.share.after))
    return Use(use.op, use.slot, gradient, batch, before, after)


def _contribution(proof: StepProof, use: VariableUse, gradient: tf.Tensor, batch: tf.Tensor) -> Contribution:
    return OP_RULES[use.op.type].contribution(_use(proof, use, gradient, batch))


def _public_gradients(
    proof: StepProof, terms: Sequence[LossTerm], variables: Sequence[tf.Variable]
) -> list[Optional[tf.Tensor]]:
    if not terms:
        return [None] * len(variables)
    handles = [tf_graph.resource_inside(proof.graph, variable.handle) for variable in variables]
    present = [handle for handle in handles if handle is not None]
    seeds = [
        tf.fill(tf.shape(term.tensor), tf.constant(float(term.factor.coefficient), term.tensor.dtype)) for term in terms
    ]
    found = dict(
        zip(
            (handle.name for handle in present),
            tf.gradients([term.tensor for term in terms], present, grad_ys=seeds),
        )
    )
    gradients = [
        None if handle is None or found[handle.name] is None else tf.convert_to_tensor(found[handle.name])
        for handle in handles
    ]
    for variable, gradient in zip(variables, gradients):
        if gradient is not None and not proof.fact(gradient).is_public:
            raise UnsupportedModelError(
                f"the gradient of a term without examples with respect to '{variable.name}' depends on examples: "
                f"{proof.fact(gradient).reason or 'a custom gradient brings them in'}.",
                expected="regularizers whose gradient sees weights only",
                remedy="Remove the custom gradient.",
            )
    return gradients
