"""Who saw what of federated fits, evaluations and personalizations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report.content import CLEAR, LEVELS, NOISY, NOTHING, SHARES, TOTALS, Sight, View
from .exposure import FIT, Exposure

ITEMS = (
    "examples",
    "one client's update",
    "who took part",
    "mean update of a round",
    "model of each round",
    "figures of training",
)
_COUNTS = "how many clients were left out or clamped, and the sum of their weights"
_EACH = "each client's own"


def views_of(exposure: Exposure) -> tuple[View, ...]:
    """Who saw what of one fit, evaluation or personalization."""
    trained = exposure.what == FIT
    noisy = exposure.noisy_sums or exposure.noisy_updates
    mean = (NOISY if noisy else TOTALS) if trained else NOTHING
    update = (NOISY if exposure.noisy_updates else CLEAR) if trained else NOTHING
    figures, note = _figures(exposure)
    if trained and exposure.hidden:
        at_coordinator = (NOTHING, SHARES, CLEAR, mean, mean, figures)
    else:
        if trained and exposure.within_reach:
            update = CLEAR
        means = update if update in (NOTHING, NOISY) else TOTALS
        at_coordinator = (CLEAR if exposure.within_reach else NOTHING, update, CLEAR, means, mean, figures)
    honest = "it sends workers this package's graphs only" if exposure.apart else ""
    found = [
        _view("coordinator", at_coordinator, honest, {"figures of training": note}),
        _view("a client's host", (CLEAR, CLEAR if trained else NOTHING, CLEAR, mean, mean, CLEAR), notes={
            "examples": "of its own clients", "one client's update": "of its own clients",
            "who took part": "of its own clients", "figures of training": "of its own clients",
        }),
        _view("whoever gets the models", (NOTHING, NOTHING, NOTHING, mean, mean, NOTHING), "History is not handed on"),
        _network(exposure),
    ]  # fmt: skip
    if trained and exposure.parties_apart:
        party = (NOTHING, SHARES, CLEAR, NOTHING, NOTHING, NOTHING)
        pooled = (at_coordinator[0], CLEAR, CLEAR, TOTALS, TOTALS, figures)
        apart = "it does not pool what it sees with both others"
        found[1:1] = [
            _view("party 0", party, apart),
            _view("party 1", party, apart),
            _view("coordinator and both parties together", pooled, notes={"figures of training": note}),
        ]
    return tuple(found)


def _network(exposure: Exposure) -> View:
    if exposure.open:
        notes = {"examples": "a worker listened on all interfaces and ran whatever anybody sent"}
        return _view("network", (CLEAR,) * len(ITEMS), notes=notes)
    assumes = "TLS holds; sizes and times are seen" if exposure.apart else "it ends at this host"
    return _view("network", (NOTHING,) * len(ITEMS), assumes)


def _figures(exposure: Exposure) -> tuple[str, str]:
    """What the coordinator gets of figures of the clients' work: a level and what qualifies it."""
    if exposure.within_reach:
        return CLEAR, ""
    if exposure.what != FIT:
        return (CLEAR, _EACH) if exposure.per_client else (TOTALS, "")
    aggregator = exposure.aggregator
    if exposure.local is not None or (aggregator is not None and aggregator.private):
        return NOTHING, ""
    # No metrics, but what is opened of a masked sum.
    return TOTALS, _COUNTS if aggregator is not None and aggregator.hides_updates else ""


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


def _view(adversary: str, levels: Sequence[str], assumes: str = "", notes: Any = None) -> View:
    sights = tuple(Sight(item, level, (notes or {}).get(item, "")) for item, level in zip(ITEMS, levels))
    return View(adversary, sights, assumes)
