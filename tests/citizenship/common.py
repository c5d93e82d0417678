"""What the tests of Keras's callbacks share: small data, an interruption, and readers of what callbacks wrote."""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXAMPLES, BATCH, DELTA = 160, 16, 1e-5
X = np.random.default_rng(0).normal(size=(EXAMPLES, 4)).astype(np.float32)
Y = (X[:, :1] > 0).astype(np.float32)
CLIENTS = {f"client{index}": (X[16 * index : 16 * index + 16], Y[16 * index : 16 * index + 16]) for index in range(10)}


def network() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(0)
    hidden, last = tf.keras.layers.Dense(3, "relu", name="hidden"), tf.keras.layers.Dense(1, "sigmoid", name="last")
    # Named as in a process that was started anew: Keras counts up names within one.
    return tf.keras.Sequential([tf.keras.Input((4,), name="x"), hidden, last], "net")


class Interrupted(Exception):
    """What ends a fit in the middle."""


class Interrupt(tf.keras.callbacks.Callback):
    """Raises in an epoch, at a batch or, without one, when the epoch begins."""

    def __init__(self, epoch: int, batch: int | None = None) -> None:
        super().__init__()
        self._at, self._now = (epoch, batch), -1

    def on_epoch_begin(self, epoch, logs=None):
        self._now = epoch
        if self._at == (epoch, None):
            raise Interrupted

    def on_train_batch_end(self, batch, logs=None):
        if self._at == (self._now, batch):
            raise Interrupted

    def _implements_train_batch_hooks(self) -> bool:
        return True


def scalars(folder: pathlib.Path, tag: str) -> list[float]:
    """The values of a tag in TensorBoard's event files of training."""
    events = EventAccumulator(str(folder / "train"))
    events.Reload()
    return [float(tf.make_ndarray(each.tensor_proto)) for each in events.Tensors(tag)]


def files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same_weights(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights()))
