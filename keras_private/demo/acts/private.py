"""Act 2: the same network with differential privacy for each image."""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

from ... import dp
from ..data import Images
from ..outcome import Outcome
from ..progress import waiting
from ..recipes import Recipe, network


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
    with waiting("training") as wait:
        history = model.fit(
            images.x_train,
            images.y_train,
            batch_size=recipe.batch,
            epochs=recipe.epochs,
            validation_data=(images.x_test, images.y_test),
            validation_batch_size=1000,
            verbose=2,
            callbacks=[wait.callback()],
        ).history
    accuracies = tuple(map(float, history["val_accuracy"]))
    report = model.privacy_report()
    outcome = Outcome(
        "private fit",
        accuracies[-1],
        f"{report.spendings[0].shown} of one image",
        time.perf_counter() - begun,
        accuracies=accuracies,
        epsilons=tuple(map(float, history["epsilon"])),
        report=report,
    )
    return outcome, model
