"""keras.regularizers.L2 on shares: loss, gradients and bounds are those of Keras."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_private.encrypted import EncryptedModel
from keras_private.encrypted.lowering import lower
from keras_private.errors import OverflowPreflightError, UnsupportedLayerError

K = tf.keras.layers
L2 = tf.keras.regularizers.L2


def images(l2):
    tf.keras.utils.set_random_seed(5)
    return tf.keras.Sequential(
        [
            K.Input((6, 6, 2)),
            K.Conv2D(4, 3, activation="relu", kernel_regularizer=L2(l2), bias_regularizer=L2(2 * l2), name="conv"),
            K.DepthwiseConv2D(2, depthwise_regularizer=tf.keras.regularizers.L1L2(l2=l2), name="depthwise"),
            K.Flatten(),
            K.Dense(3, kernel_regularizer="l2", bias_initializer="ones", bias_regularizer=L2(0.5), name="dense"),
            K.Dense(3, "softmax", kernel_regularizer=L2(0.1), name="frozen", trainable=False),
        ]
    )


def words(l2):
    tf.keras.utils.set_random_seed(5)
    inputs = K.Input((4,), dtype="int32")
    outputs = K.Dense(3, "softmax")(K.Flatten()(K.Embedding(7, 3, embeddings_regularizer=L2(l2))(inputs)))
    return tf.keras.Model(inputs, outputs)


def data(words_instead=False, rows=24):
    draw = np.random.default_rng(1)
    x = draw.integers(0, 7, (rows, 4)) if words_instead else draw.uniform(-1, 1, (rows, 6, 6, 2)).astype(np.float32)
    return x, draw.integers(0, 3, rows)


def assert_trains_as_keras(model, x, y, optimizer, rate, tolerance=3e-3):
    encrypted = EncryptedModel(model, input_range=(-1.0, 1.0))
    loss = "sparse_categorical_crossentropy"
    encrypted.compile(optimizer(rate), loss)
    before = encrypted.evaluate(x, y, batch_size=10, verbose=0)
    found = encrypted.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0).history["loss"]
    weights = encrypted.reveal_to().get_weights()
    after = encrypted.evaluate(x, y, batch_size=10, verbose=0)
    model.compile(optimizer(rate), loss)
    assert before == pytest.approx(model.evaluate(x, y, verbose=0), abs=tolerance)
    expected = model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert after == pytest.approx(model.evaluate(x, y, verbose=0), abs=tolerance)
    for one, other in zip(weights, model.get_weights()):
        np.testing.assert_allclose(one, other, atol=tolerance)


@pytest.mark.slow
def test_convolutions_and_dense_layers_train_as_keras_does():
    assert_trains_as_keras(images(0.05), *data(), tf.keras.optimizers.SGD, 0.2)


@pytest.mark.long
def test_embeddings_train_as_keras_does():
    assert_trains_as_keras(words(0.05), *data(words_instead=True), tf.keras.optimizers.SGD, 0.5)


@pytest.mark.long
def test_momentum_and_adam_see_the_penalty():
    def dense():
        tf.keras.utils.set_random_seed(5)
        return tf.keras.Sequential([K.Input((3,)), K.Dense(3, "softmax", kernel_regularizer=L2(0.1))])

    draw = np.random.default_rng(1)
    x, y = draw.uniform(-1, 1, (20, 3)), draw.integers(0, 3, 20)
    assert_trains_as_keras(dense(), x, y, lambda rate: tf.keras.optimizers.SGD(rate, 0.9, nesterov=True), 0.05)
    assert_trains_as_keras(dense(), x, y, tf.keras.optimizers.Adam, 0.01)


@pytest.mark.parametrize("l2", [0.3, 1e-3, 1e-6])
def test_the_gradient_is_that_of_keras(l2):
    """With an input of zeros and a rate of a whole step, the kernel moves by its penalty alone."""
    model = tf.keras.Sequential([K.Input((3,)), K.Dense(400, kernel_regularizer=L2(l2))])
    kernel = np.random.default_rng(0).uniform(-1, 1, (3, 400))
    model.layers[0].kernel.assign(kernel)
    rate = min(0.2 / l2, 2000.0)
    encrypted = EncryptedModel(model, input_range=(-1.0, 1.0))
    encrypted.compile(tf.keras.optimizers.SGD(rate), "mse")
    encrypted.fit(np.zeros((8, 3)), np.zeros((8, 400)), batch_size=8, verbose=0)
    moved = kernel - encrypted.reveal_to().layers[0].kernel.numpy()
    np.testing.assert_allclose(moved, 2 * l2 * rate * kernel, atol=8e-3 * 2 * l2 * rate + 2**-15)


def test_over_time_the_penalty_counts_once_and_not_for_each_position():
    model = tf.keras.Sequential([K.Input((5, 3)), K.Dense(2, kernel_regularizer=L2(0.1))])
    draw = np.random.default_rng(1)
    x, y = draw.uniform(-1, 1, (20, 5, 3)), draw.uniform(-1, 1, (20, 5, 2))
    encrypted = EncryptedModel(model, input_range=(-1.0, 1.0))
    encrypted.compile(tf.keras.optimizers.SGD(0.3), "mse")
    found = encrypted.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0).history["loss"]
    model.compile(tf.keras.optimizers.SGD(0.3), "mse")
    expected = model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(found, expected, atol=3e-3)
    np.testing.assert_allclose(encrypted.reveal_to().get_weights()[0], model.get_weights()[0], atol=3e-3)


def test_a_shared_layer_has_one_penalty_and_saved_models_keep_it(tmp_path):
    inputs = K.Input((3,))
    layer = K.Dense(3, kernel_regularizer=L2(0.25), name="twice")
    model = tf.keras.Model(inputs, layer(layer(inputs)))
    assert lower(model).penalties == {"twice/kernel": 0.25}
    encrypted = EncryptedModel(model)
    encrypted.compile("sgd", "mse")
    encrypted.save(tmp_path / "model")
    x = np.zeros((2, 3))
    expected = float(model.losses[0])
    assert EncryptedModel.load(tmp_path / "model").evaluate(x, x, verbose=0) == pytest.approx(expected, abs=1e-3)


def test_penalties_that_could_leave_the_ring_are_refused():
    model = tf.keras.Sequential([K.Input((3,)), K.Dense(2, kernel_regularizer=L2(1.0), name="large")])
    model.layers[0].kernel.assign(np.full((3, 2), 20000.0))
    encrypted = EncryptedModel(model, input_range=(-0.01, 0.01))
    encrypted.compile("sgd", "mse")
    x, y = np.zeros((4, 3)), np.zeros((4, 2))
    with pytest.raises(OverflowPreflightError, match="sum of squares of the kernel of layer 'large'"):
        encrypted.evaluate(x, y, verbose=0)
    steep = tf.keras.Sequential([K.Input((3,)), K.Dense(2, kernel_regularizer=L2(1e8), name="steep")])
    encrypted = EncryptedModel(steep, input_range=(-1.0, 1.0))
    encrypted.compile("sgd", "mse", reveal=())
    with pytest.raises(OverflowPreflightError, match="gradient of the kernel of layer 'steep'"):
        encrypted.fit(x, y, verbose=0)


def test_losses_that_are_no_penalties_are_refused():
    inputs = K.Input((3,))
    model = tf.keras.Model(inputs, K.Dense(2, kernel_regularizer="l2")(inputs))
    model.add_loss(lambda: tf.constant(1.0))
    with pytest.raises(UnsupportedLayerError, match="losses of its own"):
        EncryptedModel(model)
