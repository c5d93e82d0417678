"""Charges as guarantees: for a unit of protection, against somebody who sees so and so much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from ..report.content import EXAMPLE, RELEASE, Spending
from .accounting import UNKNOWN, ZERO_OUT, Charge, adjacency_of, epsilon, sampler_of

PROBABILITY = "sampling probability"
"""Its name among the facts on a mechanism."""


def guarantee(
    charges: Sequence[Charge],
    delta: float,
    accountant: str = "pld",
    *,
    unit: str = EXAMPLE,
    observer: str = RELEASE,
    steps_are: str = "steps",
    mechanism: Optional[Mapping[str, Any]] = None,
) -> Spending:
    """Epsilon of the charges with all that it means.

    Args:
        charges: What ran, as `observer` sees it: `unamplified` for one who sees who took part.
        delta: In (0, 1).
        accountant: "pld" or "rdp".
        unit: What a charge protects.
        observer: Against whom.
        steps_are: "steps" or "rounds".
        mechanism: Further facts; the noise of the charges is added.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    return Spending(
        unit=unit,
        observer=observer,
        epsilon=epsilon(charges, delta, accountant),
        delta=delta,
        adjacency=in_unit(adjacency_of(charges), unit),
        samplers=sampler_of(charges),
        accountant=accountant,
        steps=sum(charge.steps for charge in charges),
        steps_are=steps_are,
        mechanism={**mechanism_of_charges(charges), **(mechanism or {})},
    )


def mechanism_of_charges(charges: Iterable[Charge]) -> dict[str, str]:
    """Noise and sampling of all steps that ran, each figure once."""
    ran = [charge for charge in charges if charge.steps]
    if not ran:
        return {}
    sampled = [charge.sampling_probability for charge in ran if charge.sampling_probability is not None]
    facts = {"noise multiplier": figures(charge.noise_multiplier for charge in ran)}
    return {**facts, PROBABILITY: figures(sampled)} if sampled else facts


def figures(values: Iterable[float]) -> str:
    """Different figures in order, as a text."""
    return " and ".join(dict.fromkeys(f"{value:.4g}" for value in sorted(values)))


def unamplified(charges: Iterable[Charge]) -> list[Charge]:
    """The charges against somebody who sees whom sampling chose: one unit may be in all of them."""
    return [replace(c, sampling_probability=None, sampler=UNKNOWN, adjacency=ZERO_OUT) for c in charges]


def in_unit(relation: str, unit: str) -> str:
    """A neighbouring relation of accounting, said of another unit than examples."""
    return relation.replace(f"one {EXAMPLE}", f"one {unit}")
