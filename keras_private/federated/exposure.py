"""Under which circumstances clients' data were worked on: what a privacy report goes by."""

from __future__ import annotations

import dataclasses
from typing import Optional

from .aggregators.base import Aggregator
from .aggregators.private import DPAggregator
from .clients import Clients
from .local_privacy import LocalPrivacy
from .workers import Workers

FIT, EVALUATION, PERSONALIZATION = "fit", "evaluation", "personalization"


@dataclasses.dataclass
class Exposure:
    """One fit, evaluation or personalization.

    Attributes:
        what: Which of them.
        stays_put: Examples were opened where the work ran, and not sent there.
        apart: The work ran on other hosts, behind mutual TLS.
        population: Number of clients.
        aggregator: What updates went through; None if there were none.
        together: What of the aggregator was in one place when this began.
        per_client: Each client's own figures were asked for.
        open: A worker of this host listened on all its interfaces.
        noise_multiplier: Of the sums; 0 without noise.
        local: How clients' own steps were made private; None if they were not.
        rounds: That began.
        sent, received: Bytes of arrays, from and to the coordinator; one vector for each client of a round.
        seconds: By the clock.
    """

    what: str
    stays_put: bool
    apart: bool
    population: int
    aggregator: Optional[Aggregator] = None
    noise_multiplier: float = 0.0
    local: Optional[LocalPrivacy] = None
    rounds: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    together: tuple[str, ...] = ()
    per_client: bool = False
    open: bool = False

    @staticmethod
    def of(
        what: str,
        clients: Clients,
        hosts: Optional[Workers],
        aggregator: Optional[Aggregator] = None,
        per_client: bool = False,
    ) -> Exposure:
        """Before anything runs; `hosts` is None where the work runs in this process."""
        apart = hosts is not None and hosts.apart
        together = _together(aggregator)
        is_open = hosts is not None and hosts.open
        return Exposure(
            what,
            clients.stays_put,
            apart,
            len(clients.names),
            aggregator,
            together=together,
            per_client=per_client,
            open=is_open,
        )

    @property
    def simulated(self) -> tuple[str, ...]:
        """What was in one place and would have to be apart."""
        found = self._together
        if not self.apart:
            found.append("the clients' work runs on the coordinator's host, which can read their examples")
        elif not self.stays_put:
            found.append("the coordinator holds the clients' examples and sends them to the workers")
        return tuple(found)

    @property
    def within_reach(self) -> bool:
        """The coordinator could read the clients' examples."""
        return not (self.apart and self.stays_put)

    @property
    def parties_apart(self) -> bool:
        """Updates were masked, and the parties that take off the masks are no part of the coordinator."""
        return self.aggregator is not None and self.aggregator.hides_updates and not self._together

    @property
    def _together(self) -> list[str]:
        # What could be read when it began counts for good, and so does what can be read now.
        return list(dict.fromkeys([*self.together, *_together(self.aggregator)]))

    @property
    def hidden(self) -> bool:
        """No single client's update, nor what it was made of, was within the coordinator's reach."""
        return self.aggregator is not None and self.aggregator.hides_updates and not self.simulated

    @property
    def noisy_sums(self) -> bool:
        """Sums carry noise before anybody gets them."""
        return isinstance(self.aggregator, DPAggregator) and self.noise_multiplier > 0

    @property
    def noisy_updates(self) -> bool:
        """What leaves a client carries noise."""
        return self.local is not None and self.local.noise_multiplier > 0


def _together(aggregator: Optional[Aggregator]) -> tuple[str, ...]:
    return () if aggregator is None else tuple(aggregator.description()["simulated"])
