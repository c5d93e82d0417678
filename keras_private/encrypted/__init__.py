"""Training and prediction on secret-shared weights and data (ABY3, three parties)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_private.encrypted import layers
    from keras_private.encrypted.fixed_point import FixedPoint
    from keras_private.encrypted.parties import EmbeddedParties, register_parties

__all__ = ["EmbeddedParties", "FixedPoint", "layers", "register_parties"]

_HOME = {
    "EmbeddedParties": "keras_private.encrypted.parties",
    "FixedPoint": "keras_private.encrypted.fixed_point",
    "register_parties": "keras_private.encrypted.parties",
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
