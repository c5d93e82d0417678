"""The privacy report of a fit with a DPOptimizer, and of a ledger."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional, Union

from ..errors import ConfigurationError, LedgerError
from ..report.content import (
    CLEAR,
    CLIENT,
    COHORT,
    COORDINATOR,
    EXAMPLE,
    NOISY,
    NOTHING,
    TOTALS,
    Cost,
    Protocol,
    Sight,
    Spending,
    View,
)
from ..report.document import PrivacyReport
from ..report.facts import now, series_of, versions
from .accounting import Charge
from .ledger import Ledger
from .observers import guarantee, unamplified

CLIPPING = Protocol(
    "DP-SGD: each example's gradient clipped, Gaussian noise added to the sum",
    (
        "the host that trains is trusted",
        "the noise and the draws, from ciphers keyed by the operating system, look random",
        "the number of examples, the architecture and the hyperparameters are public",
    ),
    "Abadi et al. 2016, section 3.1",
)
NOT_COVERED = (
    "loss and metrics on training data in History, progress bar and logs, and choices made by them",
    "a person with several rows: one row is what epsilon is for",
    "whoever controls the machine or the process that trains",
    "what the weights had learnt before the steps that are counted here",
)
_EXAMPLES, _GRADIENTS = "examples", "one example's gradient"
_MODELS, _METRICS = "model after each step", "training metrics"
_ALONE = "neither History nor the state of metrics is handed on with it"


def privacy_report(
    model: Any,
    delta: float,
    accountant: str = "pld",
    ledger: Union[str, os.PathLike[str], None] = None,
    history: Any = None,
    seconds: Optional[float] = None,
) -> PrivacyReport:
    """Who learns what from the fits of a model with a DPOptimizer.

    Args:
        model: A Keras model that is compiled with a DPOptimizer.
        delta: Of the epsilon that is reported, in (0, 1).
        accountant: "pld" or "rdp".
        ledger: The durable record that PrivacyBudget was given, if it was.
        history: Keras's History of the last fit; `model.history` if None.
        seconds: What the fits took.

    Raises:
        ConfigurationError: The model has no DPOptimizer, or an argument is out of range.
        LedgerError: The ledger cannot be read, or does not cover the optimizer's steps.
    """
    optimizer: Any = getattr(model, "optimizer", None)
    if not getattr(optimizer, "is_dp_optimizer", False):
        raise ConfigurationError(
            f"The model is compiled with {type(optimizer).__name__}, which adds no noise.",
            expected="a keras_private.DPOptimizer",
            remedy="Use keras_private.make_private(model), or compile with DPOptimizer.",
        )
    charges = _charges(optimizer, ledger)
    spending = guarantee(
        charges,
        delta,
        accountant,
        mechanism={
            "L2 norm clip": optimizer.l2_norm_clip,
            "expected batch": f"{optimizer.expected_batch_size:g}",
            "noisy coordinates": optimizer.noise_coordinates,
        },
    )
    history = getattr(model, "history", None) if history is None else history
    return PrivacyReport(
        kind="private fit",
        model=str(model.name),
        views=_views(spending),
        spendings=(spending,),
        protocols=(CLIPPING,),
        not_covered=NOT_COVERED,
        costs={} if seconds is None else {"fit": Cost(seconds=seconds, says="by the clock, in this process")},
        series=series_of([history]),
        versions=versions(),
        created=now(),
    )


def report_of_ledger(path: Union[str, os.PathLike[str]], delta: float, accountant: str = "pld") -> PrivacyReport:
    """What a ledger file says: every step that was charged to it, reserved ones included.

    Raises:
        LedgerError: There is none, it is in use, damaged, or mixes units of protection.
        ConfigurationError: An argument is out of range.
    """
    if not os.path.exists(path):
        raise LedgerError(
            f"There is no ledger {os.fspath(path)}.", expected="a file that PrivacyBudget wrote", remedy="Name it."
        )
    ledger = Ledger.open(path)
    try:
        sessions, charges = ledger.sessions, ledger.charges()
    finally:
        ledger.close()
    units = {session.identity.rpartition(":")[0] or EXAMPLE for session in sessions if session.reserved}
    if len(units) > 1 or not units <= {EXAMPLE, CLIENT}:
        raise LedgerError(
            f"The ledger mixes guarantees for {' and '.join(sorted(units))}.",
            expected="one unit of protection",
            remedy="Restore a copy that PrivacyBudget wrote.",
        )
    unit = units.pop() if units else EXAMPLE
    steps_are = "rounds" if unit == CLIENT else "steps"
    found = [guarantee(charges, delta, accountant, unit=unit, steps_are=steps_are)]
    if unit == CLIENT:
        bare = unamplified(charges)
        seen = guarantee(bare, delta, accountant, unit=unit, observer=COHORT, steps_are=steps_are)
        # A ledger does not know which rounds were hidden from the coordinator.
        found += [seen, replace(seen, observer=COORDINATOR, epsilon=math.inf)]
    return PrivacyReport(
        kind="ledger",
        model=os.path.basename(os.fspath(path)),
        views=(),
        spendings=tuple(found),
        not_covered=(
            "steps that ran without a PrivacyBudget that used this ledger",
            "what the weights had learnt before, and what else was learnt from the same data",
        ),
        versions=versions(),
        created=now(),
    )


def _views(spending: Spending) -> tuple[View, ...]:
    models = NOISY if math.isfinite(spending.epsilon) else TOTALS
    note = "" if models == NOISY else "without noise: exact functions of the examples"

    def view(adversary: str, *levels: str, assumes: str = "") -> View:
        named = zip((_EXAMPLES, _GRADIENTS, _MODELS, _METRICS), levels)
        return View(
            adversary, tuple(Sight(item, level, note if item == _MODELS else "") for item, level in named), assumes
        )

    return (
        view("host that trains", CLEAR, CLEAR, models, TOTALS),
        view("whoever gets the model", NOTHING, NOTHING, models, NOTHING, assumes=_ALONE),
        view("whoever gets History, logs or the figures in this report", NOTHING, NOTHING, NOTHING, TOTALS),
        view("whoever reads the ledger", NOTHING, NOTHING, NOTHING, NOTHING),
    )


def _charges(optimizer: Any, path: Union[str, os.PathLike[str], None]) -> Sequence[Charge]:
    if path is None:
        return tuple(optimizer.ledger.charges_of(optimizer))
    held = Ledger.held(path)
    if held is not None:
        return tuple(held.charges_of(optimizer))
    if not os.path.exists(path) and not int(optimizer.steps_done):
        return ()
    ledger = Ledger.open(path)
    try:
        return tuple(ledger.charges_of(optimizer))
    finally:
        ledger.close()
