"""The privacy report of a FederatedModel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from ..dp.observers import PROBABILITY, figures, guarantee, mechanism_of_charges
from ..errors import ConfigurationError
from ..report.content import CLIENT, COHORT, COORDINATOR, RELEASE, Cost, Protocol, Spending
from ..report.document import PrivacyReport
from ..report.facts import now, series_of, versions
from .aggregators.private import DPAggregator
from .aggregators.secure import SecureAggregation
from .budget import PrivacySpent
from .exposure import FIT, PERSONALIZATION, Exposure
from .sights import views_of, worst

if TYPE_CHECKING:
    from .model import FederatedModel

_MASKS = Protocol(
    "Masked sums: each client adds two pads, each party takes off the sum of its own",
    (
        "of the coordinator and the two parties, no three pool what they see",
        "coordinator and workers run this package's graphs",
        "each client's host keeps its two keys",
    ),
    "masks as in Bonawitz et al. 2017, section 4.0, between clients and two parties",
)
_NOISE = Protocol(
    "User-level differential privacy: each client's update clipped, Gaussian noise added to the sum",
    (
        "whoever adds the noise keeps it to themselves",
        "clients take part, or not, for reasons that have nothing to do with their data",
        "the number of clients is public",
    ),
    "McMahan et al. 2018, section 3",
)
_LOCAL = Protocol(
    "Example-level differential privacy at clients: each local step clipped and noised where it is made",
    (
        "a client's host is trusted with its own examples",
        "the coordinator runs each round's graph once",
        "the number of a client's examples is public",
    ),
    "Abadi et al. 2016, section 3.1, in the local steps of McMahan et al. 2017, Algorithm 1",
)
_TLS = Protocol("Mutual TLS 1.3 to workers on other hosts", ("the authority's key is kept safe",), "RFC 8446")
_NOT_COVERED = (
    "what a client's host does with its own data",
    "evaluations of clients, whose totals are opened without noise",
    "validation figures, and choices made by them",
    "what the weights had learnt before the rounds that are counted here",
)


def report_of(fed: FederatedModel, delta: Optional[float] = None, accountant: str = "pld") -> PrivacyReport:
    """Who learnt what from all that a FederatedModel ran so far.

    Args:
        fed: The model.
        delta: Of the epsilons of a private aggregator; None: that of the last PrivacyBudget.
        accountant: "pld" or "rdp".

    Raises:
        ConfigurationError: Nothing ran yet, or delta is not known.
    """
    # A fit that ended before its first round asked nothing of anybody.
    exposures = [each for each in fed.exposures if each.rounds or each.what != FIT]
    if not exposures:
        raise ConfigurationError(
            "Nothing was trained or evaluated yet.",
            expected="a fit before its report: who sees what depends on where clients' work ran",
            remedy="Call fit first.",
        )
    fits = [each for each in exposures if each.what == FIT]
    protocols = [_NOISE] * any(each.noisy_sums for each in fits)
    protocols += [_LOCAL] * any(each.noisy_updates for each in fits)
    protocols += [_MASKS] * any(_masked(each.aggregator) for each in fits)
    protocols += [_TLS] * any(each.apart for each in exposures)
    return PrivacyReport(
        kind="federated fit",
        model=str(fed.model.name),
        views=worst([views_of(each) for each in exposures]),
        spendings=_against_readers(_spendings(fed, fits, delta, accountant), exposures),
        protocols=tuple(protocols),
        simulated=tuple(dict.fromkeys(reason for each in exposures for reason in each.simulated)),
        not_covered=(*_NOT_COVERED, *_also_not_covered(fed, exposures)),
        costs=_costs(exposures),
        series=series_of([fed.history], "round"),
        versions=versions(),
        created=now(),
    )


def _spendings(
    fed: FederatedModel, fits: Sequence[Exposure], delta: Optional[float], accountant: str
) -> tuple[Spending, ...]:
    private = [each.aggregator for each in fits if isinstance(each.aggregator, DPAggregator)]
    local = [each for each in fits if each.local is not None]
    by_clients = bool(private) or fed.aggregator.private
    if not by_clients and not local:
        return ()
    if delta is None and by_clients:
        delta = fed.privacy_meter.delta
    if delta is None:
        delta = fed.epoch_meter.delta
    if delta is None:
        raise ConfigurationError(
            "delta is not known.", expected="the delta of epsilon, in (0, 1)", remedy="Call privacy_report(delta=...)."
        )
    examples = _of_examples(fed, fits, delta, accountant) if local else ()
    if not by_clients:
        return examples
    spent = fed.privacy_meter.privacy_spent(delta, accountant)
    if len(private) < len(fits):
        # What was learnt without noise stays in the weights.
        inf = math.inf
        spent = dataclasses.replace(spent, epsilon=inf, epsilon_cohort_seen=inf, epsilon_coordinator=inf)
    facts = mechanism_of_charges(fed.privacy_meter.ledger.charges_of(fed.privacy_meter))
    return (*spendings_of(spent, {**facts, **mechanism_of(private)}), *examples)


def _of_examples(fed: FederatedModel, fits: Sequence[Exposure], delta: float, accountant: str) -> tuple[Spending, ...]:
    """For one example of one client, whose steps were made private where its data is."""
    epsilon = fed.example_privacy_spent(delta, accountant)
    local = [each.local for each in fits if each.local is not None]
    facts = {
        "noise multiplier": figures(each.noise_multiplier for each in local),
        "L2 norm clip": figures(each.l2_norm_clip for each in local),
        "expected batch": figures(each.expected_batch_size for each in local),
        "counted": "local epochs of the client with the most of them",
    }
    found = guarantee(
        fed.epoch_meter.charges(), delta, accountant, observer=COHORT, steps_are="local epochs", mechanism=facts
    )
    found = dataclasses.replace(found, epsilon=epsilon, samplers=("unknown",))
    return found, dataclasses.replace(found, observer=COORDINATOR)


def _against_readers(found: tuple[Spending, ...], exposures: Sequence[Exposure]) -> tuple[Spending, ...]:
    """No epsilon holds against a coordinator that could read examples, in an evaluation too."""
    if not any(each.within_reach for each in exposures):
        return found
    return tuple(
        dataclasses.replace(each, epsilon=math.inf) if each.observer == COORDINATOR else each for each in found
    )


def _also_not_covered(fed: FederatedModel, exposures: Sequence[Exposure]) -> list[str]:
    found = []
    if any(each.what == PERSONALIZATION for each in exposures):
        found.append("personalized copies of the model, which are trained without noise")
    if fed.rounds_elsewhere:
        found.append(f"who saw what of {fed.rounds_elsewhere} rounds that checkpoints brought along")
    return found


def spendings_of(spent: PrivacySpent, mechanism: Mapping[str, Any]) -> tuple[Spending, ...]:
    """The three figures of user-level privacy."""

    def one(observer: str, epsilon: float, adjacency: str, samplers: tuple[str, ...]) -> Spending:
        # To who sees whom sampling chose its probability is nothing.
        facts = {name: each for name, each in mechanism.items() if observer == RELEASE or name != PROBABILITY}
        return Spending(CLIENT, observer, epsilon, spent.delta, adjacency, samplers, spent.accountant, spent.rounds,
                        "rounds", facts)  # fmt: skip

    seen, unknown = spent.adjacency_cohort_seen, ("unknown",)
    return (
        one(RELEASE, spent.epsilon, spent.adjacency, spent.samplers),
        one(COHORT, spent.epsilon_cohort_seen, seen, unknown),
        one(COORDINATOR, spent.epsilon_coordinator, seen, unknown),
    )


def mechanism_of(aggregators: Sequence[DPAggregator]) -> dict[str, str]:
    """Facts on private aggregators, for their guarantees."""
    if not aggregators:
        return {}
    return {
        "L2 norm clip": figures(each.l2_norm_clip for each in aggregators),
        "sums by": " and ".join(dict.fromkeys(type(each.inner).__name__ for each in aggregators)),
    }


def _masked(aggregator: Any) -> bool:
    while aggregator is not None and not isinstance(aggregator, SecureAggregation):
        aggregator = getattr(aggregator, "inner", None)
    return aggregator is not None


def _costs(exposures: Sequence[Exposure]) -> dict[str, Cost]:
    found = {}
    for what in dict.fromkeys(each.what for each in exposures):
        some = [each for each in exposures if each.what == what]
        moved = sum(each.sent + each.received for each in some)
        seconds = sum(each.seconds for each in some)
        found[what] = Cost(
            seconds=seconds if math.isfinite(seconds) and seconds else None,
            bytes=moved or None,
            rounds=sum(each.rounds for each in some) or None,
            says="weights to clients and their updates, without examples and framing" if moved else "",
        )
    return found
