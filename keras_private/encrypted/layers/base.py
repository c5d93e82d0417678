"""What every encrypted layer has: the name of its parties, in its constructor and its config."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_private.encrypted.parties import EMBEDDED, parties_named
from keras_private.errors import ConfigurationError


class OnParties(tf.keras.layers.Layer):
    """Mixed in before a Keras layer: adds the argument `parties`, checked when the layer is made or loaded."""

    computes_at_parties = True

    def __init__(self, *args: Any, parties: str = EMBEDDED, **kwargs: Any) -> None:
        parties_named(parties)
        super().__init__(*args, **kwargs)
        self.parties = parties
        self._refuse_unsupported()

    def _refuse_unsupported(self) -> None:
        policy = getattr(self, "compute_dtype", "float32")
        if policy not in ("float32", "float64"):
            raise refused(self, f"computes in {policy}", "float32 or float64", "give it dtype='float32'")
        if getattr(self, "data_format", "channels_last") != "channels_last":
            raise refused(self, "has data_format='channels_first'", "channels_last", "permute the images")
        groups = getattr(self, "groups", 1)
        if groups != 1:
            raise refused(self, f"has groups={groups}", "groups=1", "use EncryptedDepthwiseConv2D")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        # Keras turns what a constructor raises into a TypeError.
        parties_named(config.get("parties", EMBEDDED))
        return super().from_config(config)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "parties": self.parties}


def refused(layer: Any, found: str, expected: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"{type(layer).__name__} {layer.name!r} {found}", expected=expected, remedy=remedy)


def image_size(layer: Any, inputs: tf.Tensor) -> tuple[int, int]:
    height, width = inputs.shape[1], inputs.shape[2]
    if height is None or width is None:
        raise refused(layer, f"got images of shape {inputs.shape}", "a known height and width", "fix the input shape")
    return height, width
