"""keras-private party, cluster, serve and query."""

from __future__ import annotations

import argparse
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from keras_private.encrypted.cluster import process
from keras_private.errors import ConfigurationError, PrivacyError

COMMANDS = ("party", "cluster", "serve", "query")


def add_commands(commands: Any) -> None:
    """Adds them to the parser of the command keras-private."""
    party = commands.add_parser("party", help="run one of three parties")
    process.add_arguments(party)
    cluster = commands.add_parser("cluster", help="make the files of three parties, owners and clients")
    kinds = cluster.add_subparsers(dest="kind", required=True, metavar="what")
    new = kinds.add_parser("init", help="an authority, certificates, and cluster.json")
    new.add_argument("folder", help="where to; each party, owner and client is then given its own part")
    new.add_argument("--hosts", nargs=3, default=["127.0.0.1"] * 3, metavar="HOST", help="of the three parties")
    new.add_argument(
        "--ports", nargs=3, type=int, default=[7701, 7702, 7703], metavar="PORT", help="of the three parties"
    )
    new.add_argument("--clients", nargs="*", default=["client"], help="names that may ask for predictions")
    new.add_argument("--owners", nargs="*", default=["owner"], help="names that may publish models")
    new.add_argument("--days", type=float, default=90, help="until certificates end")
    serve = commands.add_parser("serve", help="publish a Keras model to three parties")
    serve.add_argument("model", help="a .keras file")
    serve.add_argument("--cluster", help="cluster.json; by default three processes are started on this machine")
    serve.add_argument("--name", help="that clients ask for; by default the model's")
    serve.add_argument("--owner", default="owner", help="name in this process's certificate")
    serve.add_argument("--batch-sizes", default="1,16,128", help="rows that programs are made for")
    serve.add_argument("--input-range", default="-10,10", help="that inputs must lie in: low,high")
    query = commands.add_parser("query", help="ask three parties for predictions")
    query.add_argument("input", help="a .npy file of rows")
    query.add_argument("--cluster", required=True, help="cluster.json")
    query.add_argument("--model", help="its name, when several are published")
    query.add_argument("--client", default="client", help="name in this process's certificate")
    query.add_argument("--output", help="a .npy file for the predictions; by default they are printed")


def run(options: argparse.Namespace) -> int:
    """Runs the command that was parsed.

    Returns:
        The exit code: 2 after an error that the message explains.
    """
    handlers = {"party": process.run, "cluster": _init, "serve": _serve, "query": _query}
    try:
        return handlers[options.command](options)
    except PrivacyError as error:
        print(f"keras-private {options.command}: {error}", file=sys.stderr)
        return 2


def _init(options: argparse.Namespace) -> int:
    from keras_private.encrypted.cluster.config import FILE, init

    config = init(options.folder, options.hosts, options.ports, options.clients, options.owners, options.days)
    folder = pathlib.Path(options.folder)
    print(f"{folder / FILE}: for everyone")
    for each in config.parties:
        print(f"{folder / each.name}: for {each.host}, where `keras-private party --name {each.name}` serves")
    for name in (*config.owners, *config.clients):
        print(f"{folder / name}: for {name}")
    print(f"{folder / 'authority'}: for nobody; whoever has its key can be anyone in the cluster")
    return 0


def _serve(options: argparse.Namespace) -> int:
    import tensorflow as tf

    from keras_private.encrypted.cluster.cluster import Cluster
    from keras_private.encrypted.serving import serve

    sizes = [int(each) for each in _numbers(options.batch_sizes, "--batch-sizes")]
    span = tuple(_numbers(options.input_range, "--input-range"))
    try:
        model = tf.keras.models.load_model(options.model, compile=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{options.model} cannot be loaded: {error}", expected="a model that Keras saved", remedy="check the file"
        ) from error
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    cluster = Cluster.load(options.cluster) if options.cluster else Cluster.local()
    with cluster, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with serve(
            model, cluster, batch_sizes=sizes, name=options.name, input_range=span, owner=options.owner
        ) as found:
            if cluster.simulated:
                print("The three parties run on this machine, as this user: a simulation that protects from nobody.")
            print(f"{found.model} is served; ask with")
            print(f"  keras-private query --cluster {cluster.folder / 'cluster.json'} rows.npy", flush=True)
            over.wait()
    return 0


def _query(options: argparse.Namespace) -> int:
    import numpy as np

    from keras_private.encrypted.client import Client
    from keras_private.encrypted.cluster.cluster import Cluster

    try:
        rows = np.load(options.input, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{options.input} cannot be read: {error}",
            expected="an array that numpy.save wrote",
            remedy="check the file",
        ) from error
    with Client(Cluster.load(options.cluster), options.client, options.model) as client:
        found = client.predict(rows)
    outputs = found if isinstance(found, list) else [found]
    if options.output:
        np.save(options.output, outputs[0]) if len(outputs) == 1 else np.savez(options.output, *outputs)
        return 0
    for output in outputs:
        print(np.array2string(output, precision=4, suppress_small=True, threshold=10**6))
    return 0


def _numbers(text: str, option: str) -> Sequence[float]:
    try:
        return [float(each) for each in text.split(",")]
    except ValueError as error:
        raise ConfigurationError(
            f"{option} {text}", expected="numbers with commas between them", remedy=f"correct {option}"
        ) from error
