"""All pillars in one training: clients keep their data, two parties open only noisy sums, and the model that comes out
answers queries on shares to a client in another process. Everything runs on this machine: a simulation."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp

DELTA = 1e-3


def network() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    return tf.keras.Sequential([tf.keras.Input((64,)), layers.Dense(32, "relu"), layers.Dense(10, "softmax")], "digits")


def trained(clients: kp.federated.Clients, others: tuple, ledger: pathlib.Path) -> tuple[kp.FederatedModel, object]:
    """Twelve rounds, and the report of who learnt what."""
    with kp.federated.local_pad_parties(clients.names, min_clients=10, verbose=False) as parties:
        masked = kp.SecureAggregation(min_clients=10, parties=parties, keys=parties.keys)
        fed = kp.FederatedModel(network(), aggregator=kp.federated.DPAggregator(masked, l2_norm_clip=1.0))
        fed.compile(tf.keras.optimizers.SGD(0.5), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        callbacks = [
            kp.PrivacyBudget(epsilon=8.0, delta=DELTA, ledger=ledger),
            tf.keras.callbacks.EarlyStopping("val_accuracy", patience=4, restore_best_weights=True),
        ]
        fed.fit(
            clients, epochs=12, clients_per_round=80, local_epochs=2, batch_size=6,
            validation_data=others, verbose=0, callbacks=callbacks,
        )  # fmt: skip
        return fed, fed.privacy_report()


def asked(cluster: kp.Cluster, folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Predictions that a process gets which has the client's certificate and nothing else."""
    shutil.copy(cluster.folder / "cluster.json", folder)
    shutil.copytree(cluster.folder / "client", folder / "client")
    np.save(folder / "images.npy", images)
    command = [sys.executable, "-m", "keras_private", "query", str(folder / "images.npy")]
    command += ["--cluster", str(folder / "cluster.json"), "--output", str(folder / "answers.npy")]
    subprocess.run(command, check=True)
    return np.load(folder / "answers.npy")


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    clients = kp.federated.partition.iid(x[:1500], y[:1500], clients=250, seed=1)
    warnings.filterwarnings("ignore", "The three parties run on this machine")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        fed, report = trained(clients, (x[1500:], y[1500:]), folder / "ledger")
        accuracy, spent = fed.evaluate(x[1500:], y[1500:])[1], report.spendings[0]
        print(f"accuracy {accuracy:.2f} on images of nobody, epsilon {spent.shown} of one client at delta {DELTA:g}")
        with kp.Cluster.local(verbose=False) as cluster, kp.serve(fed.model, cluster, batch_sizes=(32,)) as service:
            answers = asked(cluster, folder, x[1500:1532])
            joined = kp.PrivacyReport.joined([report, service.privacy_report()])
    apart = np.abs(answers - fed.model.predict(x[1500:1532], verbose=0)).max()
    print(f"32 answers from shares, at most {apart:.1e} from those of Keras")
    print("simulated:", *joined.simulated, sep="\n  ")
    assert accuracy > 0.5 and spent.epsilon <= 8.0 and apart < 1e-3
    assert joined.spendings[0].epsilon == spent.epsilon and len(joined.simulated) == 5


if __name__ == "__main__":
    main()
