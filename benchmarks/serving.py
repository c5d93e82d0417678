"""The prediction service: three processes under mutual TLS beside the same function in one process, in one run.

    python benchmarks/serving.py A D B

Prints for each net the time of a prediction in one process, of a request at batch 1, 16 and 128 to three processes, by
one client and by four at once, and the bytes that the parties send each other; then that of stock tf-encrypted with its
three players in processes, without TLS (stock_tfe_serving.py). Writes results/serving.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import encrypted_step
import machine
import numpy as np
import stock_tfe_serving

import keras_private as kp

BATCHES = (1, 16, 128)
CLIENTS = 4


def median_seconds(work: Callable[[], Any], repetitions: int) -> float:
    work()
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def in_one_process(model: Any, x: np.ndarray, repetitions: int) -> float:
    """Of the traced function alone."""
    encrypted = kp.EncryptedModel(model, input_range=(0, 1))
    batch = next(iter(encrypted.read_rows(x).batches(len(x), shuffle=False)))
    step, inputs = encrypted.steps.predict(batch), batch.inputs_as_tensors()
    return median_seconds(lambda: step(inputs), repetitions)


def at_once(cluster: kp.Cluster, x: np.ndarray, repetitions: int) -> float:
    """Seconds a request, when four clients ask again and again."""
    clients = [kp.Client(cluster) for _ in range(CLIENTS)]
    for client in clients:
        client.predict(x)

    def ask(client: kp.Client) -> None:
        for _ in range(repetitions):
            client.predict(x)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = (time.perf_counter() - start) / (repetitions * CLIENTS)
    for client in clients:
        client.close()
    return seconds


def measure(name: str, cluster: kp.Cluster, repetitions: int, logits: bool) -> dict[str, Any]:
    model = encrypted_step.network(name)
    x = np.random.default_rng(0).uniform(0, 1, (max(BATCHES), *model.input_shape[1:]))
    found: dict[str, Any] = {"one process": {rows: in_one_process(model, x[:rows], repetitions) for rows in BATCHES}}
    start = time.perf_counter()
    published = kp.serve(model, cluster, batch_sizes=BATCHES, input_range=(0, 1), logits=logits)
    with published as service, kp.Client(cluster) as client:
        found["publish"] = time.perf_counter() - start
        found["bytes"] = service.bytes_per_run
        one = {rows: median_seconds(lambda rows=rows: client.predict(x[:rows]), repetitions) for rows in BATCHES}
        found["one client"] = one
        found["four clients"] = {rows: at_once(cluster, x[:rows], max(repetitions // 4, 2)) for rows in BATCHES}
    print(f"{name}{', logits' if logits else ''}: published in {found['publish']:.1f} s")
    for rows in BATCHES:
        alone = found["one process"][rows]
        print(
            f"  batch {rows:3}: one process {1e3 * alone:7.1f} ms   three processes {1e3 * one[rows]:7.1f} ms "
            f"({one[rows] / alone:4.1f}x)   four clients {1e3 * found['four clients'][rows]:7.1f} ms a request, "
            f"{rows / found['four clients'][rows]:7.0f} rows/s   parties send {found['bytes'][rows] / 1e6:7.2f} MB"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=["A", "D", "B"])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--peer", nargs="*", default=["A", "D"], help="nets for tf-encrypted; it traces B for minutes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    with kp.Cluster.local() as cluster:
        for name in options.nets:
            found[name] = measure(name, cluster, options.repetitions, logits=False)
            found[f"{name}, logits"] = measure(name, cluster, options.repetitions, logits=True)
    for name in [each for each in options.peer if each in options.nets]:
        rows = max(BATCHES)
        peer = stock_tfe_serving.seconds_per_prediction(name, rows, options.repetitions)
        found[name]["tf-encrypted"] = peer
        if peer is None:
            print(f"{name}: tf-encrypted was left out, since no network namespace can be made here")
            continue
        ratio = peer["predict"] / found[name]["one client"][rows]
        print(
            f"{name}: tf-encrypted, three players in processes, batch {rows}: {1e3 * peer['predict']:.1f} ms, "
            f"traced in {peer['trace']:.0f} s; tf-encrypted / ours {ratio:.1f}"
        )
    machine.write("serving", found)


if __name__ == "__main__":
    main()
