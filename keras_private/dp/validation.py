"""validate and fix: is this model's training step private, and what to do when it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from .._backends.graph import inlined_functions
from ..errors import ConfigurationError, UnsupportedModelError
from .arrays import count_examples, map_arrays
from .engine import traced_step

MAX_GROUPS = 32
PROBED_EXAMPLES = 8


@dataclass(frozen=True)
class Validation:
    """What `validate` found.

    Attributes:
        covered: One line per use of a trainable variable: variable, operation, form of its per-example gradient.
        probed_examples: Number of examples on which the rows were compared bit by bit.
    """

    covered: tuple[str, ...]
    probed_examples: int

    def __str__(self) -> str:
        lines = [f"private training step: {len(self.covered)} uses of trainable variables covered"]
        lines += [f"  {line}" for line in self.covered]
        lines.append(f"rows compared bit by bit on {self.probed_examples} examples")
        return "\n".join(lines)


def require_keras_model(model: Any, what: str, reason: str) -> None:
    """Refuses wrappers, classes and everything else that is no Keras model.

    Args:
        model: What came.
        what: That is made of it.
        reason: Why it must be one.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(model, tf.keras.Model):
        return
    inside = isinstance(getattr(model, "model", None), tf.keras.Model)
    raise ConfigurationError(
        f"model is a {model.__name__ if isinstance(model, type) else type(model).__name__}, and {what} needs a Keras "
        f"model: {reason}.",
        expected="a tf.keras.Model",
        remedy="Give its `.model`, the Keras model inside." if inside else "Build one with Keras first.",
    )


def refuse_layers_on_parties(model: tf.keras.Model, reason: str) -> None:
    """Raises UnsupportedModelError if some layers hand their products to three parties."""
    names = [layer.name for layer in _layers(model) if getattr(layer, "computes_at_parties", False)]
    if names:
        raise UnsupportedModelError(
            f"Layers {names} compute at three parties. {reason}",
            expected="layers that compute where the step runs",
            remedy="Use their Keras twins, such as tf.keras.layers.Dense for EncryptedDense.",
        )


def refuse_batch_normalization(model: tf.keras.Model) -> None:
    """Raises UnsupportedModelError if a BatchNormalization layer would train."""
    names = [
        layer.name
        for layer in _layers(model)
        if isinstance(layer, tf.keras.layers.BatchNormalization) and layer.trainable
    ]
    if names:
        raise UnsupportedModelError(
            f"BatchNormalization layers {names} normalize every example with statistics of the whole batch, and "
            "keep moving averages of the data.",
            expected="layers that treat examples one by one",
            remedy="model = keras_private.fix(model) replaces them by GroupNormalization; or freeze them "
            "(layer.trainable = False).",
        )


def _layers(model: tf.keras.layers.Layer) -> Iterator[tf.keras.layers.Layer]:
    yield from (layer for layer in model._flatten_layers(include_self=True))


def validate(model: tf.keras.Model, x: Any, y: Any = None, sample_weight: Any = None) -> Validation:
    """Checks that a compiled model's training step can be proven private, and probes it numerically.

    The proof is of the traced graph; the probe, a second opinion, replaces one example and compares the inputs and
    output gradients of all other examples bit by bit, with layers in inference mode so that Dropout is still.

    Args:
        model: A compiled Keras model, or one made by make_private.
        x: Arrays or a nested structure of arrays; the first few examples are used.
        y: Targets.
        sample_weight: Optional weights.

    Raises:
        UnsupportedModelError: The step is not private; names layer and operation, with the way out.
        ConfigurationError: The model is not compiled, or fewer than two examples came.
    """
    require_keras_model(model, "a validation", "it traces the training step of one")
    if getattr(model, "compiled_loss", None) is None:
        raise ConfigurationError(
            "the model is not compiled.",
            expected="a loss",
            remedy="Call model.compile(optimizer, loss) first.",
        )
    take = map_arrays(lambda array: array[:PROBED_EXAMPLES], (x, y, sample_weight))
    count = count_examples(take)
    if count < 2:
        raise ConfigurationError(
            f"{count} examples came.", expected="two or more, to compare", remedy="Pass more examples."
        )
    refuse_batch_normalization(model)
    if not model.built:
        model(take[0])
    covered: list[str] = []
    _trace(model, take, training=True, covered=covered)
    probe = _trace(model, take, training=False, covered=[])
    swapped = map_arrays(lambda array: np.concatenate([array[1:2], array[1:]]), take)
    for line, before, after in zip(covered, _rows(probe, take), _rows(probe, swapped)):
        if not np.array_equal(before[1:], after[1:], equal_nan=True):
            raise UnsupportedModelError(
                f"replacing one example changed another example's row at {line}.",
                expected="rows that depend on their own example alone",
                remedy="Report this model: the proof accepted a step that the probe refutes.",
            )
    return Validation(tuple(covered), count)


def _rows(probe: Any, data: Any) -> list[np.ndarray]:
    leaves = [tf.convert_to_tensor(leaf) for leaf in tf.nest.flatten(data) if leaf is not None]
    return [tensor.numpy() for tensor in probe(*leaves)]


def _trace(model: tf.keras.Model, data: Any, training: bool, covered: list[str]) -> Any:
    """A traced function from a batch to the rows that enter the per-example gradients."""
    leaves = [leaf for leaf in tf.nest.flatten(data) if leaf is not None]
    signature = [tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]

    @tf.function(input_signature=signature, autograph=False)
    def rows(*tensors: tf.Tensor) -> list[tf.Tensor]:
        waiting = list(tensors)
        x, y, sample_weight = map_arrays(lambda leaf: waiting.pop(0), data)
        with inlined_functions():
            y_pred = model(x, training=training)
            loss = model.compute_loss(x, y, y_pred, sample_weight)
        step = traced_step(loss, model.trainable_variables)
        covered.extend(step.describe())
        return step.rows()

    return rows.get_concrete_function()


def fix(model: tf.keras.Model) -> tf.keras.Model:
    """Returns a copy in which every BatchNormalization is a GroupNormalization; other weights are copied.

    Groups follow Wu and He 2018 ("Group normalization"): at most 32, here the largest number that divides the
    channels and leaves two or more values a group. Scale and offset are kept, moving statistics are not.

    Args:
        model: A built functional or Sequential model.

    Raises:
        UnsupportedModelError: The model is subclassed, so that its layers cannot be replaced from outside.
    """
    require_keras_model(model, "a repair", "it copies one layer by layer")
    if not (getattr(model, "inputs", None) and getattr(model, "outputs", None)):
        raise UnsupportedModelError(
            f"model '{model.name}' is subclassed or not built, so that its layers cannot be replaced from outside.",
            expected="a built functional or Sequential model",
            remedy="Write tf.keras.layers.GroupNormalization instead of BatchNormalization in the model's code.",
        )
    copy = tf.keras.models.clone_model(model, clone_function=_replaced)
    for old, new in zip(model.layers, copy.layers):
        if isinstance(old, tf.keras.Model):
            continue  # made by fix itself, with its weights
        if not isinstance(old, tf.keras.layers.BatchNormalization):
            new.set_weights(old.get_weights())
            continue
        kept = {weight.name.rsplit("/", 1)[-1]: weight for weight in old.weights}
        for weight in new.weights:
            weight.assign(kept[weight.name.rsplit("/", 1)[-1]])
    return copy


def _replaced(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    if isinstance(layer, tf.keras.Model):
        return fix(layer)
    if not isinstance(layer, tf.keras.layers.BatchNormalization):
        return layer.__class__.from_config(layer.get_config())
    axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
    channels, rank = layer.input_shape[axis], len(layer.input_shape)
    most = min(MAX_GROUPS, channels) if rank > 2 else max(1, min(MAX_GROUPS, channels // 2))
    groups = max(number for number in range(1, most + 1) if channels % number == 0)
    return tf.keras.layers.GroupNormalization(
        groups=groups,
        axis=axis,
        epsilon=layer.epsilon,
        center=layer.center,
        scale=layer.scale,
        name=layer.name,
    )
