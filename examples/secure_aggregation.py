"""Thirty clients mask their updates; two party processes know the masks; only the sum of a round is opened."""

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp

ROUNDS = 4


def trained(clients: kp.federated.Clients, aggregator: object) -> kp.FederatedModel:
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    model = tf.keras.Sequential([tf.keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10, "softmax")])
    fed = kp.FederatedModel(model, aggregator)
    fed.compile(tf.keras.optimizers.SGD(0.2), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    fed.fit(clients, epochs=ROUNDS, clients_per_round=10, local_epochs=2, shuffle=False, seed=1, verbose=0)
    return fed


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    clients = kp.federated.partition.dirichlet(x[:1500], y[:1500], clients=30, alpha=0.5, seed=1, min_size=5)

    plain = trained(clients, kp.federated.Mean())
    with kp.federated.local_pad_parties(clients.names, min_clients=5, verbose=False) as parties:
        masked = trained(clients, kp.SecureAggregation(min_clients=5, parties=parties, keys=parties.keys))
    apart = max(np.abs(one - other).max() for one, other in zip(plain.get_weights(), masked.get_weights()))
    print(f"after {ROUNDS} rounds the weights differ from those of the plain mean by {apart:.1e}: fixed point")
    assert apart < 1e-4

    # Both parties and all keys are on this machine: nobody is protected, and it says so.
    description = masked.aggregator.description()
    print("simulated:", *description["simulated"], sep="\n  ")
    assert len(description["simulated"]) >= 2 and not description["protects_from"]
    assert "simul" in str(masked.privacy_report()).lower()
    print("With each party on a host of its own, `keras-private pads`, neither could read a single update.")


if __name__ == "__main__":
    main()
