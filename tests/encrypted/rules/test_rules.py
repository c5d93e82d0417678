"""Every rule against its Keras layer: values, gradients, bounds, and arguments that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.lowering import lower
from keras_private.encrypted.rules import Rule, register_rule
from keras_private.errors import ConfigurationError, OverflowPreflightError, UnsupportedLayerError
from tests.encrypted.programs import assert_parity, in_keras, on_shares

K = tf.keras.layers

LAYERS = {
    "dense": ((6,), lambda: K.Dense(4)),
    "dense without bias": ((6,), lambda: K.Dense(4, use_bias=False)),
    "dense over time": ((3, 5), lambda: K.Dense(4, activation="relu")),
    "convolution": ((6, 5, 2), lambda: K.Conv2D(3, 3)),
    "strided": ((7, 6, 2), lambda: K.Conv2D(3, (3, 2), strides=2, padding="same", activation="relu")),
    "dilated": ((7, 7, 1), lambda: K.Conv2D(2, 2, dilation_rate=2, use_bias=False)),
    "convolution of sequences": ((7, 3), lambda: K.Conv1D(2, 3, strides=2)),
    "causal": ((7, 3), lambda: K.Conv1D(2, 3, padding="causal", dilation_rate=2)),
    "depthwise": ((6, 5, 2), lambda: K.DepthwiseConv2D(3, depth_multiplier=2, padding="same")),
    "depthwise, strided": ((6, 6, 3), lambda: K.DepthwiseConv2D(2, strides=2)),
    "average pool": ((6, 6, 2), lambda: K.AveragePooling2D(2)),
    "average pool, same": ((5, 7, 2), lambda: K.AveragePooling2D(3, strides=2, padding="same")),
    "average pool of sequences": ((7, 2), lambda: K.AveragePooling1D(3)),
    "maximum pool": ((6, 6, 2), lambda: K.MaxPooling2D(2)),
    "maximum pool, same": ((5, 6, 2), lambda: K.MaxPooling2D(3, strides=2, padding="same")),
    "maximum pool of sequences": ((7, 2), lambda: K.MaxPooling1D(3, strides=1)),
    "global average": ((4, 3, 2), lambda: K.GlobalAveragePooling2D()),
    "global average of sequences": ((5, 2), lambda: K.GlobalAveragePooling1D(keepdims=True)),
    "global maximum": ((3, 3, 2), lambda: K.GlobalMaxPooling2D(keepdims=True)),
    "global maximum of sequences": ((5, 2), lambda: K.GlobalMaxPooling1D()),
    "relu": ((6,), lambda: K.ReLU()),
    "relu6": ((6,), lambda: K.ReLU(max_value=1.0)),
    "leaky": ((6,), lambda: K.LeakyReLU(0.1)),
    "relu with a slope": ((6,), lambda: K.ReLU(negative_slope=0.3)),
    "sigmoid": ((6,), lambda: K.Activation("sigmoid")),
    "tanh": ((6,), lambda: K.Activation("tanh")),
    "softmax": ((6,), lambda: K.Softmax()),
    "softmax of one class": ((1,), lambda: K.Activation("softmax")),
    "flatten": ((2, 3, 2), lambda: K.Flatten()),
    "reshape": ((12,), lambda: K.Reshape((3, -1))),
    "permute": ((2, 3, 4), lambda: K.Permute((3, 1, 2))),
    "zero padding": ((3, 4, 2), lambda: K.ZeroPadding2D(((1, 2), (0, 1)))),
    "zero padding of sequences": ((3, 2), lambda: K.ZeroPadding1D(2)),
    "frozen normalization": ((4, 4, 3), lambda: K.BatchNormalization(trainable=False)),
}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def np_abs(values):
    return {name: np.abs(value) for name, value in values.items()}


def behind_dense(shape, layer):
    """A model in which the layer's input has a gradient to pass on."""
    tf.keras.utils.set_random_seed(3)
    inputs = tf.keras.Input(shape)
    model = tf.keras.Model(inputs, layer(K.Dense(shape[-1], name="before")(inputs)))
    for variable in model.weights:
        spread = np.random.default_rng(variable.shape.num_elements()).normal(0, 0.5, variable.shape)
        variable.assign(np.abs(spread) + 0.5 if "variance" in variable.name else spread)
    return model


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_keras(name):
    shape, make = LAYERS[name]
    assert_parity(behind_dense(shape, make()), [numbers(3, *shape)])


@pytest.mark.parametrize("name", LAYERS)
def test_bounds_contain_every_result(name):
    shape, make = LAYERS[name]
    model = behind_dense(shape, make())
    program = lower(model)
    values = {each: parameter.value for each, parameter in program.parameters.items()}
    preflight = program.check_ranges(FixedPoint(), [(-1.0, 1.0)], np_abs(values), lambda _: 1.0, 3)
    bounds = {(layer, what): bound for layer, what, bound, _ in preflight.found}
    x = np.sign(numbers(64, *shape))
    for layer in model.layers[1:]:
        reached = np.max(np.abs(tf.keras.Model(model.input, layer.output)(x)))
        assert reached <= bounds[layer.name, "the output"] * (1 + 1e-5)
    seeds = [np.sign(numbers(3, *model.output_shape[1:], seed=1))]
    _, gradients = in_keras(model, [x[:3]], seeds)
    for full, gradient in gradients.items():
        layer, kind = full.split("/")
        if kind == "kernel":
            assert np.max(np.abs(gradient)) <= bounds[layer, "the gradient of the kernel"] * (1 + 1e-5)


@pytest.mark.parametrize("kind", [K.Add, K.Subtract, K.Multiply, K.Average, K.Maximum, K.Minimum, K.Concatenate])
@pytest.mark.parametrize("count", [2, 3])
def test_merging_layers(kind, count):
    if kind is K.Subtract and count == 3:
        pytest.skip("takes two")
    inputs = tf.keras.Input((4,))
    branches = [K.Dense(3)(inputs) for _ in range(count)]
    assert_parity(tf.keras.Model(inputs, kind()(branches)), [numbers(5, 4)])


def test_concatenate_along_other_axes():
    inputs = tf.keras.Input((2, 3))
    merged = K.Concatenate(axis=1)([K.Dense(3)(inputs), K.Dense(3)(inputs), inputs])
    assert_parity(tf.keras.Model(inputs, merged), [numbers(2, 2, 3)])


def test_embedding_reads_one_hot_rows():
    inputs = tf.keras.Input((4,), dtype="int32")
    model = tf.keras.Model(inputs, K.Dense(2)(K.Flatten()(K.Embedding(7, 3)(inputs))))
    assert lower(model).input_depths == (7,)
    assert_parity(model, [np.array([[0, 6, 6, 2], [1, 1, 1, 1]])])


def test_dropout_drops_in_training_only_and_the_same_elements_backward():
    inputs = tf.keras.Input((2000,))
    model = tf.keras.Model(
        inputs, K.Dropout(0.25)(K.Dense(2000, use_bias=False, kernel_initializer="identity")(inputs))
    )
    x, seed = np.ones((1, 2000), np.float32), np.ones((1, 2000))
    (kept,), gradients = on_shares(model, [x], [seed])
    assert set(np.round(np.unique(kept), 3)) == {0.0, 1.333}
    assert abs(np.mean(kept > 0) - 0.75) < 5 * np.sqrt(0.25 * 0.75 / 2000)
    back = gradients["dense/kernel" if "dense/kernel" in gradients else next(iter(gradients))][0]
    np.testing.assert_array_equal(back > 0, kept[0] > 0)
    (passed,), _ = on_shares(model, [x], None, training=False)
    np.testing.assert_array_equal(passed, 1.0)


@pytest.mark.parametrize(
    "shape, make, says",
    [
        ((4, 4, 2), lambda: K.Conv2D(4, 2, groups=2), "groups=2"),
        ((4, 4, 2), lambda: K.MaxPooling2D(2, data_format="channels_first"), "channels_first"),
        ((4,), lambda: K.Dense(3, activation="gelu"), "gelu"),
        ((4,), lambda: K.Dense(3, activation=lambda x: x), "lambda"),
        ((4,), lambda: K.Dense(3, kernel_regularizer="l1"), "kernel_regularizer=L1,"),
        ((4,), lambda: K.Dense(3, kernel_regularizer="l1_l2"), "kernel_regularizer=L1L2,"),
        ((4,), lambda: K.Dense(3, bias_regularizer=lambda b: 0.0), "bias_regularizer=function,"),
        ((4,), lambda: K.Dense(3, kernel_regularizer="orthogonal_regularizer"), "OrthogonalRegularizer"),
        ((4, 4, 2), lambda: K.DepthwiseConv2D(3, kernel_regularizer="l2"), "kernel_regularizer"),
        ((4,), lambda: K.Dense(3, kernel_constraint="non_neg"), "kernel_constraint"),
        ((4,), lambda: K.Dense(3, activity_regularizer="l2"), "activity_regularizer"),
        ((4,), lambda: K.Dense(3, dtype="float16"), "float16"),
        ((4, 2), lambda: K.Softmax(axis=1), "axis=1"),
        ((4,), lambda: K.ReLU(threshold=1.0), "threshold"),
        ((4,), lambda: K.LeakyReLU(1.5), "1.5"),
        ((4,), lambda: K.Dropout(0.5, noise_shape=(None, 1)), "noise_shape"),
        ((4,), lambda: K.Dropout(0.5, seed=1), "seed=1"),
        ((4,), lambda: K.AlphaDropout(0.5), "AlphaDropout"),
        ((4,), lambda: K.GaussianDropout(0.5), "GaussianDropout"),
        ((4, 2), lambda: K.SpatialDropout1D(0.5), "SpatialDropout1D"),
        ((4, 2), lambda: K.BatchNormalization(axis=1), "axis"),
        ((4,), lambda: K.BatchNormalization(gamma_regularizer="l2"), "gamma_regularizer"),
        ((4, 2), lambda: K.LSTM(3), "LSTM"),
        ((4,), lambda: K.Lambda(lambda x: x), "Lambda"),
        ((4,), lambda: K.GaussianNoise(0.1), "GaussianNoise"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(shape, make, says):
    layer = make()
    inputs = tf.keras.Input(shape)
    with pytest.raises(UnsupportedLayerError, match=says) as caught:
        lower(tf.keras.Model(inputs, layer(inputs)))
    assert layer.name in str(caught.value)


def test_a_derived_layer_has_no_rule_until_one_is_registered():
    class Doubled(K.Layer):
        def call(self, inputs):
            return 2 * inputs

    class DoubledRule(Rule):
        def check(self, layer):
            pass

        def forward(self, layer, inputs, parameters, training):
            return [inputs[0].times_integer(2)], None

        def backward(self, layer, saved, gradients, parameters, needs_input):
            return [gradients[0].times_integer(2)], {}

        def bounds(self, layer, inputs, values, preflight):
            return [inputs[0].scaled(2)]

    model = behind_dense((4,), Doubled())
    with pytest.raises(UnsupportedLayerError, match="Doubled"):
        lower(model)
    register_rule(Doubled, DoubledRule())
    assert_parity(model, [numbers(3, 4)])
    with pytest.raises(ConfigurationError, match="already"):
        register_rule(Doubled, DoubledRule())


def test_normalization_of_batches_is_not_trained():
    model = behind_dense((4,), K.BatchNormalization())
    with pytest.raises(UnsupportedLayerError, match="trainable = False"):
        lower(model).check_training()


def test_what_could_leave_the_ring_is_refused_by_layer():
    model = behind_dense((4,), K.Dense(3, name="large"))
    program = lower(model)
    values = {each: parameter.value for each, parameter in program.parameters.items()}
    values["large/kernel"] = values["large/kernel"] * 1e9
    with pytest.raises(OverflowPreflightError, match="'large'"):
        program.check_ranges(FixedPoint(), [(-1.0, 1.0)], values)
    with pytest.raises(OverflowPreflightError, match="input 0"):
        program.check_ranges(FixedPoint(), [(-1e12, 1e12)], {**values, "large/kernel": 0 * values["large/kernel"]})
