"""Pad parties that this process starts: right, of its user alone, and gone with it."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

import keras_private as kp
from keras_private.errors import AggregationError, ConfigurationError
from keras_private.federated.aggregators.base import Cohort
from tests.federated.aggregating import reports_of
from tests.federated.pad_processes import NAMES, ROOT, environment, gone, request
from tests.federated.test_model import LOSS, dense, difference, examples


def test_a_round_is_that_of_parties_in_this_process_and_nothing_is_left_after_an_exception():
    updates = np.random.default_rng(3).uniform(-2, 2, (3, 40)).astype(np.float32)
    cohort, totals = Cohort(3.0, 3, 3, True, NAMES), []
    with (
        pytest.raises(KeyError, match="of the user"),
        kp.federated.local_pad_parties(NAMES, min_clients=3, verbose=False) as parties,
    ):
        apart = kp.SecureAggregation(3, parties=parties, keys=parties.keys)
        for aggregator in (kp.SecureAggregation(), apart):
            aggregator.prepare(40, cohort)
            totals.append(aggregator.total(*reports_of(aggregator, updates, [1, 2, 3], NAMES)))
            aggregator.close()
        with pytest.raises(AggregationError, match="fewer than 3"):
            parties[0].propose(request(NAMES[:2]))
        # They are of this process's user: that is said, and no protection from it is claimed.
        said = apart.description()
        assert said["protects_from"] == [] and len(said["simulated"]) == 3
        assert all(f"party{n} is a process of this machine and user" in said["simulated"][n] for n in (0, 1))
        # No file has a master, nor the key between both.
        folder = pathlib.Path(parties.config).parent
        names = {path.name for path in folder.rglob("*.key")}
        own = {"ca.key", "coordinator.key", "party0.key", "party1.key"}
        assert names == own | {f"{name}.party{n}.key" for name in NAMES for n in (0, 1)}
        raise KeyError("of the user")
    np.testing.assert_array_equal(totals[0].update, totals[1].update)
    assert all(gone(pid) for pid in parties.process_ids.values())
    assert not folder.exists()


SCRIPT = """
import os, time
import keras_private as kp
with kp.federated.local_pad_parties(["a", "b"], verbose=False) as parties:
    if os.fork() == 0:
        # It holds the pipes of its parent, and outlives it.
        time.sleep(30)
        os._exit(0)
    print(parties.config, *parties.process_ids.values(), flush=True)
    time.sleep(600)
"""


def test_nothing_outlives_a_process_that_is_killed():
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    try:
        config, *pids = process.stdout.readline().split()
        assert len(pids) == 2 and pathlib.Path(config).exists()
        process.kill()
        assert all(gone(int(pid)) for pid in pids)
        assert not pathlib.Path(config).parent.exists()
    finally:
        # Its fork as well.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_names_that_cannot_be_start_nothing():
    with pytest.raises(ConfigurationError, match="file's name"), kp.federated.local_pad_parties(["../a"]):
        raise AssertionError("started")
    with pytest.raises(ConfigurationError, match="min_clients"), kp.federated.local_pad_parties(min_clients=1):
        raise AssertionError("started")


@pytest.mark.slow
def test_federated_training_is_that_with_mean():
    clients = {f"client{index}": examples(5 + index, index) for index in range(6)}
    models = [dense(), dense()]
    with kp.federated.local_pad_parties(clients, verbose=False) as parties:
        secure = kp.SecureAggregation(parties=parties, keys=parties.keys)
        for model, aggregator in zip(models, (kp.federated.Mean(), secure)):
            fed = kp.FederatedModel(model, aggregator)
            fed.compile("sgd", loss=LOSS)
            fed.fit(clients, epochs=2, batch_size=4, shuffle=False, verbose=0, workers=2)
    assert difference(*models) < 1e-6
