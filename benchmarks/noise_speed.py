"""Noise: the secure sources (grid rounding included) beside tf.random.normal (a bare draw), in one run.

    python benchmarks/noise_speed.py [--repeats 31]

Runs are interleaved and the figure is the median of ratios: a machine that slows down slows all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from keras_private import native
from keras_private.random import NativeSource, PortableSource

# Draws in one graph by size: the weights of the MLP 784-256-256-10, as often as hides the cost of calling a
# function (a train step has it once for everything), and a round large number.
SIZES = {269_322: 16, 4_000_000: 1}
PORTABLE_EVERY = 5  # It is far slower; a few of its runs suffice.
CELL = 2.0**-20
RESULT = pathlib.Path(__file__).parent / "results" / "noise_speed.json"


def candidates(size: int, draws: int) -> dict[str, Callable[[], tf.Tensor]]:
    """One traced function each: `draws` draws of one size, one after another."""
    x = tf.random.normal([size])
    functions = {"tf.random.normal": _traced(lambda value: tf.random.normal([size]), x, draws)}
    for source in (NativeSource(), PortableSource()):
        functions[source.name] = _traced(partial(source.add_gaussian_noise, cell=CELL), x, draws)
    return functions


def _traced(draw: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, draws: int) -> Callable[[], tf.Tensor]:
    @tf.function(autograph=False)
    def run(value: tf.Tensor) -> tf.Tensor:
        # Stateful ops run one after another and are never pruned; only one element of each is handed back.
        return tf.stack([draw(value)[0] for _ in range(draws)])

    return partial(run, x)


def seconds(function: Callable[[], tf.Tensor]) -> float:
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def measure(size: int, draws: int, repeats: int) -> dict[str, dict[str, float]]:
    functions = candidates(size, draws)
    for function in functions.values():
        for _ in range(3):
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    ratios: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats):
        base = seconds(functions["tf.random.normal"])
        for name, function in functions.items():
            if name == "portable" and repeat % PORTABLE_EVERY:
                continue
            took = base if name == "tf.random.normal" else seconds(function)
            times[name].append(took)
            ratios[name].append(base / took)
    return {
        name: {
            "milliseconds_per_draw": round(1e3 * statistics.median(times[name]) / draws, 3),
            "times_as_fast_as_tf_random_normal": round(statistics.median(ratios[name]), 3),
        }
        for name in functions
    }


def machine() -> dict[str, object]:
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "openssl": native.status().openssl_version,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=31)
    repeats = parser.parse_args().repeats
    sizes = {str(size): measure(size, draws, repeats) for size, draws in SIZES.items()}
    result = {"machine": machine(), "repeats": repeats, "sizes": sizes}
    print(f"{'size':>10}  {'source':<18}{'ms a draw':>10}{'x tf.random.normal':>22}")
    for size, rows in sizes.items():
        for name, row in rows.items():
            milliseconds, ratio = row["milliseconds_per_draw"], row["times_as_fast_as_tf_random_normal"]
            print(f"{size:>10}  {name:<18}{milliseconds:>10.2f}{ratio:>22.2f}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {RESULT.relative_to(RESULT.parents[2])}")


if __name__ == "__main__":
    main()
