"""Refuses a loop around the step whose length the data decides: the number of steps is public."""

from __future__ import annotations

import tensorflow as tf

from .._backends import graph as tf_graph
from .._backends.loops import loops_being_traced
from ..errors import UnsupportedModelError
from .proof import Fact, StepProof
from .proof.analysis import NOT_FOLLOWED
from .proof.facts import Kind


def refuse_data_dependent_loops() -> None:
    """Looks at the conditions of all tf.while_loops around the step.

    What a body assigns to a loop variable is not known before its loop is finished, and counts as public.

    Raises:
        UnsupportedModelError: A value of examples, or their number, decides whether the loop goes on.
    """
    for loop in loops_being_traced():
        arguments = {name: _start(value) for name, value in loop.initial.items()}
        fact = StepProof(loop.condition, arguments).fact(loop.condition.outputs[0])
        if fact.is_public or NOT_FOLLOWED in fact.reason:
            continue
        raise UnsupportedModelError(
            f"the training step stands in a tf.while_loop whose condition, '{loop.condition.name}', depends on "
            f"examples or on their number, so that the data would decide how many steps run. {fact.reason}",
            expected="a number of steps that does not depend on the data",
            remedy="Loop over tf.range of a number that is known beforehand.",
        )


def _start(value: tf.Tensor) -> Fact:
    """A loop variable: public, unless it starts as something that is not."""
    if tf_graph.is_concrete(value) or value.dtype in (tf.resource, tf.variant):
        return Fact(Kind.PUBLIC)
    fact = StepProof(value.graph).fact(value)
    if fact.is_public or NOT_FOLLOWED in fact.reason:
        return Fact(Kind.PUBLIC)
    return Fact(Kind.MIXED, reason=f"It starts as '{value.name}'.")
