"""Peak memory of private training against plain Keras and tensorflow-privacy, one fresh process each.

Claim: the peak resident memory of a private fit is at most 1.5 times that of a plain one at equal physical batch.
Printed are the peak of the whole process and what training added to a process that has imported everything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import machine
import networks

KINDS = ("plain", "private", "tensorflow-privacy")
MEBIBYTE = 1024.0


def measure(name: str, kind: str, batch: int) -> dict[str, float]:
    """Trains in this process and reports its peak resident memory, in MiB."""
    import step_time
    import tensorflow as tf

    plain = tf.keras.optimizers.SGD(0.01)
    optimizer = {"plain": lambda: plain, "private": lambda: step_time.private(batch)}.get(
        kind, lambda: step_time.vectorized_peer(batch)
    )()
    reduction = "none" if kind == "tensorflow-privacy" else "sum_over_batch_size"
    model = networks.compiled(name, optimizer, reduction=reduction)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE
    run = step_time.stepper(name, model, batch)
    run(20 if kind != "tensorflow-privacy" else 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEBIBYTE
    return {"peak": peak, "training": peak - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure, networks.BATCH)))
        return
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name in networks.NETWORKS:
        figures[name] = {}
        for kind in KINDS:
            command = [sys.executable, __file__, "--measure", name, kind]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            figures[name][kind] = json.loads(output.splitlines()[-1])
        print(f"\n{name}, batch {networks.BATCH}")
        for kind, figure in figures[name].items():
            ratio = figure["peak"] / figures[name]["plain"]["peak"]
            print(
                f"  {kind:20} peak {figure['peak']:7.0f} MiB ({ratio:.2f}x plain), "
                f"training added {figure['training']:6.0f} MiB"
            )
    machine.write("peak_memory", figures)


if __name__ == "__main__":
    main()
