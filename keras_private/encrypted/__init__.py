"""Training and prediction on secret-shared weights and data (ABY3, three parties)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_private.lazy import names_of

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

__getattr__, __dir__ = names_of(__name__, __all__, _HOME, {"layers": "keras_private.encrypted.layers"})
