"""PrivacyBudget over the local epochs of a DPOptimizer at clients: a step is a local epoch, the unit one example.

`EpochMeter` stands beside LocalMeter, which counts the epochs of each client, and offers PrivacyBudget what it needs of
a DPOptimizer. How many epochs a round costs is known only when its clients are drawn and when an attempt at their work
begins: what grows is the count of the client with the most epochs. So a round announces nothing when it begins; each
attempt does, before it may run. The owner of the rounds, FederatedModel, uses it so:

    1. `fed.local_budget` is the meter where a DPOptimizer works at clients and the aggregator is not private;
       PrivacyBudget looks for that name before it looks for `privacy_meter`.
    2. `meter.variables` are saved and restored with the weights of every checkpoint.
    3. In fit, after `LocalMeter.begin` and before `on_train_begin` of callbacks: `meter.begin(...)`.
    4. At the end of fit, after an exception too: `meter.end()`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable, Optional

from .._backends.keras_fit import RunningFit
from ..dp.accounting import UNKNOWN, ZERO_OUT, Charge
from ..dp.metering import Budget
from ..errors import ConfigurationError
from .gate import Gate
from .local_privacy import LocalMeter, LocalPrivacy


class EpochMeter(Gate):
    """Charges the local epochs that a LocalMeter counts.

    Guarantees:
        - Where a PrivacyBudget serves, no attempt at a client's work begins that is not reserved in its ledger. Once
          one served, none begins without.
        - What is charged is never less than the epochs of the client with the most of them, attempts that failed
          included.

    Args:
        counted: Counts the epochs of each client.

    Attributes:
        steps_per_round: Local epochs of one round, without attempts that fail.
    """

    # As of the steps of a DPOptimizer: charges of both may share a ledger, since both are for examples.
    unit = ""
    population = None
    remedy = "Use more noise or fewer local epochs from the start, or raise the target knowingly."

    def __init__(self, counted: LocalMeter) -> None:
        super().__init__("local epoch")
        self._counted = counted
        counted.charge = self._charge
        self.steps_per_round = 1
        self._privacy: Optional[LocalPrivacy] = None
        self._announce: Optional[Callable[[int], None]] = None

    # What a ledger reads of a DPOptimizer.

    @property
    def expected_batch_size(self) -> float:
        return 0.0 if self._privacy is None else self._privacy.expected_batch_size

    @property
    def noise_multiplier(self) -> float:
        """The least of all epochs, which is what those that no ledger knows of are charged at."""
        return self._counted.least_noise

    @property
    def noise_coordinates(self) -> int:
        return self._counted.noise_coordinates

    # What FederatedModel calls.

    def begin(
        self, model: Any, callbacks: Optional[list[Any]], first: int, privacy: LocalPrivacy, local_epochs: int
    ) -> None:
        """The beginning of a fit.

        Args:
            model: The one that callbacks know.
            callbacks: The live list; None if there is none.
            first: Rounds that are done already.
            privacy: Of its steps.
            local_epochs: Of one round.
        """
        self._privacy, self.steps_per_round = privacy, local_epochs
        self.fit = RunningFit(model, None, callbacks, first)

    def end(self) -> None:
        """The end of a fit, however it ended."""
        self.fit = self._announce = None

    # What PrivacyBudget calls.

    def planned(self, rounds: Optional[int]) -> Optional[int]:
        """Steps of so many rounds: not known, since attempts that fail count; none of none."""
        return 0 if rounds == 0 else None

    def calibrate(self, budget: Budget, rounds: Optional[int], spent: Iterable[Charge]) -> None:
        """Notes the delta. The DPOptimizer says how much noise there is."""
        self.delta = budget.delta

    def charge(self) -> Charge:
        """What one local epoch of this fit costs, without its steps."""
        if self._privacy is None or self.fit is None:
            raise ConfigurationError(
                "No federated fit is running.", expected="begin before, end after", remedy="Train by fit."
            )
        return Charge(self._privacy.noise_multiplier, 0, None, UNKNOWN, ZERO_OUT, self.noise_coordinates)

    def open_round(self, announce: Callable[[int], None]) -> None:
        """A round begins; `announce` charges steps before they run."""
        self._announce = announce

    def charges(self) -> tuple[Charge, ...]:
        """What was spent for each example: as counted here, or as charged if that is more."""
        counted, charged = self._counted.charges(), self.ledger.charges_of(self)
        return max((counted, charged), key=lambda charges: sum(charge.steps for charge in charges))

    def _charge(self, epochs: int) -> None:
        """Before epochs may run that no client had before.

        Raises:
            BudgetExhaustedError: They are not in the budget.
        """
        if self._announce is not None:
            self._announce(epochs)
        self.check(epochs)
        self.passed(epochs)
