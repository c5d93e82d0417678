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

import os
from collections.abc import Iterable
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from .._backends.keras_fit import RunningFit
from ..dp.accounting import UNKNOWN, ZERO_OUT, Charge
from ..dp.ledger import Ledger
from ..dp.metering import Budget
from ..errors import BudgetExhaustedError, ConfigurationError
from .local_privacy import LocalMeter, LocalPrivacy


class EpochMeter:
    """Charges the local epochs that a LocalMeter counts.

    Guarantees:
        - Where a PrivacyBudget serves, no attempt at a client's work begins that is not reserved in its ledger. Once
          one served, none begins without.
        - What is charged is never less than the epochs of the client with the most of them, attempts that failed
          included.
        - A restored checkpoint winds `steps_done` back, and lets no more epochs through for it.

    Args:
        counted: Counts the epochs of each client.

    Attributes:
        delta: Of the last PrivacyBudget that served; None before.
        steps_per_round: Local epochs of one round, without attempts that fail.
    """

    # As of the steps of a DPOptimizer: charges of both may share a ledger, since both are for examples.
    unit = ""
    population = None
    remedy = "Use more noise or fewer local epochs from the start, or raise the target knowingly."

    def __init__(self, counted: LocalMeter) -> None:
        self._counted = counted
        counted.charge = self._charge
        self.ledger = Ledger.open(None)
        bits = np.frombuffer(os.urandom(16), dtype=np.int64)
        with tf.init_scope():
            self.steps_done = tf.Variable(0, trainable=False, dtype=tf.int64, name="local_epochs")
            self._identity = tf.Variable(bits, trainable=False, dtype=tf.int64, name="local_epochs_identity")
        self.fit: Optional[RunningFit] = None
        self.delta: Optional[float] = None
        self.steps_per_round = 1
        self._privacy: Optional[LocalPrivacy] = None
        self._announce: Optional[Callable[[int], None]] = None
        self._gated = False
        # Counted apart from steps_done, which a restored checkpoint winds back.
        self._run = self._authorized = 0

    # What a ledger reads of a DPOptimizer.

    @property
    def identity(self) -> str:
        """Names these epochs in a ledger; drawn once, saved and restored with the variables."""
        return self._identity.numpy().astype(">i8").tobytes().hex()

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

    # The gate.

    def gate(self) -> None:
        """Closes the gate: from now on only epochs given by `authorize` pass."""
        if not self._gated:
            self._gated, self._authorized = True, self._run

    def authorize(self, total_steps: int) -> None:
        """Lets epochs pass until `steps_done`, as it is now, has grown to `total_steps`."""
        self._authorized = self._run + int(total_steps) - int(self.steps_done)

    # What FederatedModel calls.

    @property
    def variables(self) -> list[tf.Variable]:
        """To be saved and restored with the weights."""
        return [self.steps_done, self._identity]

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
        if self._gated and self._run + epochs > self._authorized:
            raise BudgetExhaustedError(
                f"{epochs} local epochs are not in the privacy budget.",
                expected="epochs that PrivacyBudget reserved in its ledger",
                remedy="Pass PrivacyBudget in the callbacks of fit; if it is there, nothing is left.",
            )
        self._run += epochs
        self.steps_done.assign_add(epochs)
