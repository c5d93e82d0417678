"""Per-example work of the benchmark network's two convolutions: native operations beside stock ones.

    python benchmarks/example_gradients.py [--repetitions 101]

Claim: gradients, squared norms and the clipped sum of both take at most 3 ms natively for a batch of 256, on two
otherwise idle cores. Every repetition runs all contestants in turn; printed are medians, and the least times, which
other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Callable
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import networks
import tensorflow as tf

from keras_private import native
from keras_private.dp import kernels
from keras_private.dp.kernels import ConvGeometry, Layout
from keras_private.errors import BackendError

# Image, filters, geometry, output places on each side: the convolutions of networks.cnn.
CONVOLUTIONS = {
    "28x28x1, 16 of 8x8/2": ((28, 28, 1), 16, ConvGeometry((8, 8), (2, 2), padding="SAME"), 14),
    "13x13x16, 32 of 4x4/2": ((13, 13, 16), 32, ConvGeometry((4, 4), (2, 2)), 5),
}

Measured = Callable[[], object]


def stock(function: Callable) -> tf.types.experimental.ConcreteFunction:
    """Traces without the native operations."""
    with mock.patch.object(native, "load", side_effect=BackendError("not wanted")):
        return tf.function(function).get_concrete_function()


def contestants(
    shape: tuple[int, ...], filters: int, geometry: ConvGeometry, places: int
) -> dict[str, Measured]:
    batch = networks.BATCH
    images = tf.random.normal([batch, *shape])
    right = tf.random.normal([batch, places, places, filters])
    weights, keep = tf.random.uniform([batch]), tf.ones([batch], tf.bool)
    layout = Layout(1, batch, 1)
    gradients = kernels.conv2d_example_gradients(images, right, geometry, layout)[0]
    rows = tf.reshape(gradients, [batch, -1])

    def form() -> tuple[tf.Tensor, tf.Tensor]:
        return kernels.conv2d_example_gradients(images, right, geometry, layout)

    def add() -> tf.Tensor:
        return kernels.masked_weighted_sum(rows, weights, keep)

    def norms() -> tf.Tensor:
        return kernels.conv2d_example_norms(images, right, geometry, layout)

    def plain() -> tf.Tensor:
        return tf.raw_ops.Conv2DBackpropFilter(
            input=images,
            filter_sizes=[*geometry.kernel_size, shape[-1], filters],
            out_backprop=right,
            strides=[1, *geometry.strides, 1],
            padding=geometry.padding,
        )

    return {
        "gradients and norms, native": tf.function(form).get_concrete_function(),
        "gradients and norms, stock": stock(form),
        "norms only, native": tf.function(norms).get_concrete_function(),
        "weighted sum, native": tf.function(add).get_concrete_function(),
        "weighted sum, stock": stock(add),
        "Conv2DBackpropFilter": tf.function(plain).get_concrete_function(),
    }


def milliseconds(function: Measured) -> float:
    start = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - start
    del result
    return 1e3 * elapsed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=101)
    repetitions = parser.parse_args().repetitions
    if not kernels.available():
        raise SystemExit(f"the native operations are not available: {native.status().reason}")
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, (shape, filters, geometry, places) in CONVOLUTIONS.items():
        functions = contestants(shape, filters, geometry, places)
        times: dict[str, list[float]] = {key: [] for key in functions}
        for repetition in range(3 + repetitions):
            for key, function in functions.items():
                elapsed = milliseconds(function)
                if repetition >= 3:
                    times[key].append(elapsed)
        figures[name] = {
            key: {"median": round(statistics.median(values), 3), "least": round(min(values), 3)}
            for key, values in times.items()
        }
        print(f"\n{name}, batch {networks.BATCH}")
        for key, value in figures[name].items():
            print(f"  {key:30}{value['median']:8.2f} ms   (least {value['least']:.2f})")
    total = {
        kind: round(
            sum(
                figure[key][kind]
                for figure in figures.values()
                for key in ("gradients and norms, native", "weighted sum, native")
            ),
            3,
        )
        for kind in ("median", "least")
    }
    print(f"\nall per-example work, native: {total['median']:.2f} ms (least {total['least']:.2f})")
    load = round(os.getloadavg()[0], 1)
    machine.write(
        "example_gradients",
        {"batch": networks.BATCH, "load average": load, "milliseconds": figures, "native total": total},
    )


if __name__ == "__main__":
    main()
