"""Keras's callbacks around models of make_private and DPOptimizer."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import ConfigurationError, LedgerError
from tests.citizenship.common import (
    BATCH,
    DELTA,
    EXAMPLES,
    Interrupt,
    Interrupted,
    X,
    Y,
    files,
    network,
    same_weights,
    scalars,
)

callbacks = tf.keras.callbacks
STEPS = EXAMPLES // BATCH


def private(ledger=None, noise_multiplier=2.0, epsilon=8.0):
    # RDP: the tests are about what is charged, and PLD takes seconds for each noise that is tried.
    made = kp.make_private(
        network(), epsilon, DELTA, noise_multiplier=noise_multiplier, ledger=ledger, accountant="rdp"
    )
    made.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return made


def fit(model, *given, epochs=2, **options):
    return model.fit(X, Y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(given), **options)


# Checkpoints.


@pytest.mark.parametrize("name", ["{epoch}.weights.h5", "{epoch}.ckpt"])
def test_weights_of_a_checkpoint_bring_the_steps_done_with_them(name, tmp_path):
    trained = private()
    fit(trained, callbacks.ModelCheckpoint(str(tmp_path / name), save_weights_only=True))
    again = private()
    again.load_weights(str(tmp_path / name.format(epoch=2)))
    assert same_weights(again, trained)
    assert int(again.optimizer.steps_done) == 2 * STEPS
    assert again.optimizer.identity == trained.optimizer.identity


def test_a_whole_checkpoint_is_a_private_model_again(tmp_path):
    trained = private()
    fit(trained, callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"), "val_loss"), validation_split=0.5)
    loaded = tf.keras.models.load_model(tmp_path / "2.keras")
    assert type(loaded) is type(trained) and same_weights(loaded, trained)
    assert int(loaded.optimizer.steps_done) == int(trained.optimizer.steps_done) > 0
    # No ledger says how its steps were sampled: they count in full.
    assert loaded.optimizer.privacy_spent(DELTA) > trained.optimizer.privacy_spent(DELTA) > 0
    assert loaded.get_config() == trained.get_config()


@pytest.mark.parametrize("name", ["model.h5", "model"])
def test_formats_that_keras_cannot_load_again_are_refused_when_saving(name, tmp_path):
    with pytest.raises(ConfigurationError, match=r"ends with '\.keras'"):
        fit(private(), callbacks.ModelCheckpoint(str(tmp_path / name)))
    assert files(tmp_path) == []


def by_hand(optimizer="adam"):
    model = network()
    model.compile(kp.DPOptimizer(optimizer, noise_multiplier=2.0, expected_batch_size=BATCH), "binary_crossentropy")
    return model


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_dp_optimizer_is_loaded_with_its_steps(name, tmp_path):
    model = by_hand()
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    model.save(tmp_path / name)
    loaded = tf.keras.models.load_model(tmp_path / name)
    assert int(loaded.optimizer.steps_done) == STEPS == int(loaded.optimizer.iterations)
    assert loaded.optimizer.identity == model.optimizer.identity
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert loaded.optimizer.privacy_spent(DELTA) == model.optimizer.privacy_spent(DELTA) > 0


def test_a_saved_state_that_does_not_fit_is_no_fresh_start():
    optimizer = by_hand().optimizer
    with pytest.raises(LedgerError, match="not known"):
        optimizer.set_weights([np.zeros(3)])


def test_a_saved_model_would_forget_steps_and_is_refused(tmp_path):
    model = by_hand()
    model.fit(X, Y, batch_size=BATCH, verbose=0)
    with pytest.raises(ConfigurationError, match="would be forgotten"):
        model.save(tmp_path / "refused")
    model.save(tmp_path / "model", include_optimizer=False)
    loaded = tf.keras.models.load_model(tmp_path / "model", compile=False)
    assert same_weights(loaded, model)


# Interruptions.


@pytest.mark.parametrize("noise_multiplier", [2.0, None], ids=["fixed noise", "calibrated"])
def test_a_fit_goes_on_after_an_interruption_and_nothing_spent_is_forgotten(noise_multiplier, tmp_path):
    ledger, folder = str(tmp_path / "ledger.json"), str(tmp_path / "backup")
    first = private(ledger, noise_multiplier)
    with pytest.raises(Interrupted):
        fit(first, callbacks.BackupAndRestore(folder), Interrupt(2, 3), epochs=4)
    ran, noise, identity = 2 * STEPS + 4, first.optimizer.noise_multiplier, first.optimizer.identity
    assert int(first.optimizer.steps_done) == ran
    (charge,) = _charged(ledger)
    assert charge.noise_multiplier == noise and charge.steps >= ran
    spent = kp.dp.epsilon([dataclasses.replace(charge, steps=ran)], DELTA, "rdp")
    del first

    again = private(ledger, noise_multiplier)
    history = fit(again, callbacks.BackupAndRestore(folder), epochs=4)
    assert history.epoch[0] == 2 and again.optimizer.identity == identity
    assert 0 < spent < min(history.history["epsilon"]) and max(history.history["epsilon"]) <= 8.0
    assert sum(each.steps for each in _charged(ledger)) >= ran + 2 * STEPS
    # Four steps were lost and are done again: that costs some noise, and not that of a second training.
    assert noise <= again.optimizer.noise_multiplier < 1.1 * noise
    assert not (tmp_path / "backup" / "chief").exists()


def _charged(ledger):
    held = kp.dp.Ledger.open(ledger) if kp.dp.Ledger.held(ledger) is None else kp.dp.Ledger.held(ledger)
    return held.charges()


def test_a_backup_without_a_ledger_is_warned_about_once_and_charged_in_full(tmp_path):
    first = private(epsilon=100.0)
    with pytest.warns(UserWarning, match="BackupAndRestore without a ledger") as seen, pytest.raises(Interrupted):
        fit(first, callbacks.BackupAndRestore(str(tmp_path)), Interrupt(1), epochs=2)
    ours = [str(each.message) for each in seen if "ledger" in str(each.message)]
    assert len(ours) == 1 and "make_private(..., ledger='spent.json')" in ours[0]
    spent = kp.dp.epsilon(first.optimizer.ledger.charges_of(first.optimizer), DELTA, "rdp")
    again = private(epsilon=100.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = fit(again, callbacks.BackupAndRestore(str(tmp_path)), epochs=2)
    assert history.epoch == [1] and history.history["epsilon"][0] > spent


# The others.


def test_tensorboard_shows_epsilon(tmp_path):
    history = fit(private(), callbacks.TensorBoard(str(tmp_path))).history
    assert scalars(tmp_path, "epoch_epsilon") == pytest.approx(history["epsilon"])


def test_callbacks_that_read_the_logs_and_set_the_rate(tmp_path):
    given = [
        callbacks.CSVLogger(str(tmp_path / "log.csv")),
        callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        callbacks.TerminateOnNaN(),
        callbacks.EarlyStopping("val_loss", min_delta=100.0, baseline=-1.0, patience=2, restore_best_weights=True),
    ]
    model = private()
    history = fit(model, *given, epochs=5, validation_data=(X, Y))
    assert len(history.epoch) == 2
    np.testing.assert_allclose(history.history["lr"], [0.1, 0.05])
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["epsilon"]) for row in rows] == history.history["epsilon"]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


def test_the_rate_is_reduced_on_a_plateau():
    history = fit(private(), callbacks.ReduceLROnPlateau("val_loss", 0.5, patience=1, min_delta=100.0), epochs=3,
                  validation_data=(X, Y)).history  # fmt: skip
    assert history["lr"][-1] < history["lr"][0]


def test_a_fit_of_bad_rows_is_not_ended_by_terminate_on_nan():
    bad = np.full_like(X, np.nan)
    model = private()
    model.fit(bad, Y, batch_size=BATCH, epochs=1, verbose=0)
    assert all(np.isfinite(each).all() for each in model.get_weights())


def test_choices_by_private_data_are_warned_about_once_a_fit_with_the_remedy():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(private(), callbacks.EarlyStopping("loss", patience=9))
    ours = [str(each.message) for each in seen if each.category is UserWarning]
    assert len(ours) == 1 and "EarlyStopping decides by 'loss'" in ours[0] and "Monitor" in ours[0]


PLAIN_FIT = """
import os, time, numpy as np, tensorflow as tf, keras_private as kp
flush = os.fsync
os.fsync = lambda file: (time.sleep(0.2), flush(file))  # a slow disk
x = np.random.default_rng(0).normal(size=(160, 4)).astype("float32")
model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
private = kp.make_private(model, 8.0, 1e-5, noise_multiplier=2.0, ledger="ledger.json")
private.compile("sgd", "mse")
private.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0)
"""


def test_an_ordinary_private_fit_says_nothing_on_standard_error(tmp_path):
    # Not that flushing the ledger is slow beside a step of microseconds, either.
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning:__main__", "-c", PLAIN_FIT],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stderr == "" and json.loads((tmp_path / "ledger.json").read_text())
