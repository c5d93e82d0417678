"""What the story trains and with which numbers, for each data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from .data import Images


@dataclass(frozen=True)
class Recipe:
    """Numbers of one story.

    Attributes:
        plain_epochs, plain_batch: Of plain Keras, with Adam.
        epsilon, delta: Of one image, in the private fit.
        epochs, batch, rate, clip: Of the private fit: SGD with momentum, expected batch, clip norm of one image.
        client_epsilon, client_delta: Of one client with all its images, in the federated fit.
        clients, clients_per_round, rounds: Of the federation; the second is an expectation.
        least_clients: No sum over fewer is opened.
        local_epochs, local_batch, local_rate, client_clip: Of a client's work, and of the clip norm of its update.
        momentum: Of the server's SGD, with learning rate 1.
        queries, rows: Images that are asked about on shares, and how many in one request.
    """

    plain_epochs: int
    plain_batch: int
    epsilon: float
    delta: float
    epochs: int
    batch: int
    rate: float
    clip: float
    client_epsilon: float
    client_delta: float
    clients: int
    clients_per_round: int
    rounds: int
    least_clients: int
    local_epochs: int
    local_batch: int
    local_rate: float
    client_clip: float
    momentum: float
    queries: int
    rows: int


FASHION = Recipe(
    plain_epochs=8, plain_batch=256,
    epsilon=3.0, delta=1e-5, epochs=12, batch=1024, rate=2.0, clip=0.25,
    client_epsilon=8.0, client_delta=1e-4, clients=3000, clients_per_round=400, rounds=30, least_clients=50,
    local_epochs=2, local_batch=20, local_rate=0.2, client_clip=0.3, momentum=0.9,
    queries=512, rows=128,
)  # fmt: skip
DIGITS = Recipe(
    plain_epochs=15, plain_batch=32,
    epsilon=3.0, delta=1e-4, epochs=20, batch=150, rate=1.0, clip=0.5,
    client_epsilon=8.0, client_delta=1e-3, clients=250, clients_per_round=80, rounds=15, least_clients=10,
    local_epochs=2, local_batch=5, local_rate=0.5, client_clip=1.0, momentum=0.5,
    queries=96, rows=32,
)  # fmt: skip


def recipe_for(images: Images) -> Recipe:
    return FASHION if images.x_train.shape[1] > 8 else DIGITS


def network(images: Images, name: str) -> Any:
    """The same small network in every act: large images are averaged over squares of two by two pixels first."""
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    shape = images.x_train.shape[1:]
    smaller = [layers.AveragePooling2D(2)] if shape[0] > 8 else []
    return tf.keras.Sequential(
        [tf.keras.Input(shape), *smaller, layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10, "softmax")], name
    )
