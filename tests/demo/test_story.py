"""The demo as a process: it tells its whole story, writes what it says, and leaves nothing behind, also when ended."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import pytest

import keras_private as kp
from keras_private.report.content import COORDINATOR, RELEASE
from tests.leftovers import MARK, ROOT, marked

SILENCE = 30.0
"""Far more than the demo's own limit: other tests may run beside this one."""

ACT = """
import dataclasses, pathlib, sys, warnings
from keras_private.demo.acts import encrypted, federated
from keras_private.demo.data import digits
from keras_private.demo.progress import interruptible
from keras_private.demo.recipes import DIGITS, network
warnings.simplefilter("ignore")
images = digits()
recipe = dataclasses.replace(DIGITS, rounds=10000, clients=60, clients_per_round=40, client_epsilon=500.0)
try:
    with interruptible():
        if sys.argv[1] == "federated":
            federated.play(images, recipe, pathlib.Path(sys.argv[2]))
        else:
            encrypted.play(images, recipe, network(images, "untrained"))
except KeyboardInterrupt:
    sys.exit(130)
"""


class Running:
    """A process of the demo, its lines, and everything that it started."""

    def __init__(self, folder: pathlib.Path, *command: str) -> None:
        self.mark, self.temporary = uuid.uuid4().hex, folder / "temporary"
        self.temporary.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONUNBUFFERED": "1",
            MARK: self.mark,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.longest_silence, self._heard = 0.0, time.monotonic()

    def read(self, until: str = "") -> str:
        """Lines up to one that holds `until`; to the end without it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            now = time.monotonic()
            self.longest_silence, self._heard = max(self.longest_silence, now - self._heard), now
            self.lines.append(line)
            if until and until in line:
                break
        else:
            self.process.wait(60)
        return "".join(self.lines)

    def others(self) -> dict[int, str]:
        """Processes that have the mark of this one, and are not it."""
        return {pid: line for pid, line in marked(self.mark).items() if pid != self.process.pid}

    def left(self) -> tuple[dict[int, str], list[str]]:
        """Processes and temporary files that are there, after a moment for what is just ending."""
        deadline = time.monotonic() + 10.0
        while True:
            found = self.others(), sorted(path.name for path in self.temporary.iterdir())
            if found == ({}, []) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.others():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def demo(tmp_path):
    started = []

    def start(*command):
        started.append(Running(tmp_path, *command))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.mark.timeout(900)
@pytest.mark.long
def test_the_whole_story_on_digits(demo, tmp_path):
    running = demo("-m", "keras_private", "demo", "--data", "digits", "--output", "told")
    told = running.read()
    assert running.process.returncode == 0, told[-3000:]
    assert running.longest_silence < SILENCE
    assert running.left() == ({}, [])

    # The table: accuracy, epsilon, time and bytes of each act.
    table = told[told.index("act  ") :].splitlines()
    rows = {line[:26].strip(): line[26:].split() for line in table[2:6]}
    assert list(rows) == ["plain Keras", "private fit", "federated, secure, private", "encrypted queries"]
    accuracies = {act: float(cells[0].rstrip("%")) for act, cells in rows.items()}
    assert accuracies["plain Keras"] > 90 and accuracies["private fit"] > 70, accuracies
    assert accuracies["federated, secure, private"] > 50 and accuracies["encrypted queries"] > 50, accuracies
    assert "2.9" in rows["private fit"][1] or "3.0" in rows["private fit"][1]
    assert "of one client" in " ".join(rows["federated, secure, private"])
    assert "96 of 96 answers as in plaintext" in told
    simulated = told[told.index("Simulated here") :]
    for what in ("party0 is a process", "party1 is a process", "keys of clients", "coordinator's host", "parties run"):
        assert what in simulated

    # The files.
    folder = tmp_path / "told"
    for name in ("report.html", "report.json", "results.json", "accuracy.png", "epsilon.png", "rounds.csv"):
        assert f"told/{name}" in told and (folder / name).stat().st_size > 0
    report = kp.PrivacyReport.load(folder / "report.json")
    assert [part.kind for part in report.parts] == ["private fit", "federated fit", "prediction service"]
    private, federated, _ = report.parts
    assert 2.5 < private.spendings[0].epsilon <= 3.0
    by_observer = {each.observer: each.epsilon for each in federated.spendings}
    assert by_observer[RELEASE] <= 8.0 and by_observer[COORDINATOR] == float("inf")
    assert "Simulated" in (folder / "report.html").read_text()
    acts = json.loads((folder / "results.json").read_text())["acts"]
    assert [act["act"] for act in acts] == list(rows)
    assert acts[2]["bytes"] > 0 < acts[3]["bytes"] and acts[2]["epsilons"] == sorted(acts[2]["epsilons"])
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("accuracy.png", "epsilon.png"))


@pytest.mark.timeout(600)
@pytest.mark.long
def test_ctrl_c_in_the_middle_leaves_nothing(demo):
    running = demo("-m", "keras_private", "demo", "--data", "digits", "--output", "told")
    running.read(until="Two pad parties run")
    assert len(running.others()) >= 2
    time.sleep(3.0)
    # As a terminal does: to the whole foreground group, and by somebody who is not patient.
    os.killpg(running.process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(running.process.pid, signal.SIGINT)
    told = running.read()
    assert running.process.returncode == 130, told[-3000:]
    assert "Traceback" not in told and "Nothing of the demo runs any more" in told
    assert running.left() == ({}, [])


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("act", "line", "number"),
    [("federated", "Round 2/", signal.SIGINT), ("encrypted", "Another process asks", signal.SIGTERM)],
)
@pytest.mark.long
def test_an_act_that_is_ended_leaves_nothing(demo, tmp_path, act, line, number):
    running = demo("-c", ACT, act, str(tmp_path))
    running.read(until=line)
    # Pad parties and a worker with its launcher, or three parties and the client.
    deadline = time.monotonic() + 30.0
    while len(running.others()) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(running.others()) >= 4
    running.process.send_signal(number)
    told = running.read()
    assert running.process.returncode == 130, told[-3000:]
    assert running.left() == ({}, [])


def test_the_arguments(demo):
    running = demo("-m", "keras_private", "demo", "--help")
    told = running.read()
    assert running.process.returncode == 0
    assert all(option in told for option in ("--quick", "--long", "--data", "--output"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_where_a_worker_cannot_keep_to_itself_the_federated_act_is_left_out(demo, tmp_path):
    no_networks = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    as_root = ["unshare", "-r", "sh", "-c", no_networks, "sh"]
    if subprocess.run([*as_root, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody make a user namespace")
    code = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    command = [*as_root, sys.executable, "-W", "ignore", "-m", "keras_private", "demo", "--data", "digits"]
    running = demo("-c", code, *command, "--output", "told")
    told = running.read()
    assert running.process.returncode == 0, told[-3000:]
    assert "Act 3 is left out" in told and "--allow-open" in told
    assert "the model of the 'private fit'" in told and "96 of 96 answers as in plaintext" in told
    assert running.left() == ({}, [])
    report = kp.PrivacyReport.load(tmp_path / "told" / "report.json")
    assert [part.kind for part in report.parts] == ["private fit", "prediction service"]
    assert not (tmp_path / "told" / "rounds.csv").exists()
