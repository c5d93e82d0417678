"""What a client does with the weights it receives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Union

from ..errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class FedAvg:
    """Local training; the update is the difference of the weights (McMahan et al. 2017, Algorithm 1).

    With a server optimizer other than SGD(1.0) this is FedOpt (Reddi et al. 2021, Algorithm 1).
    """

    name = "fedavg"


@dataclasses.dataclass(frozen=True)
class FedProx:
    """Local training that is drawn back to the weights it began with (Li et al. 2020, Algorithm 2).

    Attributes:
        proximal_strength: mu of the term mu / 2 * |w - w_0|^2 of the loss, at least 0; 0 is FedAvg.
    """

    proximal_strength: float = 0.01
    name = "fedprox"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.proximal_strength) and self.proximal_strength >= 0):
            raise ConfigurationError(
                f"the proximal strength {self.proximal_strength!r}",
                expected="a finite number, at least 0",
                remedy="Try 0.01.",
            )


@dataclasses.dataclass(frozen=True)
class FedSGD:
    """No local steps: the update is minus the gradient of the mean loss over the client's examples, at the weights
    received (McMahan et al. 2017, section 2). The server optimizer's learning rate is the learning rate; local
    epochs and the client optimizer have no effect, the batch size only on memory.
    """

    name = "fedsgd"


@dataclasses.dataclass(frozen=True)
class MimeLite:
    """Local steps by the client optimizer, whose state stays as the server sent it; the server advances that state by
    the mean gradient over the round's examples, at the weights it sent (Karimireddy et al. 2021, Algorithm 1 without
    control variates). Each client sends its update and that gradient.
    """

    name = "mimelite"


Algorithm = Union[FedAvg, FedProx, FedSGD, MimeLite]
_NAMED: dict[str, Any] = {"fedavg": FedAvg, "fedprox": FedProx, "fedsgd": FedSGD, "mimelite": MimeLite}


def algorithm_of(given: Any) -> Algorithm:
    """An algorithm from its name or itself.

    Raises:
        ConfigurationError: Something else.
    """
    if isinstance(given, tuple(_NAMED.values())):
        return given
    if isinstance(given, str) and given.lower() in _NAMED:
        return _NAMED[given.lower()]()
    raise ConfigurationError(
        f"the algorithm {given!r}",
        expected=f"one of {sorted(_NAMED)}, or an object such as FedProx(proximal_strength=0.1)",
        remedy="Choose one; 'fedavg' is the usual one.",
    )
