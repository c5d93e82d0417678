"""The privacy report of a FederatedModel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from ..dp.observers import guarantee
from ..errors import ConfigurationError
from ..report.content import (
    CLEAR,
    CLIENT,
    COHORT,
    COORDINATOR,
    LEVELS,
    NOISY,
    NOTHING,
    RELEASE,
    SHARES,
    TOTALS,
    Cost,
    Protocol,
    Sight,
    Spending,
    View,
)
from ..report.document import PrivacyReport
from ..report.facts import now, series_of, versions
from .aggregators.private import DPAggregator
from .aggregators.secure import SecureAggregation
from .budget import PrivacySpent
from .exposure import FIT, Exposure

if TYPE_CHECKING:
    from .model import FederatedModel

ITEMS = (
    "examples",
    "one client's update",
    "who took part",
    "mean update of a round",
    "model of each round",
    "figures of training",
)
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
    exposures = fed.exposures
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
        spendings=_spendings(fed, fits, delta, accountant),
        protocols=tuple(protocols),
        simulated=tuple(dict.fromkeys(reason for each in exposures for reason in each.simulated)),
        not_covered=_NOT_COVERED,
        costs=_costs(exposures),
        series=series_of([fed.history], "round"),
        versions=versions(),
        created=now(),
    )


def _spendings(
    fed: FederatedModel, fits: Sequence[Exposure], delta: Optional[float], accountant: str
) -> tuple[Spending, ...]:
    ran = [each for each in fits if each.rounds]
    private = [each for each in ran if isinstance(each.aggregator, DPAggregator)]
    local = [each for each in ran if each.local is not None]
    by_clients = bool(private) or fed.aggregator.private
    if not by_clients and not local:
        return ()
    if delta is None and by_clients:
        delta = fed.privacy_meter.delta
    if delta is None:
        raise ConfigurationError(
            "delta is not known.", expected="the delta of epsilon, in (0, 1)", remedy="Call privacy_report(delta=...)."
        )
    examples = _of_examples(fed, fits, delta, accountant) if local else ()
    if not by_clients:
        return examples
    spent = fed.privacy_meter.privacy_spent(delta, accountant)
    if len(private) < len(ran):
        # What was learnt without noise stays in the weights.
        inf = math.inf
        spent = dataclasses.replace(spent, epsilon=inf, epsilon_cohort_seen=inf, epsilon_coordinator=inf)
    return (*spendings_of(spent, mechanism_of(fed.aggregator)), *examples)


def _of_examples(fed: FederatedModel, fits: Sequence[Exposure], delta: float, accountant: str) -> tuple[Spending, ...]:
    """For one example of one client, whose steps were made private where its data is."""
    epsilon = fed.example_privacy_spent(delta, accountant)
    apart = all(each.apart and each.stays_put for each in fits)
    local = next(each.local for each in reversed(fits) if each.local is not None)
    facts = {
        "noise multiplier": f"{local.noise_multiplier:.4g}",
        "L2 norm clip": f"{local.l2_norm_clip:g}",
        "expected batch": f"{local.expected_batch_size:g}",
        "counted": "local epochs of the client with the most of them",
    }
    found = guarantee(
        fed.local_meter.charges(), delta, accountant, observer=COHORT, steps_are="local epochs", mechanism=facts
    )
    found = dataclasses.replace(found, epsilon=epsilon, samplers=("unknown",))
    at_coordinator = epsilon if apart else math.inf
    return found, dataclasses.replace(found, observer=COORDINATOR, epsilon=at_coordinator)


def spendings_of(spent: PrivacySpent, mechanism: Mapping[str, Any]) -> tuple[Spending, ...]:
    """The three figures of user-level privacy."""

    def one(observer: str, epsilon: float, adjacency: str, samplers: tuple[str, ...]) -> Spending:
        return Spending(CLIENT, observer, epsilon, spent.delta, adjacency, samplers, spent.accountant, spent.rounds,
                        "rounds", mechanism)  # fmt: skip

    seen, unknown = spent.adjacency_cohort_seen, ("unknown",)
    return (
        one(RELEASE, spent.epsilon, spent.adjacency, spent.samplers),
        one(COHORT, spent.epsilon_cohort_seen, seen, unknown),
        one(COORDINATOR, spent.epsilon_coordinator, seen, unknown),
    )


def views_of(exposure: Exposure) -> tuple[View, ...]:
    """Who saw what of one fit, evaluation or personalization."""
    trained = exposure.what == FIT
    noisy = exposure.noisy_sums or exposure.noisy_updates
    mean = (NOISY if noisy else TOTALS) if trained else NOTHING
    update = (NOISY if exposure.noisy_updates else CLEAR) if trained else NOTHING
    figures = NOTHING if trained and _silent(exposure) else TOTALS
    if trained and exposure.hidden:
        at_coordinator = (NOTHING, SHARES, CLEAR, mean, mean, figures)
    else:
        within = exposure.apart and exposure.stays_put
        if trained and not within:
            update = CLEAR
        means = update if update in (NOTHING, NOISY) else TOTALS
        at_coordinator = (NOTHING if within else CLEAR, update, CLEAR, means, mean, figures)
    honest = "it sends workers this package's graphs only" if exposure.apart else ""
    found = [
        _view("coordinator", at_coordinator, honest),
        _view("a client's host", (CLEAR, CLEAR if trained else NOTHING, CLEAR, mean, mean, CLEAR), notes={
            "examples": "of its own clients", "one client's update": "of its own clients",
            "who took part": "of its own clients", "figures of training": "of its own clients",
        }),
        _view("whoever gets the models", (NOTHING, NOTHING, NOTHING, mean, mean, NOTHING), "History is not handed on"),
        _view("network", (NOTHING,) * 6, "TLS holds; sizes and times are seen" if exposure.apart else
              "it ends at this host"),
    ]  # fmt: skip
    if trained and exposure.hidden:
        party = (NOTHING, SHARES, CLEAR, NOTHING, NOTHING, NOTHING)
        apart = "it does not pool what it sees with both others"
        found[1:1] = [_view("party 0", party, apart), _view("party 1", party, apart)]
    return tuple(found)


def worst(found: Sequence[Sequence[View]]) -> tuple[View, ...]:
    """For each adversary the most that it saw of anything."""
    order = list(LEVELS)
    merged: dict[str, View] = {}
    for views in found:
        for view in views:
            known = merged.get(view.adversary)
            if known is None:
                merged[view.adversary] = view
                continue
            pairs = zip(known.sights, view.sights)
            most = tuple(max(one, other, key=lambda sight: order.index(sight.level)) for one, other in pairs)
            assumes = "; ".join(dict.fromkeys(text for text in (known.assumes, view.assumes) if text))
            merged[view.adversary] = View(view.adversary, most, assumes)
    return tuple(merged.values())


def mechanism_of(aggregator: Any) -> dict[str, Any]:
    """Facts on a private aggregator, for its guarantees."""
    if not isinstance(aggregator, DPAggregator):
        return {}
    noise = aggregator.noise_multiplier
    return {
        "noise multiplier": "not set yet" if noise is None else f"{noise:.4g}",
        "L2 norm clip": f"{aggregator.l2_norm_clip:g}",
        "sums by": type(aggregator.inner).__name__,
    }


def _masked(aggregator: Any) -> bool:
    while aggregator is not None and not isinstance(aggregator, SecureAggregation):
        aggregator = getattr(aggregator, "inner", None)
    return aggregator is not None


def _silent(exposure: Exposure) -> bool:
    """The coordinator gets no figures of the clients' training."""
    aggregator = exposure.aggregator
    return exposure.local is not None or (aggregator is not None and (aggregator.hides_updates or aggregator.private))


def _view(adversary: str, levels: Sequence[str], assumes: str = "", notes: Any = None) -> View:
    sights = tuple(Sight(item, level, (notes or {}).get(item, "")) for item, level in zip(ITEMS, levels))
    return View(adversary, sights, assumes)


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
