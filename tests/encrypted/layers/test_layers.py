"""Encrypted layers against their Keras twins: forward, gradients, fit, save and load, refusals."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_private.encrypted import layers, register_parties
from keras_private.encrypted.parties import EmbeddedParties
from keras_private.errors import ConfigurationError, PartiesError

TWINS = {
    "dense": (tf.keras.layers.Dense, layers.EncryptedDense, (5, 7), {"units": 4, "activation": "relu"}),
    "dense without bias": (tf.keras.layers.Dense, layers.EncryptedDense, (5, 7), {"units": 4, "use_bias": False}),
    "dense over time": (tf.keras.layers.Dense, layers.EncryptedDense, (3, 4, 6), {"units": 2}),
    "convolution": (tf.keras.layers.Conv2D, layers.EncryptedConv2D, (2, 8, 7, 3), {"filters": 4, "kernel_size": 3}),
    "same, strided": (
        tf.keras.layers.Conv2D,
        layers.EncryptedConv2D,
        (2, 8, 7, 2),
        {"filters": 3, "kernel_size": (3, 2), "strides": 2, "padding": "same", "activation": "tanh"},
    ),
    "depthwise": (
        tf.keras.layers.DepthwiseConv2D,
        layers.EncryptedDepthwiseConv2D,
        (2, 6, 7, 3),
        {"kernel_size": 3, "depth_multiplier": 2, "padding": "same"},
    ),
    "depthwise, strided": (
        tf.keras.layers.DepthwiseConv2D,
        layers.EncryptedDepthwiseConv2D,
        (2, 7, 7, 2),
        {"kernel_size": 2, "strides": (2, 2), "activation": "relu"},
    ),
}


def numbers(*shape, seed=0, size=1.0):
    return np.random.default_rng(seed).normal(0, size, shape).astype(np.float32)


def twins(name):
    plain, encrypted, shape, arguments = TWINS[name]
    one, other = plain(**arguments), encrypted(**arguments)
    one.build(shape)
    other.build(shape)
    for variable in one.weights:
        variable.assign(numbers(*variable.shape, seed=len(variable.shape)))
    other.set_weights(one.get_weights())
    return one, other, shape


def forward_and_gradients(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = tf.reduce_sum(y * tf.constant(numbers(*y.shape, seed=9)))
    return [y, *tape.gradient(total, [x, *layer.trainable_weights])]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", TWINS)
def test_the_twin_gives_the_same_and_has_the_same_gradients(name, graph):
    one, other, shape = twins(name)
    run = tf.function(forward_and_gradients) if graph else forward_and_gradients
    x = tf.constant(numbers(*shape, seed=3))
    for expected, found in zip(run(one, x), run(other, x)):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected)))


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_factors_of_any_size_keep_their_precision(size):
    one, other, shape = twins("dense")
    x = tf.constant(numbers(*shape, seed=3) * np.float32(size))
    for expected, found in zip(forward_and_gradients(one, x), forward_and_gradients(other, x)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected)))


def test_extreme_factors_do_not_leave_the_ring():
    layer = layers.EncryptedDense(1, use_bias=False)
    layer.build((None, 1024))
    layer.set_weights([np.full((1024, 1), 3e17, np.float32)])
    x = np.full((3, 1024), -7e17, np.float32)
    np.testing.assert_allclose(layer(tf.constant(x)), x @ layer.get_weights()[0], rtol=1e-5)


def test_zero_and_empty_factors():
    layer = layers.EncryptedDense(4)
    assert layer(tf.zeros([0, 3])).shape == (0, 4)
    assert np.all(layer(tf.zeros([2, 3])) == 0)


@pytest.mark.parametrize("graph", [False, True])
def test_embedding(graph):
    one, other = tf.keras.layers.Embedding(11, 3), layers.EncryptedEmbedding(11, 3)
    indices = tf.constant([[0, 10, 3], [3, 3, 7]])
    one(indices), other(indices)
    other.set_weights(one.get_weights())

    def run(layer):
        with tf.GradientTape() as tape:
            y = layer(indices)
            total = tf.reduce_sum(y * tf.constant(numbers(*y.shape)))
        gradient = tape.gradient(total, layer.trainable_weights[0])
        return y, tf.convert_to_tensor(gradient)

    run = tf.function(run) if graph else run
    for expected, found in zip(run(one), run(other)):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("index", [-1, 11])
def test_an_index_outside_of_the_table_is_refused(index):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"outside of \[0, 11\)"):
        layers.EncryptedEmbedding(11, 3)(tf.constant([[index]]))


@pytest.mark.parametrize("name", ["relu", "sigmoid", "softmax"])
def test_activations(name):
    x = tf.constant(numbers(6, 5, size=3.0))
    expected = forward_and_gradients(tf.keras.layers.Activation(name), x)
    found = forward_and_gradients(layers.EncryptedActivation(name), x)
    for one, other in zip(expected, found):
        np.testing.assert_allclose(other, one, atol=5e-4)


def test_a_fit_ends_where_the_plain_fit_ends(tmp_path):
    x, y = numbers(96, 8, 8, 1), np.random.default_rng(1).integers(0, 3, 96)
    tf.keras.utils.set_random_seed(1)

    def build(conv, dense, activation):
        return tf.keras.Sequential(
            [
                tf.keras.layers.Input((8, 8, 1)),
                conv(4, 3, strides=2),
                activation("relu"),
                tf.keras.layers.Flatten(),
                dense(3),
            ]
        )

    plain = build(tf.keras.layers.Conv2D, tf.keras.layers.Dense, tf.keras.layers.Activation)
    encrypted = build(layers.EncryptedConv2D, layers.EncryptedDense, layers.EncryptedActivation)
    encrypted.set_weights(plain.get_weights())
    histories = []
    for model in (plain, encrypted):
        model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        histories.append(model.fit(x, y, batch_size=32, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(*histories, rtol=1e-3)
    encrypted.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.layers[0], layers.EncryptedConv2D)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), encrypted.predict(x, verbose=0), atol=1e-4)


def test_loading_where_the_parties_are_unknown_is_refused():
    register_parties("somewhere", EmbeddedParties(("a", "b", "c")))
    config = layers.EncryptedDense(3, parties="somewhere").get_config()
    assert layers.EncryptedDense.from_config(config).parties == "somewhere"
    config["parties"] = "elsewhere"
    with pytest.raises(PartiesError, match="elsewhere"):
        layers.EncryptedDense.from_config(config)
    with pytest.raises(ConfigurationError, match="registered already"):
        register_parties("somewhere", EmbeddedParties())


LOAD = """
import sys, tensorflow as tf
import keras_private.encrypted.layers
from keras_private.errors import PartiesError
try:
    tf.keras.models.load_model(sys.argv[1])
except PartiesError as error:
    print("refused:", error)
"""


def test_another_process_without_the_parties_refuses_to_load(tmp_path):
    register_parties("far away", EmbeddedParties(("a", "b", "c")))
    model = tf.keras.Sequential([tf.keras.layers.Input((3,)), layers.EncryptedDense(2, parties="far away")])
    model.save(tmp_path / "model.keras")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "model.keras")], capture_output=True, text=True, check=True
    )
    assert "refused: no parties named 'far away'" in done.stdout


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    x = numbers(4, 3)
    x[2, 1] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match="NaN or an infinity"):
        layers.EncryptedDense(2, name="first")(tf.constant(x))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: layers.EncryptedConv2D(4, 3, groups=2), "groups=2"),
        (lambda: layers.EncryptedConv2D(4, 3, data_format="channels_first"), "channels_first"),
        (lambda: layers.EncryptedDense(4, dtype="float16"), "float16"),
        (lambda: layers.EncryptedActivation("tanh"), "tanh"),
        (lambda: layers.EncryptedActivation(lambda x: x), "function"),
    ],
)
def test_what_has_no_rule_is_refused(make, says):
    with pytest.raises(ConfigurationError, match=says):
        make()


def test_second_derivatives_are_refused():
    layer = layers.EncryptedDense(2)
    x = tf.constant(numbers(3, 4))
    with pytest.raises(LookupError, match="first derivatives"), tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(layer(x) ** 2)
        outer.gradient(inner.gradient(y, x), x)
