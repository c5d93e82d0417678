"""Convolutions, pools and piecewise linear activations of drawn shapes and arguments, exactly as in Keras."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from tests.encrypted.programs import assert_parity
from tests.encrypted.rules.grid import assert_equal, inputs_on_grid, put_on_grid

K = tf.keras.layers
# Shrinking would trace graphs for minutes.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
DRAWN = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.filter_too_much], phases=PHASES)
SIZES = st.integers(3, 8)
STEPS = st.integers(1, 3)
SEEDS = st.integers(0, 99)


def behind_pointwise(shape, layer, seed):
    """The layer's input has a gradient to pass on, and no dense product hides which element got it."""
    inputs = tf.keras.Input(shape)
    before = (K.Conv1D if len(shape) == 2 else K.Conv2D)(shape[-1], 1, name="before")
    return put_on_grid(tf.keras.Model(inputs, layer(before(inputs))), seed)


@DRAWN
@given(SIZES, SIZES, st.integers(1, 3), STEPS, STEPS, STEPS, STEPS, st.sampled_from(["valid", "same"]), SEEDS)
def test_convolutions(height, width, channels, rows, columns, stride, dilation, padding, seed):
    assume(stride == 1 or dilation == 1)
    assume(padding == "same" or min(height, width) > (max(rows, columns) - 1) * dilation)
    layer = K.Conv2D(2, (rows, columns), strides=stride, dilation_rate=dilation, padding=padding)
    model = behind_pointwise((height, width, channels), layer, seed)
    assert_equal(model, [inputs_on_grid(seed, 2, height, width, channels)])


@DRAWN
@given(SIZES, STEPS, STEPS, STEPS, st.sampled_from(["valid", "same", "causal"]), st.booleans(), SEEDS)
def test_convolutions_of_sequences(length, size, stride, dilation, padding, use_bias, seed):
    assume(stride == 1 or dilation == 1)
    assume(padding != "valid" or length > (size - 1) * dilation)
    layer = K.Conv1D(3, size, strides=stride, dilation_rate=dilation, padding=padding, use_bias=use_bias)
    assert_equal(behind_pointwise((length, 2), layer, seed), [inputs_on_grid(seed, 3, length, 2)])


@DRAWN
@given(SIZES, SIZES, STEPS, STEPS, st.integers(1, 2), st.sampled_from(["valid", "same"]), SEEDS)
def test_depthwise_convolutions(height, width, size, stride, multiplier, padding, seed):
    layer = K.DepthwiseConv2D(size, strides=stride, depth_multiplier=multiplier, padding=padding)
    assert_equal(behind_pointwise((height, width, 2), layer, seed), [inputs_on_grid(seed, 2, height, width, 2)])


@pytest.mark.long
@DRAWN
@given(SIZES, SIZES, STEPS, STEPS, STEPS, STEPS, st.sampled_from(["valid", "same"]), SEEDS)
def test_maximum_pools_with_ties(height, width, rows, columns, down, right, padding, seed):
    layer = K.MaxPooling2D((rows, columns), strides=(down, right), padding=padding)
    assert_equal(behind_pointwise((height, width, 2), layer, seed), [inputs_on_grid(seed, 2, height, width, 2)])


@DRAWN
@given(SIZES, SIZES, STEPS, STEPS, STEPS, STEPS, st.sampled_from(["valid", "same"]), SEEDS)
def test_average_pools(height, width, rows, columns, down, right, padding, seed):
    layer = K.AveragePooling2D((rows, columns), strides=(down, right), padding=padding)
    model = behind_pointwise((height, width, 2), layer, seed)
    assert_parity(model, [inputs_on_grid(seed, 2, height, width, 2)], tolerance=1e-3, seed=seed)


@DRAWN
@given(
    st.sampled_from(
        [
            lambda: K.ReLU(),
            lambda: K.LeakyReLU(0.5),
            lambda: K.ReLU(negative_slope=0.25),
            lambda: K.Activation("relu6"),
            lambda: K.Activation(tf.nn.relu),
        ]
    ),
    st.integers(1, 4),
    SEEDS,
)
def test_piecewise_linear_activations_at_their_corners_too(make, length, seed):
    assert_equal(behind_pointwise((length, 3), make(), seed), [3 * inputs_on_grid(seed, 3, length, 3)])


def test_blank_images_teach_a_bias_nothing():
    model = put_on_grid(tf.keras.Sequential([K.Conv2D(2, 3, activation="relu", input_shape=(9, 9, 1))]), 1)
    model.layers[0].bias.assign([0.0, 0.0])
    images = np.zeros((2, 9, 9, 1), np.float32)
    images[:, 1:3, 1:3] = 1
    assert_equal(model, [images])
