"""Charges the steps of one optimizer to a ledger before they run: the bookkeeping behind PrivacyBudget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Optional

from ..errors import BudgetExhaustedError, ConfigurationError, LedgerError
from .accounting import MOST_STEPS, UNKNOWN, Charge, adjacency_of, max_steps, sampler_of
from .accounting import epsilon as epsilon_of
from .ledger import Ledger

FIRST_BLOCK = 16
SHARE_OF_STEP_TIME = 0.005
SAMPLINGS = {"poisson": "Poisson sampling", "unknown": "unknown sampling (no amplification)"}


@dataclass(frozen=True)
class Budget:
    """A target: epsilon at delta, by an accountant, over all charges in the ledger at `path` (None: in memory)."""

    epsilon: float
    delta: float
    accountant: str
    path: Optional[str]


class Meter:
    """One session of a ledger at a time, from `begin` to `end`.

    Guarantees:
        - `announce` returns only after the announced steps are reserved, durably, and lets no more than the
          reserved ones through the optimizer's gate.
        - What a session is settled at is no less than the steps announced, each of which may have run, and no
          less than the steps the optimizer counted. If the two cannot be brought together (a checkpoint was
          restored, steps ran elsewhere) the reservation stays charged in full.
        - A session left open by an exception is settled so at the next `open` of its ledger in this process;
          until then, and after the process died, its whole reservation is charged.

    Args:
        budget: The target.
        in_use: Tells whether the fit that this meter serves is still running.
    """

    def __init__(self, budget: Budget, in_use: Callable[[], bool]) -> None:
        self.budget = budget
        self.count = 0
        self.left = 0
        self.planned: Optional[int] = None
        self.before: tuple[Charge, ...] = ()
        self._in_use = in_use
        self._ledger: Optional[Ledger] = None
        self._optimizer: Any = None
        self._charge: Optional[Charge] = None
        self._num_examples: Optional[int] = None
        self._session: Optional[int] = None
        self._identity, self._base = "", 0
        self._reserved = self._last_execution = 0
        self._pace = _Pace()

    # Figures.

    def charges(self) -> tuple[Charge, ...]:
        """What was charged before this session, and the steps announced in it."""
        ran = () if self._charge is None or not self.count else (replace(self._charge, steps=self.count),)
        return self.before + ran

    def epsilon(self) -> float:
        return epsilon_of(self.charges(), self.budget.delta, self.budget.accountant)

    def statement(self) -> str:
        charges = self.charges()
        sampling = " and ".join(SAMPLINGS[name] for name in sampler_of(charges))
        figure = self.epsilon()
        shown = f"{math.ceil(figure * 1e4) / 1e4:.4f}" if math.isfinite(figure) else "infinite"
        return (
            f"epsilon {shown} at delta {self.budget.delta:g}, {adjacency_of(charges)}, {sampling}, "
            f"{self.budget.accountant.upper()}"
        )

    # A session.

    def open(self, optimizer: Any) -> tuple[Charge, ...]:
        """Takes the ledger, settling first what an interrupted fit of this process left open.

        Returns:
            What it holds already for this optimizer's next step to be added to.

        Raises:
            LedgerError: The ledger is in use, damaged, foreign to the optimizer or behind it.
        """
        memory = optimizer.ledger
        held = None if self.budget.path is None else Ledger.held(self.budget.path)
        for ledger in (held, memory):
            if ledger is not None and ledger.holder is not None:
                ledger.holder._give_up(self)
        self._ledger = memory if self.budget.path is None else Ledger.open(self.budget.path)
        self._optimizer = optimizer
        memory.holder = self._ledger.holder = self
        try:
            if self._ledger is not memory:
                self._ledger.require_cover_of(memory)
            return self._ledger.charges_of(optimizer)
        except BaseException:
            self.close()
            raise

    def begin(self, charge: Charge, planned: Optional[int], execution: int, num_examples: Optional[int]) -> None:
        """Starts a session; the optimizer's gate is closed from here on.

        Args:
            charge: What one step costs.
            planned: Steps that the fit would take at most; None if unknown.
            execution: Steps of the smallest next execution.
            num_examples: Size of the sampled data, None if unknown.

        Raises:
            BudgetExhaustedError: Not even that execution fits.
        """
        if self._ledger is None:
            raise _closed()
        self._charge, self._num_examples, self.planned = charge, num_examples, planned
        self.before = self._ledger.charges_of(self._optimizer)
        self.count = self._last_execution = self._reserved = 0
        self.left = max_steps(
            self.budget.epsilon,
            self.budget.delta,
            charge.noise_multiplier,
            charge.sampling_probability,
            spent=self.before,
            accountant=self.budget.accountant,
            noise_coordinates=charge.noise_coordinates,
            limit=MOST_STEPS if planned is None else planned,
        )
        if self.left < execution and planned != 0:
            raise BudgetExhaustedError(
                f"no {'step' if execution == 1 else f'execution of {execution} steps'} is left in the budget of "
                f"epsilon {self.budget.epsilon:g} at delta {self.budget.delta:g}; spent: {self.statement()}.",
                expected="room for at least one execution",
                remedy=_why_spent(self.before),
            )
        self._session = self._ledger.start(self._optimizer, charge, num_examples)
        self._mirror()
        self._identity, self._base = self._optimizer.identity, int(self._optimizer.steps_done)
        self._optimizer.gate()
        self._optimizer.authorize(self._base)
        self._pace.restart()

    def announce(self, steps: int) -> None:
        """Charges `steps` that are about to run, and opens the gate for them."""
        if self.count + steps > self._reserved:
            self._reserve(self.count + steps)
        self.count += steps
        self._last_execution = steps

    def compare(self) -> None:
        """Sets the count right by the optimizer's own; starts another session if its state was replaced."""
        if self._charge is None:
            raise _closed()
        coordinates = int(self._optimizer.noise_coordinates)
        if coordinates > self._charge.noise_coordinates:
            raise ConfigurationError(
                f"the step adds noise to {coordinates} coordinates, the model has "
                f"{self._charge.noise_coordinates} trainable ones.",
                expected="an optimizer that trains the variables of the model it is compiled with",
                remedy="Make every trained variable an attribute of the model.",
            )
        if not self._agrees():
            planned = None if self.planned is None else self.planned - self.count
            self._settle(self._reserved)
            self.begin(self._charge, planned, 1, self._num_examples)

    def end(self) -> None:
        """Settles the session at what ran, and closes the gate and the ledger."""
        self._settle(self.count if self._agrees() else self._reserved)
        self.close()

    def close(self) -> None:
        """Lets others take the ledger; an open session stays charged in full."""
        self._session = None
        if self._optimizer is not None:
            self._optimizer.ledger.holder = None
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _agrees(self) -> bool:
        """Whether the optimizer counted what was announced; steps beyond that, all reserved, are added."""
        done = int(self._optimizer.steps_done) - self._base
        same = self._optimizer.identity == self._identity
        if not same or not self.count - self._last_execution <= done <= self._reserved:
            return False
        self.count = max(self.count, done)
        return True

    def _reserve(self, total: int) -> None:
        """Charges a block of steps, then lets them run."""
        if self._ledger is None or self._session is None:
            raise _closed()
        if total > self.left:
            raise BudgetExhaustedError(
                f"step {total} of this fit would pass epsilon {self.budget.epsilon:g}; spent: {self.statement()}.",
                expected=f"at most the {self.left} steps that the fit announced or the budget allows",
                remedy="Start a new fit.",
            )
        needed = total - self._reserved
        wanted = max(self._pace.block, needed)
        if self.planned is not None:
            wanted = max(min(wanted, self.planned - self._reserved), needed)
        with self._pace.flush(self.count):
            self._ledger.reserve(self._session, min(wanted, self.left - self._reserved))
            self._mirror()
            self._reserved = self._ledger.sessions[self._session].reserved
            self._optimizer.authorize(self._base + self._reserved)

    def _settle(self, steps: int) -> None:
        if self._ledger is None or self._session is None:
            raise _closed()
        self._optimizer.authorize(int(self._optimizer.steps_done))
        session, self._session = self._session, None
        self.count = steps
        self._ledger.settle(session, steps)
        self._mirror()

    def _give_up(self, other: Meter) -> None:
        """Ends the session of an interrupted fit: what was announced, if the optimizer is as that fit left it."""
        if other is not self and self._in_use():
            raise LedgerError(
                "the ledger is in use by another fit of this process.",
                expected="one fit at a time",
                remedy="Wait until that fit ends.",
            )
        try:
            if self._session is not None and self._ledger is not None and not self._ledger.closed:
                announced = self.count
                if self._agrees() and self.count == announced:
                    self._settle(announced)
        finally:
            self.close()

    def _mirror(self) -> None:
        if self._ledger is not None and self._ledger is not self._optimizer.ledger:
            self._optimizer.ledger.adopt(self._ledger)


class _Pace:
    """Chooses how many steps to reserve at once, so that flushes stay below 1 % of the time of the steps."""

    def __init__(self) -> None:
        self.block = FIRST_BLOCK
        self.restart()

    def restart(self) -> None:
        self._since, self._counted = time.perf_counter(), 0

    def flush(self, count: int) -> _Pace:
        self._start, self._count = time.perf_counter(), count
        return self

    def __enter__(self) -> None:
        """Starts timing."""

    def __exit__(self, *failure: Any) -> None:
        now = time.perf_counter()
        if self._count > self._counted:
            per_step = max((self._start - self._since) / (self._count - self._counted), 1e-6)
            ideal = math.ceil((now - self._start) / (SHARE_OF_STEP_TIME * per_step))
            self.block = min(max(ideal, self.block), 8 * self.block)
        self._since, self._counted = now, self._count


def _closed() -> LedgerError:
    return LedgerError(
        "no session of the ledger is open.",
        expected="steps between the begin and the end of a fit",
        remedy="Pass PrivacyBudget to model.fit(callbacks=[...]) and train there only.",
    )


def _why_spent(before: tuple[Charge, ...]) -> str:
    if any(charge.sampler == UNKNOWN and charge.steps for charge in before):
        return (
            "Some steps ran without Poisson sampling or without a PrivacyBudget and cost full price: use "
            "PoissonSampler, PrivacyBudget(data=...) and ledger=path from the first step on."
        )
    return "Use more noise or a smaller batch from the start, or raise the target knowingly."
