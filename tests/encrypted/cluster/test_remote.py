"""The tensor chain on three party processes: what each party refuses, whoever asks."""

from __future__ import annotations

import gc
import secrets
import time

import numpy as np
import pytest

import keras_private as kp
from keras_private.chain import Form
from keras_private.encrypted.cluster.cluster import at_all
from keras_private.encrypted.cluster.remote import runtime_of
from keras_private.encrypted.cluster.sharing import share_out
from keras_private.encrypted.kernels import choose
from keras_private.errors import AccessError, ConfigurationError, PartiesError, PrivacyError, TransportError
from tests.contracts.chain_runtime import ChainRuntimeContract, X

FORM = Form((2,), 16, 1024.0)
SHARES = share_out(np.array([5 << 16, -3 << 16]))


@pytest.fixture(scope="module")
def local():
    with kp.Cluster.local(clients=("alice", "bob", "eve"), verbose=False) as found:
        yield found


@pytest.fixture
def wires(local):
    """Connections of alice to the three parties, for calls that no runtime makes."""
    found = [local.dial("alice", party, time.monotonic() + 10) for party in local.parties]
    yield found
    for wire in found:
        wire.close()


def ask(wires, facts, arrays=((), (), ())):
    """Each party its own call, at once; the reply's facts or the error of each."""

    def one(place):
        try:
            return wires[place].call(facts[place], arrays[place], time.monotonic() + 20).facts
        except PrivacyError as error:
            return error

    return at_all([0, 1, 2], one)


def put(value_id, **changes):
    facts = {"call": "put", "id": value_id, "form": FORM.facts(), "readers": ["alice"], "seconds": 2.0}
    return {**facts, **changes}


def plan(operation, inputs, output, **changes):
    facts = {"call": "plan", "operation": operation, "options": {}, "inputs": inputs, "output": output}
    return {**facts, "native": choose().name == "native", **changes}


def new():
    return secrets.token_hex(16)


class TestClusterRuntime(ChainRuntimeContract):
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls, local):
        return local

    def test_pointers_say_where_the_parties_are(self, cluster):
        private = kp.encrypt(X, cluster, name="alice")
        for pointer, address in zip(private.pointers, cluster.config.parties):
            assert pointer.location == f"{address.host}:{address.port}"
        assert "SIMULATION" in str(private)

    def test_values_of_different_parties_do_not_meet(self, cluster):
        with pytest.raises(ConfigurationError, match="different parties"):
            kp.encrypt(X, cluster, name="alice") + kp.encrypt(X, name="alice")

    def test_a_name_without_certificate_is_refused(self, cluster):
        with pytest.raises(PrivacyError):
            kp.encrypt(X, cluster, name="mallory")

    def test_values_go_with_the_connection_of_their_owner(self, cluster):
        a = kp.encrypt(X, cluster, name="alice", readers=("alice", "bob"))
        at_bob = kp.PrivateTensor.from_json(a.to_json(), cluster, "bob")
        of_bob = at_bob + 1
        assert np.array_equal(at_bob.reveal(), X)
        runtime_of(cluster, "alice").close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                at_bob.look()
            except PartiesError:
                break
            time.sleep(0.05)
        with pytest.raises(PartiesError):
            at_bob.reveal()
        # What bob had computed is kept for bob.
        assert np.array_equal(of_bob.reveal(), X + 1)
        # The next call of alice is a new connection.
        with pytest.raises(PartiesError):
            a.reveal()
        assert np.array_equal(kp.encrypt(X, cluster, name="alice").reveal(), X)

    def test_a_second_of_the_same_operation_is_not_traced_again(self, cluster):
        a = kp.encrypt(np.ones((3, 5)), cluster, name="alice")
        took = []
        for _ in range(2):
            start = time.monotonic()
            (a * a).sigmoid()
            took.append(time.monotonic() - start)
        assert took[1] < took[0]


def test_honest_calls_pass(wires):
    """The calls that the tests below change."""
    value, output, opened = new(), new(), new()
    replies = ask(wires, [put(value)] * 3, SHARES)
    assert all(each["stored"]["id"] == value for each in replies)
    planned = ask(wires, [plan("relu", [value], output)] * 3)
    assert all(each["digests"] == planned[0]["digests"] for each in planned)
    assert ask(wires, [{"call": "compute", "output": output, "seconds": 20.0}] * 3) == [{}] * 3
    ask(wires, [plan("open", [output], opened)] * 3)
    assert ask(wires, [{"call": "open", "output": opened, "seconds": 20.0}] * 3) == [{}] * 3


def refused(replies, kind=PrivacyError):
    return all(isinstance(each, kind) for each in replies)


def gone(wires, value):
    """Whether no party, or not every one, has a value that could be computed with."""
    return refused(ask(wires, [plan("relu", [value], new())] * 3)[:1]) or any(
        isinstance(each, PartiesError) for each in ask(wires, [{"call": "look", "id": value}] * 3)
    )


def test_different_numbers_for_one_share_are_refused(wires):
    value = new()
    other = [SHARES[0], (SHARES[1][0] + 1, SHARES[1][1]), SHARES[2]]
    replies = ask(wires, [put(value)] * 3, other)
    assert isinstance(replies[1], TransportError) and "different shares" in replies[1].problem
    assert gone(wires, value)


@pytest.mark.parametrize("change", [{"readers": ["alice", "eve"]}, {"form": Form((2,), 16, 1.0).facts()}])
def test_different_facts_of_one_value_are_refused(wires, change):
    value = new()
    replies = ask(wires, [put(value), put(value), put(value, **change)], SHARES)
    assert any(isinstance(each, TransportError) for each in replies) and gone(wires, value)


def test_three_different_ids_are_three_values_that_no_party_keeps(wires):
    ids = [new() for _ in range(3)]
    assert refused(ask(wires, [put(each) for each in ids], SHARES), TransportError)
    for value in ids:
        assert refused(ask(wires, [{"call": "look", "id": value}] * 3), PartiesError)


def test_an_id_is_used_once(wires):
    value = new()
    ask(wires, [put(value)] * 3, SHARES)
    assert refused(ask(wires, [put(value)] * 3, SHARES))
    ask(wires, [{"call": "drop", "ids": [value]}] * 3)
    assert refused(ask(wires, [put(value)] * 3, SHARES))


@pytest.mark.parametrize("what", ["outputs", "operations", "options", "inputs"])
def test_parties_that_are_asked_for_different_things_do_not_go_on(wires, what):
    value, other, output = new(), new(), new()
    for each in (value, other):
        ask(wires, [put(each)] * 3, SHARES)
    outputs = [new() for _ in range(3)] if what == "outputs" else [output] * 3
    calls = [plan("add_number", [value], each, options={"number": 1.0}) for each in outputs]
    if what == "operations":
        calls[2] = plan("multiply_number", [value], output, options={"number": 1.0})
    if what == "options":
        calls[2]["options"] = {"number": 2.0}
    if what == "inputs":
        calls[2]["inputs"] = [other]
    assert not refused(ask(wires, calls))
    start = time.monotonic()
    replies = ask(wires, [{"call": "compute", "output": each, "seconds": 1.0} for each in outputs])
    assert refused(replies, TransportError) and time.monotonic() - start < 15
    for each in outputs:
        assert refused(ask(wires, [{"call": "look", "id": each}] * 3), PartiesError)


def test_another_caller_at_one_party_does_not_match(local, wires):
    value, output = new(), new()
    ask(wires, [put(value)] * 3, SHARES)
    eve = local.dial("eve", local.parties[2], time.monotonic() + 10)
    mixed = [*wires[:2], eve]
    ask(mixed, [plan("relu", [value], output)] * 3)
    assert refused(ask(mixed, [{"call": "compute", "output": output, "seconds": 1.0}] * 3), TransportError)
    eve.close()


def test_each_party_alone_denies_who_is_no_reader(local, wires):
    value, output = new(), new()
    ask(wires, [put(value)] * 3, SHARES)
    for name in ("bob", "eve"):
        for party in local.parties:
            wire = local.dial(name, party, time.monotonic() + 10)
            with pytest.raises(AccessError, match=name):
                wire.call(plan("open", [value], output), deadline=time.monotonic() + 10)
            with pytest.raises(AccessError):
                wire.call({"call": "release", "id": value, "names": [name]}, deadline=time.monotonic() + 10)
            wire.close()


def test_a_result_is_not_opened_as_a_computation_and_the_other_way_round(wires):
    value, output, opened = new(), new(), new()
    ask(wires, [put(value)] * 3, SHARES)
    ask(wires, [plan("relu", [value], output)] * 3)
    ask(wires, [plan("open", [value], opened)] * 3)
    crossed = [{"call": "open", "output": output, "seconds": 1.0}] * 3
    assert refused(ask(wires, crossed), ConfigurationError)
    assert refused(ask(wires, [{"call": "compute", "output": opened, "seconds": 1.0}] * 3), ConfigurationError)
    assert refused(ask(wires, [{"call": "compute", "output": new(), "seconds": 1.0}] * 3), ConfigurationError)


MALFORMED = [
    {"call": "put"},
    put("12"),
    put("g" * 32),
    put(3),
    put("0" * 32, readers="alice"),
    put("0" * 32, readers=["a"] * 100),
    put("0" * 32, seconds=0),
    put("0" * 32, seconds="1"),
    put("0" * 32, form={"shape": [1 << 40], "fraction": 16, "bound": 1.0}),
    put("0" * 32, form={"shape": [3], "fraction": 16, "bound": 1.0}),
    put("0" * 32, form={}),
    {"call": "plan"},
    plan("relu", [1], "0" * 32),
    plan("relu", ["1" * 32], "0" * 32),
    plan("relu", [], "0" * 32),
    plan("nothing", [], "0" * 32),
    plan("relu", ["1" * 32], "0" * 32, options=[]),
    plan("relu", ["1" * 32], "0" * 32, native="yes"),
    plan(["relu"], ["1" * 32], "0" * 32),
    {"call": "compute"},
    {"call": "compute", "output": {}, "seconds": 1.0},
    {"call": "release", "id": "0" * 32, "names": "alice"},
    {"call": "look", "id": None},
    {"call": "drop", "ids": [1]},
    {"call": "look", "id": "0" * 32, "forget": 3},
]


@pytest.mark.parametrize("facts", MALFORMED, ids=lambda facts: str(facts["call"]))
def test_malformed_calls_are_refused_and_the_party_lives_on(wires, facts):
    with pytest.raises(PrivacyError):
        wires[0].call(facts, SHARES[0], time.monotonic() + 10)
    assert wires[0].call({"call": "ping"}, deadline=time.monotonic() + 10).facts["party"] == "server0"


def test_owners_of_models_keep_no_values(local):
    wire = local.dial("owner", local.parties[0], time.monotonic() + 10)
    for call in ("put", "plan", "compute", "open", "release", "look", "drop"):
        with pytest.raises(TransportError, match="may not call"):
            wire.call({"call": call}, deadline=time.monotonic() + 10)
    wire.close()


def test_after_a_party_was_restarted_values_are_sent_again(local):
    a = kp.encrypt(X, local, name="alice")
    local.restart("server1")
    with pytest.raises(PrivacyError):
        a.reveal()
    again = kp.encrypt(X, local, name="alice")
    assert np.array_equal((again + 1).reveal(), X + 1)
    del a
    gc.collect()
    assert np.array_equal(again.reveal(), X)
