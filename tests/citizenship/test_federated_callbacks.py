"""Keras's callbacks around FederatedModel: an epoch is a round."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import CheckpointError, ConfigurationError
from tests.citizenship.common import CLIENTS, Interrupt, Interrupted, X, Y, files, network, same_weights, scalars

callbacks = tf.keras.callbacks


def federated(aggregator=None, rate=0.1, server="adam"):
    fed = kp.FederatedModel(network(), aggregator)
    fed.compile(tf.keras.optimizers.SGD(rate), server_optimizer=server, loss="binary_crossentropy")
    return fed


def private():
    return federated(kp.federated.DPAggregator(l2_norm_clip=1.0, noise_multiplier=1.0))


def fit(fed, *given, epochs=2, **options):
    return fed.fit(CLIENTS, epochs=epochs, verbose=0, callbacks=list(given), **options)


@pytest.mark.parametrize("name", ["{epoch}.weights.h5", "{epoch}.ckpt", "{epoch}.keras"])
def test_checkpoints_hold_the_keras_model(name, tmp_path):
    fed = federated()
    fit(fed, callbacks.ModelCheckpoint(str(tmp_path / name), save_weights_only=not name.endswith("keras")))
    path = str(tmp_path / name.format(epoch=2))
    if name.endswith("keras"):
        loaded = tf.keras.models.load_model(path)
        assert type(loaded) is type(fed.model)
        assert loaded.optimizer.get_config() == fed.optimizer.get_config()
    else:
        loaded = network()
        loaded.load_weights(path)
    assert same_weights(loaded, fed.model)


def test_rounds_go_on_after_an_interruption_as_if_there_was_none(tmp_path):
    # With Adam at the server: its moments are restored as well.
    through = federated()
    fit(through, epochs=4, shuffle=False)
    with pytest.raises(Interrupted):
        fit(federated(), callbacks.BackupAndRestore(str(tmp_path)), Interrupt(2), epochs=4, shuffle=False)
    again = federated()
    again.model.set_weights([np.zeros_like(each) for each in again.model.get_weights()])
    history = fit(again, callbacks.BackupAndRestore(str(tmp_path)), epochs=4, shuffle=False)
    assert history.epoch == [2, 3] and again.rounds_done == 4
    for one, other in zip(again.get_weights(), through.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert files(tmp_path) == []


def test_what_was_spent_is_not_forgotten(tmp_path):
    ledger = str(tmp_path / "ledger.json")

    def run(*given):
        fed = private()
        budget = kp.PrivacyBudget(60.0, 1e-3, ledger=ledger)
        backup = callbacks.BackupAndRestore(str(tmp_path / "backup"))
        return fit(fed, backup, budget, *given, epochs=4, clients_per_round=5), fed

    with pytest.raises(Interrupted):
        run(Interrupt(2))
    held = kp.dp.Ledger.held(ledger) or kp.dp.Ledger.open(ledger)
    identity, spent = {session.identity for session in held.sessions}, kp.dp.epsilon(held.charges(), 1e-3)
    del held
    history, fed = run()
    assert history.epoch == [2, 3] and fed.rounds_done == 4
    assert {fed.privacy_meter.identity} == identity
    assert min(history.history["epsilon"]) >= spent
    assert fed.privacy_spent(1e-3).rounds >= 4


def test_the_folder_of_a_backup_may_hold_other_things_and_can_be_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    fit(federated(), callbacks.BackupAndRestore(str(tmp_path)))
    assert files(tmp_path) == ["thesis.txt"]
    fit(federated(), callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False))
    assert files(tmp_path) == ["rounds/round-00000001.kpr", "rounds/round-00000002.kpr", "thesis.txt"]
    with pytest.raises(CheckpointError, match="another training"):
        fit(federated(server="sgd"), callbacks.BackupAndRestore(str(tmp_path)))


@pytest.mark.parametrize("options", [{"save_freq": 3}, {"save_before_preemption": True}])
def test_a_backup_within_a_round_is_refused(options, tmp_path):
    with pytest.raises(ConfigurationError, match="a round is an epoch"):
        fit(federated(), callbacks.BackupAndRestore(str(tmp_path), **options))


def test_two_places_for_checkpoints_are_refused(tmp_path):
    backup = callbacks.BackupAndRestore(str(tmp_path))
    with pytest.raises(ConfigurationError, match="together with checkpoints"):
        fit(federated(), backup, checkpoints=str(tmp_path))
    with pytest.raises(ConfigurationError, match="CallbackList"):
        federated().fit(CLIENTS, verbose=0, callbacks=callbacks.CallbackList([backup]))


def test_tensorboard_shows_epsilon(tmp_path):
    history = fit(private(), callbacks.TensorBoard(str(tmp_path)), kp.PrivacyBudget(60.0, 1e-3), clients_per_round=5)
    assert scalars(tmp_path, "epoch_epsilon") == pytest.approx(history.history["epsilon"])


def test_callbacks_that_read_the_logs_and_set_the_rate(tmp_path):
    given = [
        callbacks.CSVLogger(str(tmp_path / "log.csv")),
        callbacks.TerminateOnNaN(),
        callbacks.EarlyStopping("val_loss", min_delta=100.0, baseline=-1.0, patience=3, restore_best_weights=True),
        callbacks.ReduceLROnPlateau("val_loss", 0.5, patience=1, min_delta=100.0),
    ]
    fed = federated()
    history = fit(fed, *given, epochs=6, validation_data=(X, Y))
    assert len(history.epoch) == 3
    assert history.history["lr"][-1] < history.history["lr"][0]
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["val_loss"]) for row in rows] == history.history["val_loss"]


def test_yogi_is_loaded_by_its_registered_name():
    yogi = kp.federated.Yogi(0.5, beta_1=0.8, epsilon=1e-2)
    config = tf.keras.optimizers.serialize(yogi)
    assert config["registered_name"] == "keras_private>Yogi"
    again = tf.keras.optimizers.deserialize(config)
    assert type(again) is kp.federated.Yogi and again.get_config() == yogi.get_config()
