"""Stock tf-encrypted 0.9.1, ABY3 with three players in this process: the same networks, traced.

A step of training is its own `fit_batch`: forward, backward, SGD and the loss, opened. Inputs and labels enter as
shares, made before. Operations that it compiles for other versions of TensorFlow are replaced
(keras_private/_backends/tf_encrypted.py); its random words are therefore those of tf.random.stateless_uniform.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_private import _backends

logging.getLogger("tf_encrypted").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A step.

    Attributes:
        run: Runs it once: the loss, or the predictions.
        graph: Of the traced function.
        trace_seconds: What tracing took, without the optimization at the first run.
    """

    run: Callable[[], Any]
    graph: tf.Graph
    trace_seconds: float


def protocol() -> Any:
    """A fresh ABY3, in force."""
    tfe = _backends.require("tf_encrypted")
    tfe.set_protocol(tfe.protocol.ABY3())
    return tfe


def network(tfe: Any, name: str, batch: int) -> Any:
    layers = tfe.keras.layers
    first = {"batch_input_shape": [batch, 28, 28, 1]}
    if name == "A":
        head = [layers.Flatten(**first), layers.Dense(128), layers.ReLU(), layers.Dense(128), layers.ReLU()]
    elif name == "D":
        head = [layers.Conv2D(5, 5, strides=2, padding="same", **first), layers.ReLU(), layers.Flatten()]
        head += [layers.Dense(100), layers.ReLU()]
    else:
        head = [layers.Conv2D(16, 5, **first), layers.ReLU(), layers.MaxPooling2D(2)]
        head += [layers.Conv2D(16, 5), layers.ReLU(), layers.MaxPooling2D(2)]
        head += [layers.Flatten(), layers.Dense(100), layers.ReLU()]
    return tfe.keras.Sequential([*head, layers.Dense(10)])


def steps(name: str, x: np.ndarray, y: np.ndarray, rate: float) -> dict[str, Callable[[], Traced]]:
    """Tracers of "training" and "predict" on one batch.

    Args:
        name: "A", "B" or "D".
        x: Floats. Shape [batch, 28, 28, 1].
        y: Labels from 0 to 9. Shape [batch].
        rate: Learning rate.
    """
    tfe = protocol()
    prot = tfe.get_protocol()
    model = network(tfe, name, len(x))
    model.compile(tfe.keras.optimizers.SGD(rate), tfe.keras.losses.CategoricalCrossentropy(from_logits=True))
    model._optimizer.compile(model.weights)
    inputs = tfe.define_private_variable(np.asarray(x, np.float64)).read_value().bone
    labels = tfe.define_private_variable(np.eye(10)[y]).read_value().bone

    def train(inputs: Any, labels: Any) -> tf.Tensor:
        return model.fit_batch(prot.from_bone(inputs), prot.from_bone(labels))

    def predict(inputs: Any) -> tf.Tensor:
        return tfe.softmax(model.call(prot.from_bone(inputs))).reveal().to_native()

    return {"training": lambda: _traced(tfe, train, inputs, labels), "predict": lambda: _traced(tfe, predict, inputs)}


def _traced(tfe: Any, function: Callable[..., Any], *arguments: Any) -> Traced:
    # Its process-wide cache hands out tensors of graphs traced before.
    tfe.protocol.protocol.nodes.clear()
    start = time.perf_counter()
    concrete = tf.function(function).get_concrete_function(*arguments)
    seconds = time.perf_counter() - start
    return Traced(lambda: concrete(*arguments), concrete.graph, seconds)
