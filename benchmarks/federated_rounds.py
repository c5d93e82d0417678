"""Federated rounds beside plain Keras and beside TensorFlow Federated's own path, in one process run.

    python benchmarks/federated_rounds.py

Prints seconds for 100 steps of an MLP 784-200-200-10 at batch 20: as one plain fit, and as a round of 20 clients with 5
steps each; then rounds of 10, 100 and 1,000 clients with the worker's peak memory; then two workers beside one, each on
a core of its own. Writes results/federated_rounds.json.
"""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import machine
import numpy as np
import tensorflow as tf

import keras_private as kp
from keras_private._backends import tff_learning
from keras_private.federated import workers

CLIENTS, STEPS, BATCH = 20, 5, 20
ROWS = STEPS * BATCH
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network() -> tf.keras.Model:
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [tf.keras.Input((784,)), layers.Dense(200, "relu"), layers.Dense(200, "relu"), layers.Dense(10)]
    )


def examples(clients: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(0)
    return {
        f"client{index:04d}": (
            draw.random((ROWS, 784), np.float32),
            draw.integers(0, 10, ROWS).astype(np.int32),
        )
        for index in range(clients)
    }


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(works: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Times of all of them in turn, so that what drifts on the machine drifts for all."""
    for work in works.values():
        work()
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            found[name].append(seconds(work))
    return found


def federated(model: tf.keras.Model) -> kp.FederatedModel:
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(0.1), loss=LOSS)
    return fed


def of_tensorflow_federated(data: list[tf.data.Dataset]) -> Callable[[], Any]:
    """A round of its weighted FedAvg on its own local runtime."""
    tff = tff_learning.package()
    model = tff.learning.models.functional_model_from_keras(
        network, LOSS, (tf.TensorSpec([None, 784], tf.float32), tf.TensorSpec([None], tf.int32))
    )
    optimizers = tff.learning.optimizers
    process = tff.learning.algorithms.build_weighted_fed_avg(
        model, client_optimizer_fn=optimizers.build_sgdm(0.1), server_optimizer_fn=optimizers.build_sgdm(1.0)
    )
    state = process.initialize()

    def one_round() -> None:
        nonlocal state
        state = process.next(state, data).state

    return one_round


def compared(folder: pathlib.Path, repetitions: int) -> dict[str, Any]:
    data = examples(CLIENTS)
    kp.federated.Clients.from_arrays(data).write_directory(folder / "twenty")
    files = kp.federated.Clients.from_directory(folder / "twenty")
    x, y = (np.concatenate(parts) for parts in zip(*data.values()))
    tff = tff_learning.package()
    tff.backends.native.set_sync_local_cpp_execution_context()
    rounds = of_tensorflow_federated([tf.data.Dataset.from_tensor_slices(each).batch(BATCH) for each in data.values()])
    rounds()
    # Models that TensorFlow Federated made in a graph leave Keras's classes changed: ours are made afterwards.
    plain = network()
    plain.compile(tf.keras.optimizers.SGD(0.1), LOSS)
    arrays, paths = federated(network()), federated(network())
    times = interleaved(
        {
            "plain fit": lambda: plain.fit(x, y, batch_size=BATCH, verbose=0),
            "ours, arrays": lambda: arrays.fit(data, batch_size=BATCH, verbose=0),
            "ours, folder": lambda: paths.fit(files, batch_size=BATCH, verbose=0),
            "tensorflow-federated": rounds,
        },
        repetitions,
    )
    print(f"{CLIENTS} clients x {STEPS} steps, batch {BATCH}")
    found: dict[str, Any] = {}
    for name, each in times.items():
        ratio = machine.median_ratio(each, times["plain fit"])
        found[name] = {"seconds": statistics.median(each), "to plain fit": ratio}
        print(f"  {name:22} {statistics.median(each):6.3f} s   {ratio:5.2f}x plain fit")
    return found


def peak(pid: int) -> float:
    """Largest resident memory of a process so far, in MB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def scaled(folder: pathlib.Path) -> dict[str, Any]:
    kp.federated.Clients.from_arrays(examples(1000)).write_directory(folder / "thousand")
    clients = kp.federated.Clients.from_directory(folder / "thousand")
    found = {}
    print("rounds of a folder's clients, one worker")
    for count in (10, 100, 1000):
        workers.close()
        fed = federated(network())
        chosen = clients.subset(clients.names[:count])
        times = interleaved({"": functools.partial(fed.fit, chosen, batch_size=BATCH, verbose=0)}, 3)[""]
        with workers.use(None) as hosts:
            memory = peak(hosts.owned[0].pid)
        found[count] = {"seconds": min(times), "worker MB": memory}
        each = 1e3 * min(times) / count
        print(f"  {count:5} clients {min(times):7.3f} s   {each:6.2f} ms a client   {memory:6.0f} MB")
    return found


def spread(folder: pathlib.Path) -> dict[str, Any]:
    clients = kp.federated.Clients.from_directory(folder / "thousand")
    chosen = clients.subset(clients.names[:200])
    fed = federated(network())
    times: dict[str, list[float]] = {"one worker": [], "two workers": []}
    with workers.use(1, pin=True) as one, workers.use(2, pin=True) as two:
        works = {
            name: (lambda hosts=hosts: fed.fit(chosen, batch_size=BATCH, verbose=0, workers=hosts))
            for name, hosts in (("one worker", one), ("two workers", two))
        }
        times = interleaved(works, 5)
    gain = 1 / machine.median_ratio(times["two workers"], times["one worker"])
    print(f"200 clients, workers on a core each: one {statistics.median(times['one worker']):.2f} s, ", end="")
    print(f"two {statistics.median(times['two workers']):.2f} s, {gain:.2f}x")
    return {**{name: statistics.median(each) for name, each in times.items()}, "gain": gain}


def end_children() -> None:
    """TensorFlow Federated's own worker would outlive this process."""
    # Children are listed by the thread that started them.
    for children in pathlib.Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in children.read_text().split():
            if "worker_binary" in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(int(pid), signal.SIGKILL)


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        try:
            found: dict[str, Any] = {"twenty clients": compared(folder, 11)}
        finally:
            end_children()
        found["scale"] = scaled(folder)
        found["two workers"] = spread(folder)
    machine.write("federated_rounds", found)


if __name__ == "__main__":
    main()
