"""Private deep learning for Keras: differential privacy, federation and encryption behind `model.fit`.

Names load when they are first used: importing this package imports no TensorFlow, starts nothing and sets no global
state. A model saved with a private optimizer needs the optimizer's class registered before `load_model`: use any of
the names below, or import `keras_private.dp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_private.lazy import names_of

if TYPE_CHECKING:
    from keras_private import dp, encrypted, errors, federated
    from keras_private.dp.callbacks import PrivacyBudget
    from keras_private.dp.model import make_private
    from keras_private.dp.optimizer import DPOptimizer
    from keras_private.dp.sampling import PoissonSampler
    from keras_private.dp.validation import fix, validate
    from keras_private.encrypted import layers
    from keras_private.encrypted.client import Client
    from keras_private.encrypted.cluster.cluster import Cluster
    from keras_private.encrypted.encryption import PrivateTensor, encrypt
    from keras_private.encrypted.model import EncryptedModel
    from keras_private.encrypted.serving import serve
    from keras_private.federated.aggregators.secure import SecureAggregation
    from keras_private.federated.model import FederatedModel
    from keras_private.report.document import PrivacyReport

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Cluster",
    "DPOptimizer",
    "EncryptedModel",
    "FederatedModel",
    "PoissonSampler",
    "PrivacyBudget",
    "PrivacyReport",
    "PrivateTensor",
    "SecureAggregation",
    "__version__",
    "dp",
    "encrypt",
    "encrypted",
    "errors",
    "federated",
    "fix",
    "layers",
    "make_private",
    "serve",
    "validate",
]

_HOME = {
    "Client": "keras_private.encrypted.client",
    "Cluster": "keras_private.encrypted.cluster.cluster",
    "DPOptimizer": "keras_private.dp.optimizer",
    "EncryptedModel": "keras_private.encrypted.model",
    "FederatedModel": "keras_private.federated.model",
    "PoissonSampler": "keras_private.dp.sampling",
    "PrivacyBudget": "keras_private.dp.callbacks",
    "PrivacyReport": "keras_private.report.document",
    "PrivateTensor": "keras_private.encrypted.encryption",
    "SecureAggregation": "keras_private.federated.aggregators.secure",
    "encrypt": "keras_private.encrypted.encryption",
    "fix": "keras_private.dp.validation",
    "make_private": "keras_private.dp.model",
    "serve": "keras_private.encrypted.serving",
    "validate": "keras_private.dp.validation",
}
_SUBPACKAGES = {
    "dp": "keras_private.dp",
    "encrypted": "keras_private.encrypted",
    "errors": "keras_private.errors",
    "federated": "keras_private.federated",
    "layers": "keras_private.encrypted.layers",
}

__getattr__, __dir__ = names_of(__name__, __all__, _HOME, _SUBPACKAGES)
