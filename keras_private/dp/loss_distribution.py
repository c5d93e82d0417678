"""Numbers behind accounting.py: composed privacy loss distributions, cached, and monotone searches over them."""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

Groups = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling probability, steps), sorted; probability 1.0 is the plain Gaussian mechanism."""

FINEST, POINTS = 1e-5, 2e5
ROUNDING, ROUNDING_PER_STEP = 1e-13, 2e-16


@functools.lru_cache(maxsize=4096)
def epsilon_at(groups: Groups, delta: float, how: str) -> float:
    """Epsilon of ideal Gaussian noise; `how` is "rdp", "pld", or "coarse" (PLD on a grid ten times as wide).

    The FFT rounds each bin by about the machine's precision times the power it takes; that much is taken out of
    delta before PLD reads it, and where it is no small part of delta, RDP answers.
    """
    upper = _renyi(groups, delta)
    rounding = ROUNDING + ROUNDING_PER_STEP * sum(steps for _, q, steps in groups if q < 1.0)
    if how == "rdp" or delta < 10 * rounding or not math.isfinite(upper):
        return upper
    interval = _interval(groups, _renyi(groups, 1e-12)) * (10 if how == "coarse" else 1)
    return float(_composed(groups, interval).get_epsilon_for_delta(delta - rounding))


@functools.lru_cache(maxsize=4096)
def _renyi(groups: Groups, delta: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant()
    for sigma, q, steps in groups:
        event: Any = dp_accounting.GaussianDpEvent(sigma)
        accountant.compose(event if q >= 1.0 else dp_accounting.PoissonSampledDpEvent(q, event), steps)
    try:
        result = float(accountant.get_epsilon(delta))
    except ValueError:  # Divergences too small for floating point came out negative: do without amplification.
        plain = tuple((sigma, 1.0, steps) for sigma, _, steps in groups)
        return math.inf if plain == groups else _renyi(plain, delta)
    return result if result >= 0.0 else math.inf


def _interval(groups: Groups, reach: float) -> float:
    """Grid of the privacy loss: a power of ten that keeps every distribution within some 10^5 points."""
    widest = max(0.5 / sigma**2 + 10.0 / sigma for sigma, q, _ in groups)
    wanted = max(FINEST, widest / POINTS, reach / POINTS)
    return float(10.0 ** math.ceil(math.log10(wanted) - 1e-9))


@functools.lru_cache(maxsize=8)
def _single(sigma: float, q: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        sigma, value_discretization_interval=interval, sampling_prob=q
    )


@functools.lru_cache(maxsize=8)
def _composed(groups: Groups, interval: float) -> Any:
    """The distribution of all steps; k plain Gaussians are one with noise divided by sqrt(k)."""
    sampled = [_single(sigma, q, interval).self_compose(steps) for sigma, q, steps in groups if q < 1.0]
    plain = sum(steps / sigma**2 for sigma, q, steps in groups if q >= 1.0)
    if plain:
        sampled.append(_single(1.0 / math.sqrt(plain), 1.0, interval))
    return functools.reduce(lambda one, other: one.compose(other), sampled)


def smallest(holds: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """Smallest x in [low, high] at which a monotone condition holds, by bisection on a log scale."""
    while high > low * (1.0 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def refine(value: Callable[[float], float], target: float, guess: float) -> float:
    """Smallest x, to 1 part in 1,000, with value(x) <= target, for a falling function and a good guess.

    Secant steps on log-log axes, each aimed a little inside the target; bisection where they fail.
    """
    high = guess
    while value(high) > target:
        high *= 1.02
    low, step = high, 1.005
    while value(low) <= target:
        high, low = low, low / step
        step *= step
        if low < 1e-6:
            return high
    for _ in range(60):
        if high <= low * 1.001:
            break
        above, below = math.log(value(low)), math.log(max(value(high), 1e-12))
        share = (above - math.log(target)) / (above - below) if math.isfinite(above) and above > below else 0.5
        middle = low * (high / low) ** min(max(share, 0.05), 0.95)
        low, high = (low, middle) if value(middle) <= target else (middle, high)
    return high


def last_within(value: Callable[[int], float], target: float, guess: int, limit: int) -> int:
    """Largest whole n in [0, limit) with value(n) <= target < value(n + 1), for a rising value.

    value(limit) > target is known, and value(0) <= target.
    """
    low, high = 0, limit
    if 0 < guess < limit:
        low, high = (guess, limit) if value(guess) <= target else (0, guess)
    reach = max(guess // 8, 1)
    while low + reach < high and low > 0:
        if value(low + reach) > target:
            high = low + reach
            break
        low, reach = low + reach, reach * 2
    turn = 0
    while high - low > 1:
        middle = (low + high) // 2
        below, above = value(low), value(high)
        if turn % 3 != 2 and math.isfinite(above) and above > below:
            middle = low + int((high - low) * (target - below) / (above - below)) + (turn % 2)
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if value(middle) <= target else (low, middle)
        turn += 1
    return low
