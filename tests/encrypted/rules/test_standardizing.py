"""GroupNormalization and LayerNormalization on shares against Keras: values, gradients, bounds, training."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted.data import Batch, Rows
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.losses import loss_of
from keras_private.encrypted.lowering import lower
from keras_private.errors import OverflowPreflightError, UnsupportedLayerError
from tests.encrypted.programs import assert_parity, in_keras, on_shares
from tests.selection import long_but

K = tf.keras.layers

LAYERS = {
    "groups": ((6, 5, 4), lambda: K.GroupNormalization(2)),
    "one group": ((6, 5, 4), lambda: K.GroupNormalization(1, axis=3)),
    "each channel": ((7, 6), lambda: K.GroupNormalization(-1, epsilon=1e-2)),
    "groups of features": ((12,), lambda: K.GroupNormalization(3)),
    "neither scale nor offset": ((6, 5, 4), lambda: K.GroupNormalization(2, center=False, scale=False)),
    "features": ((12,), lambda: K.LayerNormalization()),
    "features over time": ((3, 8), lambda: K.LayerNormalization(epsilon=1e-5)),
    "images": ((4, 5, 2), lambda: K.LayerNormalization(axis=[1, 2, 3])),
    "rows of images": ((4, 5, 2), lambda: K.LayerNormalization(axis=[-2, -1], center=False)),
    "frozen": ((12,), lambda: K.LayerNormalization(trainable=False)),
}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def behind_dense(shape, layer):
    tf.keras.utils.set_random_seed(3)
    inputs = tf.keras.Input(shape)
    model = tf.keras.Model(inputs, layer(K.Dense(shape[-1], name="before")(inputs)))
    for variable in model.weights:
        variable.assign(np.random.default_rng(variable.shape.num_elements()).normal(0.3, 0.5, variable.shape))
    return model


@pytest.mark.parametrize("name", long_but(LAYERS, "groups", "features over time", "frozen"))
def test_values_and_gradients_are_those_of_keras(name):
    shape, make = LAYERS[name]
    assert_parity(behind_dense(shape, make()), [numbers(3, *shape)], tolerance=3e-3)


@pytest.mark.parametrize("size", [0.02, 0.3, 10.0, 100.0])
def test_small_and_large_deviations(size):
    model = tf.keras.Sequential([K.Input((4, 4, 4)), K.GroupNormalization(2)])
    x = (size * numbers(5, 4, 4, 4) + size).astype(np.float32)
    (found,), _ = on_shares(model, [x], None)
    np.testing.assert_allclose(found, model(x), atol=5e-3)


def test_rows_without_any_deviation():
    model = behind_dense((4, 4, 4), K.GroupNormalization(2))
    x = np.ones((2, 4, 4, 4), np.float32)
    model.layers[1].kernel.assign(np.ones((4, 4)))
    model.layers[1].bias.assign(np.zeros(4))
    assert_parity(model, [x], tolerance=1e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_bounds_contain_every_result(name):
    shape, make = LAYERS[name]
    model = behind_dense(shape, make())
    program = lower(model)
    values = {each: np.abs(parameter.value) for each, parameter in program.parameters.items()}
    preflight = program.check_ranges(FixedPoint(), [(-1.0, 1.0)], values, lambda _: 1.0, 3)
    bounds = {(layer, what): bound for layer, what, bound, _ in preflight.found}
    spikes = np.zeros((64, *shape), np.float32)
    spikes.reshape(64, -1)[np.arange(64), np.arange(64) % np.prod(shape)] = 1
    for x in (np.sign(numbers(64, *shape)), spikes):
        reached = np.max(np.abs(model(x)))
        assert reached <= bounds[model.layers[-1].name, "the output"]
        seeds = [np.sign(numbers(3, *model.output_shape[1:], seed=1))]
        for full, gradient in in_keras(model, [x[:3]], seeds)[1].items():
            assert np.max(np.abs(gradient)) <= preflight.gradients[full] * (1 + 1e-5)


def test_the_output_bound_is_reached():
    """One large element among n has the normalized value (n - 1) / sqrt(n)."""
    model = tf.keras.Sequential([K.Input((64,)), K.LayerNormalization(name="last")])
    x = np.zeros((1, 64), np.float32)
    x[0, 0] = 10
    program = lower(model)
    values = {name: parameter.value for name, parameter in program.parameters.items()}
    found = program.check_ranges(FixedPoint(), [(-10.0, 10.0)], values).found
    bound = next(bound for layer, what, bound, _ in found if (layer, what) == ("last", "the output"))
    assert 0.9 * bound < np.max(model(x)) < bound
    (on_three,), _ = on_shares(model, [x], None)
    np.testing.assert_allclose(on_three, model(x), atol=5e-3)


def test_steep_gradients_are_held():
    """At deviations near zero, gradients grow by 1 / sqrt(epsilon); the layer before gets no more than the bound."""
    model = tf.keras.Sequential(
        [K.Input((4,)), K.Dense(4, use_bias=False, kernel_initializer="identity"), K.LayerNormalization(epsilon=1e-5)]
    )
    x, seeds = np.ones((1, 4), np.float32), np.array([[1.0, -1.0, 0.0, 0.0]])
    _, gradients = on_shares(model, [x], [seeds])
    (kernel,) = [value for name, value in gradients.items() if name.endswith("kernel")]
    np.testing.assert_allclose(kernel, np.tile([64.0, -64.0, 0.0, 0.0], (4, 1)), atol=0.5)


@pytest.mark.parametrize(
    "shape, make, says",
    [
        ((4, 4, 2), lambda: K.GroupNormalization(2, axis=1), "axis=1"),
        ((4, 4, 2), lambda: K.LayerNormalization(axis=1), r"axis=\[1\]"),
        ((4, 4, 2), lambda: K.LayerNormalization(axis=[3, 2]), r"axis=\[3, 2\]"),
        ((4,), lambda: K.LayerNormalization(epsilon=1e-12), "epsilon=1e-12"),
        ((4,), lambda: K.GroupNormalization(2, gamma_constraint="non_neg"), "gamma_constraint"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(shape, make, says):
    inputs = tf.keras.Input(shape)
    with pytest.raises(UnsupportedLayerError, match=says):
        lower(tf.keras.Model(inputs, make()(inputs)))


def test_squares_that_could_leave_the_ring_are_refused():
    model = tf.keras.Sequential([K.Input((64,)), K.LayerNormalization(name="wide")])
    with pytest.raises(OverflowPreflightError, match="sum of squares of layer 'wide'"):
        kp.EncryptedModel(model, input_range=(-1e5, 1e5))


def network():
    tf.keras.utils.set_random_seed(2)
    return tf.keras.Sequential(
        [
            K.Input((8, 8, 1)),
            K.Conv2D(8, 3, padding="same", use_bias=False),
            K.GroupNormalization(4),
            K.ReLU(),
            K.MaxPooling2D(2),
            K.Conv2D(16, 3, padding="same", use_bias=False),
            K.GroupNormalization(4),
            K.ReLU(),
            K.Flatten(),
            K.Dense(32),
            K.LayerNormalization(),
            K.Dense(10, "softmax"),
        ]
    )


@pytest.mark.slow
def test_a_network_of_normalized_blocks_learns_digits_as_keras_does():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = (digits.images[..., None] / 16).astype(np.float32), digits.target
    tf.keras.utils.set_random_seed(7)
    model = network()
    encrypted = kp.EncryptedModel(model, input_range=(0.0, 1.0))
    encrypted.compile(tf.keras.optimizers.SGD(0.2), "sparse_categorical_crossentropy")
    found = encrypted.fit(x[:1280], y[:1280], batch_size=32, epochs=2, shuffle=False, verbose=0).history["loss"]
    model.compile(tf.keras.optimizers.SGD(0.2), "sparse_categorical_crossentropy", ["accuracy"])
    expected = model.fit(x[:1280], y[:1280], batch_size=32, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert found[1] < 0.7 * found[0]
    # Rounding grows along the way: the first epoch is close, the second ends at a comparable loss.
    np.testing.assert_allclose(found[0], expected[0], rtol=0.05)
    np.testing.assert_allclose(found[1], expected[1], rtol=0.25)
    learned = encrypted.reveal_to()
    learned.compile(metrics=["accuracy"], loss="sparse_categorical_crossentropy")
    right = learned.evaluate(x[1280:], y[1280:], verbose=0)[1]
    assert right > 0.85 and right > model.evaluate(x[1280:], y[1280:], verbose=0)[1] - 0.05


def test_the_preflight_admits_many_normalized_blocks():
    inputs = x = K.Input((32, 32, 3))
    for filters in (16, 32, 64, 64):
        x = K.ReLU()(K.GroupNormalization(8)(K.Conv2D(filters, 3, strides=2, padding="same")(x)))
        y = K.ReLU()(K.GroupNormalization(8)(K.Conv2D(filters, 3, padding="same")(x)))
        x = K.Add()([x, K.GroupNormalization(8)(K.Conv2D(filters, 3, padding="same")(y))])
    model = tf.keras.Model(inputs, K.Dense(10, "softmax")(K.GlobalAveragePooling2D()(x)))
    encrypted = kp.EncryptedModel(model, input_range=(0.0, 1.0))
    loss = loss_of("sparse_categorical_crossentropy", "softmax")
    labels = np.zeros((64, 10))
    rows = Rows([Batch(((np.zeros((64, 32, 32, 3)),),), labels, (("owner",),), "owner")])
    encrypted._limits.training(loss, 64, rows, ("loss",))


def test_what_fix_makes_of_normalized_batches_trains():
    model = tf.keras.Sequential([K.Input((6,)), K.Dense(8), K.BatchNormalization(), K.ReLU(), K.Dense(1)])
    encrypted = kp.EncryptedModel(kp.fix(model), input_range=(-1.0, 1.0))
    encrypted.compile("sgd", "mse")
    x = np.clip(numbers(32, 6), -1, 1)
    history = encrypted.fit(x, x[:, :1], batch_size=8, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
