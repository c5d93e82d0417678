"""A digit classifier is published to three parties; a client in another process asks them about images it keeps."""

import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp

QUERIES = 64


def trained() -> tuple[tf.keras.Model, np.ndarray, np.ndarray]:
    """A small network, and images that it has not seen with their digits."""
    tf.keras.utils.set_random_seed(0)
    images, digits = load_digits(return_X_y=True)
    images = images.astype("float32") / 16
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [tf.keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10, "softmax")], "digits"
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[:1500], digits[:1500], epochs=20, verbose=0)
    return model, images[1500:], digits[1500:]


def main() -> None:
    model, images, digits = trained()
    # The parties are three processes of this machine and user: a simulation of three hosts. serve warns of it.
    warnings.filterwarnings("ignore", "The three parties run on this machine")
    with tempfile.TemporaryDirectory() as folder, kp.Cluster.local(verbose=False) as cluster:
        asked, told = pathlib.Path(folder) / "images.npy", pathlib.Path(folder) / "answers.npy"
        np.save(asked, images[:QUERIES])
        with kp.serve(model, cluster, batch_sizes=(16, QUERIES), input_range=(0, 1)) as service:
            command = [sys.executable, "-m", "keras_private", "query", str(asked), "--output", str(told)]
            quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            subprocess.run([*command, "--cluster", str(cluster.folder / "cluster.json")], env=quiet, check=True)
            sent = service.bytes_per_run[QUERIES]
        answers = np.load(told)
    plain = model.predict(images[:QUERIES], verbose=0)
    print(f"answers to {QUERIES} images, from shares: accuracy {np.mean(answers.argmax(1) == digits[:QUERIES]):.2f}")
    print(f"largest difference from Keras {np.abs(answers - plain).max():.4f}")
    print(f"the parties sent each other {sent / 1e6:.1f} MB")
    assert np.abs(answers - plain).max() < 0.01
    assert np.mean(answers.argmax(1) == digits[:QUERIES]) > 0.85


if __name__ == "__main__":
    main()
