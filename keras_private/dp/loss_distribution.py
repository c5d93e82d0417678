"""Numbers behind accounting.py: composed privacy loss distributions, cached, and monotone searches over them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

Groups = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling probability, steps), sorted; probability 1.0 is the plain Gaussian mechanism."""

FINEST, POINTS = 1e-5, 2e5
LARGEST = 500.0
WHOLE_ORDERS = [*range(2, 64), 96, 128, 192, 256, 384, 512]
ROUNDING, ROUNDING_PER_STEP = 1e-13, 2e-16


@functools.lru_cache(maxsize=4096)
def epsilon_at(groups: Groups, delta: float, how: str) -> float:
    """Epsilon of ideal Gaussian noise.

    The FFT rounds each bin by about the machine's precision times the power it takes; that much is taken out of
    delta before PLD reads it, and where it is no small part of delta, or epsilon is past all meaning, RDP answers.

    Args:
        groups: What was composed.
        delta: Above 0.
        how: "rdp", "quick" (RDP with whole orders only), "pld", or "coarse" (PLD on a grid ten times as wide).
    """
    if how in ("rdp", "quick"):
        return _renyi(groups, delta, how == "quick")
    rounding = ROUNDING + ROUNDING_PER_STEP * sum(steps for _, q, steps in groups if q < 1.0)
    if delta < 10 * rounding or _renyi(groups, delta, True) > LARGEST:
        return _renyi(groups, delta, False)
    interval = _interval(groups, _renyi(groups, 1e-12, True)) * (10 if how == "coarse" else 1)
    return float(_composed(groups, interval).get_epsilon_for_delta(delta - rounding))


def _renyi(groups: Groups, delta: float, quick: bool) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant

    total: Any = 0.0
    for sigma, q, steps in groups:
        orders, divergences = _divergences(sigma, q, quick)
        total = total + divergences * steps
    result = float(rdp_privacy_accountant.compute_epsilon(orders, total, delta)[0])
    return result if result >= 0.0 else math.inf


@functools.lru_cache(maxsize=256)
def _divergences(sigma: float, q: float, quick: bool) -> tuple[Any, Any]:
    """Orders and Renyi divergences of one step."""
    import dp_accounting
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant(WHOLE_ORDERS if quick else None)
    event: Any = dp_accounting.GaussianDpEvent(sigma)
    try:
        accountant.compose(event if q >= 1.0 else dp_accounting.PoissonSampledDpEvent(q, event))
    except ValueError:
        divergences = [-1.0]
    else:
        divergences = accountant.rdp
    if min(divergences) < 0.0:  # Too small for floating point: do without amplification.
        return _divergences(sigma, 1.0, quick)
    return accountant.orders, divergences


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
    """An x with value(x) at most the target and no more than 0.1 % inside it, for a falling function.

    Secant steps on log-log axes from a good guess, since each evaluation is dear.
    """
    low, high = 0.0, guess
    while value(high) > target:
        low, high = high, high * 1.02
    for _ in range(60):
        reached = max(value(high), 1e-12)
        if reached >= target * 0.999 or high <= low * 1.0002:
            break
        slope = 2.0
        if low and math.isfinite(value(low)):
            slope = math.log(value(low) / reached) / math.log(high / low)
        middle = high * (reached / (0.9996 * target)) ** (1.0 / max(slope, 0.5))
        floor = low or high / 2
        if not floor < middle < high:
            middle = math.sqrt(floor * high)
        low, high = (low, middle) if value(middle) <= target else (middle, high)
    return high


def last_within(value: Callable[[int], float], target: float, guess: int, limit: int) -> int:
    """Largest whole n in [0, limit] with value(n) <= target, for a rising function with value(0) <= target.

    Starts around the guess, since evaluations grow dearer with n.
    """
    value = functools.lru_cache(maxsize=None)(value)
    low, high = 0, min(max(guess, 1), limit)
    reach = max(guess // 4, 1)
    while value(high) <= target:
        if high == limit:
            return limit
        low, high, reach = high, min(high + reach, limit), reach * 2
    turn = 0
    while high - low > 1:
        middle = (low + high) // 2
        below, above = value(low), value(high)
        if turn % 3 != 2 and math.isfinite(above) and above > below:
            middle = low + int((high - low) * (target - below) / (above - below)) + turn % 2
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if value(middle) <= target else (low, middle)
        turn += 1
    return low
