"""Training and prediction on secret-shared weights and data (ABY3, three parties)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_private.encrypted import layers
    from keras_private.encrypted.data import Horizontal, Owned, Vertical
    from keras_private.encrypted.fixed_point import FixedPoint
    from keras_private.encrypted.model import EncryptedModel
    from keras_private.encrypted.parties import EmbeddedParties, register_parties
    from keras_private.encrypted.rules import Rule, register_rule

__all__ = [
    "EmbeddedParties",
    "EncryptedModel",
    "FixedPoint",
    "Horizontal",
    "Owned",
    "Rule",
    "Vertical",
    "layers",
    "register_parties",
    "register_rule",
]

_HOME = {
    "EmbeddedParties": "keras_private.encrypted.parties",
    "EncryptedModel": "keras_private.encrypted.model",
    "FixedPoint": "keras_private.encrypted.fixed_point",
    "Horizontal": "keras_private.encrypted.data",
    "Owned": "keras_private.encrypted.data",
    "Rule": "keras_private.encrypted.rules",
    "Vertical": "keras_private.encrypted.data",
    "register_parties": "keras_private.encrypted.parties",
    "register_rule": "keras_private.encrypted.rules",
}


def __getattr__(name: str) -> Any:
    if name == "layers":
        return importlib.import_module(f"{__name__}.layers")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
