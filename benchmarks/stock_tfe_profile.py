"""Where stock tf-encrypted spends a step: operations traced, those left after TensorFlow's optimization, time by type.

Times are those of the executor's events in tf.profiler's trace, summed over threads: an operation's own time, without
what it waits for. Loops and calls are left out, since their operations have events of their own.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import encrypted_step
import machine
import stock_tfe
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from keras_private._backends.tf_encrypted import REPLACED

NESTED = {"While", "StatelessWhile", "PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf"}


def left_after_optimization(run: Any) -> collections.Counter[str]:
    """Types in the graphs that run, as the run metadata shows them; runs once."""
    context.context().enable_run_metadata()
    try:
        run()
        metadata = context.context().export_run_metadata()
    finally:
        context.context().disable_run_metadata()
    types: collections.Counter[str] = collections.Counter()
    for graph in metadata.function_graphs:
        for part in graph.partition_graphs:
            types.update(node.op for node in part.node)
            for function in part.library.function:
                types.update(node.op for node in function.node_def)
    return types


def time_by_type(run: Any, runs: int) -> tuple[float, dict[str, dict[str, float]]]:
    """Seconds of a step while profiled; and of each type, seconds and events in a step, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        start = time.perf_counter()
        for _ in range(runs):
            run()
        seconds = (time.perf_counter() - start) / runs
        tf.profiler.experimental.stop()
        space = xplane_pb2.XSpace()
        space.ParseFromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    found: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        for line in plane.lines:
            for event in line.events:
                # The executor names its events "name:Type".
                name, colon, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                # Of C++ functions, "::" stands before the last word.
                if colon and name and not name.endswith(":") and kind.isidentifier() and kind not in NESTED:
                    key = f"{kind} ({REPLACED})" if REPLACED in name else kind
                    found[key][0] += event.duration_ps * 1e-12 / runs
                    found[key][1] += 1 / runs
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    return seconds, {kind: {"seconds": spent, "events": events} for kind, (spent, events) in ordered}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=["A", "D", "B"], metavar="net", help="A, D, B (default: all)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = machine.RESULTS / "stock_tfe_profile.json"
    # Of networks not named now.
    figures: dict[str, Any] = json.loads(kept.read_text())["figures"] if kept.exists() else {}
    x, y = encrypted_step.examples()
    for name in options.nets:
        for kind, tracer in stock_tfe.steps(name, x, y, encrypted_step.RATE).items():
            traced = tracer()
            left = left_after_optimization(traced.run)
            traced.run()
            seconds, types = time_by_type(traced.run, 1 if name == "B" else 5)
            total = sum(each["seconds"] for each in types.values())
            replaced = sum(each["seconds"] for key, each in types.items() if REPLACED in key)
            operations = len(traced.graph.get_operations())
            print(f"{name} {kind}: {operations} operations traced, {sum(left.values())} left, {seconds:.3f} s a step")
            print(f"    {total:.3f} s in operations, {replaced:.3f} s of it in those that stand for its own")
            for key, each in list(types.items())[:12]:
                print(
                    f"    {key:32} {each['seconds']:8.4f} s {each['seconds'] / total:6.1%} {each['events']:8.0f} events"
                )
            figures[f"{name} {kind}"] = {
                "operations_traced": operations,
                "operations_left": sum(left.values()),
                "types_left": dict(left.most_common(20)),
                "seconds_profiled": seconds,
                "seconds_in_operations": total,
                "seconds_in_replaced": replaced,
                "types": dict(list(types.items())[:20]),
            }
            machine.write("stock_tfe_profile", figures)


if __name__ == "__main__":
    main()
