"""SIGKILL at every write, and at random moments of a training run: epsilon is never below what was spent."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_private.dp import ledger_file
from keras_private.dp.accounting import ADD_OR_REMOVE, Charge, epsilon
from keras_private.dp.ledger import Ledger
from keras_private.errors import LedgerError
from tests.dp.doubles import Bookkept
from tests.selection import long_but

CHARGE = Charge(2.0, 0, 0.1, "poisson", ADD_OR_REMOVE, 5)
DELTA = 1e-5
BLOCK, BLOCKS = 3, 3


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Kills this process at one moment of the calls that write: before, in the middle of, or after each."""

    def __init__(self, moment: int) -> None:
        self._countdown = moment

    def arm(self) -> None:
        for name in ("open", "write", "fsync", "replace", "close"):
            setattr(ledger_file.os, name, self._wrapped(name, getattr(os, name)))

    def _tick(self) -> None:
        self._countdown -= 1
        if self._countdown < 0:
            die()

    def _wrapped(self, name, real):
        def call(*arguments, **keywords):
            self._tick()
            if name == "write":
                file, content = arguments
                half = real(file, content[: len(content) // 2])
                self._tick()
                return half + real(file, content[half:])
            result = real(*arguments, **keywords)
            self._tick()
            return result

        return call


def train_and_die(path: Path, moment: int, optimizer: Bookkept, journal: int) -> int:
    """A forked child trains by the ledger until the moment comes; a byte a step goes to the journal."""
    write = os.write
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        Killer(moment).arm()
        ledger = Ledger.open(path)
        session = ledger.start(optimizer, CHARGE)
        for _ in range(BLOCKS):
            ledger.reserve(session, BLOCK)
            for _ in range(BLOCK):
                write(journal, b".")
        ledger.settle(session, BLOCK * BLOCKS)
        ledger.close()
        os._exit(0)
    finally:
        os._exit(1)


def cost(steps: int) -> float:
    return epsilon([Charge(2.0, steps, 0.1, "poisson", ADD_OR_REMOVE, 5)], DELTA, "rdp")


@pytest.mark.parametrize("fresh", long_but([True, False], True), ids=["first fit", "later fit"])
def test_sigkill_at_every_write(tmp_path, fresh):
    survived = 0
    for moment in itertools.count():
        path = tmp_path / f"{moment}.json"
        optimizer = Bookkept()
        if not fresh:
            ledger = Ledger.open(path)
            session = ledger.start(optimizer, CHARGE)
            ledger.reserve(session, 7)
            ledger.settle(session, 7)
            ledger.close()
            optimizer.steps_done = 7
        earlier = optimizer.steps_done
        read, journal = os.pipe()
        status = train_and_die(path, moment, optimizer, journal)
        os.close(journal)
        ran = len(os.read(read, 100))
        os.close(read)
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        survived += 1

        ledger = Ledger.open(path)
        assert not path.with_name(path.name + ".tmp").exists()
        charges = ledger.charges()
        assert epsilon(charges, DELTA, "rdp") >= cost(earlier + ran)
        assert sum(charge.steps for charge in charges) <= earlier + ran + BLOCK
        for checkpoint in range(earlier, earlier + ran + 1):
            resumed = Bookkept(steps_done=checkpoint)
            session = ledger.start(resumed, CHARGE)
            ledger.reserve(session, 1)
            assert epsilon(ledger.charges(), DELTA, "rdp") >= cost(earlier + ran + 1)
        beyond = Bookkept(steps_done=earlier + ran + BLOCK + 2 + ran)
        with pytest.raises(LedgerError):
            ledger.start(beyond, CHARGE)
        ledger.close()
    assert survived > 11 * (BLOCKS + 2), "fewer moments than calls that write"


PROGRAM = Path(__file__).with_name("train_with_ledger.py")


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(PROGRAM), str(folder)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def begun(folder: Path) -> int:
    """Steps that were about to run, which is at least as many as ran."""
    journal = folder / "journal"
    return journal.stat().st_size if journal.exists() else 0


@pytest.mark.parametrize("kills", [pytest.param(1, marks=pytest.mark.long), pytest.param(8, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_of_training(tmp_path, kills):
    chance = random.Random(kills)
    for _ in range(kills):
        target = begun(tmp_path) + chance.randint(1, 120)
        process = start(tmp_path)
        while begun(tmp_path) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

        ledger = Ledger.open(tmp_path / "ledger.json")
        charged = sum(charge.steps for charge in ledger.charges())
        spent = epsilon(ledger.charges(), DELTA)
        assert charged >= begun(tmp_path) >= target
        assert spent >= epsilon([Charge(2.0, begun(tmp_path), 8 / 80, "poisson", ADD_OR_REMOVE, 5)], DELTA)
        ledger.close()

    process = start(tmp_path)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    final, done = float(output.split()[-2]), int(output.split()[-1])
    assert epsilon([Charge(2.0, begun(tmp_path), 8 / 80, "poisson", ADD_OR_REMOVE, 5)], DELTA) <= final <= 20.0
    assert final > spent
    ledger = Ledger.open(tmp_path / "ledger.json")
    assert ledger.sessions[-1].settled
    assert ledger.sessions[-1].base + ledger.sessions[-1].reserved == done
    assert epsilon(ledger.charges(), DELTA) == pytest.approx(final, rel=1e-9)
    ledger.close()
