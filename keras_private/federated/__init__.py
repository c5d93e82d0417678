"""Federation: clients -> local training -> aggregation -> server step."""

from __future__ import annotations

from . import partition
from .aggregators.mean import Mean
from .algorithms import FedAvg, FedProx, FedSGD, MimeLite
from .clients import Clients
from .model import FederatedModel
from .yogi import Yogi

__all__ = ["Clients", "FedAvg", "FedProx", "FedSGD", "FederatedModel", "Mean", "MimeLite", "Yogi", "partition"]
