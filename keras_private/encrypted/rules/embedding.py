"""Embedding, as a product of one-hot rows with the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import tensorflow as tf

from keras_private._backends.keras_graph import call_shapes
from keras_private.encrypted import ranges
from keras_private.encrypted.protocol.products import matmul
from keras_private.encrypted.ranges import Preflight, Range
from keras_private.encrypted.rules.registry import Parameter, Rule, SharedValues, Values, pull, rule, unsupported
from keras_private.encrypted.shared import Shared


@rule(tf.keras.layers.Embedding)
class EmbeddingRule(Rule):
    """Its input is a model input, which the owner shares as one-hot rows of integers: no party learns an index."""

    regularized: ClassVar[Mapping[str, str]] = {"embeddings": "embeddings_regularizer"}

    def check(self, layer: Any) -> None:
        if layer.mask_zero:
            raise unsupported(layer, "mask_zero=True", "False")

    def parameters(self, layer: Any) -> dict[str, Parameter]:
        return pull("embeddings", layer.embeddings, layer.trainable)

    def forward(
        self, layer: Any, inputs: list[Shared], parameters: SharedValues, training: bool
    ) -> tuple[list[Shared], Any]:
        shape = inputs[0].shape
        rows = inputs[0].local(lambda share: tf.reshape(share, [-1, shape[-1]]))
        found = matmul(rows, parameters["embeddings"])
        return [found.local(lambda share: tf.reshape(share, [*shape[:-1], layer.output_dim]))], rows

    def backward(
        self, layer: Any, saved: Any, gradients: list[Shared], parameters: SharedValues, needs_input: bool
    ) -> tuple[list[Shared | None], dict[str, Shared]]:
        if not layer.trainable:
            return [None], {}
        gradient = gradients[0].local(lambda share: tf.reshape(share, [-1, layer.output_dim]))
        return [None], {"embeddings": matmul(saved, gradient, transpose_a=True)}

    def bounds(self, layer: Any, inputs: list[Range], values: Values, preflight: Preflight) -> list[Range]:
        return [ranges.of(values["embeddings"])]

    def backward_bounds(
        self, layer: Any, inputs: list[Range], gradient: float, values: Values, batch: int, preflight: Preflight
    ) -> list[float]:
        positions = batch * max(math.prod(shapes[0][1:]) for shapes, _ in call_shapes(layer))
        preflight.gradient(layer.name, "embeddings", positions * gradient)
        return [0.0]
