"""Worker processes: who can reach them, and that they end with their owner."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from keras_private._backends import tff_learning
from keras_private.errors import ConfigurationError, WorkerError
from keras_private.federated import workers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture(scope="module")
def doubled():
    """Sum over clients of twice their vector, and each client's own."""
    tff = tff_learning.package()
    vector = tff.types.TensorType(np.int64, [3])

    @tff.tensorflow.computation(vector, vector)
    def work(sent, own):
        return sent + own * 2

    @tff.federated_computation(tff.FederatedType(vector, tff.SERVER), tff.FederatedType(vector, tff.CLIENTS))
    def computation(sent, own):
        each = tff.federated_map(work, (tff.federated_broadcast(sent), own))
        return tff.federated_sum(each), each

    return computation


@pytest.fixture(scope="module")
def slow():
    import tensorflow as tf

    tff = tff_learning.package()
    number = tff.types.TensorType(np.int64, [])

    @tff.tensorflow.computation(number)
    def work(rounds):
        return tf.while_loop(
            lambda i, x: i < rounds,
            lambda i, x: (i + 1, tf.linalg.matmul(x, x) / 200.0),
            (tf.constant(0, tf.int64), tf.ones([200, 200])),
        )[1][0, 0]

    @tff.federated_computation(tff.FederatedType(number, tff.SERVER), tff.FederatedType(number, tff.CLIENTS))
    def computation(sent, own):
        return tff.federated_sum(tff.federated_map(work, own))

    return computation


def running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int, seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(pid)


CLIENTS = [np.array([i, -i, 2**62], np.int64) for i in range(5)]


def test_two_workers_do_what_one_does(doubled):
    sent = np.array([1, 2, 3], np.int64)
    with workers.use(2) as two, workers.use(None) as one:
        shares = two.spread(doubled, sent, CLIENTS)
        alone = one.run(doubled, sent, CLIENTS)
        assert len({worker.pid for worker in two.owned}) == 2
        pids = [worker.pid for worker in two.owned]
    assert sorted(position for share, _ in shares for position in share) == list(range(5))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(sum(result[0] for _, result in shares), alone[0])
    for share, result in shares:
        for position, own in zip(share, result[1]):
            np.testing.assert_array_equal(own, alone[1][position])
    assert all(gone(pid) for pid in pids)


def test_the_shared_worker_is_started_once_and_again_after_close(doubled):
    sent = np.zeros(3, np.int64)
    with workers.use() as first:
        first.run(doubled, sent, CLIENTS)
        pid = first.owned[0].pid
    with workers.use() as second:
        second.run(doubled, sent, CLIENTS)
        assert second.owned[0].pid == pid
    workers.close()
    assert gone(pid)
    with workers.use() as third:
        third.run(doubled, sent, CLIENTS)
        assert third.owned[0].pid != pid


def test_nobody_reaches_an_isolated_worker():
    with workers.use(1) as found:
        found.run(_nothing())
        worker = found.owned[0]
        if not worker.isolated:
            pytest.skip("this system grants no network of its own")
        door = pathlib.Path(worker.target.split(":", 1)[1])
        assert door.stat().st_mode & 0o077 == 0
        assert door.parent.stat().st_mode & 0o077 == 0
        interfaces = pathlib.Path(f"/proc/{worker.pid}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        listening = pathlib.Path(f"/proc/{worker.pid}/net/tcp6").read_text()
        assert f":{10000:04X} " in listening  # It does listen, in its own network,
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", 10000), timeout=1):
            pass  # but not in this one.
        folder = door.parent
    assert not folder.exists()


def _nothing():
    tff = tff_learning.package()

    @tff.tensorflow.computation
    def nothing():
        return 1

    return nothing


PROGRAM = """
    import sys, time
    import numpy as np
    from keras_private._backends import tff_learning
    from keras_private.federated import workers
    tff = tff_learning.package()

    @tff.tensorflow.computation
    def one():
        return 1

    with workers.use({hosts}) as found:
        assert found.run(one) == 1
        print(*[worker.pid for worker in found.owned], flush=True)
        {end}
"""


def program(end: str, hosts: str = "None") -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM.format(end=end, hosts=hosts))]


@pytest.mark.parametrize(
    ("end", "hosts"), [("pass", "None"), ("raise SystemExit(3)", "2"), ("import os; os._exit(1)", "None")]
)
def test_workers_end_with_the_process_and_hold_no_pipe(end, hosts):
    # A worker that held standard output would keep this call waiting.
    done = subprocess.run(program(end, hosts), capture_output=True, text=True, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids, done.stderr
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_when_the_process_is_killed(how):
    process = subprocess.Popen(program("time.sleep(600)"), stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    pid = int(process.stdout.readline())
    assert running(pid)
    process.send_signal(how)
    process.wait(30)
    process.stdout.close()
    assert gone(pid)


def test_workers_end_though_a_fork_of_their_owner_lives():
    steps = (
        "import os",
        "child = os.fork()",
        "print(child, flush=True) if child else None",
        "time.sleep(600 if child else 60)",
    )
    end = "\n        ".join(steps)
    process = subprocess.Popen(program(end), stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    pid, child = int(process.stdout.readline()), int(process.stdout.readline())
    try:
        process.kill()
        process.wait(30)
        assert gone(pid)
        assert running(child)
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_killed_worker_costs_its_share_and_is_started_again(doubled, slow):
    with workers.use(1) as found:
        found.run(doubled, np.zeros(3, np.int64), CLIENTS)
        pid = found.owned[0].pid
        threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
        begun = time.monotonic()
        with pytest.raises(WorkerError, match="lost in the middle of its work"):
            found.run(slow, np.int64(0), [np.int64(10**9)])
        assert time.monotonic() - begun < 20
        again = found.run(doubled, np.zeros(3, np.int64), CLIENTS[:1])
        np.testing.assert_array_equal(again[0], CLIENTS[0] * 2)
        assert found.owned[0].pid != pid


def test_a_share_of_a_killed_worker_is_done_by_another_and_counts_once(doubled):
    sent = np.array([1, 1, 1], np.int64)
    with workers.use(2) as found:
        before = found.spread(doubled, sent, CLIENTS)
        os.kill(found.owned[0].pid, signal.SIGKILL)
        after = found.spread(doubled, sent, CLIENTS)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(sum(r[0] for _, r in before), sum(r[0] for _, r in after))


def test_a_deadline(slow):
    with workers.use(1, deadline=2.0) as found:
        begun = time.monotonic()
        with pytest.raises(WorkerError, match="within 2 seconds"):
            found.run(slow, np.int64(0), [np.int64(10**9)])
        assert time.monotonic() - begun < 20
        pid = [worker.pid for worker in found.owned]
    assert all(gone(each) for each in pid)


def test_a_remote_worker_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with workers.use([address], deadline=5.0) as found, pytest.raises(WorkerError, match=address):
        found.run(_nothing())


@pytest.mark.parametrize("hosts", [0, -1, True, [], "127.0.0.1:80", ["nowhere"], 1.5])
def test_workers_that_cannot_be(hosts):
    with pytest.raises(ConfigurationError, match="worker"), workers.use(hosts):
        pass


def test_a_link_to_another_host_is_refused():
    with pytest.raises(ConfigurationError, match="in the clear"), workers.use(["192.0.2.1:8000"]):
        pass
