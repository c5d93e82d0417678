"""The joint ledger: what several guarantees are together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Optional

from .content import ADD_OR_REMOVE, CLIENT, EXAMPLE, OBSERVERS, RELEASE, UNITS, ZERO_OUT, Spending

ACCOUNTANT = "basic composition"


def joint(parts: Sequence[tuple[bool, Sequence[Spending]]]) -> tuple[Spending, ...]:
    """Guarantees against somebody who sees of every part what an observer sees.

    Args:
        parts: For each whether it learnt from the data, and its guarantees. One that did not learn costs nothing.

    Returns:
        For each unit that some part protects: one against whoever gets the models, and one against every other
        observer that some part speaks of. Infinite where a part learnt and has no guarantee for the unit against that
        observer or one who sees more.
    """
    learnt = [spendings for learns, spendings in parts if learns]
    found = [spending for spendings in learnt for spending in spendings]
    return tuple(
        _sum(unit, observer, [_best(unit, observer, spendings) for spendings in learnt])
        for unit in UNITS
        if any(spending.unit == unit for spending in found)
        for observer in OBSERVERS
        if observer == RELEASE or any((each.unit, each.observer) == (unit, observer) for each in found)
    )


def of_examples(spending: Spending) -> Spending:
    """What a guarantee for a client says of one of its examples.

    An example more or less leaves the client in another state, not absent. The way from one state to the other leads
    through its absence, which is two steps: epsilon doubles, and delta becomes (1 + e^epsilon) delta (group privacy;
    Dwork and Roth 2014, theorem 2.2, with delta as in Vadhan 2017, lemma 2.2).
    """
    delta = spending.delta * _above(1.0 + math.exp(spending.epsilon)) if spending.epsilon < 700 else math.inf
    return _made(
        EXAMPLE,
        spending.observer,
        2.0 * spending.epsilon,
        _above(delta),
        ADD_OR_REMOVE,
        spending.samplers,
        spending.steps,
        spending.steps_are,
    )


def _best(unit: str, observer: str, spendings: Iterable[Spending]) -> Optional[Spending]:
    """The strongest guarantee for a unit. One against somebody who sees more holds against who sees less."""
    order = list(OBSERVERS)
    strong = [each for each in spendings if order.index(each.observer) >= order.index(observer)]
    found = [spending for spending in strong if spending.unit == unit]
    if unit == EXAMPLE:
        found += [of_examples(spending) for spending in strong if spending.unit == CLIENT]
    return min(found, key=lambda each: (each.epsilon, each.delta)) if found else None


def _sum(unit: str, observer: str, found: Sequence[Optional[Spending]]) -> Spending:
    known = [spending for spending in found if spending is not None]
    epsilon = _total([spending.epsilon for spending in known]) if len(known) == len(found) else math.inf
    # What holds for adding or removing holds for zeroing out: who contributes nothing is absent.
    relation = ZERO_OUT if any(spending.adjacency.startswith(ZERO_OUT) for spending in known) else ADD_OR_REMOVE
    samplers = tuple(sorted({name for spending in known for name in spending.samplers}))
    counted = {spending.steps_are for spending in known if spending.steps}
    steps_are = counted.pop() if len(counted) == 1 else "noisy releases"
    steps, delta = sum(spending.steps for spending in known), _total([spending.delta for spending in known])
    return _made(unit, observer, epsilon, delta, relation, samplers, steps, steps_are)


def _total(values: Sequence[float]) -> float:
    """Never below the true sum; one value is its own."""
    if len(values) < 2:
        return values[0] if values else 0.0
    try:
        return _above(math.fsum(values))
    except OverflowError:
        return math.inf


def _above(value: float) -> float:
    return math.nextafter(value, math.inf) if value else value


def _made(
    unit: str,
    observer: str,
    epsilon: float,
    delta: float,
    relation: str,
    samplers: tuple[str, ...],
    steps: int,
    steps_are: str,
) -> Spending:
    if not (delta < 1 and math.isfinite(epsilon)):
        epsilon, delta = math.inf, 0.0
    return Spending(
        unit=unit,
        observer=observer,
        epsilon=epsilon,
        delta=delta,
        adjacency=f"{relation} one {unit}",
        samplers=samplers,
        accountant=ACCOUNTANT,
        steps=steps,
        steps_are=steps_are,
    )
