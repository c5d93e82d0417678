"""Fashion-MNIST over clients with skewed labels: federated averaging, with secure aggregation, with user-level privacy.

    python benchmarks/federated_accuracy.py

Prints accuracy on the test images, epsilon, what a client sends in a round, and time; writes
results/federated_accuracy.json.
"""

from __future__ import annotations

import os
import time
import warnings
from typing import Any, Optional

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import machine
import tensorflow as tf

import keras_private as kp
from keras_private.demo import data
from keras_private.federated import DPAggregator, Mean

DELTA = 1e-4
ROUNDS = 40


def network() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [tf.keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10, "softmax")]
    )


def run(
    name: str, images: Any, clients: Any, aggregator: Any, epsilon: Optional[float], a_round: int
) -> dict[str, Any]:
    model = network()
    fed = kp.FederatedModel(model, aggregator)
    fed.compile(tf.keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = [kp.PrivacyBudget(epsilon, DELTA)] if epsilon else []
    start = time.perf_counter()
    fed.fit(clients, epochs=ROUNDS, clients_per_round=a_round, batch_size=20, verbose=0, callbacks=callbacks)
    seconds = time.perf_counter() - start
    accuracy = fed.evaluate(images.x_test, images.y_test, batch_size=1000)[1]
    weights = model.count_params()
    masked = isinstance(aggregator, kp.SecureAggregation) or isinstance(
        getattr(aggregator, "inner", None), kp.SecureAggregation
    )
    sent = 8 * (weights + 3) + 16 if masked else (8 if epsilon else 4) * weights
    spent = fed.privacy_spent(DELTA) if epsilon else None
    found = {
        "clients": len(clients),
        "clients a round": a_round,
        "rounds": ROUNDS,
        "accuracy": accuracy,
        "epsilon": None if spent is None else spent.epsilon,
        "epsilon, cohort seen": None if spent is None else spent.epsilon_cohort_seen,
        "bytes a client sends in a round": sent,
        "seconds": seconds,
    }
    shown = "none" if spent is None else f"{spent.epsilon:.2f}"
    print(
        f"{len(clients):5} clients, {a_round:3} a round  {name:44} accuracy {accuracy:.3f}  epsilon {shown:5}  "
        f"{sent / 1e3:5.0f} kB  {seconds:5.1f} s",
        flush=True,
    )
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    images = data.load()
    print(
        f"{images.name}, Dirichlet 0.3, {ROUNDS} rounds, delta {DELTA:g}, network of {network().count_params()} weights"
    )
    found: dict[str, Any] = {"data": images.name, "delta": DELTA}
    # With 20 of 100, a round of fewer than two clients is too likely for masked sums with noise, and refused.
    for count, a_round in ((100, 25), (3000, 400)):
        clients = kp.federated.partition.dirichlet(
            images.x_train, images.y_train, clients=count, alpha=0.3, seed=0, min_size=1
        )
        for name, aggregator, epsilon in (
            ("FedAvg", Mean(), None),
            ("with SecureAggregation", kp.SecureAggregation(), None),
            ("with DPAggregator(SecureAggregation)", DPAggregator(kp.SecureAggregation(), l2_norm_clip=0.5), 8.0),
        ):
            found[f"{name}, {count} clients"] = run(name, images, clients, aggregator, epsilon, a_round)
    machine.write("federated_accuracy", found)


if __name__ == "__main__":
    main()
