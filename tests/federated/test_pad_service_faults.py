"""Pad parties that are killed, stopped, and started again with their journals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import numpy as np
import pytest

import keras_private as kp
from keras_private.encrypted.cluster.certificates import issue
from keras_private.errors import AggregationError, TransportError
from keras_private.federated.aggregators.base import Cohort
from tests.federated.aggregating import reports_of
from tests.federated.pad_processes import NAMES, answers, command, environment, request


def journal(hosts, name):
    return (hosts.folder / f"host-{name}" / name / "journal").read_bytes()


@contextlib.contextmanager
def fails(match, seconds=5.0):
    """With a TransportError that says so, in this time."""
    start = time.monotonic()
    with pytest.raises(TransportError, match=match):
        yield
    assert time.monotonic() - start < seconds


def test_one_that_is_killed_between_proposal_and_answer_or_before_it_is_asked(hosts):
    both, asked = hosts.parties(), request()
    proofs = [party.propose(asked) for party in both]
    hosts.kill("party1")
    before = journal(hosts, "party0")
    with fails("party1 cannot be reached"):
        both[1].answer(asked, proofs[0])
    # The one that lives answers nothing either: it cannot ask the other.
    with fails("party0: party1 cannot be reached"):
        both[0].answer(asked, proofs[1])
    # And another round, of clients whose masked updates are there.
    aggregator = kp.SecureAggregation(parties=both, keys=hosts.folder / "host-clients" / "clients")
    aggregator.prepare(20, Cohort(3.0, 3, 3, True, NAMES))
    reports = reports_of(aggregator, np.ones((3, 20), np.float32), names=NAMES, session=os.urandom(16).hex())
    with fails("party1 cannot be reached"):
        aggregator.total(*reports)
    assert journal(hosts, "party0") == before
    hosts.start("party1")
    # It has forgotten what it was asked, and says so.
    with pytest.raises(AggregationError, match="was not proposed"):
        both[1].answer(asked, proofs[0])
    # Nothing was answered for either list: both can be asked again.
    for index, found in enumerate(answers(both, asked)):
        np.testing.assert_array_equal(found, hosts.expected(asked, index))
    np.testing.assert_allclose(aggregator.total(*reports).update, np.full(20, 3.0), atol=1e-6)
    aggregator.close()


def test_one_that_is_killed_when_the_other_has_answered(hosts):
    both, asked = hosts.parties(), request()
    proofs = [party.propose(asked) for party in both]
    both[0].answer(asked, proofs[1])
    hosts.kill("party1")
    with fails("party1 cannot be reached"):
        both[1].answer(asked, proofs[0])
    hosts.kill("party0")
    hosts.start("party0", "party1")
    # The round is lost, for all of its clients and for some of them.
    fewer = request(session=asked.session, clients=asked.clients[1:])
    for again in (asked, fewer):
        with pytest.raises(AggregationError, match=r"party0.*round 1 of this session was answered"):
            both[0].propose(again)
    with pytest.raises(AggregationError, match=r"party0.*a nonce was used"):
        both[0].propose(request(session=asked.session, number=2, clients=asked.clients[1:]))
    both[1].propose(asked)
    with pytest.raises(AggregationError, match="party0 was not asked the same"):
        both[1].answer(asked, proofs[0])
    # And the next one is served.
    after = request(session=asked.session, number=2)
    for index, found in enumerate(answers(both, after)):
        np.testing.assert_array_equal(found, hosts.expected(after, index))


def test_one_that_is_stopped_ends_a_call_at_its_deadline(hosts):
    pid = hosts.processes["party1"].pid
    asked, patient = request(), hosts.parties()
    hurried = hosts.parties(seconds=1.5)
    os.kill(pid, signal.SIGSTOP)
    try:
        with fails("party1 did not answer in time", 4.0):
            hurried[1].propose(asked)
        patient[0].propose(asked)
        with fails("party0 did not answer in time", 4.0):
            hurried[0].answer(asked, bytes(32))
    finally:
        os.kill(pid, signal.SIGCONT)
    for index, found in enumerate(answers(patient, asked)):
        np.testing.assert_array_equal(found, hosts.expected(asked, index))


def start_refused(hosts, *arguments, seconds=30):
    # By default before anything that takes seconds.
    done = subprocess.run(
        command("pads", "party", *arguments), env=environment(), capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return done.stderr


def test_one_that_cannot_start_says_why(hosts, tmp_path):
    config = hosts.folder / "host-party0" / "pads.json"
    issue(hosts.folder / "host-authority" / "authority", "party0", tmp_path / "old", days=-1)
    assert "holds from" in start_refused(hosts, "--name", "party0", "--config", config, "--folder", tmp_path / "old")
    assert "no party" in start_refused(hosts, "--name", "coordinator", "--config", config)


def test_one_whose_journal_was_cut_does_not_start(hosts, tmp_path):
    (tmp_path / "head").write_text("3 abc\n")
    arguments = ("--name", "party0", "--config", hosts.folder / "host-party0" / "pads.json")
    cut = ("--journal", tmp_path / "journal", "--head", tmp_path / "head")
    assert "knows of 3 answers" in start_refused(hosts, *arguments, *cut, seconds=300)


def test_one_ends_when_it_is_told_to(hosts):
    for name in ("party0", "party1"):
        process = hosts.processes[name]
        process.terminate()
        assert process.wait(20) == 0
        hosts.kill(name)
