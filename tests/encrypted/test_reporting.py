"""Privacy reports of models on shares: what they say, and that simulations are named."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted.reporting import together
from keras_private.report.content import CLEAR, NOTHING, SHARES, TOTALS


@pytest.fixture(scope="module")
def encrypted():
    layers = tf.keras.layers
    keras = tf.keras.Sequential([tf.keras.Input((3,)), layers.Dense(2, "softmax")], name="small")
    return kp.EncryptedModel(keras, input_range=(-1, 1))


def levels(report, adversary):
    return {sight.item: sight.level for view in report.views if view.adversary == adversary for sight in view.sights}


def test_parties_see_shares_and_two_of_them_everything(encrypted):
    report = encrypted.privacy_report(4)
    secrets = [item for item in report.items if not item.startswith("architecture")]
    for party in ("server0", "server1", "server2"):
        assert {levels(report, party)[item] for item in secrets} == {SHARES}
    assert set(levels(report, "two parties together").values()) == {CLEAR}
    assert levels(report, "model_owner")["inputs"] == levels(report, "model_owner")["labels"] == NOTHING


def test_a_simulation_is_named_and_its_process_sees_everything(encrypted):
    report = encrypted.privacy_report(4)
    assert "in this process" in report.simulated[0]
    assert set(levels(report, "this process, which runs all parties").values()) == {CLEAR}
    assert str(report).index("SIMULATED") < str(report).index("Who sees what")


def test_the_cost_is_that_of_the_graphs_and_training_without_noise_has_no_epsilon(encrypted):
    before = encrypted.privacy_report(4)
    counted = encrypted.cost(4, training=False)
    assert (
        list(before.costs) == ["prediction of 4 rows"] and before.costs["prediction of 4 rows"].bytes == counted.bytes
    )
    assert not before.learns and levels(before, "model_owner")["loss and metrics"] == NOTHING
    encrypted.compile("sgd", "categorical_crossentropy")
    encrypted.fit(np.zeros((4, 3)), np.eye(2)[[0, 1, 0, 1]], batch_size=4, verbose=0)
    after = encrypted.privacy_report(4)
    assert after.costs["training step of 4 rows"].bytes == encrypted.cost(4).bytes > counted.bytes
    assert after.learns and after.spendings == () and "Epsilon is infinite" in str(after)
    assert levels(after, "model_owner")["loss and metrics"] == TOTALS
    assert [each.name for each in after.series] == list(encrypted.history.history)
    assert kp.PrivacyReport.from_json(after.to_json()) == after


@pytest.mark.parametrize(
    "hosts, simulated",
    [
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], False),
        (["10.0.0.1", "10.0.0.2", "10.0.0.1"], True),
        (["10.0.0.1", "10.0.0.2", "localhost"], True),
        (["127.0.0.1", "127.0.0.2", "127.0.0.3"], True),
    ],
)
def test_parties_are_apart_only_on_three_hosts(hosts, simulated):
    assert bool(together(hosts)) is simulated
