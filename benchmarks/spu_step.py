"""SPU's simulator (ABY3, 64 bits) on net A and D, batch 128.

Run by a Python that has spu and jax, which keras_private's environment has not:

    python3.11 -m venv /tmp/spu && /tmp/spu/bin/pip install spu==0.9.5 && /tmp/spu/bin/python benchmarks/spu_step.py A D

Prints one JSON line: seconds of a training step and of a prediction for each net.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import spu
import spu.utils.simulation as simulation

BATCH = 128


def first_weights(name: str) -> list[Any]:
    rng = np.random.default_rng(0)

    def dense(inputs: int, outputs: int) -> list[np.ndarray]:
        limit = np.sqrt(6 / (inputs + outputs))
        return [rng.uniform(-limit, limit, (inputs, outputs)).astype(np.float32), np.zeros(outputs, np.float32)]

    if name == "A":
        return [*dense(784, 128), *dense(128, 128), *dense(128, 10)]
    kernel = rng.uniform(-0.2, 0.2, (5, 5, 1, 5)).astype(np.float32)
    return [kernel, np.zeros(5, np.float32), *dense(980, 100), *dense(100, 10)]


def logits(name: str, weights: list[Any], x: Any) -> Any:
    if name == "A":
        x = x.reshape(x.shape[0], -1)
    else:
        kernel, bias, *weights = weights
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout) + bias
        x = jnp.maximum(x, 0).reshape(x.shape[0], -1)
    for place in range(0, len(weights), 2):
        x = x @ weights[place] + weights[place + 1]
        x = jnp.maximum(x, 0) if place + 2 < len(weights) else x
    return x


def training(name: str) -> Callable[..., Any]:
    def loss(weights: list[Any], x: Any, y: Any) -> Any:
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits(name, weights, x)) * y, -1))

    def step(weights: list[Any], x: Any, y: Any) -> Any:
        return [w - 0.01 * g for w, g in zip(weights, jax.grad(loss)(weights, x, y))]

    return step


def predicting(name: str) -> Callable[..., Any]:
    return lambda weights, x: jax.nn.softmax(logits(name, weights, x))


def median_seconds(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> float:
    simulator = simulation.Simulator.simple(3, spu.ProtocolKind.ABY3, spu.FieldType.FM64)
    run = simulation.sim_jax(simulator, function)
    run(*arguments)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(*arguments)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1, (BATCH, 28, 28, 1)).astype(np.float32)
    y = np.eye(10, dtype=np.float32)[rng.integers(0, 10, BATCH)]
    found = {}
    for name in sys.argv[1:] or ["A", "D"]:
        weights = first_weights(name)
        found[name] = {
            "training_seconds": median_seconds(training(name), (weights, x, y), 3),
            "predict_seconds": median_seconds(predicting(name), (weights, x), 3),
        }
    print(json.dumps({"spu": spu.__version__, "nets": found}))


if __name__ == "__main__":
    main()
