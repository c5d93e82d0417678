"""Act 2: the same network with differential privacy for each image."""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

from ... import dp
from ..data import Images
from ..outcome import Outcome
from ..recipes import Recipe, network
from .fitting import fitted


def play(images: Images, recipe: Recipe) -> tuple[Outcome, Any]:
    """
    Returns:
        The outcome, and the trained model.
    """
    begun = time.perf_counter()
    model: Any = dp.make_private(
        network(images, "private"), epsilon=recipe.epsilon, delta=recipe.delta, l2_norm_clip=recipe.clip
    )
    optimizer = tf.keras.optimizers.SGD(recipe.rate, momentum=0.9)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = fitted(model, images, recipe.batch, recipe.epochs)
    accuracies = history["val_accuracy"]
    report = model.privacy_report()
    outcome = Outcome(
        "private fit",
        accuracies[-1],
        f"{report.spendings[0].shown} of one image",
        time.perf_counter() - begun,
        accuracies=accuracies,
        epsilons=history["epsilon"],
        report=report,
    )
    return outcome, model
