"""The prediction service on three real processes: answers, roles, hostile members, and processes that are killed."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import psutil
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted import client as client_module
from keras_private.encrypted import encryption
from keras_private.encrypted.cluster.certificates import Identity, authority, issue
from keras_private.encrypted.cluster.links import dial
from keras_private.encrypted.cluster.sharing import share_out
from keras_private.encrypted.cluster.wire import DATA, NOTICE
from keras_private.errors import (
    ConfigurationError,
    EncodingError,
    PartiesError,
    PrivacyError,
    TransportError,
    UnsupportedLayerError,
)

ROOT = pathlib.Path(__file__).resolve().parents[3]
SERVERS = ("server0", "server1", "server2")
layers = tf.keras.layers
pytestmark = pytest.mark.filterwarnings("ignore:The three parties run on this machine")


def small(name="small"):
    tf.keras.utils.set_random_seed(3)
    return tf.keras.Sequential([tf.keras.Input((5,)), layers.Dense(4, "relu"), layers.Dense(3, "softmax")], name)


def rows(count, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (count, 5))


@pytest.fixture(scope="module")
def cluster():
    with kp.Cluster.local(clients=("client", "other"), verbose=False) as found:
        yield found


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def service(cluster, model):
    with kp.serve(model, cluster, batch_sizes=(1, 4), input_range=(0, 1)) as found:
        yield found


@pytest.fixture
def client(cluster, service):
    with kp.Client(cluster, model="small", seconds=30) as found:
        yield found


def check_served(client, model):
    x = rows(6)
    np.testing.assert_allclose(client.predict(x), model.predict(x, verbose=0), atol=1e-3)


def deadline(seconds=20):
    return time.monotonic() + seconds


class TestAnswers:
    @pytest.mark.parametrize("count", [1, 3, 4, 9])
    def test_are_those_of_keras(self, client, model, count):
        x = rows(count)
        np.testing.assert_allclose(client.predict(x), model.predict(x, verbose=0), atol=1e-3)

    def test_are_those_of_the_parties_in_one_process(self, client, model):
        x = rows(4)
        together = kp.EncryptedModel(model, input_range=(0, 1)).predict(x, verbose=0)
        np.testing.assert_allclose(client.predict(x), together, atol=2e-4)

    def test_several_inputs_outputs_and_tables(self, cluster):
        left, index = tf.keras.Input((3,)), tf.keras.Input((2,))
        table = layers.Flatten()(layers.Embedding(6, 2)(index))
        joined = layers.Concatenate()([left, table])
        plain = tf.keras.Model([left, index], [layers.Dense(2, "sigmoid")(joined), layers.Dense(1)(joined)], name="two")
        x = [np.random.default_rng(0).uniform(0, 1, (2, 3)), np.array([[0, 5], [3, 1]])]
        with (
            kp.serve(plain, cluster, batch_sizes=(2,), input_range=[(0, 1), (0, 6)]),
            kp.Client(cluster, model="two") as client,
        ):
            for ours, theirs in zip(client.predict(x), plain.predict(x, verbose=0)):
                np.testing.assert_allclose(ours, theirs, atol=1e-3)
            with pytest.raises(EncodingError, match="no index"):
                client.predict([x[0], np.array([[0, 6], [3, 1]])])

    def test_logits_are_finished_by_the_client(self, cluster, model):
        published = kp.serve(model, cluster, batch_sizes=(4,), input_range=(0, 1), name="quick", logits=True)
        with published as quick, kp.Client(cluster, model="quick") as client:
            check_served(client, model)
            assert quick.bytes_per_run[4] > 0

    def test_come_from_several_clients_at_once_in_fewer_runs(self, cluster, service, model):
        before = cluster.status()["server0"]["models"][0]
        clients = [kp.Client(cluster, name, "small") for name in ("client", "other") * 2]
        x = rows(1)
        futures = [client.predict_async(x) for _ in range(10) for client in clients]
        for future in futures:
            np.testing.assert_allclose(future.result(), model.predict(x, verbose=0), atol=1e-3)
        after = cluster.status()["server0"]["models"][0]
        assert after["requests"] - before["requests"] == 40
        assert after["runs"] - before["runs"] < 40
        for each in clients:
            each.close()

    def test_a_published_model_is_shared_afresh(self, cluster, service, client, model):
        digests, before = service.digests, service.publication
        service.publish()
        assert service.publication != before and service.digests == digests
        with pytest.raises(PrivacyError):
            # The description that the client knows is of the publication before.
            facts = {**client.describe(), "publication": before}
            client._ask(facts, client._checked(rows(1), facts), deadline())
        check_served(client, model)


class TestClients:
    @pytest.mark.parametrize(
        ("x", "error"),
        [
            (np.zeros((2, 4)), ConfigurationError),
            (np.zeros((0, 5)), ConfigurationError),
            (np.zeros(5), ConfigurationError),
            (np.array([["a"] * 5]), ConfigurationError),
            (np.full((1, 5), np.nan), EncodingError),
            (np.full((1, 5), np.inf), EncodingError),
            (np.full((1, 5), 1e9), EncodingError),
            (np.full((1, 5), 1.5), EncodingError),
        ],
    )
    def test_nothing_is_sent_of_what_does_not_fit(self, cluster, client, x, error):
        client.describe()
        before = cluster.status()["server0"]["models"][0]["requests"]
        with pytest.raises(error):
            client.predict(x)
        assert cluster.status()["server0"]["models"][0]["requests"] == before

    def test_an_unknown_model_is_said(self, cluster):
        with kp.Client(cluster, model="none") as found, pytest.raises(PartiesError, match="no model 'none'"):
            found.predict(rows(1))

    @pytest.mark.parametrize("party", range(3))
    def test_different_shares_for_two_parties_are_refused(self, client, model, monkeypatch, party):
        def unequal(encoded, *_):
            pairs = share_out(encoded)
            pairs[party] = (pairs[party][0] + 1, pairs[party][1])
            return pairs

        monkeypatch.setattr(encryption, "share_out", unequal)
        with pytest.raises(TransportError, match="different shares"):
            client.predict(rows(1))
        monkeypatch.undo()
        check_served(client, model)

    def test_a_key_is_taken_once(self, client, monkeypatch):
        monkeypatch.setattr(client_module.secrets, "token_hex", lambda _: "ab" * 16)
        client.predict(rows(1))
        with pytest.raises(TransportError, match="used before"):
            client.predict(rows(1))

    def test_half_a_request_hurts_nobody_else(self, cluster, client, model):
        wire = cluster.dial("other", "server0", deadline())
        wire.connection.sendall(b"KPW1" + bytes([1]) + bytes(40))
        wire.close()
        check_served(client, model)

    def test_a_request_to_one_party_alone_ends_with_its_time(self, cluster, client, model):
        wire = cluster.dial("other", "server1", deadline())
        facts = client.describe()
        call = {"call": "predict", "request": "12" * 16, "model": "small", "publication": facts["publication"]}
        pair = [np.zeros((1, 5), np.int64)] * 2
        with pytest.raises(TransportError, match="not computed in time"):
            wire.call({**call, "rows": 1, "seconds": 0.5}, pair, deadline())
        with pytest.raises(TransportError, match="bytes of tensors"):
            wire.call({**call, "request": "13" * 16, "rows": 2, "seconds": 0.5}, pair, deadline())
        wire.close()
        check_served(client, model)


class TestRoles:
    def refused(self, cluster, name, call, error=TransportError):
        wire = cluster.dial(name, "server0", deadline())
        with pytest.raises(error) as found:
            wire.call(call, deadline=deadline())
        wire.close()
        return str(found.value)

    def test_each_name_has_its_calls(self, cluster, service):
        assert "may not call 'prepare'" in self.refused(cluster, "client", {"call": "prepare"})
        assert "may not call 'predict'" in self.refused(cluster, "owner", {"call": "predict"})
        assert "may not call 'link'" in self.refused(cluster, "client", {"call": "link"})
        assert "may not call 'models'" in self.refused(cluster, "server1", {"call": "models"})

    def test_another_connections_publication_is_out_of_reach(self, cluster, service):
        call = {"call": "weights", "publication": service.publication}
        assert "not of this connection" in self.refused(cluster, "owner", call, PartiesError)

    @pytest.mark.parametrize(
        ("layer", "error"),
        [
            ({"class_name": "Lambda", "config": {}}, UnsupportedLayerError),
            ({"class_name": "Dense", "module": "os", "config": {}}, UnsupportedLayerError),
            ({"class_name": "TFOpLambda", "config": {"function": "io.gfile.rmtree"}}, UnsupportedLayerError),
            ({"class_name": "Mine", "config": {}, "registered_name": "p>Mine"}, UnsupportedLayerError),
            ({"class_name": "function", "module": "keras.utils", "config": "get_file"}, UnsupportedLayerError),
            ({"class_name": "Dense", "config": {"units": -1}}, ConfigurationError),
        ],
    )
    def test_parties_build_layers_of_keras_alone(self, cluster, service, layer, error):
        import json

        text = json.dumps({"class_name": "Sequential", "config": {"name": "m", "layers": [layer]}})
        facts = {"architecture": text, "fraction": 16, "integer": 24, "batches": [1], "native": True, "logits": False}
        call = {"call": "prepare", "model": "evil", "publication": "x", "input_ranges": [[0, 1]], "description": facts}
        self.refused(cluster, "owner", call, error)

    def test_a_taken_name_is_refused(self, cluster, service, model):
        with pytest.raises(ConfigurationError, match="published already"):
            kp.serve(model, cluster, batch_sizes=(1,), input_range=(0, 1))

    def test_a_party_with_another_program_gets_no_weights(self, cluster, service, monkeypatch):
        monkeypatch.setattr(
            "keras_private.encrypted.serving.Service._trace",
            lambda self: setattr(self, "_expected", {party: {"1": "0" * 64} for party in SERVERS}),
        )
        with pytest.raises(PartiesError, match="another program"):
            kp.serve(small("second"), cluster, batch_sizes=(1,), input_range=(0, 1))
        assert all(len(each["models"]) == 1 for each in cluster.status().values())

    @pytest.mark.parametrize("name", ["owner", "client", "server1"])
    def test_a_foreign_authority_is_refused(self, cluster, tmp_path, name):
        authority(tmp_path / "authority")
        issue(tmp_path / "authority", name, tmp_path / name)
        foreign = Identity.load(tmp_path / name, name)
        with pytest.raises(ConfigurationError, match="another authority"):
            dial(cluster.config, foreign, "server0", deadline())
        import dataclasses

        config = dataclasses.replace(cluster.config, fingerprint=foreign.fingerprint)
        with pytest.raises(TransportError, match="not who it should be"):
            dial(config, foreign, "server0", deadline())

    def test_plain_bytes_are_refused(self, cluster, client, model):
        found = cluster.config.party("server0")
        with socket.create_connection((found.host, found.port), 10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            plain.settimeout(15)
            try:
                while plain.recv(4096):
                    pass
            except ConnectionError:
                pass
        check_served(client, model)


def test_a_hostile_partys_frames_are_dropped(cluster, client, model):
    wire = cluster.dial("server1", "server0", deadline())
    wire.call({"call": "link"}, deadline=deadline(), most=0)
    for number, size in ((5, 1), (0, 1), (0, 3)):
        wire.send(DATA, None, [np.zeros(size, np.int64)], os.urandom(16), number, deadline())
    wire.send(NOTICE, {"notice": "order", "order": {}}, deadline=deadline())
    wire.close()
    time.sleep(0.5)
    for _ in range(3):
        try:
            check_served(client, model)
            return
        except TransportError:
            # The true party's connection was displaced: it opens another.
            time.sleep(0.5)
    raise AssertionError("the parties did not recover")


class TestKills:
    def signal(self, cluster, party, number):
        os.kill(cluster.process_ids()[party], number)

    def revive(self, cluster, service, client, model, party):
        cluster.restart(party)
        service.publish()
        check_served(client, model)

    @pytest.mark.parametrize(
        "party", [SERVERS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in SERVERS[1:])]
    )
    def test_a_party_killed_before_a_request(self, cluster, service, client, model, party):
        check_served(client, model)
        self.signal(cluster, party, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(PrivacyError):
            client.predict(rows(2), seconds=15)
        assert time.monotonic() - start < 16
        assert not service.serving
        self.revive(cluster, service, client, model, party)

    @pytest.mark.parametrize(
        "party", [*(pytest.param(each, marks=pytest.mark.slow) for each in SERVERS[:2]), SERVERS[2]]
    )
    def test_a_party_killed_during_a_request(self, cluster, service, client, model, party):
        check_served(client, model)
        self.signal(cluster, party, signal.SIGSTOP)
        future = client.predict_async(rows(2), seconds=20)
        time.sleep(1.0)
        assert not future.done()
        self.signal(cluster, party, signal.SIGKILL)
        with pytest.raises(TransportError):
            future.result(timeout=22)
        self.revive(cluster, service, client, model, party)

    def test_a_party_that_sleeps_past_the_deadline(self, cluster, service, client, model):
        check_served(client, model)
        self.signal(cluster, "server2", signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(TransportError):
                client.predict(rows(2), seconds=2)
            assert time.monotonic() - start < 10
        finally:
            self.signal(cluster, "server2", signal.SIGCONT)
        for _ in range(20):
            try:
                check_served(client, model)
                return
            except PrivacyError:
                time.sleep(0.5)
        raise AssertionError("the service did not recover")


def test_the_report_says_who_sees_what_and_that_this_is_one_machine(service):
    report = service.privacy_report()
    assert report.kind == "prediction service" and not report.learns and report.spendings == ()
    assert report.costs["request of up to 4 rows"].bytes == service.bytes_per_run[4] > 0
    assert "this machine" in report.simulated[0]
    secret = ("weights", "inputs", "predictions")
    seen = {view.adversary: [view.of(item).level for item in secret] for view in report.views}
    assert all(seen[party] == ["shares"] * 3 for party in service.cluster.parties)
    assert seen["two parties together"] == seen["whoever reads the memory of that machine"] == ["clear"] * 3
    assert seen["owner, who publishes"] == ["clear", "nothing", "nothing"]
    assert seen["a client"] == ["nothing", "clear", "clear"] and seen["network"] == ["nothing"] * 3
    assert kp.PrivacyReport.from_json(report.to_json()) == report


def script(body, *arguments):
    code = "import os, sys, time, warnings\nwarnings.simplefilter('ignore')\nimport keras_private as kp\n" + body
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )


def gone(condition, seconds=20):
    end = deadline(seconds)
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


def test_an_owner_that_is_killed_takes_its_weights_along(cluster, service):
    process = script(
        "import tensorflow as tf\n"
        "model = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)], 'mortal')\n"
        "service = kp.serve(model, kp.Cluster.load(sys.argv[1]), batch_sizes=(1,))\n"
        "print('served', flush=True)\ntime.sleep(600)\n",
        cluster.folder / "cluster.json",
    )
    try:
        assert process.stdout.readline().strip() == "served"
        names = [each["model"] for each in cluster.status()["server1"]["models"]]
        assert names == ["small", "mortal"]
        process.kill()
        assert gone(lambda: all(len(each["models"]) == 1 for each in cluster.status().values()))
    finally:
        process.kill()
        process.communicate()


def test_nothing_outlives_a_process_that_is_killed():
    process = script(
        "cluster = kp.Cluster.local(verbose=False)\n"
        "print(cluster.folder, *cluster.process_ids().values(), flush=True)\ntime.sleep(600)\n"
    )
    try:
        folder, *found = process.stdout.readline().split()
        assert len(found) == 3 and pathlib.Path(folder).is_dir()
        process.kill()
        assert gone(lambda: not any(psutil.pid_exists(int(each)) for each in found))
        assert gone(lambda: not pathlib.Path(folder).exists())
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_requests_of_four_clients(cluster, service, model):
    def memory():
        return [psutil.Process(each).memory_info().rss for each in cluster.process_ids().values()]

    x = rows(3)
    expected = model.predict(x, verbose=0)
    answered = []

    def ask(count):
        with kp.Client(cluster, model="small") as client:
            for _ in range(count):
                answered.append(np.abs(client.predict(x) - expected).max())

    def all_ask(count):
        threads = [threading.Thread(target=ask, args=(count,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_ask(50)
    before = memory()
    all_ask(200)
    assert len(answered) == 1000 and max(answered) < 1e-3
    assert all(late < 1.1 * early for late, early in zip(memory(), before))


def test_the_user_is_told_that_one_machine_protects_from_nobody(cluster, service):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        kp.serve(small("warned"), cluster, batch_sizes=(1,), input_range=(0, 1)).stop()
    assert sum("protect from nobody" in str(each.message) for each in found) == 1
