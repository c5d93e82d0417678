"""Stock tf-encrypted 0.9.1 with its three players in processes of their own, for benchmarks/serving.py.

    python benchmarks/stock_tfe_serving.py A 128

Its players are servers of tf.distribute: without TLS or authentication, listening on all interfaces. So they run in a
network namespace of their own, which has nothing but loopback (`unshare`, `ip`). A request is a run of its traced
prediction, ABY3, on inputs that were shared before; its randomness is stood in for as benchmarks/stock_tfe.py says.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import OrderedDict
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_INSIDE = "KERAS_PRIVATE_BENCHMARK_ALONE"
_PLAYERS = ("server0", "server1", "server2")


def seconds_per_prediction(name: str, batch: int, repetitions: int) -> dict[str, float] | None:
    """Runs this file apart from every network.

    Returns:
        "trace" and "predict" in seconds, or None where no network namespace can be made.
    """
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return None
    arguments = [sys.executable, str(pathlib.Path(__file__).resolve()), name, str(batch), str(repetitions)]
    command = ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *arguments]
    inside = {**os.environ, _INSIDE: "1"}
    done = subprocess.run(command, env=inside, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def play(hosts: dict[str, str], name: str) -> None:
    """One player's process; it ends when its input closes."""
    from keras_private import _backends

    tfe = _backends.require("tf_encrypted")
    tfe.RemoteConfig(OrderedDict(hosts)).start_server(name, start=True)
    sys.stdin.read()
    os._exit(0)


def measure(name: str, batch: int, repetitions: int) -> dict[str, float]:
    import numpy as np

    from keras_private import _backends

    tfe = _backends.require("tf_encrypted")
    hosts = OrderedDict((player, f"127.0.0.1:{port}") for player, port in zip(_PLAYERS, free_ports(3)))
    servers = [
        subprocess.Popen(
            [sys.executable, __file__, "--play", player, json.dumps(hosts)], stdin=subprocess.PIPE, stdout=sys.stderr
        )
        for player in _PLAYERS
    ]
    try:
        config = tfe.RemoteConfig(hosts)
        tfe.set_config(config)
        config.connect_servers()
        import stock_tfe

        x = np.random.default_rng(0).uniform(0, 1, (batch, 28, 28, 1))
        y = np.random.default_rng(1).integers(0, 10, batch)
        traced: Any = stock_tfe.steps(name, x, y, 0.1)["predict"]()
        traced.run()
        found = []
        for _ in range(repetitions):
            start = time.perf_counter()
            np.asarray(traced.run())
            found.append(time.perf_counter() - start)
        return {"trace": traced.trace_seconds, "predict": statistics.median(found)}
    finally:
        for server in servers:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(20)


def main() -> None:
    if sys.argv[1:2] == ["--play"]:
        play(json.loads(sys.argv[3], object_pairs_hook=OrderedDict), sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=["A", "B", "D"])
    parser.add_argument("batch", type=int)
    parser.add_argument("repetitions", type=int, nargs="?", default=10)
    options = parser.parse_args()
    if os.environ.get(_INSIDE):
        print(json.dumps(measure(options.net, options.batch, options.repetitions)))
    else:
        print(seconds_per_prediction(options.net, options.batch, options.repetitions))


if __name__ == "__main__":
    main()
