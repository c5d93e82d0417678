"""Worker processes: who can reach them, and that they end with their owner."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import numpy as np
import pytest

from keras_private._backends import tff_learning
from keras_private.errors import ConfigurationError, WorkerError
from keras_private.federated import workers
from keras_private.federated.owned_worker import LocalWorkers, OwnedWorker

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
import json, os, signal, sys, time
# Whatever started the tests may have ignored it: shells do so for what runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from keras_private._backends import tff_learning
from keras_private.federated import workers
tff = tff_learning.package()
"""
FORKS = """
for line in sys.stdin:
    code, child = json.loads(line), os.fork()
    if child == 0:
        break
    print(child, flush=True)
    print("status", os.waitpid(child, 0)[1], flush=True)
else:
    sys.exit()
exec(code)
"""
USE = """
number = tff.types.TensorType(np.int64, [])

@tff.federated_computation(tff.FederatedType(number, tff.SERVER), tff.FederatedType(number, tff.CLIENTS))
def total(sent, own):
    return tff.federated_sum(own)

with workers.use({hosts}) as found:
    assert sum(int(part) for _, part in found.spread(total, np.int64(0), [np.int64(1), np.int64(2)])) == 3
    print(*[worker.pid for worker in found.owned], flush=True)
    {end}
"""


def use(end: str, hosts: str = "None") -> str:
    return USE.format(end=end.replace("\n", "\n    "), hosts=hosts)


class Doomed:
    """Processes that use workers and end, each forked from one that has imported what they need, and used nothing."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", PROGRAM + FORKS]
        pipe = subprocess.PIPE
        self._origin = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def start(self, code: str) -> tuple[int, list[int]]:
        """The process, and those of its workers. gRPC is not made for forks: one that crashes at once is made again."""
        for _ in range(3):
            print(json.dumps(code), file=self._origin.stdin, flush=True)
            process = self.numbers()[0]
            said = self._origin.stdout.readline()
            if said.split() != ["status", str(int(signal.SIGSEGV))]:
                break
        return process, [int(word) for word in said.split()]

    def numbers(self) -> list[int]:
        return [int(word) for word in self._origin.stdout.readline().split() if word != "status"]

    def end(self) -> str:
        """What is left of output; comes when no process holds it any more."""
        return self._origin.communicate(timeout=30)[0]


@pytest.fixture(scope="module")
def doomed():
    found = Doomed()
    yield found
    assert found.end() == ""


def test_workers_hold_no_pipe():
    # A worker that held standard output would keep this call waiting.
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM + use("pass")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids, done.stderr
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("end", "hosts", "status"),
    [("pass", "None", 0), ("raise SystemExit(3)", "2", 3), ("1 / 0", "None", 1), ("os._exit(4)", "2", 4)],
)
def test_workers_end_with_the_process(doomed, end, hosts, status):
    _, pids = doomed.start(use(end, hosts))
    assert len(pids) == (2 if hosts == "2" else 1)
    assert os.waitstatus_to_exitcode(doomed.numbers()[0]) == status
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_when_the_process_is_killed(doomed, how):
    process, pids = doomed.start(use("time.sleep(600)", "2"))
    assert len(pids) == 2
    assert all(running(pid) for pid in pids)
    os.kill(process, how)
    assert doomed.numbers() != [0]
    assert all(gone(pid) for pid in pids)


def test_workers_end_though_a_fork_of_their_owner_lives(doomed):
    steps = (
        "child = os.fork()",
        "print(child, flush=True) if child else os.close(1)",
        "time.sleep(600 if child else 60)",
    )
    process, pids = doomed.start(use("\n".join(steps)))
    (child,) = doomed.numbers()
    try:
        os.kill(process, signal.SIGKILL)
        doomed.numbers()
        assert all(gone(pid) for pid in pids)
        assert running(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_fork_has_workers_of_its_own(doomed):
    steps = (
        "child = os.fork()",
        "if child:",
        "    os.waitpid(child, 0)",
        "    print(found.owned[0].pid, found.owned[0].alive + 0, flush=True)",
        "else:",
        "    with workers.use() as own:",
        "        print(len(own.owned), flush=True)",
        "    found.close(), workers.close(), os._exit(0)",
    )
    _, (pid,) = doomed.start(use("\n".join(steps)))
    shared = doomed.numbers()
    assert shared == [0]
    assert doomed.numbers() == [pid, 1]
    assert doomed.numbers() == [0]
    assert gone(pid)


def test_a_killed_worker_costs_its_share_and_is_started_again(doubled, slow):
    with workers.use(1) as found:
        found.run(doubled, np.zeros(3, np.int64), CLIENTS)
        pid = found.owned[0].pid
        threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
        begun = time.monotonic()
        with pytest.raises(WorkerError, match=f"local worker {pid} was lost in the middle of its work"):
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


def test_each_use_of_the_shared_worker_has_its_own_deadline(doubled, slow):
    with workers.use() as found:
        found.run(doubled, np.zeros(3, np.int64), CLIENTS)
        stop = threading.Timer(30.0, os.kill, (found.owned[0].pid, signal.SIGKILL))
    stop.start()
    with workers.use(deadline=2.0) as found, pytest.raises(WorkerError, match="deadline"):
        found.run(slow, np.int64(0), [np.int64(10**9)])
    stop.cancel()


@pytest.fixture
def interruptible():
    """This process takes interrupts, whatever started it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_was_interrupted_does_not_hold_up_what_comes_next(doubled, slow, interruptible):
    for hosts, call in ((1, "run"), (2, "spread")):
        with workers.use(hosts) as found:
            getattr(found, call)(doubled, np.zeros(3, np.int64), CLIENTS)
            pids = [worker.pid for worker in found.owned]
            stop = [threading.Timer(30.0, suppressed_kill, (pid,)) for pid in pids]
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            for each in stop:
                each.start()
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                getattr(found, call)(slow, np.int64(0), [np.int64(10**9)] * 2)
            getattr(found, call)(doubled, np.zeros(3, np.int64), CLIENTS)
            assert time.monotonic() - begun < 20
            assert all(gone(pid) for pid in pids)
            for each in stop:
                each.cancel()


def suppressed_kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_another_thread_waits_for_its_turn_and_gets_a_worker_that_lives(doubled, slow):
    with workers.use(1) as found:
        found.run(doubled, np.zeros(3, np.int64), CLIENTS)
        outcomes: list[object] = [None, None]

        def call(place: int, *arguments) -> None:
            try:
                outcomes[place] = found.run(*arguments)
            except Exception as error:
                outcomes[place] = error

        first = threading.Thread(target=call, args=(0, slow, np.int64(0), [np.int64(10**9)]))
        second = threading.Thread(target=call, args=(1, doubled, np.zeros(3, np.int64), CLIENTS[:1]))
        first.start()
        time.sleep(0.5)
        second.start()
        time.sleep(0.5)
        os.kill(found.owned[0].pid, signal.SIGKILL)
        for each in (first, second):
            each.join(60)
    assert isinstance(outcomes[0], WorkerError)
    np.testing.assert_array_equal(outcomes[1][0], CLIENTS[0] * 2)


LEAVING = """
import atexit, gc, warnings
warnings.simplefilter("ignore")
atexit.register(print, "torn down from here")
from keras_private._backends import tff_learning
tff_learning.package()
(kept,) = [type(each) for each in gc.get_objects() if type(each).__name__ == "ServiceManager"]
kept.__del__ = lambda self: print("freed", flush=True)
"""


def test_the_default_context_of_tff_is_freed_before_the_interpreter_is_torn_down():
    """Its finalizer needs a module that may be gone later, and would print a traceback."""
    done = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["freed", "torn down from here"], done.stdout + done.stderr


def test_threads_that_run_shares_leave_the_filters_of_warnings_alone(doubled, monkeypatch):
    """Those belong to the process: two threads that set and restore them at once lose a user's warnings."""
    here = threading.current_thread()
    enter, elsewhere = warnings.catch_warnings.__enter__, []

    def entered(self):
        if threading.current_thread() is not here:
            elsewhere.append(threading.current_thread().name)
        return enter(self)

    monkeypatch.setattr(warnings.catch_warnings, "__enter__", entered)
    with workers.use(2) as found:
        found.spread(doubled, np.zeros(3, np.int64), CLIENTS)
    assert elsewhere == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_dead_address_does_not_fail_what_a_live_worker_can_do(doubled, order):
    many = [np.full(3, index, np.int64) for index in range(3 * workers.SHARE)]
    # Each of the two has a share before the live one can have done them all.
    both, begun = threading.Barrier(2), itertools.count()
    with contextlib.ExitStack() as stack:
        live = OwnedWorker()
        stack.callback(live.close)
        relay = Relay(live.target)
        stack.callback(relay.close)
        found = stack.enter_context(workers.use([nobody(), relay.address][::order]))
        with pytest.warns(UserWarning, match=r"was done again: 127\.0\.0\.1:\d+ was lost"):
            done = found.spread(doubled, np.zeros(3, np.int64), many, lambda _: next(begun) < 2 and both.wait(60))
    assert sorted(position for share, _ in done for position in share) == list(range(len(many)))
    np.testing.assert_array_equal(sum(result[0] for _, result in done), np.sum(many, 0) * 2)


WITHOUT_NAMESPACES = """
import sys
import numpy as np
import keras_private as kp
from keras_private.errors import ConfigurationError
from keras_private.federated import LocalWorkers
from keras_private.federated.worker_launcher import raise_loopback
from tests.federated.test_model import LOSS, dense, examples

raise_loopback()
fed = kp.FederatedModel(dense())
fed.compile("sgd", loss=LOSS)
for hosts in (None, 2, LocalWorkers(1)):
    try:
        fed.fit({"anna": examples(6)}, epochs=1, verbose=0, workers=hosts)
    except ConfigurationError as error:
        print("refused:", error.problem[:46], flush=True)
fed.fit({"anna": examples(6)}, epochs=1, verbose=0, workers=LocalWorkers(allow_open=True))
print(fed.exposures[-1].open, fed.rounds_done, flush=True)
network = next(view for view in fed.privacy_report().views if view.adversary == "network")
print({sight.level for sight in network.sights}, network.sights[0].note, flush=True)
"""


def test_where_no_network_of_its_own_is_granted_no_worker_starts_unless_that_is_allowed():
    # A network of the test's own, since the worker will be open in it; and no other may be made from there.
    command = ["unshare", "-Urn", "sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody forbid network namespaces")
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [*command, sys.executable, "-W", "ignore", "-c", WITHOUT_NAMESPACES],
        capture_output=True, text=True, timeout=300, cwd=root,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:3] == ["refused: This system grants the worker no network of it"] * 3, done.stderr
    assert lines[3] == "True 1"
    assert lines[4] == "{'clear'} a worker listened on all interfaces and ran whatever anybody sent"


def test_an_isolated_worker_is_not_open_though_it_may_be():
    with workers.use(LocalWorkers(allow_open=True)) as found:
        if not found.owned[0].isolated:
            pytest.skip("this system grants no network of its own")
        assert not found.open


def test_no_clients_are_no_shares(doubled):
    with workers.use(1) as found:
        assert found.spread(doubled, np.zeros(3, np.int64), []) == []
        assert found.owned == ()


def test_what_fails_here_is_not_tried_on_and_stops_the_others(doubled):
    asked = []

    class Values(list):
        def __getitem__(self, index):
            asked.append(index)
            if index == 0:
                raise KeyError("no such client")
            return np.zeros(3, np.int64)

    with workers.use(2) as found, pytest.raises(KeyError, match="no such client"):
        found.spread(doubled, np.zeros(3, np.int64), Values([None] * 10 * workers.SHARE))
    assert asked.count(0) == 1
    assert len(asked) <= 3 * workers.SHARE


def test_a_worker_that_was_replaced_under_its_address_is_a_lost_one(doubled):
    sent = np.zeros(3, np.int64)
    with contextlib.ExitStack() as stack:
        for_now, later = OwnedWorker(), OwnedWorker()
        stack.callback(for_now.close)
        stack.callback(later.close)
        relay = Relay(for_now.target)
        stack.callback(relay.close)
        found = stack.enter_context(workers.use([relay.address]))
        before = found.run(doubled, sent, CLIENTS)
        relay.turn(later.target)
        # Who watches the channel sees that it is connected again, and then not that it was broken.
        channel, watch = found._places[0]._connection._channel, lambda state: None
        channel.subscribe(watch, try_to_connect=True)
        time.sleep(3)
        channel.unsubscribe(watch)
        with pytest.raises(WorkerError, match=r"was lost.*No executor found"):
            found.run(doubled, sent, CLIENTS)
        np.testing.assert_array_equal(found.run(doubled, sent, CLIENTS)[0], before[0])


class Relay:
    """A TCP port of loopback that leads to a worker's Unix socket."""

    def __init__(self, target: str) -> None:
        self._target, self._links = target, []
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                come, _ = self._door.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._target.split(":", 1)[1])
                self._links += [come, there]
                for pair in ((come, there), (there, come)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def turn(self, target: str) -> None:
        self._target = target
        for each in self._links:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._door.close()
        self.turn(self._target)


def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_pinned_workers_have_a_core_each(doubled):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    with workers.use(2, pin=True) as found:
        found.spread(doubled, np.zeros(3, np.int64), CLIENTS)
        taken = sorted(tuple(sorted(os.sched_getaffinity(worker.pid))) for worker in found.owned)
    assert taken == [(cores[0],), (cores[1],)]
    assert sorted(os.sched_getaffinity(0)) == cores


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan"), float("inf"), True, "soon"])
def test_deadlines_that_cannot_be(deadline):
    with pytest.raises(ConfigurationError, match="deadline"), workers.use(deadline=deadline):
        pass


@pytest.mark.parametrize("hosts", [None, ["127.0.0.1:80"], True])
def test_only_local_workers_that_were_counted_are_pinned(hosts):
    with pytest.raises(ConfigurationError, match="Processors"), workers.use(hosts, pin=True):
        pass


def test_a_remote_worker_that_is_not_there():
    address = nobody()
    with workers.use([address], deadline=5.0) as found, pytest.raises(WorkerError, match=address):
        found.run(_nothing())


@pytest.mark.parametrize("hosts", [0, -1, True, False, [], "127.0.0.1:80", ["nowhere"], 1.5])
def test_workers_that_cannot_be(hosts):
    with pytest.raises(ConfigurationError, match="worker"), workers.use(hosts):
        pass


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": True}, {"count": 1.5}, {"allow_open": "yes"}])
def test_local_workers_that_cannot_be(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        LocalWorkers(**arguments)


def test_a_link_to_another_host_is_refused():
    with pytest.raises(ConfigurationError, match="in the clear"), workers.use(["192.0.2.1:8000"]):
        pass


def test_a_long_temporary_folder_leaves_room_for_the_door(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    worker = OwnedWorker()
    try:
        assert worker.alive and len(worker.target) < 108 and list(long.iterdir()) == []
        door = pathlib.Path(worker.target.removeprefix("unix:"))
        assert stat.S_IMODE(door.parent.stat().st_mode) == 0o700
    finally:
        worker.close()
    assert not door.parent.exists()
