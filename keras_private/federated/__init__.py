"""Federation: clients -> local training -> aggregation -> server step. Names load when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_private.lazy import names_of

if TYPE_CHECKING:
    from . import partition
    from .aggregators.mean import Mean
    from .aggregators.private import DPAggregator
    from .aggregators.robust import Median, Trimmed, Zeroing
    from .aggregators.secure import SecureAggregation
    from .algorithms import FedAvg, FedProx, FedSGD, MimeLite
    from .clients import Clients
    from .model import FederatedModel
    from .owned_worker import LocalWorkers
    from .pad_service.local import local_pad_parties
    from .pad_service.remote import RemotePadParty, pad_parties
    from .remote_worker import RemoteWorker
    from .yogi import Yogi

__all__ = [
    "Clients",
    "DPAggregator",
    "FedAvg",
    "FedProx",
    "FedSGD",
    "FederatedModel",
    "LocalWorkers",
    "Mean",
    "Median",
    "MimeLite",
    "RemotePadParty",
    "RemoteWorker",
    "SecureAggregation",
    "Trimmed",
    "Yogi",
    "Zeroing",
    "local_pad_parties",
    "pad_parties",
    "partition",
]

_HOME = {
    "Clients": "keras_private.federated.clients",
    "DPAggregator": "keras_private.federated.aggregators.private",
    "FedAvg": "keras_private.federated.algorithms",
    "FedProx": "keras_private.federated.algorithms",
    "FedSGD": "keras_private.federated.algorithms",
    "FederatedModel": "keras_private.federated.model",
    "LocalWorkers": "keras_private.federated.owned_worker",
    "Mean": "keras_private.federated.aggregators.mean",
    "Median": "keras_private.federated.aggregators.robust",
    "MimeLite": "keras_private.federated.algorithms",
    "RemotePadParty": "keras_private.federated.pad_service.remote",
    "RemoteWorker": "keras_private.federated.remote_worker",
    "SecureAggregation": "keras_private.federated.aggregators.secure",
    "Trimmed": "keras_private.federated.aggregators.robust",
    "Yogi": "keras_private.federated.yogi",
    "Zeroing": "keras_private.federated.aggregators.robust",
    "local_pad_parties": "keras_private.federated.pad_service.local",
    "pad_parties": "keras_private.federated.pad_service.remote",
}

__getattr__, __dir__ = names_of(__name__, __all__, _HOME, {"partition": "keras_private.federated.partition"})
