"""Two pad parties as processes of their own: who may ask what, what they answer, and frames that are none."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

import keras_private as kp
from keras_private.encrypted.cluster.certificates import authority
from keras_private.encrypted.cluster.wire import CALL, REFUSAL, after
from keras_private.errors import AggregationError, OverflowPreflightError, PrivacyError, TransportError
from keras_private.federated import DPAggregator
from keras_private.federated.aggregators.base import Cohort
from keras_private.federated.aggregators.masking.parties import PadParty
from keras_private.federated.pad_service import messages, remote
from keras_private.federated.pad_service.config import PARTIES
from tests.federated.aggregating import reports_of
from tests.federated.pad_processes import NAMES, ROOT, answers, environment, request

CALLS = ("ping", "propose", "answer", "compare")


def check_served(hosts):
    asked = request()
    for party, found in enumerate(answers(hosts.parties(), asked)):
        np.testing.assert_array_equal(found, hosts.expected(asked, party))


def test_answers_are_the_negated_sums_of_pads(hosts):
    check_served(hosts)


def test_a_round_is_that_of_parties_in_this_process(hosts):
    updates = np.random.default_rng(3).uniform(-2, 2, (3, 40)).astype(np.float32)
    cohort, totals = Cohort(3.0, 3, 3, True, NAMES), []
    keys = hosts.folder / "host-clients" / "clients"
    apart = kp.SecureAggregation(parties=hosts.parties(), keys=keys)
    for aggregator in (kp.SecureAggregation(), apart):
        aggregator.prepare(40, cohort)
        totals.append(
            aggregator.total(*reports_of(aggregator, updates, [1, 2, 3], NAMES, session=os.urandom(16).hex()))
        )
        aggregator.close()
    np.testing.assert_array_equal(totals[0].update, totals[1].update)
    assert totals[0].weight == totals[1].weight == 6.0 and totals[1].clients == 3


def test_noise_comes_from_both(hosts):
    asked = request(words=4000, answered=4000, noise=2.0**22)
    for party, found in enumerate(answers(hosts.parties(), asked)):
        with np.errstate(over="ignore"):
            noise = (found - hosts.expected(asked, party)).astype(np.float64)
        assert abs(noise.std() / 2.0**22 - 1) < 0.1
    with pytest.raises(OverflowPreflightError, match="party0"):
        answers(hosts.parties(), request(noise=5.0))


def test_the_coordinator_can_ask_for_how_few_clients_a_party_answers(hosts):
    assert [party.min_clients for party in hosts.parties()] == [2, 2]


class TestSimulated:
    def test_parties_of_this_machine_are_one(self, hosts, tmp_path):
        here = kp.SecureAggregation(parties=hosts.parties(), keys=tmp_path / "elsewhere").description()
        assert here["simulated"] == [f"{name} is on this machine, at 127.0.0.1" for name in PARTIES]
        assert here["protects_from"] == []

    def test_parties_apart_are_none_and_what_this_process_could_read_is(self, hosts, tmp_path, monkeypatch):
        monkeypatch.setattr(remote, "this_machine", lambda host: False)
        aggregator = kp.SecureAggregation(parties=hosts.parties(), keys=tmp_path / "elsewhere")
        assert aggregator.description()["simulated"] == [] and aggregator.description()["protects_from"]
        keys = hosts.folder / "host-clients" / "clients"
        here = kp.SecureAggregation(parties=hosts.parties(), keys=keys).description()
        assert here["simulated"] == [f"keys of clients can be read by this process, in {keys}"]
        assert here["protects_from"] == []
        # One party's keys alone open nothing.
        (tmp_path / "half").mkdir()
        for path in keys.glob("*.party0.key"):
            shutil.copy(path, tmp_path / "half")
        half = kp.SecureAggregation(parties=hosts.parties(), keys=tmp_path / "half")
        assert half.description()["simulated"] == []
        # What stands around it says the same.
        around = DPAggregator(aggregator, noise_multiplier=1.0).description()
        assert around["simulated"] == [] and around["protects_from"]

    def test_parties_in_this_process_are_whoever_made_them(self, hosts, tmp_path, monkeypatch):
        monkeypatch.setattr(remote, "this_machine", lambda host: False)
        one = PadParty(0, b"m" * 32, b"b" * 32, journal=None)
        mixed = kp.SecureAggregation(parties=(one, hosts.parties()[1]), keys=tmp_path).description()
        assert mixed["simulated"] == ["party 0 and its master key are in this process"]
        assert mixed["protects_from"] == []
        silent = kp.SecureAggregation(parties=(object(), hosts.parties()[1]), keys=tmp_path).description()
        assert silent["simulated"] == ["party 0 does not say where it is"]


def holds(pid, secrets):
    """Which of these bytes stand somewhere in the memory that a process can write."""
    found = set()
    regions = [line.split() for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for span, rights, *_ in regions:
            start, end = (int(each, 16) for each in span.split("-"))
            if not rights.startswith("rw"):
                continue
            rest = b""
            for at in range(start, end, 1 << 24):
                try:
                    memory.seek(at)
                    content = rest + memory.read(min(1 << 24, end - at))
                except OSError:
                    break
                found.update(name for name, secret in secrets.items() if secret in content)
                rest = content[-31:]
    return found


COORDINATOR = """
import sys
from keras_private.federated import pad_parties
from tests.federated.pad_processes import answers, request
print([found.shape for found in answers(pad_parties(sys.argv[1]), request())], flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_coordinator_never_holds_a_master_and_no_party_the_others(hosts):
    folders = [hosts.folder / f"host-{name}" / name for name in ("party0", "party1")]
    secrets = {f"master{n}": (folder / "master.key").read_bytes() for n, folder in enumerate(folders)}
    secrets["between"] = (folders[0] / "between.key").read_bytes()
    keys = (hosts.folder / "host-clients" / "clients").iterdir()
    secrets.update({path.name: path.read_bytes() for path in keys})
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", COORDINATOR, str(hosts.config_path)],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout.readline().strip() == "[(9,), (9,)]"
        try:
            assert holds(process.pid, secrets) == set()
        except PermissionError:
            pytest.skip("this system lets nobody read another process's memory")
        # The test can fail: what a party holds is found.
        for n in (0, 1):
            found = holds(hosts.processes[f"party{n}"].pid, secrets)
            assert {f"master{n}", "between"} <= found and f"master{1 - n}" not in found
    finally:
        process.kill()
        process.communicate()


class TestLists:
    def test_parties_that_are_asked_different_things_answer_neither(self, hosts):
        both, asked = hosts.parties(), request()
        other = request(NAMES[:2], session=asked.session, clients=asked.clients[:2])
        proofs = [both[0].propose(asked), both[1].propose(other)]
        for party, one, proof in ((0, asked, proofs[1]), (1, other, proofs[0])):
            with pytest.raises(AggregationError, match="not asked the same"):
                both[party].answer(one, proof)
        # Each is bound to what it was asked first.
        with pytest.raises(AggregationError, match="asked with another list"):
            both[1].propose(asked)

    def test_a_proof_that_somebody_made_with_the_key_between_both_opens_nothing(self, hosts):
        """The parties ask each other, and do not rest on the proof alone."""
        asked = request()
        between = (hosts.folder / "host-party0" / "party0" / "between.key").read_bytes()
        forged = PadParty(1, bytes(32), between, journal=None).propose(asked)
        first = hosts.parties()[0]
        first.propose(asked)
        with pytest.raises(AggregationError, match="party1 was not asked the same"):
            first.answer(asked, forged)

    def test_nor_do_they_rest_on_asking_alone(self, hosts):
        both, asked = hosts.parties(), request()
        proofs = [party.propose(asked) for party in both]
        for forged in (proofs[0], bytes(32)):
            with pytest.raises(AggregationError, match="the other party was not asked the same"):
                both[0].answer(asked, forged)
        both[0].answer(asked, proofs[1])

    def test_a_list_is_answered_once(self, hosts):
        both, asked = hosts.parties(), request()
        answers(both, asked)
        for party in both:
            with pytest.raises(AggregationError, match="was answered"):
                party.propose(asked)
            with pytest.raises(AggregationError, match="a nonce was used"):
                party.propose(request(number=2, clients=asked.clients[1:], session=asked.session))

    def test_few_clients_are_refused(self, hosts):
        for party in hosts.parties():
            with pytest.raises(AggregationError, match=rf"{party.address.name}.*1 clients are fewer than 2"):
                party.propose(request(NAMES[:1]))
            with pytest.raises(AggregationError, match="0 clients"):
                party.propose(request(()))

    def test_rounds_that_are_too_large_are_refused_here_already(self, hosts):
        for changed in ({"words": messages.MOST_WORDS + 1}, {"clients": (("a", bytes(16)),) * (1 + (1 << 16))}):
            with pytest.raises(AggregationError, match="at most 65536 clients"):
                hosts.parties()[0].propose(request(**changed))


class TestRoles:
    @pytest.mark.parametrize(
        ("name", "allowed"),
        [("coordinator", ("ping", "propose", "answer")), ("party1", ("compare",)), ("party0", ()), ("anna", ())],
    )
    def test_each_name_may_make_the_calls_of_its_role_alone(self, hosts, name, allowed):
        with contextlib.closing(hosts.wire(name)) as wire:
            for call in (*CALLS, "close", "", None):
                with pytest.raises(PrivacyError) as refused:
                    # An empty call: whoever may make it hears that it is malformed.
                    wire.call({"call": call, "digest": 7}, deadline=after(10))
                    raise TransportError("answered")
                assert ("may not call" in str(refused.value)) == (call not in allowed)
        check_served(hosts)

    def check_refused(self, hosts, context, reason):
        """Under TLS 1.3 the refusal is read with the first byte; the party may log it after that."""
        before = len(hosts.said("party0"))
        with (
            pytest.raises((ssl.SSLError, ConnectionError, PrivacyError)),
            contextlib.closing(hosts.wire("coordinator", context=context)) as wire,
        ):
            wire.call({"call": "ping"}, deadline=after(10))
        end = time.monotonic() + 10
        while reason not in hosts.said("party0")[before:]:
            assert time.monotonic() < end, hosts.said("party0")[before:]
            time.sleep(0.02)

    def test_no_certificate_an_expired_one_and_one_of_a_foreign_authority(self, hosts, tmp_path):
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.load_verify_locations(hosts.folder / "host-coordinator" / "coordinator" / "ca.crt")
        self.check_refused(hosts, bare, "did not return a certificate")
        self.check_refused(hosts, hosts.context("coordinator", days=-1), "certificate has expired")
        authority(tmp_path / "authority")
        foreign = hosts.context("coordinator", authority=tmp_path / "authority")
        self.check_refused(hosts, foreign, "certificate verify failed")
        check_served(hosts)

    def test_a_party_that_cannot_prove_its_name_is_sent_nothing(self, hosts):
        address = hosts.config.party("party0")
        with (
            socket.create_connection((address.host, address.port), 10) as plain,
            pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"),
        ):
            hosts.context("coordinator").wrap_socket(plain, server_hostname="party1.keras-private")


def head(facts=0, size=0, kind=CALL, magic=b"KPW1"):
    return struct.pack("!4sB16sIIQ", magic, kind, bytes(16), 0, facts, size)


class TestFrames:
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(head(size=1 << 40), id="a terabyte of nonces"),
            pytest.param(head(size=messages.PROOF_BYTES + (16 << 16) + 1), id="one byte too many"),
            pytest.param(head(facts=(1 << 32) - 1), id="four gigabytes of names"),
            pytest.param(head(facts=8 << 20), id="more names than any round"),
            pytest.param(head(magic=b"HTTP"), id="another protocol"),
            pytest.param(head()[:20], id="half a header"),
            pytest.param(head(facts=100) + b'{"call"', id="half of the facts"),
            pytest.param(head(facts=2, size=64) + b"{}" + bytes(63), id="nonces without their last byte"),
            pytest.param(head(facts=4) + b"\xff{}\x00", id="no JSON"),
            pytest.param(head(facts=2) + b"[]", id="no facts"),
            pytest.param(os.urandom(1000), id="noise"),
        ],
    )
    def test_one_that_is_none_ends_its_connection_alone(self, hosts, content):
        pid = hosts.processes["party0"].pid
        memory = psutil.Process(pid).memory_info().rss
        with contextlib.closing(hosts.wire("coordinator")) as wire:
            wire.connection.sendall(content)
            wire.connection.shutdown(socket.SHUT_WR)
            with pytest.raises(TransportError):
                while True:
                    assert wire.receive(lambda header: 0, after(10)).header.kind == REFUSAL
        assert psutil.Process(pid).memory_info().rss < memory + (64 << 20)
        assert hosts.processes["party0"].poll() is None

    @pytest.mark.parametrize(
        "change",
        [
            {"session": 7},
            {"session": "short"},
            {"round": -1},
            {"round": True},
            {"round": 1 << 63},
            {"words": 0},
            {"words": 1 << 40},
            {"answered": 10},
            {"answered": None},
            {"noise": "much"},
            {"noise": "nan"},
            {"noise": -1.0},
            {"noise": "-0x1p+30"},
            {"names": "anna"},
            {"names": [1, 2, 3]},
            {"names": ["anna", "anna", "bert"]},
            {"names": ["anna", "bert"]},
            {"names": ["../anna", "bert", "carl"]},
            {"names": ["\ud800", "bert", "carl"]},
        ],
    )
    def test_a_malformed_request_is_refused(self, hosts, change):
        facts, arrays = messages.to_frame("propose", request())
        with contextlib.closing(hosts.wire("coordinator")) as wire:
            with pytest.raises(PrivacyError, match=r"^party0"):
                wire.call({**facts, **change}, arrays, after(10))
            # The connection goes on, and what was not malformed is taken.
            assert len(wire.call(facts, arrays, after(10)).payload) == messages.PROOF_BYTES

    def test_one_name_does_not_use_every_connection_up(self, hosts):
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(contextlib.closing(hosts.wire("anna"))) for _ in range(30)]
            check_served(hosts)
            end, refused = after(20), []
            while len(refused) < 14 and time.monotonic() < end:
                refused = [each for each in wires if not each.usable]
            assert len(refused) == 14
            for wire in refused:
                frame = wire.receive(lambda header: 0, after(10))
                assert frame.header.kind == REFUSAL and "16 connections" in frame.facts["problem"]
