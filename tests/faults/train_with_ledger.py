"""Trains by a ledger in the folder given, resuming from its checkpoint; run by test_ledger_kill.py and killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_private.dp.callbacks import PrivacyBudget
from keras_private.dp.optimizer import DPOptimizer
from keras_private.dp.sampling import PoissonSampler


class Journal(tf.keras.callbacks.Callback):
    """A byte for every step about to run, and a checkpoint every 10."""

    def __init__(self, path: Path, manager: tf.train.CheckpointManager) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._manager = manager

    def on_train_batch_begin(self, batch, logs=None):
        os.write(self._file, b".")

    def on_train_batch_end(self, batch, logs=None):
        if batch % 10 == 9:
            self._manager.save()


def main(folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    sampler = PoissonSampler(x, x[:, :1], batch_size=8, steps_per_epoch=40)
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
    optimizer = DPOptimizer("sgd", l2_norm_clip=1.0, noise_multiplier=2.0, expected_batch_size=8)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=model), str(folder / "checkpoints"), max_to_keep=2)
    if manager.latest_checkpoint:
        tf.train.Checkpoint(model=model).restore(manager.latest_checkpoint).assert_existing_objects_matched()
    budget = PrivacyBudget(20.0, 1e-5, data=sampler, ledger=folder / "ledger.json")
    history = model.fit(sampler, epochs=4, verbose=0, callbacks=[Journal(folder / "journal", manager), budget])
    print(history.history["epsilon"][-1], int(optimizer.steps_done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
