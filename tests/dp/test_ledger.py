"""The ledger: durable, additive, exclusive, and refused when it cannot be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private.dp import ledger_file
from keras_private.dp.accounting import ADD_OR_REMOVE, ZERO_OUT, Charge
from keras_private.dp.ledger import Ledger
from keras_private.errors import LedgerError
from tests.dp.doubles import Bookkept

CHARGE = Charge(1.5, 0, 0.1, "poisson", ADD_OR_REMOVE, 5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.json"


def trained(path, steps=10, optimizer=None, settle=None):
    """A ledger file after one session, closed again; returns its optimizer."""
    optimizer = optimizer or Bookkept()
    ledger = Ledger.open(path)
    session = ledger.start(optimizer, CHARGE, 80)
    ledger.reserve(session, steps)
    if settle is not None:
        ledger.settle(session, settle)
        optimizer.steps_done += settle
    ledger.close()
    return optimizer


def steps_in(path):
    ledger = Ledger.open(path)
    try:
        return sum(charge.steps for charge in ledger.charges())
    finally:
        ledger.close()


def test_what_was_reserved_is_charged_after_a_crash(path):
    trained(path, 10)
    assert steps_in(path) == 10


def test_settling_lowers_to_what_ran(path):
    trained(path, 10, settle=7)
    assert steps_in(path) == 7


def test_everything_survives_reopening(path):
    trained(path, 10, settle=7)
    ledger = Ledger.open(path)
    (session,) = ledger.sessions
    assert (session.identity, session.base, session.reserved, session.settled) == ("a" * 32, 0, 7, True)
    assert session.charge == replace(CHARGE, steps=7)
    assert (session.expected_batch_size, session.num_examples) == (8.0, 80)
    assert ledger.sequence == 3
    ledger.close()


def test_steps_beyond_the_reservation_are_recorded_and_reported(path):
    ledger = Ledger.open(path)
    session = ledger.start(Bookkept(), CHARGE)
    ledger.reserve(session, 3)
    with pytest.raises(LedgerError, match="5 steps ran where 3 were reserved"):
        ledger.settle(session, 5)
    ledger.close()
    assert steps_in(path) == 5


def test_a_reservation_is_never_lowered_by_reserving(path):
    ledger = Ledger.open(path)
    session = ledger.start(Bookkept(), CHARGE)
    assert ledger.reserve(session, 3) == 3
    assert ledger.reserve(session, 4) == 7
    with pytest.raises(LedgerError):
        ledger.reserve(session, -1)
    ledger.close()
    assert steps_in(path) == 7


# An optimizer meets a ledger.


def begin(path, optimizer, steps=5):
    ledger = Ledger.open(path)
    try:
        ledger.reserve(ledger.start(optimizer, CHARGE), steps)
    finally:
        ledger.close()


def test_a_missing_file_is_created_for_a_fresh_optimizer_only(path):
    with pytest.raises(LedgerError, match="missing"):
        begin(path, Bookkept(steps_done=1))
    assert not path.exists()
    begin(path, Bookkept())
    assert steps_in(path) == 5


def test_a_foreign_file_is_refused(path):
    trained(path, 10, settle=10)
    with pytest.raises(LedgerError, match="foreign"):
        begin(path, Bookkept("b" * 32, steps_done=3))
    assert steps_in(path) == 10


def test_a_file_behind_the_optimizer_is_refused(path):
    optimizer = trained(path, 10, settle=10)
    older = path.read_bytes()
    begin(path, optimizer)
    path.write_bytes(older)
    optimizer.steps_done = 11
    with pytest.raises(LedgerError, match="behind"):
        begin(path, optimizer)


def test_behind_is_judged_by_the_furthest_session_not_by_the_sum(path):
    optimizer = trained(path, 10, settle=10)
    optimizer.steps_done = 5
    begin(path, optimizer, 5)
    assert steps_in(path) == 15
    optimizer.steps_done = 12
    with pytest.raises(LedgerError, match="behind"):
        begin(path, optimizer)


@pytest.mark.parametrize("joining", [
    Bookkept("b" * 32), Bookkept("b" * 32, expected_batch_size=64.0), Bookkept(steps_done=10),
    Bookkept(steps_done=4), Bookkept(steps_done=0),
], ids=["second optimizer", "other batch size", "the same", "older checkpoint", "first checkpoint"])  # fmt: skip
def test_whoever_joins_adds(path, joining):
    trained(path, 10, settle=10)
    begin(path, joining, 5)
    assert steps_in(path) == 15


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.integers(0, 9), st.integers(0, 20)), max_size=8))
def test_no_sequence_of_fits_and_restores_lowers_the_total(tmp_path_factory, fits):
    path = tmp_path_factory.mktemp("ledger") / "l.json"
    ran, done = 0, {"a": 0, "b": 0}
    for name, reserved, wanted, restored in fits:
        optimizer = Bookkept(name * 32, steps_done=min(restored, done[name]))
        ledger = Ledger.open(path)
        session = ledger.start(optimizer, CHARGE)
        ledger.reserve(session, reserved)
        ran += min(wanted, reserved)
        done[name] = max(done[name], optimizer.steps_done + min(wanted, reserved))
        if wanted <= reserved:
            ledger.settle(session, wanted)
        assert sum(charge.steps for charge in ledger.charges()) >= ran
        ledger.close()
        assert steps_in(path) >= ran


# In memory.


def test_in_memory_steps_outside_sessions_cost_full_price():
    ledger, optimizer = Ledger.open(None), Bookkept(steps_done=6)
    assert ledger.charges_of(optimizer) == (Charge(1.5, 6, None, "unknown", ZERO_OUT, 5),)
    session = ledger.start(optimizer, CHARGE)
    ledger.reserve(session, 4)
    optimizer.steps_done = 13
    assert [(c.steps, c.sampler) for c in ledger.charges_of(optimizer)] == [
        (6, "unknown"),
        (4, "poisson"),
        (3, "unknown"),
    ]
    ledger.start(optimizer, CHARGE)
    optimizer.steps_done = 20
    assert sum(c.steps for c in ledger.charges_of(optimizer)) == 20


def test_a_file_that_knows_less_than_memory_is_refused(path):
    optimizer = trained(path, 10, settle=10)
    older = path.read_bytes()
    begin(path, optimizer, 5)
    memory, ledger = Ledger.open(None), Ledger.open(path)
    memory.adopt(ledger)
    ledger.require_cover_of(memory)
    ledger.close()
    path.write_bytes(older)
    ledger = Ledger.open(path)
    with pytest.raises(LedgerError, match="behind"):
        ledger.require_cover_of(memory)
    ledger.close()


# Damage.


def refused(path):
    with pytest.raises(LedgerError):
        Ledger.open(path).close()
    return True


def test_every_truncation_is_refused(path):
    trained(path, 10, settle=7)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refused(path)
        assert path.read_bytes() == whole[:length], "a damaged ledger was written to"


def test_every_altered_byte_is_refused(path):
    trained(path, 10, settle=7)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for change in (1, 0x10, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            assert refused(path)
    path.write_bytes(whole + b"\n")
    assert refused(path)
    path.write_bytes(whole)
    assert steps_in(path) == 7


def edited(path, change):
    """The document changed, with a right digest: what only another version or a forger would write."""
    document = json.loads(path.read_text())
    change(document)
    del document["digest"]
    document["digest"] = ledger_file._digest(document)
    path.write_text(ledger_file._canonical(document) + "\n")


@pytest.mark.parametrize("change", [
    lambda d: d.update(schema=2),
    lambda d: d.update(format="other"),
    lambda d: d.update(sequence=0),
    lambda d: d.update(extra=1),
    lambda d: d.update(sessions={}),
    lambda d: d["sessions"].append(7),
    lambda d: d["sessions"][0].pop("base"),
    lambda d: d["sessions"][0].update(reserved=-1),
    lambda d: d["sessions"][0].update(reserved=1.5),
    lambda d: d["sessions"][0].update(reserved=True),
    lambda d: d["sessions"][0].update(noise_multiplier="1"),
    lambda d: d["sessions"][0].update(sampling_probability=0.0),
    lambda d: d["sessions"][0].update(sampler="magic"),
    lambda d: d["sessions"][0].update(unknown=1),
    lambda d: d["sessions"][0].update(settled=0),
])  # fmt: skip
def test_another_schema_is_refused_even_with_a_right_digest(path, change):
    trained(path)
    edited(path, lambda document: None)
    assert steps_in(path) == 10
    edited(path, change)
    assert refused(path)


def test_duplicate_keys_and_other_spellings_are_refused(path):
    trained(path)
    text = path.read_text()
    path.write_text(text.replace('"schema": 1', '"schema": 1, "schema": 1'))
    assert refused(path)
    path.write_text(json.dumps(json.loads(text)))
    assert refused(path)


# One writer.


def test_a_second_opener_is_refused_in_this_process_and_in_another(path):
    ledger = Ledger.open(path)
    with pytest.raises(LedgerError, match="in use"):
        Ledger.open(path)
    child = os.fork()
    if child == 0:
        try:
            Ledger.open(path)
        except LedgerError:
            os._exit(17)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    ledger.close()
    Ledger.open(path).close()


def test_an_unrelated_process_is_refused_too(path):
    ledger = Ledger.open(path)
    program = (
        "import fcntl, sys\n"
        "lock = open(sys.argv[1])\n"
        "try:\n    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n    sys.exit(17)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, f"{path}.lock"]).returncode == 17
    ledger.close()
    assert subprocess.run([sys.executable, "-c", program, f"{path}.lock"]).returncode == 0


def test_a_forked_child_cannot_write_and_does_not_keep_the_lock(path):
    ledger = Ledger.open(path)
    session = ledger.start(Bookkept(), CHARGE)
    read, write = os.pipe()
    forked, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        try:
            ledger.reserve(session, 5)
        except LedgerError:
            os.write(tell, b".")
            os.read(read, 1)  # Stays alive until the parent has reopened the ledger.
            os._exit(17)
        os._exit(0)
    os.close(read)
    os.close(tell)
    # Handlers of other libraries may take the child a while before ours.
    os.read(forked, 1)
    os.close(forked)
    ledger.reserve(session, 2)
    ledger.close()
    Ledger.open(path).close()
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert steps_in(path) == 2


def test_a_file_touched_while_in_use_is_not_overwritten(path):
    trained(path, 10)
    ledger = Ledger.open(path)
    session = ledger.start(Bookkept(), CHARGE)
    other = path.read_bytes()
    path.write_bytes(other)
    with pytest.raises(LedgerError, match="was changed"):
        ledger.reserve(session, 1)
    assert path.read_bytes() == other
    with pytest.raises(LedgerError, match="not held"):
        ledger.reserve(session, 1)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_stops_the_ledger(path, monkeypatch, call):
    ledger = Ledger.open(path)
    session = ledger.start(Bookkept(), CHARGE)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file.os, call, fail)
        with pytest.raises(LedgerError, match="No space left"):
            ledger.reserve(session, 5)
    with pytest.raises(LedgerError, match="not held"):
        ledger.reserve(session, 5)
    assert sorted(item.name for item in path.parent.iterdir()) == ["ledger.json", "ledger.json.lock"]
    assert steps_in(path) == 0


def test_paths_that_cannot_hold_a_ledger_are_refused(tmp_path):
    with pytest.raises(LedgerError, match="folder"):
        Ledger.open(tmp_path / "missing" / "ledger.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "folder")


def test_symbolic_links_share_one_lock(path):
    trained(path)
    link = path.with_name("link.json")
    link.symlink_to(path)
    ledger = Ledger.open(link)
    with pytest.raises(LedgerError, match="in use"):
        Ledger.open(path)
    ledger.reserve(ledger.start(Bookkept("b" * 32), CHARGE), 1)
    ledger.close()
    assert link.is_symlink() and steps_in(path) == 11


def test_every_write_is_synced_before_it_is_named_and_its_folder_after(path, monkeypatch):
    calls = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(ledger_file.os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    ledger = Ledger.open(path)
    session = ledger.start(Bookkept(), CHARGE)
    del calls[:]
    ledger.reserve(session, 1)
    assert calls == ["write", "fsync", "replace", "fsync"]
    ledger.close()


def test_the_classes_are_final():
    with pytest.raises(TypeError, match="final"):
        type("Forgetful", (Ledger,), {})
