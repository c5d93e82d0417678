"""Three real parties through faults: kills in the middle of a run, dead and silent clients, a party whose code was
changed, and bytes that are no frames. Whoever is honest stays up and serves."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted.cluster.certificates import issue, server_hostname
from keras_private.encrypted.cluster.wire import CALL, REFUSAL, Wire
from keras_private.errors import PartiesError, PrivacyError, TransportError

ROOT = pathlib.Path(__file__).resolve().parents[3]
LONG = 4096
layers = tf.keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:The three parties run on this machine")


def rows(count, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (count, 16))


@pytest.fixture(scope="module")
def cluster():
    with kp.Cluster.local(clients=("client", "other", "hostile"), verbose=False) as found:
        yield found


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(5)
    return tf.keras.Sequential([tf.keras.Input((16,)), layers.Dense(256, "relu"), layers.Dense(3)], "deep")


@pytest.fixture(scope="module")
def service(cluster, model):
    """One row takes a moment, LONG rows take seconds."""
    with kp.serve(model, cluster, batch_sizes=(1, LONG), input_range=(0, 1)) as found:
        yield found


@pytest.fixture
def client(cluster, service):
    with kp.Client(cluster, model="deep", seconds=30) as found:
        yield found


def deadline(seconds=20.0):
    return time.monotonic() + seconds


def until(condition, seconds=20.0):
    end = deadline(seconds)
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def check_served(client, model):
    x = rows(1)
    np.testing.assert_allclose(client.predict(x), model.predict(x, verbose=0), atol=2e-3)


def check_served_again(client, model, seconds=10.0):
    """Right away, or once the parties have opened new connections to each other."""
    end = deadline(seconds)
    while True:
        try:
            return check_served(client, model)
        except PrivacyError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def bytes_sent(cluster):
    return cluster.status()["server0"]["bytes_sent"]


def waiting(cluster):
    return [each["waiting"] for each in cluster.status().values()]


def script(body, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-c", body, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


class TestParties:
    @pytest.mark.parametrize("party", ["server0", "server1", pytest.param("server2", marks=pytest.mark.slow)])
    def test_one_that_is_killed_in_the_middle_of_a_run(self, cluster, service, client, model, party):
        check_served(client, model)
        processes = cluster.process_ids()
        before = bytes_sent(cluster)
        # Two run at once, the others wait.
        futures = [client.predict_async(rows(LONG), seconds=60) for _ in range(6)]
        assert until(lambda: bytes_sent(cluster) > before + service.bytes_per_run[LONG] // 12)
        os.kill(processes[party], signal.SIGKILL)
        start = time.monotonic()
        errors = [future.exception(timeout=20) for future in futures]
        assert time.monotonic() - start < 20
        broken = [error for error in errors if error is not None]
        assert broken and all(isinstance(error, TransportError) for error in broken)
        assert not service.serving
        others = [each for each in cluster.parties if each != party]
        assert all(psutil.pid_exists(processes[each]) for each in others)
        cluster.restart(party)
        # What the others kept of the broken run is forgotten, and they are the processes they were.
        assert all(cluster.process_ids()[each] == processes[each] for each in others)
        assert waiting(cluster) == [0, 0, 0]
        service.publish()
        check_served(client, model)

    @pytest.mark.parametrize("party", ["server0", "server1"])
    def test_one_that_sleeps_past_the_deadline(self, cluster, client, model, party):
        check_served(client, model)
        os.kill(cluster.process_ids()[party], signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(TransportError):
                client.predict(rows(1), seconds=2)
            assert time.monotonic() - start < 8
        finally:
            os.kill(cluster.process_ids()[party], signal.SIGCONT)
        check_served_again(client, model)

    def test_one_that_dies_while_a_model_is_published(self, cluster, service, client, model, monkeypatch):
        call = Wire.call

        def fatal(wire, facts, *arguments, **named):
            if facts["call"] == "weights" and wire.peer == "server2":
                os.kill(cluster.process_ids()["server2"], signal.SIGKILL)
            return call(wire, facts, *arguments, **named)

        with monkeypatch.context() as patch, pytest.raises(TransportError):
            patch.setattr(Wire, "call", fatal)
            service.publish()
        assert not service.serving
        cluster.restart("server2")
        assert until(lambda: all(not each["models"] for each in cluster.status().values()))
        service.publish()
        check_served_again(client, model)


class TestClients:
    ASKING = (
        "import sys\nimport numpy as np\nimport keras_private as kp\n"
        "client = kp.Client(kp.Cluster.load(sys.argv[1]), 'other', 'deep', seconds=float(sys.argv[3]))\n"
        "client.describe()\nprint('asking', flush=True)\n"
        "while True:\n    client.predict(np.zeros((int(sys.argv[2]), 16)))\n    print('answered', flush=True)\n"
    )

    def test_one_that_is_killed_while_it_waits(self, cluster, client, model):
        process = script(self.ASKING, cluster.folder / "cluster.json", LONG, 60)
        try:
            assert process.stdout.readline().strip() == "asking"
            assert until(lambda: all(waiting(cluster)))
            process.kill()
            process.wait()
            check_served(client, model)
            assert until(lambda: waiting(cluster) == [0, 0, 0])
            check_served(client, model)
        finally:
            process.kill()
            process.communicate()

    def test_one_of_another_process_that_is_stopped_and_goes_on(self, cluster, client, model):
        process = script(self.ASKING, cluster.folder / "cluster.json", 1, 60)
        try:
            assert [process.stdout.readline().strip() for _ in range(3)] == ["asking", "answered", "answered"]
            process.send_signal(signal.SIGSTOP)
            for _ in range(3):
                check_served(client, model)
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline().strip() == "answered"
        finally:
            process.kill()
            process.communicate()

    def test_a_withdrawn_model_is_said(self, cluster, service, client, model):
        client.describe()
        service.stop()
        assert until(lambda: not service.serving)
        with pytest.raises(PartiesError, match="no model 'deep'"):
            client.predict(rows(1))
        service.publish()
        check_served(client, model)

    def test_requests_under_way_end_with_the_model(self, cluster, service, client, model):
        check_served(client, model)
        futures = [client.predict_async(rows(LONG), seconds=60) for _ in range(6)]
        assert until(lambda: min(waiting(cluster)) >= 3)
        service.stop()
        start = time.monotonic()
        errors = [future.exception(timeout=30) for future in futures]
        assert time.monotonic() - start < 30
        broken = [error for error in errors if error is not None]
        assert broken and all(isinstance(error, PrivacyError) for error in broken)
        assert until(lambda: waiting(cluster) == [0, 0, 0])
        service.publish()
        check_served_again(client, model)


class TestFrames:
    """What a client with a valid certificate may send to a party's face."""

    HEAD = struct.Struct("!4sB16sIIQ")

    def head(self, magic=b"KPW1", kind=CALL, length=0, size=0):
        return self.HEAD.pack(magic, kind, bytes(16), 0, length, size)

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(lambda head: head(length=100) + b"{", id="cut in its facts"),
            pytest.param(lambda head: head()[:20], id="cut in its head"),
            pytest.param(lambda head: head(magic=b"HTTP"), id="of another magic"),
            pytest.param(lambda head: head(length=1 << 31), id="of too much text"),
            pytest.param(lambda head: head(size=1 << 40), id="of too many tensors"),
            pytest.param(lambda head: head(length=6) + b"[1, 2]", id="whose facts are a list"),
            pytest.param(lambda head: head(length=4) + b"\xff{}\x00", id="that is no JSON"),
            pytest.param(lambda head: head(length=1 << 16) + b"[" * (1 << 16), id="too deep"),
            pytest.param(lambda head: os.urandom(1000), id="of noise"),
        ],
    )
    def test_one_that_is_none_ends_its_connection_alone(self, cluster, client, model, content):
        memory = psutil.Process(cluster.process_ids()["server0"]).memory_info().rss
        with contextlib.closing(cluster.dial("hostile", "server0", deadline())) as wire:
            wire.connection.sendall(content(self.head))
            wire.connection.shutdown(socket.SHUT_WR)
            with pytest.raises(TransportError):
                while True:
                    assert wire.receive(lambda header: 0, deadline(5)).header.kind == REFUSAL
        check_served(client, model)
        assert psutil.Process(cluster.process_ids()["server0"]).memory_info().rss < memory + (64 << 20)

    @pytest.mark.parametrize(
        "change",
        [
            {"request": "00"},
            {"request": 7},
            {"request": "no hex"},
            {"rows": 0},
            {"rows": -1},
            {"rows": True},
            {"rows": 1.0},
            {"rows": 1 << 40},
            {"seconds": -1},
            {"seconds": "soon"},
            {"seconds": 1e9},
            {"seconds": float("nan")},
            {"publication": "of yesterday"},
            {"model": ["deep"]},
            {"model": None},
        ],
    )
    def test_a_malformed_request_is_refused(self, cluster, client, model, change):
        facts = client.describe()
        call = {"call": "predict", "request": os.urandom(16).hex(), "model": "deep", "rows": 1, "seconds": 5.0}
        call = {**call, "publication": facts["publication"], **change}
        pair = [np.zeros((1, 16), np.int64)] * 2
        with contextlib.closing(cluster.dial("hostile", "server0", deadline())) as wire:
            with pytest.raises(PrivacyError, match=r"^server0"):
                wire.call(call, pair, deadline(4))
            # The connection goes on.
            assert wire.call({"call": "ping"}, deadline=deadline()).facts["waiting"] == 0

    def test_one_client_does_not_use_every_connection_up(self, cluster, client, model):
        wires = []
        with pytest.raises(TransportError, match="64 connections"):
            for _ in range(300):
                wires.append(cluster.dial("hostile", "server0", deadline()))
                wires[-1].call({"call": "ping"}, deadline=deadline(5))
        assert len(wires) == 65
        try:
            with kp.Client(cluster, model="deep") as another:
                check_served(another, model)
        finally:
            for wire in wires:
                wire.close()


class TestCertificates:
    def refused(self, cluster, context):
        """Under TLS 1.3 the refusal is read with the first byte."""
        found = cluster.config.party("server2")
        plain = socket.create_connection((found.host, found.port), 10)
        with plain, pytest.raises((ssl.SSLError, ConnectionError)):
            secured = context.wrap_socket(plain, server_hostname=server_hostname("server2"))
            secured.sendall(b"x")
            if not secured.recv(1):
                raise ConnectionError("closed")

    def context(self, cluster):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cluster.folder / "client" / "ca.crt")
        return context

    def test_none_is_refused(self, cluster, client, model):
        self.refused(cluster, self.context(cluster))
        check_served(client, model)

    def test_one_whose_time_is_over_is_refused(self, cluster, client, model, tmp_path):
        issue(cluster.folder / "authority", "other", tmp_path, days=-1)
        context = self.context(cluster)
        context.load_cert_chain(tmp_path / "other.crt", tmp_path / "other.key")
        self.refused(cluster, context)
        check_served(client, model)

    def test_a_name_that_nobody_gave_a_role_may_call_nothing(self, cluster, client, model, tmp_path):
        issue(cluster.folder / "authority", "stranger", tmp_path)
        context = self.context(cluster)
        context.load_cert_chain(tmp_path / "stranger.crt", tmp_path / "stranger.key")
        found = cluster.config.party("server2")
        plain = socket.create_connection((found.host, found.port), 10)
        with contextlib.closing(
            Wire(context.wrap_socket(plain, server_hostname=server_hostname("server2")), "server2")
        ) as wire:
            for call in ("ping", "models", "predict", "prepare", "link"):
                with pytest.raises(TransportError, match="may not call"):
                    wire.call({"call": call}, deadline=deadline())


HOSTILE = """
import os, pathlib, sys
import numpy as np
from keras_private.encrypted.cluster import links, process
from keras_private.encrypted.cluster.links import Links

mode = pathlib.Path(sys.argv[2])
honest = Links.data


def data(self, target, key, number, arrays, deadline):
    how = mode.read_text() if number == 2 else "honest"
    if how == "short":
        arrays = [np.ravel(each)[:-1] for each in arrays]
    elif how == "long":
        arrays = [*arrays, np.zeros(1 << 20, np.int64)]
    elif how == "skipped":
        number += 1
    elif how == "repeated":
        honest(self, target, key, number, arrays, deadline)
    elif how == "elsewhere":
        key = os.urandom(16)
    elif how == "noise":
        self._outgoing[target].connection.sendall(os.urandom(100))
    elif how == "order":
        self.notice(target, {"notice": "order", "order": {"requests": [], "publication": "", "run": ""}})
    elif how == "malformed":
        self.notice(target, {"notice": "digest", "key": "no hex"})
    elif how == "unknown":
        self.notice(target, {"notice": "reveal"})
    if how != "silent":
        honest(self, target, key, number, arrays, deadline)


Links.data = data
sys.exit(process.main(["--name", "server1", "--config", sys.argv[1]]))
"""


@pytest.fixture(scope="class")
def mode(cluster, service, tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile") / "mode"
    place.write_text("honest")
    os.kill(cluster.process_ids()["server1"], signal.SIGKILL)
    cluster._processes["server1"].stop()
    process = script(HOSTILE, cluster.folder / "cluster.json", place)
    try:
        assert "serves" in process.stdout.readline()
        service.publish()
        yield place
    finally:
        process.kill()
        process.communicate()
        cluster.restart("server1")
        service.publish()


class TestHostileParty:
    """server1 with its own certificate and code that was changed: its owner and clients hear of errors, not answers."""

    @pytest.mark.parametrize(
        "how",
        ["short", "long", "skipped", "repeated", "elsewhere", "noise", "order", "malformed", "unknown", "silent"],
    )
    def test_the_others_end_the_run_and_serve_on(self, cluster, service, client, model, mode, how):
        check_served_again(client, model)
        processes = cluster.process_ids()
        mode.write_text(how)
        try:
            start = time.monotonic()
            with pytest.raises(TransportError):
                client.predict(rows(1), seconds=4)
            assert time.monotonic() - start < 8
        finally:
            mode.write_text("honest")
        check_served_again(client, model)
        assert cluster.process_ids() == processes
        assert all(psutil.pid_exists(processes[each]) for each in ("server0", "server2"))
        # Not published anew.
        assert service.serving


class TestPublications:
    def test_each_publication_has_shares_of_its_own(self, cluster, service, client, model, monkeypatch):
        seen = []
        call = Wire.call

        def noting(wire, facts, arrays=(), *arguments, **named):
            if facts["call"] == "weights":
                seen.append((wire.peer, [np.array(each) for each in arrays]))
            return call(wire, facts, arrays, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Wire, "call", noting)
            service.publish()
            service.publish()
        first, second = dict(seen[:3]), dict(seen[3:])
        for party in cluster.parties:
            for one, other in zip(first[party], second[party]):
                assert np.all(one != other)
        kernel = model.layers[0].kernel.numpy()
        for each in (first, second):
            # Each party's pair: its own share and that of the next.
            shares = [each[party][0] for party in cluster.parties]
            np.testing.assert_array_equal(each["server0"][1], shares[1])
            with np.errstate(over="ignore"):
                np.testing.assert_allclose(sum(shares) * 2.0**-16, kernel, atol=2.0**-16)
        check_served(client, model)

    @pytest.mark.long
    def test_a_convolutional_model_answers_as_keras_does(self, cluster):
        tf.keras.utils.set_random_seed(6)
        plain = tf.keras.Sequential(
            [
                tf.keras.Input((6, 6, 1)),
                layers.Conv2D(2, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dense(3, "softmax"),
            ],
            "picture",
        )
        x = np.random.default_rng(0).uniform(0, 1, (2, 6, 6, 1))
        with (
            kp.serve(plain, cluster, batch_sizes=(2,), input_range=(0, 1)),
            kp.Client(cluster, model="picture") as client,
        ):
            np.testing.assert_allclose(client.predict(x), plain.predict(x, verbose=0), atol=2e-3)
