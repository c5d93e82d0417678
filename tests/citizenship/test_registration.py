"""Everything of this package that Keras saves has a registered name, and is found by it without custom_objects."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAYERS = {
    "EncryptedDense": (lambda: kp.layers.EncryptedDense(3, activation="relu", kernel_regularizer="l2"), (4,)),
    "EncryptedConv2D": (lambda: kp.layers.EncryptedConv2D(2, 3, strides=2, padding="same"), (6, 6, 1)),
    "EncryptedDepthwiseConv2D": (lambda: kp.layers.EncryptedDepthwiseConv2D(3, depth_multiplier=2), (6, 6, 1)),
    "EncryptedEmbedding": (lambda: kp.layers.EncryptedEmbedding(5, 3), (4,)),
    "EncryptedActivation": (lambda: kp.layers.EncryptedActivation("sigmoid"), (4,)),
}


def test_each_public_layer_is_tried():
    assert sorted(LAYERS) == sorted(name for name in kp.layers.__all__ if name.startswith("Encrypted"))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_saved_and_loaded_by_its_registered_name(name, tmp_path):
    make, shape = LAYERS[name]
    model = tf.keras.Sequential([tf.keras.Input(shape), make()])
    layer = model.layers[0]
    assert tf.keras.utils.get_registered_name(type(layer)) == f"keras_private>{name}"
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is type(layer) and loaded.layers[0].get_config() == layer.get_config()
    x = np.random.default_rng(0).integers(0, 5, (2, *shape))
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)


def test_a_private_model_and_its_optimizer_have_registered_names():
    for made, name in (
        (kp.dp.PrivateFunctional, "PrivateFunctional"),
        (kp.dp.PrivateModel, "PrivateModel"),
        (kp.DPOptimizer, "DPOptimizer"),
    ):
        assert tf.keras.utils.get_registered_name(made) == f"keras_private>{name}"
        assert tf.keras.utils.get_registered_object(f"keras_private>{name}") is made


def test_the_config_of_a_dp_optimizer_makes_the_same_one():
    optimizer = kp.DPOptimizer(tf.keras.optimizers.Adam(0.3), 0.7, 1.9, 12, name="mine")
    config = tf.keras.optimizers.serialize(optimizer)
    again = tf.keras.optimizers.deserialize(config)
    assert type(again) is kp.DPOptimizer and again.get_config() == optimizer.get_config()
    assert again.identity != optimizer.identity


LOAD = """
import sys, tensorflow as tf
{imported}
model = tf.keras.models.load_model(sys.argv[1])
print(type(model).__name__, type(model.optimizer).__name__, int(model.optimizer.steps_done))
"""


def test_another_process_needs_the_import_of_dp_alone(tmp_path):
    x = np.zeros((8, 4), np.float32)
    private = kp.make_private(tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)]), 9.0, 1e-5,
                              noise_multiplier=3.0)  # fmt: skip
    private.compile("sgd", "mse")
    private.fit(x, x[:, :1], batch_size=4, verbose=0)
    private.save(tmp_path / "model.keras")
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(imported="import keras_private.dp"), str(tmp_path / "model.keras")],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["PrivateFunctional", "DPOptimizer", "2"]
    assert done.stderr == ""
