"""Models of shares on disk: whole or not at all, checked, and useless in part."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_private.encrypted import EncryptedModel
from keras_private.errors import ShareFileError

K = tf.keras.layers
FILES = ("server0.npz", "server1.npz", "server2.npz", "model_owner.npz", "manifest.json")


def numbers(*shape, seed=0):
    return np.clip(np.random.default_rng(seed).normal(0, 1, shape), -3, 3).astype(np.float32)


def trained(**options):
    tf.keras.utils.set_random_seed(4)
    model = tf.keras.Sequential([K.Input((5,)), K.Dense(8, "relu"), K.BatchNormalization(trainable=False), K.Dense(3)])
    encrypted = EncryptedModel(model, **options)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    encrypted.compile(tf.keras.optimizers.SGD(0.3, momentum=0.9), loss, ["accuracy"], reveal=("metrics",))
    encrypted.fit(numbers(16, 5), np.arange(16) % 3, batch_size=8, verbose=0)
    return encrypted


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    encrypted = trained(input_range=(-4.0, 4.0))
    encrypted.save(folder)
    return encrypted, folder


@pytest.mark.long
def test_a_loaded_model_goes_on_where_the_saved_one_stood(saved):
    encrypted, folder = saved
    loaded = EncryptedModel.load(folder)
    x, y = numbers(16, 5), np.arange(16) % 3
    np.testing.assert_allclose(loaded.predict(x, verbose=0), encrypted.predict(x, verbose=0), atol=1e-3)
    assert loaded.reveal == ("metrics",) and loaded.input_ranges == [(-4.0, 4.0)]
    assert int(loaded.optimizer.iterations) == 2
    for model in (encrypted, loaded):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for one, two in zip(encrypted.reveal_to().get_weights(), loaded.reveal_to().get_weights()):
        np.testing.assert_allclose(one, two, atol=2e-3)


def test_every_party_has_a_file_that_is_uniform_alone(saved):
    _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for party in range(3):
        path = folder / f"server{party}.npz"
        assert path.stat().st_mode & 0o077 == 0
        with np.load(path) as arrays:
            words = np.concatenate([arrays[name].reshape(-1) for name in arrays.files])
        # Weights themselves would have their high bits all equal.
        top = words.view(np.uint64) >> np.uint64(56)
        assert len(np.unique(top)) > 60


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["missing", "altered", "cut short", "of another model"])
def test_a_faulty_file_is_refused_and_nothing_is_changed(saved, tmp_path, name, fault):
    _, folder = saved
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / name
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "altered":
        # In a manifest, a digit of a number: it stays JSON, and says something else.
        spot = content.index(b"16") if name == "manifest.json" else len(content) // 2
        path.write_bytes(content[:spot] + bytes([content[spot] ^ 1]) + content[spot + 1 :])
    elif fault == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif name == "manifest.json":
        whole = json.loads(content)
        whole["content"]["digests"] = {each: "0" * 64 for each in FILES[:4]}
        path.write_text(json.dumps(whole))
    else:
        stream = io.BytesIO()
        np.savez(stream, **{"dense/kernel:0": np.zeros((5, 8), np.int64)})
        path.write_bytes(stream.getvalue())
    with pytest.raises(ShareFileError, match="restore the folder"):
        EncryptedModel.load(copy)


def test_weights_of_another_architecture_are_refused(saved):
    _, folder = saved
    other = EncryptedModel(tf.keras.Sequential([K.Input((5,)), K.Dense(3)]))
    before = other.get_weights()
    with pytest.raises(ShareFileError):
        other.load_weights(folder)
    for one, two in zip(before, other.get_weights()):
        np.testing.assert_array_equal(one, two)


def test_a_folder_that_is_no_model_is_not_replaced(saved, tmp_path):
    encrypted, _ = saved
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(ShareFileError, match="exists"):
        encrypted.save(tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    encrypted.save(tmp_path / "new")
    with pytest.raises(ShareFileError, match="exists already"):
        encrypted.save(tmp_path / "new", overwrite=False)
    encrypted.save(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "notes"]


def test_checkpoints_of_shares_by_keras(saved, tmp_path):
    encrypted = trained()
    encrypted.fit(
        numbers(8, 5),
        np.arange(8) % 3,
        batch_size=8,
        epochs=2,
        verbose=0,
        callbacks=[
            tf.keras.callbacks.ModelCheckpoint(str(tmp_path / "epoch{epoch}"), save_weights_only=True),
            tf.keras.callbacks.CSVLogger(str(tmp_path / "log.csv")),
            tf.keras.callbacks.TensorBoard(str(tmp_path / "board"), write_graph=False),
        ],
    )
    assert (tmp_path / "log.csv").read_text().startswith("epoch,accuracy")
    assert list((tmp_path / "board").rglob("events.out*"))
    last = EncryptedModel.load(tmp_path / "epoch2")
    for one, two in zip(encrypted.reveal_to().get_weights(), last.reveal_to().get_weights()):
        np.testing.assert_array_equal(one, two)


SAVING = """
import sys, numpy as np
from keras_private.encrypted import saving
from keras_private.encrypted.variables import SharedVariable
variable = SharedVariable("w", (300, 300), 16)
step = 0
while True:
    step += 1
    variable.put([[np.full((300, 300), step)] * 2] * 3)
    saving.write(sys.argv[1], {"w": variable}, [], {}, True)
    print(step, flush=True)
"""


def test_a_kill_while_saving_leaves_a_whole_model_or_none(tmp_path):
    from keras_private.encrypted import saving
    from keras_private.encrypted.variables import SharedVariable

    variable = SharedVariable("w", (300, 300), 16)
    for attempt in range(3):
        folder = tmp_path / str(attempt) / "model"
        process = subprocess.Popen([sys.executable, "-c", SAVING, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            process.stdout.readline()
        time.sleep(0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if folder.exists():
            saving.read(folder, {"w": variable})
            assert len({int(share[0, 0]) for pair in variable.shares() for share in pair}) == 1
        else:
            # Between two renames the former model stands beside.
            assert list(folder.parent.glob(".model.old.*/model/manifest.json"))
