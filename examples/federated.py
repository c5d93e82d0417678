"""Thirty clients with few digits each train one network; then each worker reads its clients' files by itself."""

import tempfile

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp


def network() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    return tf.keras.Sequential([tf.keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10, "softmax")])


def trained(clients: kp.federated.Clients, rounds: int, workers: int) -> kp.FederatedModel:
    fed = kp.FederatedModel(network())
    fed.compile(tf.keras.optimizers.SGD(0.2), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    fed.fit(clients, epochs=rounds, clients_per_round=10, local_epochs=2, seed=1, verbose=0, workers=workers)
    return fed


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    clients = kp.federated.partition.dirichlet(x[:1500], y[:1500], clients=30, alpha=0.5, seed=1, min_size=5)
    fed = trained(clients, rounds=40, workers=1)
    _, accuracy = fed.evaluate(x[1500:], y[1500:])
    print(f"30 clients, 40 rounds: accuracy {accuracy:.2f} on images of nobody")
    assert accuracy > 0.8

    with tempfile.TemporaryDirectory() as folder:
        clients.write_directory(f"{folder}/clients")
        stays = kp.federated.Clients.from_directory(f"{folder}/clients")
        there = trained(stays, rounds=3, workers=2)
    here = trained(clients, rounds=3, workers=1)
    apart = max(np.abs(a - b).max() for a, b in zip(there.get_weights(), here.get_weights()))
    print(f"the same from files that two workers read: weights differ by {apart:.1e}")
    assert apart < 1e-4

    own = fed.personalize(clients, clients.names[0], epochs=5)
    data = clients.whole(clients.names[0])
    before, after = fed.model.evaluate(*data, verbose=0)[0], own.evaluate(*data, verbose=0)[0]
    print(f"personalized for {clients.names[0]}: loss {before:.2f} -> {after:.2f}")
    assert after < before


if __name__ == "__main__":
    main()
