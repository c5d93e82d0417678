"""Act 3: over clients, their updates summed under masks of two parties, with differential privacy for each client."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from ... import dp, federated
from ...federated.owned_worker import OwnedWorker
from ..data import Images
from ..outcome import Outcome
from ..progress import waiting
from ..recipes import Recipe, network

ROUNDS, MODEL = "rounds.csv", "federated.keras"


def can_run(allow_open: bool) -> None:
    """Starts a worker for the clients' work, and ends it.

    Raises:
        ConfigurationError: The system does not let it keep to itself, and it may not be open.
    """
    OwnedWorker(allow_open=allow_open).close()


def play(images: Images, recipe: Recipe, folder: Path, allow_open: bool = False) -> tuple[Outcome, Any]:
    """
    Args:
        images: The data.
        recipe: The numbers.
        folder: For what callbacks write.
        allow_open: As LocalWorkers.

    Returns:
        The outcome, and the trained Keras model.
    """
    begun = time.perf_counter()
    clients = federated.partition.dirichlet(
        images.x_train, images.y_train, clients=recipe.clients, alpha=1.0, seed=0, min_size=1
    )
    with contextlib.ExitStack() as running:
        with waiting("starting two pad parties, which write two keys for each client"):
            parties = running.enter_context(
                federated.local_pad_parties(clients.names, min_clients=recipe.least_clients, verbose=False)
            )
        print(f"Two pad parties run, as processes {' and '.join(map(str, parties.process_ids.values()))}.", flush=True)
        masked = federated.SecureAggregation(
            recipe.least_clients, bound=2.0 * recipe.client_clip, parties=parties, keys=parties.keys
        )
        fed = federated.FederatedModel(
            network(images, "federated"), federated.DPAggregator(masked, l2_norm_clip=recipe.client_clip)
        )
        fed.compile(
            tf.keras.optimizers.SGD(recipe.local_rate),
            tf.keras.optimizers.SGD(1.0, momentum=recipe.momentum),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        with waiting("training") as wait:
            history = fed.fit(
                clients,
                epochs=recipe.rounds,
                clients_per_round=recipe.clients_per_round,
                local_epochs=recipe.local_epochs,
                batch_size=recipe.local_batch,
                validation_data=(images.x_test, images.y_test),
                verbose=2,
                workers=federated.LocalWorkers(allow_open=True) if allow_open else None,
                callbacks=[
                    dp.PrivacyBudget(recipe.client_epsilon, recipe.client_delta),
                    tf.keras.callbacks.CSVLogger(str(folder / ROUNDS)),
                    tf.keras.callbacks.ModelCheckpoint(str(folder / MODEL)),
                    wait.callback(),
                ],
            ).history
        # While the parties are there to be asked what of them is simulated.
        report = fed.privacy_report()
    accuracies = tuple(map(float, history["val_accuracy"]))
    outcome = Outcome(
        "federated, secure, private",
        accuracies[-1],
        f"{report.spendings[0].shown} of one client",
        time.perf_counter() - begun,
        sent=report.costs["fit"].bytes,
        sent_by="between coordinator and clients",
        x_is="round",
        accuracies=accuracies,
        epsilons=tuple(map(float, history["epsilon"])),
        report=report,
    )
    return outcome, fed.model
