"""Noise: the secure sources (grid rounding included) beside tf.random.normal (a bare draw), in one run.

    python benchmarks/noise_speed.py [--repeats 31]

Runs are interleaved and the figure is the median of ratios, so that a machine that slows down slows all alike.
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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from keras_private import native
from keras_private.random import NativeSource, PortableSource

SIZES = (269_322, 4_000_000)  # The weights of the MLP 784-256-256-10 and a round large number.
PORTABLE_EVERY = 5  # It is far slower; a few of its runs suffice.
CELL = 2.0**-20
RESULT = pathlib.Path(__file__).parent / "results" / "noise_speed.json"


def candidates(size: int) -> dict[str, Callable[[], tf.Tensor]]:
    """One traced function each, of the same input, to be run eagerly."""
    x = tf.random.normal([size])
    sources = {"native": NativeSource(), "portable": PortableSource()}
    functions = {"tf.random.normal": tf.function(lambda: tf.random.normal([size]))}
    for name, source in sources.items():
        functions[name] = _noisy(source, x)
    return functions


def _noisy(source: NativeSource | PortableSource, x: tf.Tensor) -> Callable[[], tf.Tensor]:
    traced = tf.function(lambda value: source.add_gaussian_noise(value, CELL))
    return lambda: traced(x)


def seconds(function: Callable[[], tf.Tensor]) -> float:
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def measure(size: int, repeats: int) -> dict[str, dict[str, float]]:
    functions = candidates(size)
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
            "milliseconds": round(1e3 * statistics.median(times[name]), 3),
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
    result = {
        "machine": machine(),
        "repeats": repeats,
        "sizes": {str(size): measure(size, repeats) for size in SIZES},
    }
    print(f"{'size':>10}  {'source':<18}{'ms':>10}{'x tf.random.normal':>22}")
    for size, rows in result["sizes"].items():
        for name, row in rows.items():
            print(
                f"{size:>10}  {name:<18}{row['milliseconds']:>10.2f}{row['times_as_fast_as_tf_random_normal']:>22.2f}"
            )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {RESULT.relative_to(RESULT.parents[2])}")


if __name__ == "__main__":
    main()
