"""Accuracy of net A after one epoch, on shares and in plaintext: the same first weights, batches and learning rate."""

from __future__ import annotations

import time

import machine
import tensorflow as tf

import keras_private as kp
from keras_private.demo import data


def net(seed: int) -> tf.keras.Model:
    tf.keras.utils.set_random_seed(seed)
    return tf.keras.Sequential(
        [
            tf.keras.layers.Input((28, 28, 1)),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(128, activation="relu"),
            tf.keras.layers.Dense(128, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )


def main() -> None:
    images = data.load()
    found = []
    for seed in range(2):
        model = net(seed)
        encrypted = kp.EncryptedModel(model, input_range=(0.0, 1.0))
        encrypted.compile(tf.keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", ["accuracy"], reveal=())
        start = time.perf_counter()
        encrypted.fit(images.x_train, images.y_train, batch_size=128, shuffle=False, verbose=0)
        seconds = time.perf_counter() - start
        encrypted.compile(
            tf.keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", ["accuracy"], reveal=("metrics",)
        )
        on_shares = encrypted.evaluate(images.x_test, images.y_test, batch_size=1000, verbose=0)
        model.compile(tf.keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(images.x_train, images.y_train, batch_size=128, shuffle=False, verbose=0)
        plain = model.evaluate(images.x_test, images.y_test, batch_size=1000, verbose=0)[1]
        print(f"seed {seed}: {on_shares:.4f} on shares, {plain:.4f} in plaintext; {seconds:.0f} s an epoch", flush=True)
        found.append({"seed": seed, "on_shares": on_shares, "plaintext": plain, "epoch_seconds": seconds})
    machine.write("encrypted_accuracy", {"data": images.name, "runs": found})


if __name__ == "__main__":
    main()
