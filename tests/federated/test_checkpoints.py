"""Checkpoints of rounds: resumed, damaged, foreign, on a full disk, and after a kill."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import CheckpointError
from keras_private.federated import checkpoints
from tests.federated.test_model import LOSS, dense, difference, examples

CLIENTS = {name: examples(8, seed) for seed, name in enumerate("abc")}


def trained(epochs, folder=None, model=None, server="adam", **arguments):
    fed = kp.FederatedModel(dense() if model is None else model)
    fed.compile(tf.keras.optimizers.SGD(0.1), server, loss=LOSS)
    history = fed.fit(CLIENTS, epochs=epochs, shuffle=False, verbose=0, checkpoints=folder, **arguments)
    return fed, history


def files(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_training_goes_on_where_it_ended(tmp_path):
    straight, _ = trained(5)
    trained(2, tmp_path)
    resumed, history = trained(5, tmp_path)
    assert history.epoch == [2, 3, 4]
    assert difference(straight.model, resumed.model) < 1e-7
    assert files(tmp_path) == ["round-00000003.kpr", "round-00000004.kpr", "round-00000005.kpr"]
    _, history = trained(5, tmp_path)
    assert history.epoch == []


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "renamed"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    trained(2, tmp_path)
    newest = tmp_path / "round-00000002.kpr"
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        content = content[:-10]
    elif damage == "empty":
        content = bytearray()
    else:
        content = bytearray((tmp_path / "round-00000001.kpr").read_bytes())
    newest.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="is damaged"):
        resumed, history = trained(3, tmp_path)
    assert history.epoch == [1, 2]
    straight, _ = trained(3)
    assert difference(straight.model, resumed.model) < 1e-7


def test_another_training_is_refused_and_changes_nothing(tmp_path):
    trained(1, tmp_path)
    with pytest.raises(CheckpointError, match="server_optimizer differ"):
        trained(2, tmp_path, server="yogi")
    other = tf.keras.Sequential([tf.keras.layers.Input((6,)), tf.keras.layers.Dense(3, "softmax")])
    begun = other.get_weights()
    with pytest.raises(CheckpointError, match="model differ"):
        trained(2, tmp_path, model=other)
    for old, new in zip(begun, other.get_weights()):
        np.testing.assert_array_equal(old, new)
    assert files(tmp_path) == ["round-00000001.kpr"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    trained(1, tmp_path)
    before = (tmp_path / "round-00000001.kpr").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        trained(2, tmp_path)
    assert files(tmp_path) == ["round-00000001.kpr"]
    assert (tmp_path / "round-00000001.kpr").read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trained(1, tmp_path / "file" / "folder")


def test_after_a_kill_the_newest_whole_round_counts(tmp_path):
    code = textwrap.dedent("""
        import sys
        import tensorflow as tf
        from tests.federated.test_checkpoints import trained
        class Tell(tf.keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                print(epoch + 1, flush=True)
        trained(10000, sys.argv[1], callbacks=[Tell()])
    """)
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root)
    for line in process.stdout:
        if int(line) == 7:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait(30)
    process.stdout.close()
    whole = [name for name in files(tmp_path) if not name.startswith(".")]
    done = int(whole[-1][6:14])
    assert done >= 7
    resumed, history = trained(done + 1, tmp_path)
    assert history.epoch == [done]
    straight, _ = trained(done + 1)
    assert difference(straight.model, resumed.model) < 1e-5
