"""validate and fix."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import ConfigurationError, UnsupportedModelError

layers = tf.keras.layers


def images(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.normal(size=(count, 8, 8, 3)).astype(np.float32), np.arange(count) % 2


def model(*middle: layers.Layer) -> tf.keras.Model:
    built = tf.keras.Sequential(
        [tf.keras.Input((8, 8, 3)), layers.Conv2D(4, 3), *middle, layers.Flatten(), layers.Dense(2)]
    )
    built.compile("sgd", loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return built


def test_validate_lists_every_use_of_every_variable():
    result = kp.validate(model(layers.Dropout(0.5)), *images())
    assert result.probed_examples == 6
    assert len(result.covered) == 8  # two kernels and two biases, input and output gradient of each
    assert "Conv2D" in str(result) and "BiasAdd" in str(result)


def test_validate_refuses_batch_normalization_and_mixing_losses():
    with pytest.raises(UnsupportedModelError, match=r"keras_private\.fix"):
        kp.validate(model(layers.BatchNormalization()), *images())
    mixing = model()

    def centred(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.square(y_pred - tf.reduce_mean(y_pred, axis=0)), axis=-1)

    mixing.compile("sgd", loss=centred)
    with pytest.raises(UnsupportedModelError, match="batch"):
        kp.validate(mixing, *images())


def test_the_probe_refutes_a_proof_that_is_wrong(monkeypatch):
    """With a transfer rule that lies, only the numeric probe stands between a leak and training."""
    from keras_private.dp.proof.registry import RULES

    def lie(op, facts, context):
        return [context.row(op.outputs[0], facts[0].axis, facts[0].share, facts[0].dims)]

    monkeypatch.setitem(RULES, "ReverseV2", lie)
    with pytest.raises(UnsupportedModelError, match="another example's row"):
        kp.validate(model(layers.Lambda(lambda x: x + tf.reverse(x, axis=[0]))), *images())


def test_validate_needs_a_compiled_model_and_two_examples():
    with pytest.raises(ConfigurationError, match="compile"):
        kp.validate(tf.keras.Sequential([layers.Dense(1)]), np.zeros((4, 2)))
    with pytest.raises(ConfigurationError, match="1 examples"):
        kp.validate(model(), *images(1))


def test_fix_replaces_normalization_and_copies_the_rest():
    original = model(layers.BatchNormalization(), layers.ReLU())
    original.layers[1].set_weights([np.full(4, value) for value in (2.0, 3.0, 4.0, 5.0)])
    fixed = kp.fix(original)
    assert isinstance(fixed.layers[1], layers.GroupNormalization)
    assert fixed.layers[1].groups == 4
    np.testing.assert_array_equal(fixed.layers[1].gamma, np.full(4, 2.0))
    np.testing.assert_array_equal(fixed.layers[1].beta, np.full(4, 3.0))
    np.testing.assert_array_equal(fixed.layers[0].kernel, original.layers[0].kernel)
    assert isinstance(original.layers[1], layers.BatchNormalization)
    fixed.compile("sgd", loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert kp.validate(fixed, *images()).covered


def test_fix_of_dense_features_keeps_values_apart_from_zero():
    dense = tf.keras.Sequential([tf.keras.Input((6,)), layers.Dense(8), layers.BatchNormalization()])
    fixed = kp.fix(dense)
    assert fixed.layers[1].groups <= 4
    assert np.abs(fixed(np.random.default_rng(0).normal(size=(3, 6)))).max() > 0.1


def test_fix_reaches_nested_and_functional_models():
    inner = tf.keras.Sequential([tf.keras.Input((6,)), layers.Dense(6), layers.BatchNormalization()])
    inputs = tf.keras.Input((6,))
    outer = tf.keras.Model(inputs, layers.Add()([inner(inputs), inputs]))
    fixed = kp.fix(outer)
    kinds = [type(layer).__name__ for layer in fixed._flatten_layers()]
    assert "BatchNormalization" not in kinds and "GroupNormalization" in kinds


def test_fix_of_a_subclassed_model_says_what_to_do():
    class Own(tf.keras.Model):
        pass

    with pytest.raises(UnsupportedModelError, match="GroupNormalization"):
        kp.fix(Own())
