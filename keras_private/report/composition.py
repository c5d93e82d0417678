"""The joint ledger: what several guarantees are together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Optional

from .content import ADD_OR_REMOVE, CLIENT, EXAMPLE, RELEASE, UNITS, ZERO_OUT, Spending

ACCOUNTANT = "basic composition"


def joint(parts: Sequence[tuple[bool, Sequence[Spending]]]) -> tuple[Spending, ...]:
    """Guarantees against somebody who gets the models of all parts.

    Args:
        parts: For each whether it learnt from the data, and its guarantees. One that did not learn costs nothing.

    Returns:
        One for each unit that some part protects. Infinite where another part learnt and does not protect it.
    """
    learnt = [spendings for learns, spendings in parts if learns]
    return tuple(
        _sum(unit, [_best(unit, spendings) for spendings in learnt])
        for unit in UNITS
        if any(spending.unit == unit for spendings in learnt for spending in spendings)
    )


def of_examples(spending: Spending) -> Spending:
    """What a guarantee for a client says of one of its examples.

    An example more or less leaves the client in another state, not absent. The way from one state to the other leads
    through its absence, which is two steps: epsilon doubles, and delta becomes (1 + e^epsilon) delta (group privacy;
    Dwork and Roth 2014, theorem 2.2, with delta as in Vadhan 2017, lemma 2.2).
    """
    delta = spending.delta * (1.0 + math.exp(spending.epsilon)) if spending.epsilon < 700 else math.inf
    return _made(EXAMPLE, 2.0 * spending.epsilon, delta, ADD_OR_REMOVE, spending.samplers, spending.steps)


def _best(unit: str, spendings: Iterable[Spending]) -> Optional[Spending]:
    """The strongest guarantee for a unit. One against somebody who sees more holds against who sees less."""
    found = [spending for spending in spendings if spending.unit == unit]
    if unit == EXAMPLE:
        found += [of_examples(spending) for spending in spendings if spending.unit == CLIENT]
    return min(found, key=lambda each: (each.epsilon, each.delta)) if found else None


def _sum(unit: str, found: Sequence[Optional[Spending]]) -> Spending:
    known = [spending for spending in found if spending is not None]
    epsilon = sum(spending.epsilon for spending in known) if len(known) == len(found) else math.inf
    # What holds for adding or removing holds for zeroing out: who contributes nothing is absent.
    relation = ZERO_OUT if any(spending.adjacency.startswith(ZERO_OUT) for spending in known) else ADD_OR_REMOVE
    samplers = tuple(sorted({name for spending in known for name in spending.samplers}))
    return _made(unit, epsilon, sum(spending.delta for spending in known), relation, samplers,
                 sum(spending.steps for spending in known))  # fmt: skip


def _made(unit: str, epsilon: float, delta: float, relation: str, samplers: tuple[str, ...], steps: int) -> Spending:
    if not (delta < 1 and math.isfinite(epsilon)):
        epsilon, delta = math.inf, 0.0
    return Spending(
        unit=unit,
        observer=RELEASE,
        epsilon=epsilon,
        delta=delta,
        adjacency=f"{relation} one {unit}",
        samplers=samplers,
        accountant=ACCOUNTANT,
        steps=steps,
    )
