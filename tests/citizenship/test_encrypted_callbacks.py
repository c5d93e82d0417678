"""Keras's callbacks around EncryptedModel: what they write and put back are shares."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import ConfigurationError, ShareFileError
from tests.citizenship.common import Interrupt, Interrupted, X, Y, files, network, scalars

callbacks = tf.keras.callbacks


def encrypted(optimizer=None, model=None):
    made = kp.EncryptedModel(network() if model is None else model, input_range=(-6, 6))
    made.compile(optimizer or tf.keras.optimizers.SGD(0.1, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
    return made


def fit(model, *given, epochs=2, **options):
    return model.fit(X, Y, batch_size=80, epochs=epochs, shuffle=False, verbose=0, callbacks=list(given), **options)


def opened(model):
    return model.reveal_to().get_weights()


def close(one, other):
    # A truncation is off by one unit, at random.
    for a, b in zip(opened(one), opened(other)):
        np.testing.assert_allclose(a, b, atol=2e-3)


@pytest.mark.parametrize("only", [True, False], ids=["weights", "whole model"])
@pytest.mark.long
def test_checkpoints_are_folders_with_a_file_for_each_party(only, tmp_path):
    model = encrypted()
    fit(model, callbacks.ModelCheckpoint(str(tmp_path / "{epoch}"), save_weights_only=only))
    assert {path.name for path in (tmp_path / "2").iterdir()} >= {"server0.npz", "server1.npz", "server2.npz"}
    loaded = kp.EncryptedModel.load(tmp_path / "2")
    assert all((one == other).all() for one, other in zip(opened(loaded), opened(model)))
    assert int(loaded.optimizer.iterations) == int(model.optimizer.iterations) == 4


@pytest.mark.long
def test_epochs_go_on_after_an_interruption_as_if_there_was_none(tmp_path):
    through = encrypted()
    fit(through, epochs=4)
    with pytest.raises(Interrupted):
        fit(encrypted(), callbacks.BackupAndRestore(str(tmp_path)), Interrupt(2, 1), epochs=4)
    again = encrypted()
    history = fit(again, callbacks.BackupAndRestore(str(tmp_path)), epochs=4)
    assert history.epoch == [2, 3]
    # Velocities and the count of steps were restored as well.
    assert int(again.optimizer.iterations) == int(through.optimizer.iterations) == 8
    close(again, through)
    assert files(tmp_path) == []


def test_a_rate_that_was_set_is_restored_and_the_backup_can_be_kept(tmp_path):
    rate = callbacks.LearningRateScheduler(lambda epoch: 0.02)
    (tmp_path / "thesis.txt").write_text("years of work")
    fit(encrypted(), rate, callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False))
    assert {name.split("/")[0] for name in files(tmp_path)} == {"shares", "thesis.txt"}
    again = encrypted()
    assert fit(again, callbacks.BackupAndRestore(str(tmp_path))).epoch == []
    assert float(again.optimizer.learning_rate) == pytest.approx(0.02)
    assert files(tmp_path) == ["thesis.txt"]


def test_a_backup_of_other_first_weights_or_of_another_optimizer_is_refused(tmp_path):
    fit(encrypted(), callbacks.BackupAndRestore(str(tmp_path), delete_checkpoint=False))
    other = network()
    other.set_weights([each + 0.1 for each in other.get_weights()])
    # For which this model's overflow preflight says nothing.
    with pytest.raises(ShareFileError, match=r"EncryptedModel\.load"):
        fit(encrypted(model=other), callbacks.BackupAndRestore(str(tmp_path)))
    with pytest.raises(ShareFileError, match="another optimizer"):
        fit(encrypted("adam"), callbacks.BackupAndRestore(str(tmp_path)))


@pytest.mark.parametrize("options", [{"save_freq": 3}, {"save_before_preemption": True}])
def test_a_backup_within_an_epoch_is_refused(options, tmp_path):
    with pytest.raises(ConfigurationError, match="as a whole or undone"):
        fit(encrypted(), callbacks.BackupAndRestore(str(tmp_path), **options))


@pytest.mark.long
def test_tensorboard_shows_what_is_opened_and_no_histograms_of_shares(tmp_path):
    history = fit(encrypted(), callbacks.TensorBoard(str(tmp_path / "board"))).history
    assert scalars(tmp_path / "board", "epoch_loss") == pytest.approx(history["loss"])
    with pytest.raises(ConfigurationError, match="histogram_freq=0"):
        fit(encrypted(), callbacks.TensorBoard(str(tmp_path / "more"), histogram_freq=1))


@pytest.mark.long
def test_callbacks_that_read_the_logs_and_set_the_rate(tmp_path):
    given = [
        callbacks.CSVLogger(str(tmp_path / "log.csv")),
        callbacks.TerminateOnNaN(),
        callbacks.ReduceLROnPlateau("val_loss", 0.5, patience=1, min_delta=100.0),
        callbacks.EarlyStopping("val_loss", min_delta=100.0, baseline=-1.0, patience=3, restore_best_weights=True),
    ]
    history = fit(encrypted(), *given, epochs=6, validation_data=(X[:80], Y[:80]))
    assert len(history.epoch) == 3
    assert history.history["lr"][-1] < history.history["lr"][0]
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["val_loss"]) for row in rows] == history.history["val_loss"]
