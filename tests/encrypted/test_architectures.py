"""Networks drawn at random: branches, sums, shared layers, pools; outputs and gradients as in Keras."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_private.encrypted import EncryptedModel
from tests.encrypted.programs import assert_parity

K = tf.keras.layers


@st.composite
def networks(draw):
    """A functional model of small images with up to five blocks, some of them with two branches."""
    size, channels = draw(st.integers(4, 7)), draw(st.integers(1, 3))
    inputs = tf.keras.Input((size, size, channels))
    x = inputs
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["convolution", "residual", "split", "pool", "depthwise", "shared", "activation"]))
        width = x.shape[-1]
        if kind == "convolution":
            padding = draw(st.sampled_from(["same", "valid"])) if x.shape[1] > 2 else "same"
            x = K.Conv2D(draw(st.integers(1, 4)), 2, padding=padding, activation="relu")(x)
        elif kind == "residual":
            x = K.Add()([x, K.Conv2D(width, 3, padding="same", activation="relu")(x)])
        elif kind == "split":
            x = K.Concatenate()([K.Conv2D(2, 1)(x), K.ReLU()(x)])
        elif kind == "pool":
            pool = draw(st.sampled_from([K.MaxPooling2D, K.AveragePooling2D]))
            x = pool(2, strides=draw(st.sampled_from([1, 2])), padding="same")(K.ReLU()(x))
        elif kind == "depthwise":
            x = K.DepthwiseConv2D(2, padding="same", depth_multiplier=draw(st.integers(1, 2)))(x)
        elif kind == "shared":
            layer = K.Conv2D(width, 1)
            x = layer(K.LeakyReLU(0.1)(layer(x)))
        else:
            x = K.Activation(draw(st.sampled_from(["sigmoid", "tanh", "relu"])))(x)
    head = draw(st.sampled_from([K.Flatten, K.GlobalAveragePooling2D, K.GlobalMaxPooling2D]))()
    return tf.keras.Model(inputs, K.Dense(draw(st.integers(1, 5)))(head(x)))


@pytest.mark.long
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 1000))
def test_logits_and_gradients_are_those_of_keras(model, seed):
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    x = rng.normal(0, 1, (3, *model.input_shape[1:])).astype(np.float32)
    assert_parity(model, [x], tolerance=1e-2, seed=seed)


@settings(deadline=None, max_examples=5, suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 1000))
def test_predictions_are_those_of_keras(model, seed):
    x = np.clip(np.random.default_rng(seed).normal(0, 1, (5, *model.input_shape[1:])), -4, 4).astype(np.float32)
    found = EncryptedModel(model, input_range=(-4.0, 4.0)).predict(x, batch_size=3, verbose=0)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-2)
