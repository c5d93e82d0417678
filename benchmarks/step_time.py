"""Step time of private training against plain Keras and tensorflow-privacy, in one process run.

Claim: at equal physical batch (256) a private step costs at most 1.3 times a plain one for the MLP, 1.25 times
for the CNN. Every repetition times all contestants in turn; printed are medians of the paired ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import networks
import tensorflow as tf

import keras_private as kp

PEER_BATCH = 64


def stepper(name: str, model: tf.keras.Model, batch: int) -> Callable[[int], float]:
    """A function that runs some steps and returns the seconds per step."""
    train = model.make_train_function()
    iterator = iter(networks.batches(name, batch))

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            train(iterator)
        return (time.perf_counter() - start) / steps

    run(5)
    return run


def private(batch: int, noise_multiplier: float = 1.0) -> kp.DPOptimizer:
    return kp.DPOptimizer(
        tf.keras.optimizers.SGD(0.01),
        l2_norm_clip=1.0,
        noise_multiplier=noise_multiplier,
        expected_batch_size=batch,
    )


def vectorized_peer(batch: int) -> object:
    from tensorflow_privacy import VectorizedDPKerasSGDOptimizer

    return VectorizedDPKerasSGDOptimizer(
        l2_norm_clip=1.0, noise_multiplier=1.0, num_microbatches=batch, learning_rate=0.01
    )


def contest(name: str, batch: int, repetitions: int, steps: int, with_peer: bool) -> dict[str, Any]:
    runners = {
        "plain": stepper(name, networks.compiled(name, tf.keras.optimizers.SGD(0.01)), batch),
        "private": stepper(name, networks.compiled(name, private(batch)), batch),
        "private, no noise": stepper(name, networks.compiled(name, private(batch, 0.0)), batch),
    }
    if with_peer:
        peer = networks.compiled(name, vectorized_peer(batch), reduction="none")
        runners["tensorflow-privacy"] = stepper(name, peer, batch)
    times: dict[str, list[float]] = {key: [] for key in runners}
    for _ in range(repetitions):
        for key, runner in runners.items():
            times[key].append(runner(steps))
    return {
        "batch": batch,
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in times.items()},
        "ratio to plain": {
            key: machine.median_ratio(values, times["plain"]) for key, values in times.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--no-peer", action="store_true", help="leave tensorflow-privacy out")
    parser.add_argument("--opacus", metavar="PYTHON", help="interpreter that has opacus (opacus_step.py says how)")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in networks.NETWORKS:
        figures[name] = contest(name, networks.BATCH, options.repetitions, 20, with_peer=False)
        if not options.no_peer:
            key = f"{name} beside tensorflow-privacy"
            figures[key] = contest(name, PEER_BATCH, 3, 3, with_peer=True)
    for name, figure in figures.items():
        print(f"\n{name}, batch {figure['batch']}")
        for key, value in figure["milliseconds"].items():
            print(f"  {key:20} {value:10.2f} ms   {figure['ratio to plain'][key]:8.2f}x plain")
    if options.opacus:
        script = Path(__file__).with_name("opacus_step.py")
        command = [options.opacus, str(script)]
        peer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"\nOpacus {peer['opacus']}, batch {networks.BATCH}: {peer['milliseconds']} ms a step")
        figures["opacus"] = peer
    machine.write("step_time", figures)


if __name__ == "__main__":
    main()
