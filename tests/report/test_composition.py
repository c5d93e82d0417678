"""The joint ledger: it never says less than its parts add up to, whatever their units and observers."""

from __future__ import annotations

import decimal
import fractions
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_private.report.composition import joint, of_examples
from keras_private.report.content import CLIENT, COHORT, COORDINATOR, EXAMPLE, OBSERVERS, RELEASE, UNITS
from tests.report.samples import spending

ORDER = list(OBSERVERS)
spendings = st.builds(
    spending,
    unit=st.sampled_from(UNITS),
    observer=st.sampled_from(ORDER),
    epsilon=st.one_of(st.floats(0, 30), st.just(math.inf)),
    delta=st.floats(0, 1e-3),
)
parts_of_reports = st.lists(st.tuples(st.booleans(), st.lists(spendings, max_size=4)), max_size=4)


def figures(found, unit, observer=RELEASE):
    return next(((each.epsilon, each.delta) for each in found if (each.unit, each.observer) == (unit, observer)), None)


def test_epsilons_and_deltas_add():
    found = joint([(True, [spending(epsilon=1.0, delta=1e-5)]), (True, [spending(epsilon=2.0, delta=1e-6)])])
    epsilon, delta = figures(found, EXAMPLE)
    assert 3.0 <= epsilon < 3.0 + 1e-12 and 1.1e-5 <= delta < 1.1e-5 + 1e-16
    assert found[0].steps == 400 and found[0].accountant == "basic composition"


def test_one_report_alone_is_as_it_was():
    (found,) = joint([(True, [spending(epsilon=1.1, delta=1e-5)])])
    assert (found.epsilon, found.delta) == (1.1, 1e-5)


@given(parts_of_reports)
def test_it_is_never_below_the_exact_sum_of_the_best_of_each_part(parts):
    for each in joint(parts):
        exact = fractions.Fraction(0)
        for found in (found for learns, found in parts if learns):
            strong = [one for one in found if ORDER.index(one.observer) >= ORDER.index(each.observer)]
            best = [one.epsilon for one in strong if one.unit == each.unit]
            if each.unit == EXAMPLE:
                best += [2 * one.epsilon for one in strong if one.unit == CLIENT]
            least = min(best, default=math.inf)
            exact = None if exact is None or math.isinf(least) else exact + fractions.Fraction(least)
        assert math.isinf(each.epsilon) if exact is None else each.epsilon >= exact


@given(parts_of_reports, st.booleans(), st.lists(spendings, max_size=4))
def test_a_further_report_never_lowers_it(parts, learns, more):
    before, after = joint(parts), joint([*parts, (learns, more)])
    for each in before:
        assert figures(after, each.unit, each.observer)[0] >= each.epsilon


@given(parts_of_reports)
def test_who_sees_more_is_never_promised_more(parts):
    found = joint(parts)
    for unit in UNITS:
        some = [figures(found, unit, observer) for observer in ORDER]
        known = [each[0] for each in some if each is not None]
        assert known == sorted(known)


@given(parts_of_reports)
def test_every_unit_and_observer_of_a_part_is_in_it(parts):
    named = {(each.unit, each.observer) for learns, found in parts if learns for each in found}
    assert {(each.unit, each.observer) for each in joint(parts)} == named | {(unit, RELEASE) for unit, _ in named}


def test_a_report_that_learnt_without_noise_leaves_no_guarantee():
    assert figures(joint([(True, [spending()]), (True, [])]), EXAMPLE) == (math.inf, 0.0)


def test_a_report_that_learnt_nothing_costs_nothing():
    assert joint([(True, [spending()]), (False, [])]) == joint([(True, [spending()])])
    assert joint([(False, [])]) == joint([]) == ()


def test_a_guarantee_for_examples_covers_no_client():
    found = joint([(True, [spending(EXAMPLE)]), (True, [spending(CLIENT, delta=1e-9)])])
    assert figures(found, CLIENT) == (math.inf, 0.0) and math.isfinite(figures(found, EXAMPLE)[0])


def test_a_guarantee_against_who_sees_more_holds_against_who_sees_less_and_not_the_other_way():
    strong, weak = [spending(observer=COORDINATOR, epsilon=1.0)], [spending(epsilon=1.0)]
    found = joint([(True, strong), (True, weak)])
    assert figures(found, EXAMPLE)[0] == pytest.approx(2.0) and figures(found, EXAMPLE, COORDINATOR) == (math.inf, 0.0)
    assert figures(found, EXAMPLE, COHORT) is None


@given(st.floats(0, 20), st.floats(0, 1e-12))
def test_the_way_from_a_client_to_its_example_is_two_steps(epsilon, delta):
    found = of_examples(spending(CLIENT, epsilon=epsilon, delta=delta))
    assert found.unit == EXAMPLE and found.adjacency == "add or remove one example"
    assert found.epsilon == 2 * epsilon
    with decimal.localcontext(decimal.Context(prec=60)):
        exact = (1 + decimal.Decimal(epsilon).exp()) * decimal.Decimal(delta)
        most = exact * decimal.Decimal("1.000000000001") + decimal.Decimal("1e-300")
        assert exact <= decimal.Decimal(found.delta) <= most


@pytest.mark.parametrize("epsilon, delta", [(math.inf, 1e-9), (701.0, 0.0), (20.0, 1e-3)])
def test_where_the_two_steps_lead_nowhere_there_is_no_guarantee(epsilon, delta):
    assert of_examples(spending(CLIENT, epsilon=epsilon, delta=delta)).epsilon == math.inf


def test_deltas_that_add_up_to_one_are_no_guarantee():
    assert figures(joint([(True, [spending(delta=0.5)]), (True, [spending(delta=0.5)])]), EXAMPLE) == (math.inf, 0.0)


def test_epsilons_too_large_for_a_number_are_no_guarantee():
    assert joint([(True, [spending(epsilon=1.7e308)])] * 2)[0].epsilon == math.inf
    assert of_examples(spending(CLIENT, epsilon=1.7e308, delta=0.0)).epsilon == math.inf


def test_what_holds_for_zeroing_out_only_makes_the_sum_so():
    added, zeroed = spending(), spending(adjacency="zero out one example", samplers=("unknown",))
    assert joint([(True, [added]), (True, [added])])[0].adjacency == "add or remove one example"
    found = joint([(True, [added]), (True, [zeroed])])[0]
    assert found.adjacency == "zero out one example" and found.samplers == ("poisson", "unknown")


def test_steps_and_rounds_are_not_called_by_one_name():
    rounds = spending(CLIENT, delta=1e-9, steps_are="rounds")
    assert joint([(True, [rounds]), (True, [rounds])])[0].steps_are == "rounds"
    assert joint([(True, [rounds]), (True, [spending()])])[0].steps_are == "noisy releases"
