"""Gradients that averages over many positions divide: as accurate as those before the division."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_private.encrypted import EncryptedModel
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.lowering import lower
from tests.encrypted.programs import in_keras, on_shares
from tests.selection import long_but

K = tf.keras.layers


def images(*shape):
    return np.random.default_rng(2).uniform(-1, 1, shape).astype(np.float32)


def averaged():
    tf.keras.utils.set_random_seed(1)
    inputs = K.Input((28, 28, 1))
    x = K.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = K.GlobalAveragePooling2D()(K.Conv2D(4, 3, padding="same", activation="relu", name="second")(x))
    return tf.keras.Model(inputs, K.Dense(3, name="head")(x))


def pooled():
    tf.keras.utils.set_random_seed(1)
    return tf.keras.Sequential(
        [
            K.Input((28, 28, 1)),
            K.Conv2D(3, 3, activation="tanh", padding="same"),
            K.AveragePooling2D(7, padding="same"),
            K.Conv2D(4, 2, activation=K.LeakyReLU(0.3)),
            K.AveragePooling2D(3),
            K.Flatten(),
        ]
    )


def joined():
    """Gradients with and without the division meet."""
    tf.keras.utils.set_random_seed(1)
    inputs = K.Input((28, 28, 2))
    shared = K.Conv2D(2, 3, padding="same")
    x = K.Dense(2)(shared(inputs))
    x = K.Average()([shared(x), x])
    outputs = K.Concatenate()([K.GlobalAveragePooling2D()(x), K.Flatten()(K.AveragePooling2D(14)(x)), K.Flatten()(x)])
    return tf.keras.Model(inputs, outputs)


MODELS = {"all": (averaged, 0.01), "windows": (pooled, 0.01), "joined": (joined, 0.05)}


@pytest.mark.parametrize("name", long_but(MODELS, "all"))
def test_gradients_are_those_of_keras(name):
    make, largest = MODELS[name]
    model = make()
    x = images(4, *model.input_shape[1:])
    seeds = [largest * np.random.default_rng(3).normal(0, 1, (4, *model.output_shape[1:]))]
    _, wanted = in_keras(model, [x], seeds)
    _, gradients = on_shares(model, [x], seeds)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        error = np.max(np.abs(gradient - wanted[name])) / np.max(np.abs(wanted[name]))
        assert error < 1e-2, (name, error)


def test_bounds_count_gradients_as_the_layers_before_see_them():
    program = lower(averaged())
    values = {name: np.abs(parameter.value) for name, parameter in program.parameters.items()}
    preflight = program.check_ranges(FixedPoint(), [(-1.0, 1.0)], values, lambda _: 1.0, 4)
    bounds = {(layer, what): bound for layer, what, bound, _ in preflight.found}
    dense = np.max(np.abs(program.parameters["head/kernel"].value).sum(1))
    # The average divides by 784 and moves the point by 9 bits: the kernel before sees the gradient undivided.
    assert bounds["second", "the gradient of the bias"] == pytest.approx(4 * 784 * dense)


@pytest.mark.long
def test_training_moves_weights_as_keras_does():
    x, y = images(16, 28, 28, 1), np.arange(16) % 3
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = averaged()
    encrypted = EncryptedModel(model, input_range=(-1.0, 1.0))
    encrypted.compile(tf.keras.optimizers.SGD(0.5), loss, reveal=())
    encrypted.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    first = [weight.copy() for weight in model.get_weights()]
    model.compile(tf.keras.optimizers.SGD(0.5), loss)
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    for found, expected, start in zip(encrypted.reveal_to().get_weights(), model.get_weights(), first):
        moved = np.max(np.abs(expected - start))
        np.testing.assert_allclose(found, expected, atol=0.02 * moved + 2**-15)
