"""Trains the same network twice, plainly and privately, and says what privacy cost."""

from __future__ import annotations

import json
import operator
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import tensorflow as tf

from .. import dp
from .data import Images, load

DELTA = 1e-5


@dataclass(frozen=True)
class Recipe:
    """What one demo run uses. Tanh and a small clip norm follow Papernot et al. 2021 ("Tempered sigmoid
    activations for deep learning with differential privacy"), table 4."""

    epochs: int
    batch_size: int
    learning_rate: float
    l2_norm_clip: float
    epsilon: float = 3.0
    plain_epochs: int = 6


QUICK = Recipe(epochs=14, batch_size=1024, learning_rate=2.5, l2_norm_clip=0.1)
LONG = Recipe(epochs=45, batch_size=2048, learning_rate=2.5, l2_norm_clip=0.1, plain_epochs=10)


@dataclass
class Run:
    """Outcome of one training run."""

    name: str
    accuracy: float
    epsilon: Optional[float]
    seconds: float
    seconds_per_example: float
    history: dict[str, list[float]]


def network(shape: tuple[int, ...]) -> tf.keras.Model:
    """A small convolutional network with tanh activations; fewer layers where the images are small."""
    layers = tf.keras.layers
    small = shape[0] < 16
    body = (
        [layers.Conv2D(32, 3, padding="same", activation="tanh"), layers.MaxPool2D(2)]
        if small
        else [
            layers.Conv2D(16, 8, strides=2, padding="same", activation="tanh"),
            layers.MaxPool2D(2, 1),
            layers.Conv2D(32, 4, strides=2, activation="tanh"),
            layers.MaxPool2D(2, 1),
        ]
    )
    head = [layers.Flatten(), layers.Dense(32, activation="tanh"), layers.Dense(10)]
    return tf.keras.Sequential([tf.keras.Input(shape), *body, *head])


def train(images: Images, recipe: Recipe, private: bool) -> Run:
    model: Any = network(images.x_train.shape[1:])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    epochs = recipe.plain_epochs
    optimizer: Any = tf.keras.optimizers.Adam()
    batch_size = 256
    if private:
        epochs, batch_size = recipe.epochs, min(recipe.batch_size, len(images.x_train) // 8)
        model = dp.make_private(model, epsilon=recipe.epsilon, delta=DELTA, l2_norm_clip=recipe.l2_norm_clip)
        optimizer = tf.keras.optimizers.SGD(recipe.learning_rate, momentum=0.9)
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    start = time.perf_counter()
    ends: list[float] = []
    clock = tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    history = model.fit(
        images.x_train,
        images.y_train,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=(images.x_test, images.y_test),
        callbacks=[clock],
    ).history
    seconds = time.perf_counter() - start
    history = {name: [float(value) for value in values] for name, values in history.items()}
    return Run(
        name="private" if private else "plain",
        accuracy=history["val_accuracy"][-1],
        epsilon=history["epsilon"][-1] if private else None,
        seconds=seconds,
        # The first epoch also traces, and calibrates the noise.
        seconds_per_example=statistics.median(map(operator.sub, ends[1:], ends)) / len(images.x_train),
        history=history,
    )


def table(runs: Sequence[Run]) -> str:
    lines = [f"{'':10}{'test accuracy':>15}{'epsilon':>10}{'time':>9}{'per example':>14}"]
    for run in runs:
        epsilon = "no limit" if run.epsilon is None else f"{run.epsilon:.2f}"
        micro = run.seconds_per_example * 1e6
        lines.append(f"{run.name:10}{run.accuracy:>14.1%} {epsilon:>9}{run.seconds:>8.0f}s{micro:>11.0f} us")
    return "\n".join(lines)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Accuracy of both runs, and the epsilon of the private one, over epochs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for run in runs:
        values = run.history["val_accuracy"]
        left.plot(range(1, len(values) + 1), values, marker="o", label=run.name)
    left.set(xlabel="epoch", ylabel="test accuracy", title="Accuracy")
    left.legend()
    for run in runs:
        if "epsilon" in run.history:
            values = run.history["epsilon"]
            right.plot(range(1, len(values) + 1), values, marker="o", color="tab:red")
    right.set(xlabel="epoch", ylabel=f"epsilon at delta = {DELTA:g}", title="Privacy spent", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(longer: bool, data: str, output: Path) -> int:
    """Trains twice, prints the table, and writes a report and a plot.

    Args:
        longer: By the recipe LONG instead of QUICK.
        data: As `--data`.
        output: Folder for report and plot.

    Returns:
        The exit code.
    """
    recipe = LONG if longer else QUICK
    output.mkdir(parents=True, exist_ok=True)

    images = load(data)
    print(f"Data: {images.name}, {len(images.x_train)} training and {len(images.x_test)} test images")
    print("\nWithout privacy:")
    runs = [train(images, recipe, private=False)]
    print(f"\nWith differential privacy (epsilon <= {recipe.epsilon:g}, delta = {DELTA:g}):")
    runs.append(train(images, recipe, private=True))

    overhead = runs[1].seconds_per_example / runs[0].seconds_per_example
    print("\n" + table(runs))
    print(f"\nTime per training example, private / plain: {overhead:.2f}x")
    print("Epsilon holds for adding or removing one image; training metrics above are not covered by it.")
    report = {
        "data": images.name,
        "delta": DELTA,
        "recipe": asdict(recipe),
        "runs": [asdict(run) for run in runs],
        "time_ratio": overhead,
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
    }
    (output / "private_fit.json").write_text(json.dumps(report, indent=2) + "\n")
    plot(runs, output / "accuracy_and_epsilon.png")
    print(f"Written: {output / 'private_fit.json'}, {output / 'accuracy_and_epsilon.png'}")
    return 0
