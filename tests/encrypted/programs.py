"""Runs lowered models on shares, and Keras beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted.lowering import lower
from keras_private.encrypted.protocol.sharing import reveal, share
from keras_private.encrypted.session import Session

OWNER = "owner"


def on_shares(model: Any, inputs: list[np.ndarray], seeds: list[np.ndarray] | None, training: bool = True) -> Any:
    """(outputs, gradients by parameter) of a model whose outputs' gradients are `seeds`."""
    program = lower(model)
    names = list(program.parameters)

    @tf.function(autograph=False)
    def run(values, weights, gradients):
        session = Session()
        shared = []
        for value, depth in zip(values, program.input_depths):
            if depth:
                rows = tf.one_hot(value, depth, dtype=tf.int64)
                shared.append(share(session, rows, OWNER, "input", fraction=0))
            else:
                shared.append(share(session, value, OWNER, "input"))
        parameters = {name: share(session, weight, OWNER, name) for name, weight in zip(names, weights)}
        outputs, tape = program.forward(shared, parameters, training)
        found = {}
        if gradients is not None:
            found = program.backward(tape, [share(session, each, OWNER, "seed") for each in gradients])
        return [reveal(each, OWNER) for each in outputs], {name: reveal(each, OWNER) for name, each in found.items()}

    weights = [tf.constant(parameter.value) for parameter in program.parameters.values()]
    tensors = [tf.constant(each) for each in inputs]
    seeds = None if seeds is None else [tf.constant(each) for each in seeds]
    outputs, gradients = run(tensors, weights, seeds)
    return [each.numpy() for each in outputs], {name: each.numpy() for name, each in gradients.items()}


def in_keras(model: Any, inputs: list[np.ndarray], seeds: list[np.ndarray]) -> Any:
    """The same by Keras."""
    program = lower(model)
    variables = {name: each.variable for name, each in program.parameters.items() if each.trainable}
    with tf.GradientTape() as tape:
        outputs = model([tf.constant(each) for each in inputs], training=False)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        total = tf.add_n([tf.reduce_sum(out * tf.cast(seed, out.dtype)) for out, seed in zip(outputs, seeds)])
    gradients = tape.gradient(total, list(variables.values()))
    dense = [tf.convert_to_tensor(each).numpy() for each in gradients]
    return [each.numpy() for each in outputs], dict(zip(variables, dense))


def assert_parity(model: Any, inputs: list[np.ndarray], tolerance: float = 2e-3, seed: int = 0) -> None:
    """Outputs, and gradients of every parameter, agree within `tolerance` of the largest number."""
    draw = np.random.default_rng(seed)
    seeds = [draw.normal(0, 1, [inputs[0].shape[0], *shape[1:]]) for shape in _shapes(model)]
    expected, wanted = in_keras(model, inputs, seeds)
    found, gradients = on_shares(model, inputs, seeds)
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=tolerance * max(1.0, np.max(np.abs(other))))
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        largest = max(1.0, np.max(np.abs(wanted[name])))
        np.testing.assert_allclose(gradient, wanted[name], atol=tolerance * largest, err_msg=name)


def _shapes(model: Any) -> list[Any]:
    return model.output_shape if isinstance(model.output_shape, list) else [model.output_shape]
