"""Federation: clients -> local training -> aggregation -> server step. Names load when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import partition
    from .aggregators.mean import Mean
    from .aggregators.private import DPAggregator
    from .aggregators.robust import Median, Trimmed, Zeroing
    from .aggregators.secure import SecureAggregation
    from .algorithms import FedAvg, FedProx, FedSGD, MimeLite
    from .clients import Clients
    from .model import FederatedModel
    from .remote_worker import RemoteWorker
    from .yogi import Yogi

__all__ = [
    "Clients",
    "DPAggregator",
    "FedAvg",
    "FedProx",
    "FedSGD",
    "FederatedModel",
    "Mean",
    "Median",
    "MimeLite",
    "RemoteWorker",
    "SecureAggregation",
    "Trimmed",
    "Yogi",
    "Zeroing",
    "partition",
]

_HOME = {
    "Clients": "clients",
    "DPAggregator": "aggregators.private",
    "FedAvg": "algorithms",
    "FedProx": "algorithms",
    "FedSGD": "algorithms",
    "FederatedModel": "model",
    "Mean": "aggregators.mean",
    "Median": "aggregators.robust",
    "MimeLite": "algorithms",
    "RemoteWorker": "remote_worker",
    "SecureAggregation": "aggregators.secure",
    "Trimmed": "aggregators.robust",
    "Yogi": "yogi",
    "Zeroing": "aggregators.robust",
}


def __getattr__(name: str) -> Any:
    if name == "partition":
        return importlib.import_module(f"{__name__}.partition")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
