"""The gate before private work: what a PrivacyBudget did not reserve does not pass."""

from __future__ import annotations

import os
from typing import Optional

import numpy as np
import tensorflow as tf

from .._backends.keras_fit import RunningFit
from ..dp.ledger import Ledger
from ..errors import BudgetExhaustedError


class Gate:
    """Counts steps, and once a PrivacyBudget has closed it lets only those pass that it authorized.

    Guarantees:
        - Once closed, it is never open again.
        - A restored checkpoint winds `steps_done` back, and lets no more steps through for it.

    Args:
        step: Of what it counts, in the singular: names the variables, and the steps in messages.

    Attributes:
        ledger: Where steps are charged; in memory until a PrivacyBudget brings its own.
        steps_done: Steps that passed, as the checkpoint in use has it.
        fit: The fit that is running; None between fits.
        closed: Whether a PrivacyBudget has served.
        delta: Of the last PrivacyBudget that served; None before.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self.ledger = Ledger.open(None)
        bits = np.frombuffer(os.urandom(16), dtype=np.int64)
        name = f"{step.replace(' ', '_')}s"
        with tf.init_scope():
            self.steps_done = tf.Variable(0, trainable=False, dtype=tf.int64, name=name)
            self._identity = tf.Variable(bits, trainable=False, dtype=tf.int64, name=f"{name}_identity")
        self.fit: Optional[RunningFit] = None
        self.delta: Optional[float] = None
        self.closed = False
        # Counted apart from steps_done, which a restored checkpoint winds back.
        self._run = self._authorized = 0

    @property
    def identity(self) -> str:
        """Names these steps in a ledger; drawn once, saved and restored with the variables."""
        return self._identity.numpy().astype(">i8").tobytes().hex()

    @property
    def variables(self) -> list[tf.Variable]:
        """To be saved and restored with the weights."""
        return [self.steps_done, self._identity]

    def gate(self) -> None:
        """Closes the gate: from now on only steps given by `authorize` pass."""
        if not self.closed:
            self.closed, self._authorized = True, self._run

    def authorize(self, total_steps: int) -> None:
        """Lets steps pass until `steps_done`, as it is now, has grown to `total_steps`."""
        self._authorized = self._run + int(total_steps) - int(self.steps_done)

    def check(self, steps: int) -> None:
        """
        Raises:
            BudgetExhaustedError: So many further steps may not pass.
        """
        if self.closed and self._run + steps > self._authorized:
            raise BudgetExhaustedError(
                f"{self._step.capitalize()} {int(self.steps_done) + steps} is not in the privacy budget.",
                expected=f"a {self._step} that PrivacyBudget reserved in its ledger",
                remedy="Pass PrivacyBudget in the callbacks of fit; if it is there, nothing is left.",
            )

    def passed(self, steps: int) -> None:
        """They count from here on."""
        self._run += steps
        self.steps_done.assign_add(steps)
