"""Federated fits that are killed, resumed, run out of disk, lose workers, and meet clients that are empty or broken."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private._backends import tff_learning
from keras_private.dp.accounting import ADD_OR_REMOVE, Charge, epsilon
from keras_private.dp.ledger import Ledger
from keras_private.errors import AggregationError, CheckpointError, LedgerError
from keras_private.federated import DPAggregator, Mean, Median, Trimmed, Zeroing, workers
from keras_private.federated.aggregators.masking import keys
from keras_private.federated.budget import charged_probability
from keras_private.federated.sampling import PoissonClients
from tests.federated.aggregating import cohort_of, reports_of
from tests.federated.test_checkpoints import files
from tests.federated.test_model import LOSS, dense, difference, examples

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills processes that /proc names")

DELTA, NOISE = 1e-5, 4.0
CLIENTS = {f"client{index}": examples(5, index) for index in range(10)}
DIMENSION = 6 * 5 + 5 + 5 * 3 + 3


def private_fit(folder: pathlib.Path, epochs: int, callbacks=(), aggregator=None):
    """A private training with a ledger and checkpoints in a folder; goes on with what is there."""
    fed = kp.FederatedModel(dense(), aggregator or DPAggregator(l2_norm_clip=0.5, noise_multiplier=NOISE))
    fed.compile("sgd", loss=LOSS)
    budget = kp.PrivacyBudget(500.0, DELTA, ledger=folder / "ledger.json", accountant="rdp")
    history = fed.fit(CLIENTS, epochs=epochs, clients_per_round=5, verbose=0, callbacks=[budget, *callbacks],
                      checkpoints=folder / "rounds")  # fmt: skip
    return fed, history


def cost(rounds: int) -> float:
    q = charged_probability(PoissonClients(list(CLIENTS), 5, None))
    return epsilon([Charge(NOISE, rounds, q, "poisson", ADD_OR_REMOVE, DIMENSION)], DELTA, "rdp")


def charged(folder: pathlib.Path) -> int:
    """Rounds in the ledger."""
    ledger = Ledger.open(folder / "ledger.json")
    try:
        return sum(charge.steps for charge in ledger.charges())
    finally:
        ledger.close()


# Killed and resumed.

KILLED = """
import os, pathlib, sys, time
import tensorflow as tf
import tensorflow_federated
from keras_private.federated import DPAggregator
from tests.federated.test_faults import NOISE, private_fit

# Each fit in a fork of this process, which has imported what it needs and used nothing.
for line in sys.stdin:
    folder, where = line.strip().split(maxsplit=1)
    child = os.fork()
    if child == 0:
        break
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
else:
    sys.exit()

def here(place, epoch):
    if place == where and epoch == 2:
        print("here", flush=True)
        time.sleep(600)

class Watched(DPAggregator):
    def total(self, reports, round, noise=None):
        here("before the noise", round.number - 1)
        found = super().total(reports, round, noise)
        here("after the noise", round.number - 1)
        return found

tell = tf.keras.callbacks.LambdaCallback(
    on_epoch_begin=lambda epoch, logs: here("before a round", epoch),
    on_epoch_end=lambda epoch, logs: here("after a round", epoch),
)
private_fit(pathlib.Path(folder), 30, [tell], Watched(l2_norm_clip=0.5, noise_multiplier=NOISE))
"""


@pytest.fixture(scope="module")
def doomed():
    """Kills a private fit of 30 rounds in its third."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, cwd=pathlib.Path(__file__).parents[2],
    )  # fmt: skip

    def killed(folder: pathlib.Path, where: str) -> None:
        print(folder, where, file=process.stdin, flush=True)
        child = int(process.stdout.readline())
        try:
            assert process.stdout.readline() == "here\n"
        finally:
            kill(child)
        assert process.stdout.readline() == "gone\n"

    yield killed
    process.communicate()


@pytest.mark.parametrize(
    ("where", "ran", "kept"),
    [("before a round", 2, 2), ("before the noise", 3, 2), ("after the noise", 3, 2), ("after a round", 3, 3)],
)
def test_a_private_fit_that_is_killed_goes_on_with_all_that_was_spent(doomed, tmp_path, where, ran, kept):
    """`ran` rounds have passed the gate, and `kept` are in a checkpoint."""
    doomed(tmp_path, where)
    before = charged(tmp_path)
    assert before >= ran
    fed, history = private_fit(tmp_path, 4)
    assert history.epoch == list(range(kept, 4))
    # A round that is done again is one more: its noise was another.
    assert history.history["epsilon"][0] >= cost(ran + 1)
    assert charged(tmp_path) == before + 4 - kept
    assert fed.privacy_spent(DELTA, "rdp").epsilon >= cost(ran + 4 - kept)


def test_from_a_damaged_checkpoint_back_to_the_one_before_epsilon_is_that_of_the_ledger(tmp_path):
    private_fit(tmp_path, 4)
    newest = tmp_path / "rounds" / "round-00000004.kpr"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    with pytest.warns(UserWarning, match="is damaged"):
        fed, history = private_fit(tmp_path, 4)
    assert history.epoch == [3]
    assert history.history["epsilon"] == [cost(5)]
    assert fed.privacy_spent(DELTA, "rdp").epsilon == cost(5) and charged(tmp_path) == 5


# Without room on the disk.


@contextlib.contextmanager
def file_limit(limit: int):
    """No file of this process can grow beyond it: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("room", [0, 1500])
def test_without_room_for_a_checkpoint_a_fit_ends_and_leaves_the_others(tmp_path, room):
    private_fit(tmp_path, 2)
    before, limit = contents(tmp_path / "rounds"), contextlib.ExitStack()
    # After the reservation of the round in the ledger.
    full = tf.keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: limit.enter_context(file_limit(room)))
    with limit, pytest.raises(CheckpointError, match="cannot be written"):
        private_fit(tmp_path, 3, [full])
    assert contents(tmp_path / "rounds") == before
    _, history = private_fit(tmp_path, 3)
    assert history.epoch == [2] and history.history["epsilon"][0] >= cost(4)
    assert files(tmp_path / "rounds") == [f"round-{number:08d}.kpr" for number in (1, 2, 3)]


def test_without_room_for_the_ledger_no_round_runs(tmp_path):
    private_fit(tmp_path, 2)
    before = contents(tmp_path)
    with file_limit(100), pytest.raises(LedgerError):
        private_fit(tmp_path, 3)
    assert contents(tmp_path) == before
    _, history = private_fit(tmp_path, 3)
    assert history.history["epsilon"] == [cost(3)]


# Workers that are killed.


@pytest.fixture(scope="module")
def wide():
    """A large sum over clients, and each client's own, after some work."""
    tff = tff_learning.package()
    number = tff.types.TensorType(np.int64, [])

    @tff.tensorflow.computation(number, number)
    def work(sent, own):
        done = tf.while_loop(
            lambda i, x: i < 60, lambda i, x: (i + 1, tf.linalg.matmul(x, x) / 100.0), (0, tf.ones([100, 100]))
        )
        return tf.fill([300_000], sent + own + tf.cast(done[1][0, 0], tf.int64) * 0)

    @tff.federated_computation(tff.FederatedType(number, tff.SERVER), tff.FederatedType(number, tff.CLIENTS))
    def computation(sent, own):
        each = tff.federated_map(work, (tff.federated_broadcast(sent), own))
        return tff.federated_sum(each), each

    return computation


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_a_worker_that_is_killed_at_any_moment_costs_nothing_but_time(wide):
    """Idle, while the work is being sent or compiled, while it runs, and while it reports."""
    own = [np.int64(2**index) for index in range(40)]
    draw = random.Random(5)
    with workers.use(2) as found:
        begun = time.monotonic()
        found.spread(wide, np.int64(0), own)
        took = time.monotonic() - begun
        for turn in range(10):
            pids = [worker.pid for worker in found.owned]
            timer = threading.Timer(took * 1.2 * turn / 9, kill, (draw.choice(pids),))
            timer.start()
            done = found.spread(wide, np.int64(0), own)
            timer.join()
            assert sorted(position for share, _ in done for position in share) == list(range(40))
            total = sum(np.asarray(result[0]) for _, result in done)
            np.testing.assert_array_equal(total, np.full(300_000, 2**40 - 1), f"turn {turn}")
            for share, result in done:
                assert [int(each[0]) for each in result[1]] == [2**position for position in share]


def test_a_worker_that_is_killed_while_it_starts_is_started_again(wide):
    stop, killed = threading.Event(), []

    def watch() -> None:
        # The worker's program, as soon as a process of this one's launcher has become it.
        while not stop.is_set() and len(killed) < 2:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/exe").endswith("worker_binary") and pid not in killed:
                        kill(pid)
                        killed.append(pid)

    workers.close()
    thread = threading.Thread(target=watch)
    with workers.use(1) as found:
        thread.start()
        try:
            done = found.spread(wide, np.int64(1), [np.int64(1)])
        finally:
            stop.set()
            thread.join()
    assert len(killed) == 2
    assert int(done[0][1][0][0]) == 2


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_a_fit_whose_workers_are_killed_is_the_same_fit(masked):
    """Masked: what a client reports when its work is done again has other masks than what was lost."""
    clients = {str(index): examples(20, index) for index in range(70)}

    def trained(hosts, disturb=None):
        fed = kp.FederatedModel(dense(), kp.SecureAggregation() if disturb and masked else Mean())
        fed.compile("sgd", loss=LOSS)
        fed.fit(clients, epochs=4, local_epochs=3, batch_size=2, shuffle=False, verbose=0, workers=hosts,
                callbacks=[tf.keras.callbacks.LambdaCallback(on_epoch_begin=disturb)] if disturb else [])  # fmt: skip
        return fed.model

    expected = trained(None)
    with workers.use(2) as found:
        timers = []

        def disturb(epoch, logs=None):
            for worker in found.owned[epoch % 2 :][:1]:
                timers.append(threading.Timer(0.15 * epoch, kill, (worker.pid,)))
                timers[-1].start()

        disturbed = trained(found, disturb)
        for timer in timers:
            timer.join()
    # A worker that is lost and not yet replaced is not killed again.
    assert len(timers) >= 2
    assert difference(expected, disturbed) < 1e-5


def test_a_worker_reads_a_clients_keys_anew_in_each_round():
    clients, rounds = {name: examples(4, seed) for seed, name in enumerate("abc")}, []
    aggregator = kp.SecureAggregation()

    def rotate(epoch, logs=None):
        rounds.append(epoch)
        if epoch == 2:
            masters = [keys.new_master(), keys.new_master()]
            keys.write_client_keys(aggregator._folder, ["b"], masters)

    fed = kp.FederatedModel(dense(), aggregator)
    fed.compile("sgd", loss=LOSS)
    with pytest.raises(AggregationError, match="keys that clients and parties share"):
        fed.fit(clients, epochs=9, verbose=0, callbacks=[tf.keras.callbacks.LambdaCallback(on_epoch_begin=rotate)])
    assert rounds == [0, 1, 2] and fed.rounds_done == 2


# Clients that are empty or broken.

AGGREGATORS = {
    "mean": Mean,
    "trimmed": lambda: Trimmed(0.2),
    "median": Median,
    "zeroing": lambda: Zeroing(l2_norm_bound=50.0),
    "secure": kp.SecureAggregation,
    "private": lambda: DPAggregator(l2_norm_clip=0.5, noise_multiplier=0.0),
    "private and secure": lambda: DPAggregator(kp.SecureAggregation(), l2_norm_clip=0.5, noise_multiplier=0.0),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_clients_that_are_all_empty_leave_the_model_as_it_was(name):
    model = dense()
    begun = model.get_weights()
    fed = kp.FederatedModel(model, AGGREGATORS[name]())
    fed.compile(tf.keras.optimizers.SGD(0.5), "adam", loss=LOSS)
    history = fed.fit({str(n): examples(0) for n in range(3)}, epochs=1, verbose=0, sampling="fixed").history
    assert history.get("clients", [0.0]) == [0.0]
    for old, new in zip(begun, model.get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("mean", 1e5),
        # What nine of ten say bounds these two.
        ("trimmed", 2.0),
        ("median", 2.0),
        ("zeroing", 2.0),
        # Clamped at 64, of ten clients.
        ("secure", 10.0),
        ("private", 0.5),
        ("private and secure", 0.5),
    ],
)
def test_one_client_of_nan_and_one_scaled_by_a_million(name, largest):
    """NaN counts for nothing under each; what a liar moves is bounded by all but the mean."""
    updates = np.random.default_rng(1).uniform(-1, 1, (11, 20)).astype(np.float32)
    updates[3] = np.nan
    updates[7] *= 1e6
    aggregator = AGGREGATORS[name]()
    aggregator.prepare(20, cohort_of(11))
    total = aggregator.total(*reports_of(aggregator, updates))
    aggregator.close()
    assert np.isfinite(total.mean).all()
    assert np.abs(total.mean).max() <= largest
    if name == "mean":
        assert np.abs(total.mean).max() > 1e4, "the liar steers it: that is what the others are for"
        np.testing.assert_allclose(total.mean, np.delete(updates, 3, 0).mean(0), rtol=1e-5)
    if name == "secure":
        assert total.measurements == {"left_out": 1, "clamped": 1}
