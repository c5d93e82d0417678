"""Act 1: plain Keras, for comparison."""

from __future__ import annotations

import time

from ..data import Images
from ..outcome import Outcome
from ..progress import waiting
from ..recipes import Recipe, network


def play(images: Images, recipe: Recipe) -> Outcome:
    begun = time.perf_counter()
    model = network(images, "plain")
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    with waiting("training") as wait:
        history = model.fit(
            images.x_train,
            images.y_train,
            batch_size=recipe.plain_batch,
            epochs=recipe.plain_epochs,
            validation_data=(images.x_test, images.y_test),
            validation_batch_size=1000,
            verbose=2,
            callbacks=[wait.callback()],
        ).history
    accuracies = tuple(map(float, history["val_accuracy"]))
    return Outcome("plain Keras", accuracies[-1], "no limit", time.perf_counter() - begun, accuracies=accuracies)
