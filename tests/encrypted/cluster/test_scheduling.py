"""Which requests are computed together: those of one model, up to a size, as long as more may come."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted.cluster.requests import Request
from keras_private.encrypted.cluster.scheduling import Scheduler
from keras_private.encrypted.cluster.wire import Layout
from keras_private.errors import TransportError

DELAY = 30.0
pytestmark = pytest.mark.filterwarnings("ignore:The three parties run on this machine")


class Gathered:
    """A scheduler that keeps what it starts."""

    def __init__(self, connected, largest=4, delay=DELAY):
        self.runs, self.requests, self.finishing = [], {}, threading.Event()
        self.changed = threading.Condition()
        self.scheduler = Scheduler(("b", "c"), lambda _: largest, self.start, delay, lambda: connected, at_once=2)

    def start(self, requests):
        with self.changed:
            self.runs.append([each.key for each in requests])
            self.changed.notify_all()
        self.finishing.wait(20)

    def come(self, key, rows=1, publication="p", parties=("b", "c"), client="client"):
        self.requests[key] = Request(key, client, publication, rows, [], time.monotonic() + 60)
        self.scheduler.here(self.requests[key])
        for party in parties:
            self.scheduler.there(party, key)

    def wait(self, count, seconds=5.0):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.runs) >= count, seconds), self.runs
            return self.runs


@pytest.fixture
def gathered(request):
    found = Gathered(**request.param)
    yield found
    found.finishing.set()
    found.scheduler.close()


@pytest.mark.parametrize("gathered", [{"connected": ["client"]}], indirect=True)
def test_nobody_is_waited_for_who_cannot_come(gathered):
    gathered.come(b"1")
    assert gathered.wait(1) == [[b"1"]]


@pytest.mark.parametrize("gathered", [{"connected": ["client"] * 9}], indirect=True)
def test_a_run_that_is_full_waits_for_nobody(gathered):
    for key in (b"1", b"2", b"3"):
        gathered.come(key)
    assert gathered.runs == []
    gathered.come(b"4")
    assert gathered.wait(1) == [[b"1", b"2", b"3", b"4"]]


@pytest.mark.parametrize("gathered", [{"connected": ["client"] * 9, "delay": 0.05}], indirect=True)
def test_the_first_waits_for_the_delay_and_models_are_not_mixed(gathered):
    gathered.come(b"1", publication="p")
    gathered.come(b"2", publication="q")
    assert sorted(gathered.wait(2)) == [[b"1"], [b"2"]]


@pytest.mark.parametrize("gathered", [{"connected": ["client"]}], indirect=True)
def test_nothing_starts_before_all_three_have_it(gathered):
    gathered.come(b"1", parties=("b",))
    time.sleep(0.1)
    assert gathered.runs == []
    gathered.scheduler.there("c", b"1")
    assert gathered.wait(1) == [[b"1"]]


@pytest.mark.parametrize("gathered", [{"connected": ["anna", "bert"]}], indirect=True)
def test_a_request_that_is_not_everywhere_yet_is_waited_for(gathered):
    gathered.come(b"1", client="anna")
    gathered.come(b"2", client="bert", parties=("b",))
    time.sleep(0.1)
    assert gathered.runs == []
    gathered.scheduler.there("c", b"2")
    assert gathered.wait(1) == [[b"1", b"2"]]


@pytest.mark.parametrize("gathered", [{"connected": ["anna", "bert"]}], indirect=True)
def test_who_waits_for_an_answer_is_not_waited_for_and_who_has_it_is(gathered):
    gathered.come(b"1", client="anna")
    gathered.come(b"2", client="bert")
    assert gathered.wait(1) == [[b"1", b"2"]]
    # Both run still, so nobody is there who could ask; anna has her answer before the run has ended.
    gathered.requests[b"1"].finish([])
    gathered.come(b"3", client="bert")
    time.sleep(0.1)
    assert len(gathered.runs) == 1
    gathered.come(b"4", client="anna")
    assert gathered.wait(2)[1] == [b"3", b"4"]


def test_a_lone_client_does_not_wait_and_two_are_computed_together():
    model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(2)])
    with (
        kp.Cluster.local(delay=5.0, verbose=False) as cluster,
        kp.serve(model, cluster, batch_sizes=(1, 4), input_range=(0, 1)) as service,
        kp.Client(cluster) as client,
    ):
        row = np.full((1, 3), 0.5)
        client.predict(row)
        start = time.monotonic()
        client.predict(row)
        assert time.monotonic() - start < 5.0
        with kp.Client(cluster) as other:
            # Until here it waits for the first one, which is connected and silent.
            other.predict(row)
            before = runs(cluster, service)
            both = [client.predict_async(row), other.predict_async(row)]
            assert all(each.result(30).shape == (1, 2) for each in both)
            assert runs(cluster, service) == before + 1


def runs(cluster, service):
    models = cluster.status()[cluster.parties[0]]["models"]
    return next(each["runs"] for each in models if each["publication"] == service.publication)


def test_a_frame_of_another_length_is_refused():
    layout = Layout([("int64", (2, 3)), ("uint8", (5,)), ("int64", ())])
    assert layout.size == 61
    payload = memoryview(bytes(range(61)))
    first, second, third = layout.arrays(payload, "b")
    assert first.shape == (2, 3) and second.tolist() == list(range(48, 53)) and third.shape == ()
    for wrong in (payload[:60], memoryview(bytes(62)), memoryview(b"")):
        with pytest.raises(TransportError, match=r"b sent \d+ bytes"):
            layout.arrays(wrong, "b")
