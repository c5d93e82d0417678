"""The kernels of encrypted training against the same work in stock TensorFlow operations, in one process run.

    python benchmarks/ring_kernels.py [--repeats 21]

A private product of a party is two ring products, mask + A(x0) B(y0 + y1) + A(x1) B(y0). Claim: at least 3 times as
fast as tf.matmul on int64. Every repetition times both contestants in turn; printed are medians of the times and of the
paired ratios. Called eagerly: an operation a kernel, with its call's cost of some ten microseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import numpy as np
import tensorflow as tf

from keras_private.encrypted.kernels import PortableKernels
from keras_private.encrypted.kernels.native import NativeKernels

Contest = tuple[Callable[[], Any], Callable[[], Any], float, str]

# rows, depth, columns: layers of an MLP 784-128-128-10 at batch 128, one of their gradients, a large square.
MATRICES = [(128, 784, 128), (128, 128, 128), (128, 128, 10), (784, 128, 128), (512, 512, 512)]
# batch, size, channels, taps, filters, stride: nets of TensorFlow Encrypted's benchmark, and a wide layer.
CONVOLUTIONS = [(128, 28, 1, 5, 5, 2), (128, 28, 1, 5, 16, 1), (128, 12, 16, 5, 16, 1), (16, 28, 32, 3, 64, 1)]
WORDS = 1_000_000


def words(*shape: int, dtype: tf.DType = tf.int64) -> tf.Tensor:
    limits = np.iinfo(dtype.as_numpy_dtype)
    drawn = np.random.default_rng(len(shape)).integers(limits.min, limits.max, shape, limits.dtype, endpoint=True)
    return tf.constant(drawn)


def matrices(ours: NativeKernels, stock: PortableKernels) -> dict[str, Contest]:
    contests = {}
    for rows, depth, columns in MATRICES:
        x, y, mask = words(rows, depth), words(depth, columns), words(rows, columns)
        private = [partial(each.matmul, x, x, y, y, mask) for each in (ours, stock)]
        public = [partial(each.matmul_public, x, y) for each in (ours, stock)]
        multiplications, name = rows * depth * columns, f"{rows} x {depth} x {columns}"
        contests[f"matmul {name}"] = (*private, 2 * multiplications, "G multiply-adds/s")
        contests[f"matmul_public {name}"] = (*public, multiplications, "G multiply-adds/s")
    return contests


def convolutions(ours: NativeKernels, stock: PortableKernels) -> dict[str, Contest]:
    contests = {}
    for batch, size, channels, taps, filters, stride in CONVOLUTIONS:
        window = {"strides": (stride, stride), "padding": ((taps // 2,) * 2,) * 2, "dilations": (1, 1)}
        x, w = words(batch, size, size, channels), words(taps, taps, channels, filters)
        g = ours.conv2d_public(x, w, **window)
        work = 2 * int(tf.size(g)) * taps * taps * channels
        calls = {
            "conv2d": lambda k, x=x, w=w, g=g, window=window: k.conv2d(x, x, w, w, g, **window),
            "conv2d_input": lambda k, x=x, w=w, g=g, window=window: k.conv2d_input(
                w, w, g, g, x, x.shape[1:3], **window
            ),
            "conv2d_filter": lambda k, x=x, w=w, g=g, window=window: k.conv2d_filter(
                x, x, g, g, w, w.shape[:2], **window
            ),
        }
        for name, call in calls.items():
            label = f"{name} [{batch}, {size}, {size}, {channels}] * [{taps}, {taps}, {channels}, {filters}] / {stride}"
            contests[label] = (partial(call, ours), partial(call, stock), work, "G multiply-adds/s")
    x, w = words(32, 28, 28, 32), words(3, 3, 32, 1)
    window = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "dilations": (1, 1)}
    deep = [partial(each.depthwise, x, x, w, w, x, **window) for each in (ours, stock)]
    contests["depthwise [32, 28, 28, 32] * [3, 3, 32, 1]"] = (*deep, 18 * int(tf.size(x)), "G multiply-adds/s")
    return contests


def elementwise(ours: NativeKernels, stock: PortableKernels) -> dict[str, Contest]:
    five, keys, nonce = [words(WORDS)] * 5, [words(4), words(4) + 1], tf.zeros([12], tf.uint8)
    keys = [tf.reshape(tf.bitcast(each, tf.uint8), [32]) for each in keys]
    gates = words(2, WORDS)

    def both(call: Callable[[Any], Any], streams: int = 0) -> Contest:
        work = 8 * streams * WORDS if streams else WORDS
        return partial(call, ours), partial(call, stock), work, "GB of keystream/s" if streams else "G words/s"

    return {
        "keystream": both(lambda k: k.keystream(keys[0], nonce, [WORDS]), 1),
        "zero_mask": both(lambda k: k.zero_mask(*keys, nonce, [WORDS]), 2),
        "trunc_dealer": both(lambda k: k.trunc_dealer(*keys, nonce, [WORDS], 16), 4),
        "trunc_close0": both(lambda k: k.trunc_close0(*five[:2], keys[0], nonce, 16), 3),
        "product": both(lambda k: k.product(*five)),
        "and_words": both(lambda k: k.and_words(*five)),
        "carry_leaf": both(lambda k: k.carry_leaf(*five)),
        "carry_level 64": both(lambda k: k.carry_level(64, gates, gates, five[0])),
    }


def seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def measure(contest: Contest, repeats: int) -> dict[str, Any]:
    ours, stock, work, unit = contest
    for call in (ours, stock):
        call()
    # Some milliseconds a sample.
    counts = [max(1, min(50, int(0.01 / max(seconds(call, 1), 1e-6)))) for call in (ours, stock)]
    mine, theirs = [], []
    for _ in range(repeats):
        mine.append(seconds(ours, counts[0]))
        theirs.append(seconds(stock, counts[1]))
    return {
        "milliseconds": round(1e3 * statistics.median(mine), 4),
        "stock_milliseconds": round(1e3 * statistics.median(theirs), 4),
        "times_as_fast_as_stock": round(machine.median_ratio(theirs, mine), 2),
        unit: round(work / statistics.median(mine) / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    repeats = parser.parse_args().repeats
    ours, stock = NativeKernels(), PortableKernels()
    contests = {**matrices(ours, stock), **convolutions(ours, stock), **elementwise(ours, stock)}
    figures = {}
    for name, contest in contests.items():
        figures[name] = row = measure(contest, repeats)
        unit = contest[3]
        print(f"{name:<62}{row['milliseconds']:>9.3f} ms{row['times_as_fast_as_stock']:>8.1f}x{row[unit]:>9.2f} {unit}")
    machine.write("ring_kernels", {"repeats": repeats, "kernels": figures})


if __name__ == "__main__":
    main()
