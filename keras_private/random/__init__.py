"""The only source of secret randomness: a native CSPRNG, or ChaCha20 in TensorFlow ops; never a weak one.

Importing this module loads no native library and draws nothing.
"""

from __future__ import annotations

import threading

from keras_private.errors import BackendError, RandomnessError
from keras_private.native import stock_only
from keras_private.random.native import NativeSource
from keras_private.random.portable import PortableSource
from keras_private.random.source import CELLS_PER_SIGMA, TOTAL_VARIATION_PER_DRAW, SecureSource

__all__ = [
    "CELLS_PER_SIGMA",
    "NativeSource",
    "PortableSource",
    "SecureSource",
    "TOTAL_VARIATION_PER_DRAW",
    "secure_source",
]

_lock = threading.Lock()
_chosen: SecureSource | None = None


def secure_source() -> SecureSource:
    """The best secure source of this process: native when its library loads, else portable. Chosen once.

    Within `native.stock_operations` it is a portable one of stock operations, whatever was chosen.

    Raises:
        RandomnessError: Neither can serve; the message says why for each.
    """
    global _chosen
    if stock_only():
        return PortableSource(stock_ops_only=True)
    with _lock:
        if _chosen is None:
            _chosen = _choose()
        return _chosen


def _choose() -> SecureSource:
    try:
        return NativeSource()
    except BackendError as error:
        native = error.problem
    try:
        return PortableSource()
    except RandomnessError as error:
        raise RandomnessError(
            f"no secure source of randomness: native: {native}; portable: {error.problem}",
            expected="one of the two",
            remedy="build the native ops: python -m keras_private.native.build",
        ) from error
