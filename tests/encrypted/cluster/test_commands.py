"""keras-private cluster init, party, serve and query, as processes of their own."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[3]
SERVERS = ("server0", "server1", "server2")


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}


def command(*arguments):
    return [sys.executable, "-m", "keras_private", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=180, env=environment(), check=False
    )


def start(*arguments):
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def free_ports():
    found = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in found]
    for each in found:
        each.close()
    return ports


def first_line(process, containing, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if containing in line:
            return line
        if not line and process.poll() is not None:
            raise AssertionError(process.stderr.read()[-2000:])
    raise AssertionError(f"{containing} was not printed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("commands") / "cluster"
    done = run("cluster", "init", place, "--ports", *free_ports(), "--clients", "alice", "bob")
    assert done.returncode == 0, done.stderr
    assert all(str(place / name) in done.stdout for name in (*SERVERS, "owner", "alice", "bob", "authority"))
    return place


@pytest.fixture(scope="module")
def served(folder):
    """Three parties and a served model, each started as a user would; and the model."""
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    model = tf.keras.Sequential([tf.keras.Input((4,)), layers.Dense(3, "softmax")], name="small")
    model.save(folder.parent / "small.keras")
    config = folder / "cluster.json"
    processes = [start("party", "--name", name, "--config", config) for name in SERVERS]
    try:
        for name, process in zip(SERVERS, processes):
            assert name in first_line(process, "serves at")
        options = ["--batch-sizes", "4", "--input-range", "0,1"]
        processes.append(start("serve", folder.parent / "small.keras", "--cluster", config, *options))
        first_line(processes[-1], "is served")
        yield model
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_client_of_another_name_gets_keras_answers(folder, served, tmp_path):
    x = np.random.default_rng(0).uniform(0, 1, (6, 4))
    np.save(tmp_path / "x.npy", x)
    options = ["--cluster", folder / "cluster.json", "--client", "bob", "--output", tmp_path / "y.npy"]
    done = run("query", tmp_path / "x.npy", *options)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), served.predict(x, verbose=0), atol=1e-3)


def test_answers_are_printed_without_an_output_file(folder, served, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 4)))
    done = run("query", tmp_path / "x.npy", "--cluster", folder / "cluster.json", "--client", "alice")
    assert done.returncode == 0, done.stderr
    numbers = np.array([float(each) for each in done.stdout.replace("[", " ").replace("]", " ").split()])
    np.testing.assert_allclose(numbers.reshape(2, 3), served.predict(np.zeros((2, 4)), verbose=0), atol=1e-3)


@pytest.mark.long
def test_what_cannot_be_asked_is_said_in_one_message(folder, served, tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "far.npy", np.full((2, 4), 7.0))
    np.save(tmp_path / "fine.npy", np.zeros((2, 4)))
    config = folder / "cluster.json"
    for arguments, said in (
        ([tmp_path / "far.npy", "--cluster", config, "--client", "bob"], "declared range [0, 1]"),
        ([tmp_path / "text.npy", "--cluster", config, "--client", "bob"], "cannot be read"),
        ([tmp_path / "far.npy", "--cluster", config, "--client", "mallory"], "the certificate of 'mallory'"),
        ([tmp_path / "fine.npy", "--cluster", config, "--client", "owner"], "may not call"),
        ([tmp_path / "far.npy", "--cluster", tmp_path / "none.json"], "cannot be read"),
    ):
        done = run("query", *arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_taken_port_is_said(folder, served):
    done = run("party", "--name", "server1", "--config", folder / "cluster.json")
    assert done.returncode == 2 and "cannot listen" in done.stderr and "Traceback" not in done.stderr


def test_a_second_cluster_in_the_folder_is_refused(folder):
    done = run("cluster", "init", folder)
    assert done.returncode == 2 and "holds a cluster" in done.stderr
