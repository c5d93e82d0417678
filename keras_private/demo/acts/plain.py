"""Act 1: plain Keras, for comparison."""

from __future__ import annotations

import time

from ..data import Images
from ..outcome import Outcome
from ..recipes import Recipe, network
from .fitting import fitted


def play(images: Images, recipe: Recipe) -> Outcome:
    begun = time.perf_counter()
    model = network(images, "plain")
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = fitted(model, images, recipe.plain_batch, recipe.plain_epochs)
    accuracies = history["val_accuracy"]
    return Outcome("plain Keras", accuracies[-1], "no limit", time.perf_counter() - begun, accuracies=accuracies)
