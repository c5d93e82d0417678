"""A step on shares against stock tf-encrypted 0.9.1, in one process run: training and predicting a batch of 128.

Both sides: three parties in this process, 64-bit ring, 16 bits after the point, ReLU, softmax cross-entropy, SGD. Both
compute the loss in training ("no loss": ours without it, as with reveal=()). Ours also shares inputs and labels in
each step; stock's are shared before. Every repetition runs all contestants in turn; printed are medians, and of
ratios the median of the paired ones. Tracing is told apart from the first run, in which TensorFlow optimizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import numpy as np
import stock_tfe
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted.data import DEFAULT_OWNER, Batch
from keras_private.encrypted.optimizers import StepScale

BATCH, RATE = 128, 0.1
REPETITIONS = {"A": 15, "D": 7, "B": 3}
Contestants = dict[str, Callable[[], Any]]


def network(name: str) -> tf.keras.Model:
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(1)
    if name == "A":
        head = [layers.Flatten(), layers.Dense(128, "relu"), layers.Dense(128, "relu")]
    elif name == "D":
        head = [layers.Conv2D(5, 5, strides=2, padding="same", activation="relu"), layers.Flatten()]
        head += [layers.Dense(100, "relu")]
    else:
        head = [layers.Conv2D(16, 5, activation="relu"), layers.MaxPooling2D(2)]
        head += [layers.Conv2D(16, 5, activation="relu"), layers.MaxPooling2D(2)]
        head += [layers.Flatten(), layers.Dense(100, "relu")]
    return tf.keras.Sequential([layers.Input((28, 28, 1)), *head, layers.Dense(10, "softmax")])


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Images whose brightness tells the label: something to learn."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, BATCH)
    return generator.uniform(0, 0.1, (BATCH, 28, 28, 1)) * (1 + y[:, None, None, None]), y


def ours(name: str, x: np.ndarray, y: np.ndarray, reveal: tuple[str, ...]) -> tuple[kp.EncryptedModel, Batch]:
    model = kp.EncryptedModel(network(name), input_range=(0.0, 1.0))
    model.compile(tf.keras.optimizers.SGD(RATE), "sparse_categorical_crossentropy", reveal=reveal)
    return model, Batch(((x,),), np.eye(10)[y], ((DEFAULT_OWNER,),), DEFAULT_OWNER)


def our_training(model: kp.EncryptedModel, batch: Batch) -> stock_tfe.Traced:
    start = time.perf_counter()
    concrete = model.traced_training(batch)
    seconds = time.perf_counter() - start
    whole = tf.constant(StepScale(RATE / BATCH).whole(RATE / BATCH), tf.int64)
    inputs, labels = batch.inputs_as_tensors(), tf.constant(batch.labels)
    wants = ("loss",) if "loss" in model.reveal else ()

    def run() -> Any:
        model.steps.clear_totals()
        concrete(inputs, labels, whole)
        return model.steps.open_totals(wants)["loss"] / BATCH if wants else None

    return stock_tfe.Traced(run, concrete.graph, seconds)


def our_predict(model: kp.EncryptedModel, batch: Batch) -> stock_tfe.Traced:
    start = time.perf_counter()
    concrete = model.steps.predict(batch)
    inputs = batch.inputs_as_tensors()
    return stock_tfe.Traced(lambda: concrete(inputs), concrete.graph, time.perf_counter() - start)


def contest(tracers: dict[str, Callable[[], stock_tfe.Traced]], repetitions: int) -> dict[str, Any]:
    """Traces and runs each once, then all in turn."""
    figures: dict[str, Any] = {}
    steps = {}
    for key, tracer in tracers.items():
        steps[key] = tracer()
        start = time.perf_counter()
        value = steps[key].run()
        figures[key] = {
            "trace_seconds": steps[key].trace_seconds,
            "first_run_seconds": time.perf_counter() - start,
            "operations": len(steps[key].graph.get_operations()),
            "losses": [float(value)] if value is not None and np.ndim(value) == 0 else [],
        }
        print(f"    {key}: traced in {figures[key]['trace_seconds']:.1f} s", flush=True)
    wall: dict[str, list[float]] = {key: [] for key in steps}
    processor: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(repetitions):
        for key, step in steps.items():
            start, used = time.perf_counter(), time.process_time()
            value = step.run()
            wall[key].append(time.perf_counter() - start)
            processor[key].append(time.process_time() - used)
            if figures[key]["losses"]:
                figures[key]["losses"].append(float(value))
    for key, figure in figures.items():
        figure["step_seconds"] = statistics.median(wall[key])
        figure["step_cpu_seconds"] = statistics.median(processor[key])
        figure["stock_ratio"] = machine.median_ratio(wall["stock"], wall[key])
        figure["stock_cpu_ratio"] = machine.median_ratio(processor["stock"], processor[key])
    return figures


def compare(name: str, repetitions: int) -> dict[str, Any]:
    x, y = examples()
    with_loss, batch = ours(name, x, y, ("loss",))
    without, _ = ours(name, x, y, ())
    stock = stock_tfe.steps(name, x, y, RATE)
    before = os.getloadavg()[0]
    training = contest(
        {
            "ours": lambda: our_training(with_loss, batch),
            "ours, no loss": lambda: our_training(without, batch),
            "stock": stock["training"],
        },
        repetitions,
    )
    predict = contest({"ours": lambda: our_predict(with_loss, batch), "stock": stock["predict"]}, repetitions)
    figures: dict[str, Any] = {"training": training, "predict": predict, "repetitions": repetitions}
    figures["load_average"] = [before, os.getloadavg()[0]]
    for kind in ("training", "predict"):
        cost = with_loss.cost(BATCH, training=kind == "training")
        figures[f"our_{kind}_cost"] = {"bytes": cost.bytes, "rounds": cost.rounds, "messages": cost.messages}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=["A", "D", "B"], metavar="net", help="A, D, B (default: all)")
    parser.add_argument("--repetitions", type=int, help=f"by default {REPETITIONS}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {"batch": BATCH, "tf-encrypted": metadata.version("tf-encrypted")}
    for name in options.nets:
        print(f"{name}, batch {BATCH}", flush=True)
        figures[name] = compare(name, options.repetitions or REPETITIONS[name])
        for kind in ("training", "predict"):
            for key, each in figures[name][kind].items():
                print(
                    f"  {kind:8} {key:14} {each['step_seconds']:8.3f} s ({each['step_cpu_seconds']:8.3f} s CPU)"
                    f"  trace {each['trace_seconds']:6.1f} s  stock takes {each['stock_ratio']:6.2f}x"
                    f" ({each['stock_cpu_ratio']:.2f}x CPU)",
                    flush=True,
                )
            print(f"  our {kind}: {figures[name][f'our_{kind}_cost']}", flush=True)
        # Written after each network: the last takes minutes.
        machine.write("encrypted_step", figures)


if __name__ == "__main__":
    main()
