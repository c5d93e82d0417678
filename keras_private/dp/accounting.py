"""Epsilon of the steps that ran, and its two inverses: the noise for a plan, and the steps left in a budget.

Charges describe; dp_accounting interprets. PLD (the default) discretizes each step's privacy loss pessimistically
by "connect the dots" (Doroshenko et al. 2022, section 4), composes by FFT (Koskela et al. 2020) and reads epsilon
off the hockey-stick divergence; RDP is Mironov et al. 2019, "Renyi differential privacy of the sampled Gaussian
mechanism".

Guarantees:
    - `epsilon` never lies below the true value for the charges: both accountants are upper bounds, and what is
      numerical is taken out of delta first: the FFT's rounding, and the noise sampler's total variation.
    - Charges add: no order of charges and no split of steps into charges gives less.
    - `calibrate_noise` and `max_steps` return values at which `epsilon`, called with the same arguments, is at
      most the target.
    - A charge without a sampling probability gets no amplification: one example may be in every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Optional

from ..errors import BudgetExhaustedError, ConfigurationError
from . import loss_distribution

ADD_OR_REMOVE = "add or remove one example"
ZERO_OUT = "zero out one example"
ADJACENCIES = (ADD_OR_REMOVE, ZERO_OUT)
POISSON = "poisson"
UNKNOWN = "unknown"
ACCOUNTANTS = ("pld", "rdp")
MOST_STEPS = 10**6
LARGEST_NOISE = 1e8
USABLE = 0.99


@dataclass(frozen=True)
class Charge:
    """Steps of the Gaussian mechanism that one optimizer may have run on the data.

    Attributes:
        noise_multiplier: Standard deviation of the noise divided by the sensitivity; 0 means no privacy.
        steps: How many times the mechanism ran, 0 or more.
        sampling_probability: Probability q in (0, 1] that an example is in a step, each one independently;
            None without such a guarantee, which earns no amplification.
        sampler: "poisson" with a probability, "unknown" without.
        adjacency: The neighbouring relation under which the charge holds: "add or remove one example" for
            Poisson sampling; "zero out one example" where batches are fixed, since there one example more
            would move others to other batches.
        noise_coordinates: Coordinates that receive noise in each step; each adds the sampler's error to delta.
    """

    noise_multiplier: float
    steps: int
    sampling_probability: Optional[float] = None
    sampler: str = UNKNOWN
    adjacency: str = ZERO_OUT
    noise_coordinates: int = 0

    def __post_init__(self) -> None:
        q = self.sampling_probability
        _require(_is_number(self.noise_multiplier) and self.noise_multiplier >= 0, "noise_multiplier",
                 self.noise_multiplier, "a finite number, 0 or more")  # fmt: skip
        _require(_is_whole(self.steps), "steps", self.steps, "a whole number, 0 or more")
        _require(q is None or (_is_number(q) and 0 < q <= 1), "sampling_probability", q, "None or in (0, 1]")
        _require(self.sampler == (UNKNOWN if q is None else POISSON), "sampler", self.sampler,
                 "'poisson' with a sampling probability, 'unknown' without")  # fmt: skip
        _require(self.adjacency in ADJACENCIES, "adjacency", self.adjacency, f"one of {ADJACENCIES}")
        _require(_is_whole(self.noise_coordinates), "noise_coordinates", self.noise_coordinates,
                 "a whole number, 0 or more")  # fmt: skip


def epsilon(charges: Iterable[Charge], delta: float, accountant: str = "pld") -> float:
    """Smallest provable epsilon at `delta` of all charges together.

    A sampler within total variation t of the ideal noise turns (epsilon, d) into (epsilon, d + (1 + e^epsilon) t),
    since the error enters on both sides of the definition; so epsilon is the fixed point at which the ideal
    mechanism needs delta - (1 + e^epsilon) t.

    Args:
        charges: What ran; any order.
        delta: Target delta in (0, 1).
        accountant: "pld" or "rdp".

    Returns:
        Epsilon, 0.0 for no steps, inf where no finite one can be proven (no noise, or delta below the error).
        It holds under `adjacency_of(charges)`.

    Raises:
        ConfigurationError: An argument is out of range.
    """
    _check(delta, accountant)
    groups, variation = _grouped(charges)
    return _epsilon(groups, variation, delta, accountant)


def adjacency_of(charges: Iterable[Charge]) -> str:
    """The neighbouring relation under which all charges hold together.

    A Poisson charge holds for zeroing out too: a sampled example that contributes nothing is an absent one.
    """
    return ZERO_OUT if any(c.adjacency == ZERO_OUT and c.steps for c in charges) else ADD_OR_REMOVE


def sampler_of(charges: Iterable[Charge]) -> tuple[str, ...]:
    """How the charged steps were sampled: "poisson", "unknown" or both; "poisson" for no steps."""
    return tuple(sorted({c.sampler for c in charges if c.steps})) or (POISSON,)


def calibrate_noise(
    epsilon: float,
    delta: float,
    steps: int,
    sampling_probability: Optional[float],
    spent: Iterable[Charge] = (),
    accountant: str = "pld",
    noise_coordinates: int = 0,
) -> float:
    """Smallest noise multiplier (to 1 part in 1,000) with which `steps` further steps stay within `epsilon`.

    Args:
        epsilon: Target for all charges, `spent` included; above 0.
        delta: Target delta in (0, 1).
        steps: Planned steps, at least 1.
        sampling_probability: q in (0, 1], or None for no amplification.
        spent: Charges of earlier steps on the same data.
        accountant: "pld" or "rdp".
        noise_coordinates: Coordinates that receive noise in each step.

    Raises:
        ConfigurationError: An argument is out of range, or no noise is enough at this delta.
        BudgetExhaustedError: `spent` leaves less than 1 % of epsilon, for which steps would be noise alone.
    """
    check_budget(epsilon, delta, accountant)
    _require(_is_whole(steps) and steps >= 1, "steps", steps, "a whole number, 1 or more")
    earlier, earlier_variation = _grouped(spent)
    _refuse_overspent(_epsilon(earlier, earlier_variation, delta, accountant), epsilon * USABLE, delta)
    template = _template(1.0, sampling_probability, noise_coordinates)

    def value(sigma: float, how: str) -> float:
        groups, variation = _grouped([replace(template, noise_multiplier=sigma, steps=steps)])
        return _epsilon(_merged(earlier, groups), variation + earlier_variation, delta, how)

    unsampled, variation = _grouped([replace(template, steps=steps, noise_multiplier=LARGEST_NOISE)])
    unsampled = tuple((sigma, 1.0, count) for sigma, _, count in unsampled)
    if _epsilon(_merged(earlier, unsampled), variation + earlier_variation, delta, "rdp") > epsilon:
        raise ConfigurationError(
            f"no noise keeps {steps} further steps within epsilon {epsilon} at delta {delta}.",
            expected="room in epsilon and delta beyond earlier steps and the noise sampler's own error",
            remedy="Raise delta or epsilon, or take fewer steps.",
        )
    high = loss_distribution.smallest(lambda sigma: value(sigma, "quick") <= epsilon, 1e-3, LARGEST_NOISE, 1e-2)
    for how in ("rdp",) if accountant == "rdp" else ("coarse", "pld"):
        high = loss_distribution.refine(functools.partial(value, how=how), epsilon, high)
    return high


def max_steps(
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    sampling_probability: Optional[float],
    spent: Iterable[Charge] = (),
    accountant: str = "pld",
    noise_coordinates: int = 0,
    limit: int = MOST_STEPS,
) -> int:
    """Largest number of further steps, at most `limit`, with epsilon of all charges at most `epsilon`.

    Args:
        epsilon: Target for all charges, `spent` included; above 0.
        delta: Target delta in (0, 1).
        noise_multiplier: Noise of the further steps; 0 allows none.
        sampling_probability: q in (0, 1], or None for no amplification.
        spent: Charges of earlier steps on the same data.
        accountant: "pld" or "rdp".
        noise_coordinates: Coordinates that receive noise in each step.
        limit: Where the search ends; the steps of a planned fit make it cheap.

    Raises:
        ConfigurationError: An argument is out of range.
        BudgetExhaustedError: `spent` alone lies above epsilon.
    """
    check_budget(epsilon, delta, accountant)
    _require(_is_whole(limit), "limit", limit, "a whole number, 0 or more")
    earlier, earlier_variation = _grouped(spent)
    _refuse_overspent(_epsilon(earlier, earlier_variation, delta, accountant), epsilon, delta)
    template = _template(noise_multiplier, sampling_probability, noise_coordinates)

    def value(steps: int, how: str) -> float:
        groups, variation = _grouped([replace(template, steps=steps)])
        return _epsilon(_merged(earlier, groups), variation + earlier_variation, delta, how)

    if limit == 0:
        return 0
    guess = loss_distribution.last_within(functools.partial(value, how="quick"), epsilon, 1, limit)
    return loss_distribution.last_within(functools.partial(value, how=accountant), epsilon, guess, limit)


def _epsilon(groups: loss_distribution.Groups, variation: float, delta: float, how: str) -> float:
    if any(sigma == 0.0 for sigma, _, _ in groups):
        return math.inf
    if not groups:
        return 0.0
    if not variation:
        return loss_distribution.epsilon_at(groups, delta, how)
    result, steps = 0.0, [0.0]
    for _ in range(60):
        left = delta - variation * (1.0 + (math.exp(result) if result < 700 else math.inf))
        if left <= 0.0:
            return math.inf
        needed = loss_distribution.epsilon_at(groups, left, how)
        if needed <= result:
            return result
        steps.append(needed - result)
        # The steps shrink like a geometric series: aim a little past its sum.
        ratio = steps[-1] / steps[-2] if steps[-2] else 0.0
        beyond = steps[-1] * ratio / (1.0 - ratio) if ratio < 0.9 else steps[-1]
        result = needed * (1.0 + 1e-9) + 1.05 * beyond
    return math.inf


def _grouped(charges: Iterable[Charge]) -> tuple[loss_distribution.Groups, float]:
    """Steps by (noise multiplier, sampling probability), and the total variation of all their noise."""
    steps: dict[tuple[float, float], int] = {}
    coordinate_draws = 0
    for charge in charges:
        if charge.steps:
            key = (float(charge.noise_multiplier), float(charge.sampling_probability or 1.0))
            steps[key] = steps.get(key, 0) + int(charge.steps)
            coordinate_draws += int(charge.steps) * int(charge.noise_coordinates)
    groups = tuple(sorted((sigma, q, count) for (sigma, q), count in steps.items()))
    return groups, (coordinate_draws * _variation_per_draw() if coordinate_draws else 0.0)


def _merged(one: loss_distribution.Groups, other: loss_distribution.Groups) -> loss_distribution.Groups:
    steps = {(sigma, q): count for sigma, q, count in one}
    for sigma, q, count in other:
        steps[sigma, q] = steps.get((sigma, q), 0) + count
    return tuple(sorted((sigma, q, count) for (sigma, q), count in steps.items()))


def _variation_per_draw() -> float:
    from ..random import TOTAL_VARIATION_PER_DRAW

    return float(TOTAL_VARIATION_PER_DRAW)


def _template(noise_multiplier: float, sampling_probability: Optional[float], noise_coordinates: int) -> Charge:
    sampler = UNKNOWN if sampling_probability is None else POISSON
    adjacency = ZERO_OUT if sampling_probability is None else ADD_OR_REMOVE
    return Charge(noise_multiplier, 0, sampling_probability, sampler, adjacency, noise_coordinates)


def _refuse_overspent(spent: float, target: float, delta: float) -> None:
    if spent > target:
        raise BudgetExhaustedError(
            f"earlier steps already cost epsilon {spent:.4g} at delta {delta:g}.",
            expected=f"at most {target:g}",
            remedy="Raise the target epsilon knowingly, or stop training on this data.",
        )


def check_budget(epsilon: float, delta: float, accountant: str) -> None:
    """Raises ConfigurationError unless the three make a target."""
    _check(delta, accountant)
    _check_target(epsilon)


def _check(delta: float, accountant: str) -> None:
    _require(_is_number(delta) and 0 < delta < 1, "delta", delta, "a number in (0, 1), well below 1 / examples")
    _require(accountant in ACCOUNTANTS, "accountant", accountant, f"one of {ACCOUNTANTS}")


def _check_target(epsilon: float) -> None:
    _require(_is_number(epsilon) and epsilon > 0, "epsilon", epsilon, "a finite number above 0")


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (bool, str)) and math.isfinite(value)
    except TypeError:
        return False


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _require(condition: bool, argument: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigurationError(
            f"{argument}={value!r} cannot be used.", expected=expected, remedy=f"Pass another {argument}."
        )
