"""All three at once: clients keep their data, their updates are summed under masks, and epsilon covers each client."""

import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    clients = kp.federated.partition.iid(x[:1500], y[:1500], clients=250, seed=1)

    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    model = tf.keras.Sequential([tf.keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10, "softmax")])
    # Both parties that know the masks are made in this process: a simulation, as the report says.
    aggregator = kp.federated.DPAggregator(kp.SecureAggregation(), l2_norm_clip=1.0)
    fed = kp.FederatedModel(model, aggregator=aggregator)
    fed.compile(tf.keras.optimizers.SGD(0.5), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    budget = kp.PrivacyBudget(epsilon=8.0, delta=1e-3)
    fed.fit(clients, epochs=12, clients_per_round=80, local_epochs=2, batch_size=6, verbose=0, callbacks=[budget])

    accuracy = fed.evaluate(x[1500:], y[1500:])[1]
    spent = fed.privacy_spent(1e-3)
    print(f"accuracy {accuracy:.2f} on images of nobody")
    print(f"for one client with all its images: {budget.statement()}")
    print(f"against the coordinator: epsilon {spent.epsilon_coordinator}, since {spent.simulated[0]}")
    assert accuracy > 0.6
    assert spent.epsilon <= 8.0
    assert spent.epsilon_coordinator == float("inf")


if __name__ == "__main__":
    main()
