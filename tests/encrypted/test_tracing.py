"""TensorFlow's warning of functions that are traced again and again must not reach the user."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from keras_private.encrypted import EncryptedModel

K = tf.keras.layers


@pytest.fixture
def warned():
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = tf.get_logger()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_the_witness_sees_retracing(warned):
    for _ in range(8):
        tf.function(lambda x: x)(tf.constant(1.0))
    assert any("retracing" in each for each in warned)


@pytest.mark.slow
def test_many_models_trace_without_warnings(warned, tmp_path):
    x, y = np.zeros((4, 2)), np.zeros((4, 1))
    for number in range(7):
        encrypted = EncryptedModel(tf.keras.Sequential([K.Input((2,)), K.Dense(1, name=f"dense{number}")]))
        encrypted.compile("sgd", "mse")
        encrypted.fit(x, y, batch_size=3, verbose=0)
        encrypted.evaluate(x, y, verbose=0)
        encrypted.predict(x, verbose=0)
        encrypted.parity_check(x, verbose=False)
        encrypted.reveal_to()
        encrypted.reveal_to()
        encrypted.save(tmp_path / "model")
        EncryptedModel.load(tmp_path / "model")
    assert not [each for each in warned if "retracing" in each]
