"""Privacy reports of models on shares: what they say, and that simulations are named."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted import reporting
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
    totals = next(view for view in after.views if view.adversary == "model_owner").of("loss and metrics")
    assert "one bit after each epoch" in totals.note and "one bit" not in str(before)
    encrypted.compile("sgd", "categorical_crossentropy", reveal=())
    silent = reporting.report_of_model(encrypted, 4, trained=True, compiled=False)
    assert levels(silent, "model_owner")["loss and metrics"] == TOTALS, "the bit is opened all the same"
    assert kp.PrivacyReport.from_json(after.to_json()) == after


@pytest.mark.parametrize(
    "hosts, simulated",
    [
        (["10.0.0.1", "10.0.0.2", "10.0.0.3"], False),
        (["10.0.0.1", "10.0.0.2", "10.0.0.1"], True),
        (["10.0.0.1", "10.0.0.2", "localhost"], True),
        (["127.0.0.1", "127.0.0.2", "127.0.0.3"], True),
        (["10.0.0.1", "10.0.0.2", "::1"], True),
        (["10.0.0.1", "10.0.0.2", "0.0.0.0"], True),
        (["a.example", "b.example", "c.example"], False),
    ],
)
def test_parties_are_apart_only_on_three_hosts(hosts, simulated):
    assert bool(together(hosts)) is simulated


def test_of_addresses_of_this_machine_two_are_together(monkeypatch):
    monkeypatch.setattr(reporting, "this_machine", lambda host: host.startswith("10.9."))
    assert together(["10.9.0.1", "10.9.0.2", "10.0.0.3"])
    assert not together(["10.9.0.1", "10.0.0.2", "10.0.0.3"]), "the publisher may share the host of one party"
