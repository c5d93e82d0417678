"""User-level accounting: one round is one step of the Gaussian mechanism, and one client the unit that is protected.

`RoundMeter` offers PrivacyBudget what it needs of a DPOptimizer, so that one ledger and one accountant serve both. The
owner of the rounds, FederatedModel, has one meter for as long as it lives and uses it so:

    1. `fed.privacy_meter` is `meter_of(aggregator)`, made once; PrivacyBudget looks for that name. `meter_of` raises
       for an aggregator that is not private, and the owner lets that error through.
    2. `meter.variables` are saved and restored with the weights of every checkpoint.
    3. In fit, after `aggregator.prepare` and after a checkpoint was restored, before `on_train_begin` of callbacks:
       `meter.begin(fed, sampler, callback_list.callbacks, first)`; `first` rounds are done before this fit's first.
       The list is the live one: PrivacyBudget moves itself to its front, so that all others see `epsilon`.
    4. In every round, after `on_epoch_begin` and before `aggregator.total`, also if no client takes part:
       `meter.authorize_round()`. A round that fails later stays charged.
    5. At the end of fit, after an exception too: `meter.end()`, next to `aggregator.close()`.
    6. params of the callbacks hold steps=1 and epochs; `stop_training` is looked at after `on_epoch_end`.

Sampling: PoissonClients without a seed draws every client by itself, which earns amplification under adding or removing
one client. All other cohorts earn none, and hold for one client whose updates are replaced by zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from .._backends.keras_fit import RunningFit
from ..dp.accounting import (
    ADD_OR_REMOVE,
    POISSON,
    UNKNOWN,
    ZERO_OUT,
    Charge,
    adjacency_of,
    calibrate_noise,
    epsilon,
    sampler_of,
)
from ..dp.metering import Budget
from ..dp.observers import in_unit, unamplified
from ..errors import ConfigurationError
from .aggregators.base import Aggregator, Cohort
from .aggregators.private import DPAggregator
from .gate import Gate
from .sampling import ClientSampler, PoissonClients

UNIT = "client"


@dataclass(frozen=True)
class PrivacySpent:
    """Epsilon of all rounds so far, against each kind of observer.

    Attributes:
        epsilon: Against who sees the model after every round, and not who took part.
        epsilon_cohort_seen: Against who also sees which clients took part: without amplification.
        epsilon_coordinator: Against the coordinator, and the parties if there are any: as `epsilon_cohort_seen` if in
            every charged round the aggregator hid updates from them and clients' work ran on other hosts; else
            infinite, also if it is not known of some charged round, as after a crash.
        delta: Of all three.
        adjacency: The neighbouring relation of `epsilon`.
        adjacency_cohort_seen: That of the two others.
        samplers: How the cohorts were drawn, for `epsilon`: "poisson", "unknown" or both.
        accountant: "pld" or "rdp".
        rounds: Charged rounds, of all sessions in the ledger.
        simulated: What is in one process and would have to be apart for `epsilon_coordinator` to be finite.
    """

    epsilon: float
    epsilon_cohort_seen: float
    epsilon_coordinator: float
    delta: float
    adjacency: str
    adjacency_cohort_seen: str
    samplers: tuple[str, ...]
    accountant: str
    rounds: int
    simulated: tuple[str, ...]


class RoundMeter(Gate):
    """Counts the rounds of one private aggregator behind a gate, and says what one costs.

    Guarantees:
        - `authorize_round` lets no round through that is not charged: by PrivacyBudget's reservation where there is
          one, else in the ledger in memory. Once a PrivacyBudget served, none passes without.
        - It lets none through whose noise is not the one that was charged.
        - Amplification is credited only for PoissonClients, with a probability that is never too small.

    Args:
        aggregator: The one whose rounds these are.
    """

    unit = UNIT
    steps_per_round = 1
    remedy = "Use more noise or fewer clients a round from the start, or raise the target knowingly."

    def __init__(self, aggregator: DPAggregator) -> None:
        super().__init__("private round")
        self._aggregator = aggregator
        with tf.init_scope():
            self._least_noise = tf.Variable(math.inf, trainable=False, dtype=tf.float64, name="least_noise")
            self._hidden = tf.Variable(0, trainable=False, dtype=tf.int64, name="rounds_hidden")
            self._coordinates = tf.Variable(0, trainable=False, dtype=tf.int64, name="noise_coordinates")
        self._cohort: Optional[Cohort] = None
        self._probability: Optional[float] = None
        self._charged_noise: Optional[float] = None
        self._hides = False
        self._session: Optional[int] = None
        self._counted = 0

    # What a ledger reads of a DPOptimizer.

    @property
    def identity(self) -> str:
        """Names these rounds in a ledger."""
        return f"{UNIT}:{super().identity}"

    @property
    def expected_batch_size(self) -> float:
        """Expected number of clients in a round: the divisor."""
        return 0.0 if self._cohort is None else self._cohort.expected

    @property
    def noise_multiplier(self) -> float:
        """The least of all rounds that ran, which is what rounds that no ledger knows of are charged at."""
        least = float(self._least_noise)
        return least if math.isfinite(least) else 0.0

    @property
    def noise_coordinates(self) -> int:
        """The most of all rounds that ran, this fit's included."""
        here = self._aggregator.dimension if self.fit is not None else 0
        return max(int(self._coordinates), here)

    def follow(self, aggregator: DPAggregator) -> None:
        """The next rounds are this aggregator's."""
        self._aggregator = aggregator

    # What FederatedModel calls.

    @property
    def variables(self) -> list[tf.Variable]:
        """To be saved and restored with the weights."""
        return [*super().variables, self._least_noise, self._hidden, self._coordinates]

    def begin(
        self, model: Any, sampler: ClientSampler, callbacks: Optional[list[Any]], first: int, hidden: bool = False
    ) -> None:
        """The beginning of a fit.

        Args:
            model: The one that callbacks know.
            sampler: Draws the clients of every round of this fit.
            callbacks: The live list; None if there is none.
            first: Rounds that are done already.
            hidden: No single client's update will be within the coordinator's reach.
        """
        self._hides = hidden
        self._cohort, self._probability = sampler.cohort, charged_probability(sampler)
        self.fit = RunningFit(model, None, callbacks, first)
        self._charged_noise, self._session, self._counted = None, None, 0

    def authorize_round(self) -> None:
        """Lets one round pass, before its noise is added; it counts from here on.

        Raises:
            BudgetExhaustedError: A PrivacyBudget serves these rounds, and it reserved no further one.
            ConfigurationError: No fit runs, or the noise is unknown or not the charged one.
        """
        self._running()
        noise = self._aggregator.noise().noise_multiplier
        self.check(1)
        if not self.closed:
            self._charge_in_memory()
        if noise != self._charged_noise:
            raise ConfigurationError(
                f"The noise multiplier is {noise}, and {self._charged_noise} was charged.",
                expected="one for the whole fit",
                remedy="Change the aggregator between fits only.",
            )
        self._least_noise.assign(min(float(self._least_noise), noise))
        self._coordinates.assign(max(int(self._coordinates), self._aggregator.dimension))
        self._hidden.assign_add(1 if self._hides else 0)
        self.passed(1)

    def end(self) -> None:
        """The end of a fit, however it ended."""
        if self._session is not None:
            session, self._session = self._session, None
            self.ledger.settle(session, self._counted)
        self.fit = None

    # What PrivacyBudget calls.

    @property
    def population(self) -> int:
        return self._running().population

    def calibrate(self, budget: Budget, rounds: Optional[int], spent: Iterable[Charge]) -> None:
        """Sets the noise with which the planned rounds stay within the budget, if the aggregator leaves it open.

        Raises:
            BudgetExhaustedError: Earlier rounds used it up.
            ConfigurationError: No noise is enough, or the number of rounds is not known.
        """
        self.delta = budget.delta
        if not self._aggregator.calibrated or rounds == 0:
            return
        if rounds is None:
            raise ConfigurationError(
                "The number of rounds is not known.", expected="epochs", remedy="Give noise_multiplier."
            )
        self._aggregator.calibrate(
            calibrate_noise(
                budget.epsilon,
                budget.delta,
                rounds,
                self._probability,
                tuple(spent),
                budget.accountant,
                self.noise_coordinates,
            )
        )

    def charge(self) -> Charge:
        """What one round of this fit costs, without its steps."""
        self._running()
        q = self._probability
        self._charged_noise = self._aggregator.noise_multiplier
        sampler, adjacency = (UNKNOWN, ZERO_OUT) if q is None else (POISSON, ADD_OR_REMOVE)
        return Charge(self._charged_noise or 0.0, 0, q, sampler, adjacency, self.noise_coordinates)

    def planned(self, rounds: Optional[int]) -> Optional[int]:
        """Steps of so many rounds."""
        return rounds

    def open_round(self, announce: Callable[[int], None]) -> None:
        """A round begins; `announce` charges steps before they run."""
        announce(1)

    # Figures.

    def privacy_spent(self, delta: float, accountant: str = "pld") -> PrivacySpent:
        """Epsilon at `delta` of all charged rounds, sessions of others in the same ledger included.

        Raises:
            ConfigurationError: `delta` is not in (0, 1), or there is no such accountant.
        """
        charges = self.ledger.charges_of(self)
        bare = tuple(unamplified(charges))
        seen = epsilon(bare, delta, accountant)
        rounds = sum(charge.steps for charge in charges)
        return PrivacySpent(
            epsilon=epsilon(charges, delta, accountant),
            epsilon_cohort_seen=seen,
            epsilon_coordinator=seen if int(self._hidden) >= rounds else math.inf,
            delta=delta,
            adjacency=in_unit(adjacency_of(charges), UNIT),
            adjacency_cohort_seen=in_unit(adjacency_of(bare), UNIT),
            samplers=sampler_of(charges),
            accountant=accountant,
            rounds=rounds,
            simulated=tuple(self._aggregator.description()["simulated"]),
        )

    def _charge_in_memory(self) -> None:
        """Without a PrivacyBudget: a session of the ledger in memory, one round more."""
        if self._session is None:
            self._session = self.ledger.start(self, self.charge(), self.population)
        self.ledger.reserve(self._session, 1)
        self._counted += 1

    def _running(self) -> Cohort:
        if self.fit is None or self._cohort is None:
            raise ConfigurationError(
                "No federated fit is running.", expected="begin before, end after", remedy="Train by fit."
            )
        return self._cohort


def meter_of(aggregator: Aggregator) -> RoundMeter:
    """A meter for the rounds of a private aggregator.

    Raises:
        ConfigurationError: It is not private, so that there is nothing to count.
    """
    if not isinstance(aggregator, DPAggregator):
        raise ConfigurationError(
            f"The aggregator is {type(aggregator).__name__}, whose rounds are not differentially private.",
            expected="DPAggregator outermost, for PrivacyBudget and figures of privacy; or a DPOptimizer at clients",
            remedy="FederatedModel(model, aggregator=keras_private.federated.DPAggregator(...)) protects clients, "
            "compile(client_optimizer=keras_private.DPOptimizer(...)) single examples of theirs.",
        )
    return RoundMeter(aggregator)


def charged_probability(sampler: ClientSampler) -> Optional[float]:
    """Probability, rounded up, that a client is in a round; None if each is not drawn by itself.

    PoissonClients compares a multiple of 2**-53 with its probability p: the chance is p rounded up to such a multiple.
    """
    if not isinstance(sampler, PoissonClients):
        return None
    return min(1.0, float(np.nextafter(float(sampler.probability) + 2.0**-53, 2.0)))
