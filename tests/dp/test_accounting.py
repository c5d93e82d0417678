"""Epsilon, calibration and step budgets against closed forms and dp_accounting."""

from __future__ import annotations

import math
import time

import dp_accounting
import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from keras_private.dp import loss_distribution
from keras_private.dp.accounting import (
    ADD_OR_REMOVE,
    ZERO_OUT,
    Charge,
    adjacency_of,
    calibrate_noise,
    epsilon,
    max_steps,
    sampler_of,
)
from keras_private.errors import BudgetExhaustedError, ConfigurationError
from keras_private.random import TOTAL_VARIATION_PER_DRAW

Q = 0.004
DELTA = 1e-5


def poisson(noise: float, steps: int, q: float = Q, coordinates: int = 0) -> Charge:
    return Charge(noise, steps, q, "poisson", ADD_OR_REMOVE, coordinates)


def plain(noise: float, steps: int, coordinates: int = 0) -> Charge:
    return Charge(noise, steps, noise_coordinates=coordinates)


def exact_gaussian(charges: list[Charge], delta: float) -> float:
    """Balle and Wang 2018, theorem 8, for composed plain Gaussian mechanisms."""
    mu = math.sqrt(sum(c.steps / c.noise_multiplier**2 for c in charges))

    def divergence(e: float) -> float:
        return math.exp(special.log_ndtr(mu / 2 - e / mu)) - math.exp(e + special.log_ndtr(-mu / 2 - e / mu))

    low, high = 0.0, mu * mu / 2 + 40 * mu
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) > delta else (low, middle)
    return high


def event(*charges: Charge) -> dp_accounting.DpEvent:
    events = []
    for c in charges:
        step = dp_accounting.GaussianDpEvent(c.noise_multiplier)
        if c.sampling_probability is not None:
            step = dp_accounting.PoissonSampledDpEvent(c.sampling_probability, step)
        events.append(dp_accounting.SelfComposedDpEvent(step, c.steps))
    return dp_accounting.ComposedDpEvent(events)


@pytest.mark.parametrize(
    "charges",
    [[poisson(1.1, 1000)], [poisson(2.0, 300, 0.1), poisson(3.0, 500, 0.05)], [poisson(2.0, 300), plain(20.0, 40)]],
    ids=["one", "two samplers", "mixed with unsampled"],
)
def test_pld_agrees_with_dp_accounting(charges):
    expected = dp_accounting.pld.PLDAccountant().compose(event(*charges)).get_epsilon(DELTA)
    assert epsilon(charges, DELTA) == pytest.approx(expected, rel=2e-3)


def test_rdp_agrees_with_dp_accounting():
    charges = [poisson(1.1, 1000), plain(30.0, 10)]
    expected = rdp_privacy_accountant.RdpAccountant().compose(event(*charges)).get_epsilon(DELTA)
    assert epsilon(charges, DELTA, "rdp") == pytest.approx(expected, rel=1e-9)
    assert epsilon(charges, DELTA) < expected


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8, 1e-10, 1e-12, 1e-14])
@pytest.mark.parametrize(("noise", "steps"), [(5.0, 10), (50.0, 5000), (1.0, 200)])
def test_never_below_the_closed_form_for_plain_gaussians(noise, steps, delta, accountant):
    charges = [plain(noise, steps - steps // 2), plain(noise, steps // 2)]
    true = exact_gaussian(charges, delta)
    figure = epsilon(charges, delta, accountant)
    assert figure >= true * (1 - 1e-9)
    if accountant == "pld" and delta >= 1e-10:
        assert figure <= true * 1.002


@pytest.mark.parametrize("delta", [1e-5, 1e-8, 1e-10, 1e-11, 1e-12, 1e-13])
@pytest.mark.parametrize(("noise", "steps"), [(20.0, 20000), (300.0, 20000)])
def test_never_below_the_closed_form_through_the_fft(noise, steps, delta):
    """A sampling probability a hair below 1 takes the FFT's path, where raw PLD figures fall below the truth."""
    assert epsilon([poisson(noise, steps, 1 - 1e-12)], delta) >= exact_gaussian([plain(noise, steps)], delta)


def test_raw_pld_figures_need_the_correction_for_rounding():
    """Fails when dp_accounting's FFT becomes exact, and ROUNDING can go."""
    raw = privacy_loss_distribution.from_gaussian_mechanism(300.0).self_compose(20000)
    assert raw.get_epsilon_for_delta(1e-12) < exact_gaussian([plain(300.0, 20000)], 1e-12)


def test_no_steps_cost_nothing_and_no_noise_costs_everything():
    assert epsilon([], DELTA) == 0.0
    assert epsilon([poisson(1.0, 0), plain(0.0, 0)], DELTA) == 0.0
    assert epsilon([poisson(1.0, 10), plain(0.0, 1)], DELTA) == math.inf


def test_certain_sampling_is_no_amplification():
    assert epsilon([poisson(5.0, 10, 1.0)], DELTA) == epsilon([plain(5.0, 10)], DELTA)
    assert epsilon([poisson(5.0, 10, 0.1)], DELTA) < epsilon([plain(5.0, 10)], DELTA)


def test_order_and_split_of_charges_do_not_matter():
    whole = epsilon([poisson(1.5, 300), poisson(3.0, 100, 0.02)], DELTA)
    parts = [poisson(3.0, 60, 0.02), poisson(1.5, 100), poisson(1.5, 200), poisson(3.0, 40, 0.02)]
    assert epsilon(parts, DELTA) == whole


@settings(max_examples=15)
@given(
    noise=st.floats(0.6, 20), steps=st.integers(1, 5000), q=st.floats(1e-3, 1.0),
    more=st.integers(0, 500), accountant=st.just("rdp"),
)  # fmt: skip
def test_more_of_anything_costs_more(noise, steps, q, more, accountant):
    base = epsilon([poisson(noise, steps, q)], DELTA, accountant)
    assert epsilon([poisson(noise, steps + more, q)], DELTA, accountant) >= base
    assert epsilon([poisson(noise, steps, q), plain(noise, more)], DELTA, accountant) >= base
    assert epsilon([poisson(noise * 1.1, steps, q)], DELTA, accountant) <= base * (1 + 1e-9)
    assert epsilon([plain(noise, steps)], DELTA, accountant) >= base * (1 - 1e-9)
    assert epsilon([poisson(noise, steps, q)], DELTA / 2, accountant) >= base


def test_the_noise_samplers_error_counts_on_both_sides_of_the_definition():
    coordinates, steps = 10**8, 2000
    charge = poisson(1.1, steps, coordinates=coordinates)
    variation = coordinates * steps * TOTAL_VARIATION_PER_DRAW
    figure = epsilon([charge], DELTA)
    assert figure > epsilon([poisson(1.1, steps)], DELTA - variation)
    ideal = loss_distribution._composed(((1.1, Q, steps),), 1e-4)
    assert ideal.get_delta_for_epsilon(figure) + (1 + math.exp(figure)) * variation <= DELTA
    assert figure < epsilon([poisson(1.1, steps)], DELTA / 2)


def test_where_the_samplers_error_eats_delta_epsilon_is_infinite():
    assert epsilon([poisson(1.1, 2000, coordinates=10**11)], DELTA) == math.inf
    large = [plain(1.0, 100, coordinates=10**6)]
    assert 10**8 * TOTAL_VARIATION_PER_DRAW < DELTA
    assert math.isfinite(epsilon([plain(1.0, 100)], DELTA))
    assert epsilon(large, DELTA) == math.inf


def test_adjacency_and_sampler_of_mixed_charges_are_the_weaker():
    sampled, unsampled = poisson(1.0, 5), plain(1.0, 5)
    assert adjacency_of([sampled]) == ADD_OR_REMOVE and sampler_of([sampled]) == ("poisson",)
    assert adjacency_of([sampled, unsampled]) == ZERO_OUT
    assert sampler_of([sampled, unsampled]) == ("poisson", "unknown")
    assert adjacency_of([sampled, plain(1.0, 0)]) == ADD_OR_REMOVE


@pytest.mark.parametrize(
    "bad",
    [
        {"noise_multiplier": -1.0}, {"noise_multiplier": math.nan}, {"noise_multiplier": math.inf}, {"steps": -1},
        {"steps": 1.5}, {"sampling_probability": 0.0}, {"sampling_probability": 1.1}, {"sampler": "shuffled"},
        {"sampler": "unknown"}, {"sampling_probability": None}, {"adjacency": "whatever"}, {"noise_coordinates": -1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_charges_are_refused(bad):
    right = {"noise_multiplier": 1.0, "steps": 1, "sampling_probability": 0.1, "sampler": "poisson",
             "adjacency": ADD_OR_REMOVE, "noise_coordinates": 0}  # fmt: skip
    Charge(**right)
    with pytest.raises(ConfigurationError):
        Charge(**{**right, **bad})


@pytest.mark.parametrize(
    "bad",
    [{"epsilon": 0.0}, {"epsilon": -1.0}, {"epsilon": math.inf}, {"delta": 0.0}, {"delta": 1.0}, {"delta": math.nan},
     {"accountant": "moments"}, {"sampling_probability": 2.0}, {"steps": 0}, {"steps": 2.5}, {"limit": -1},
     {"noise_multiplier": -0.5}],
    ids=str,
)  # fmt: skip
def test_impossible_targets_are_refused(bad):
    name = next(iter(bad))
    common = {"epsilon": 1.0, "delta": DELTA, "sampling_probability": Q}
    if name not in ("limit", "noise_multiplier"):
        with pytest.raises(ConfigurationError, match=name):
            calibrate_noise(**{**common, "steps": 10, **bad})
    if name != "steps":
        with pytest.raises(ConfigurationError, match=name):
            max_steps(**{**common, "noise_multiplier": 1.0, **bad})
    if name in ("delta", "accountant"):
        with pytest.raises(ConfigurationError, match=name):
            epsilon([plain(1.0, 1)], **{"delta": DELTA, **bad})


def test_calibrated_noise_agrees_with_dp_accounting():
    mine = calibrate_noise(0.5, DELTA, 10_000, Q)
    theirs = dp_accounting.calibrate_dp_mechanism(
        dp_accounting.pld.PLDAccountant,
        lambda noise: event(poisson(noise, 10_000)),
        0.5,
        DELTA,
        dp_accounting.mechanism_calibration.ExplicitBracketInterval(2.0, 4.0),
        tol=1e-3,
    )
    assert mine == pytest.approx(theirs, rel=0.01)
    assert epsilon([poisson(mine, 10_000)], DELTA) <= 0.5
    assert epsilon([poisson(mine * 0.99, 10_000)], DELTA) > 0.5


@pytest.mark.parametrize("target", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("q", [0.1, None])
def test_calibrated_noise_meets_the_target_tightly(target, q):
    noise = calibrate_noise(target, DELTA, 40, q, noise_coordinates=1000)
    charge = replace_noise(noise, q)
    assert target * 0.99 < epsilon([charge], DELTA) <= target


def replace_noise(noise: float, q: float | None) -> Charge:
    return plain(noise, 40, 1000) if q is None else poisson(noise, 40, q, 1000)


def test_calibration_counts_what_was_spent():
    spent = [poisson(2.0, 100, 0.1)]
    noise = calibrate_noise(3.0, DELTA, 100, 0.1, spent=spent)
    assert noise > calibrate_noise(3.0, DELTA, 100, 0.1)
    assert 2.97 < epsilon([*spent, poisson(noise, 100, 0.1)], DELTA) <= 3.0


def test_a_spent_budget_is_refused():
    spent = [poisson(2.0, 100, 0.1)]
    cost = epsilon(spent, DELTA)
    for target in (cost * 0.5, cost * 1.001):
        with pytest.raises(BudgetExhaustedError, match="earlier steps"):
            calibrate_noise(target, DELTA, 10, 0.1, spent=spent)
    with pytest.raises(BudgetExhaustedError, match="earlier steps"):
        max_steps(cost * 0.999, DELTA, 2.0, 0.1, spent=spent)
    assert max_steps(cost, DELTA, 2.0, 0.1, spent=spent) == 0


def test_no_noise_is_enough_when_the_samplers_error_passes_delta():
    with pytest.raises(ConfigurationError, match="no noise"):
        calibrate_noise(1.0, 1e-9, 1000, 0.1, noise_coordinates=10**9)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(
    ("noise", "q", "spent"), [(2.0, 0.1, ()), (20.0, None, ()), (2.0, 0.1, (poisson(1.5, 20, 0.1), plain(9.0, 3)))]
)
def test_max_steps_is_the_last_step_within_the_target(noise, q, spent, accountant):
    n = max_steps(3.0, DELTA, noise, q, spent=spent, accountant=accountant, noise_coordinates=1000)

    def cost(steps: int) -> float:
        further = plain(noise, steps, 1000) if q is None else poisson(noise, steps, q, 1000)
        return epsilon([*spent, further], DELTA, accountant)

    assert n > 1
    assert cost(n) <= 3.0 < cost(n + 1)
    assert max_steps(3.0, DELTA, noise, q, spent=spent, accountant=accountant, limit=n // 2) == n // 2


def test_max_steps_without_noise_is_zero():
    assert max_steps(3.0, DELTA, 0.0, 0.1) == 0


def test_figures_at_every_epoch_are_cheap():
    epsilon([poisson(1.3, 1)], DELTA)
    built = loss_distribution._single.cache_info().misses
    start = time.process_time()
    for epoch in range(2, 12):
        epsilon([poisson(1.3, 235 * epoch)], DELTA)
    assert time.process_time() - start < 10 * 0.2
    assert loss_distribution._single.cache_info().misses <= built + 1
    start = time.process_time()
    for _ in range(100):
        epsilon([poisson(1.3, 235 * 5)], DELTA)
    assert time.process_time() - start < 0.1
