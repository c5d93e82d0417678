"""A traced function cut by party computes what it computes whole, and each part holds its party's operations alone."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private._backends.labels import PARTY_ATTRIBUTE
from keras_private._backends.party_cuts import cut
from keras_private.encrypted.kernels import PortableKernels
from keras_private.encrypted.protocol.comparison import is_negative, relu
from keras_private.encrypted.protocol.functions import softmax
from keras_private.encrypted.protocol.products import matmul, multiply
from keras_private.encrypted.protocol.sharing import reveal_integers, share
from keras_private.encrypted.session import SERVERS, Session
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, TransportError
from keras_private.random import PortableSource
from tests.encrypted.cluster.apart import EVERYONE, Apart
from tests.encrypted.harness import OWNER, traced

UNIT = 2.0**-16


def layer(x, w):
    return softmax(relu(matmul(x, w))[0])


@settings(max_examples=5, deadline=None)
@given(rows=st.integers(1, 4), inner=st.integers(1, 5), columns=st.integers(2, 4), seed=st.integers(0, 2**16))
def test_parties_apart_compute_what_they_compute_together(rows, inner, columns, seed):
    concrete = traced(layer, [(rows, inner), (inner, columns)])
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
    (apart,) = Apart(concrete)(x, w)
    (together,) = concrete(tf.constant(x), tf.constant(w))
    plain = tf.nn.softmax(tf.nn.relu(x @ w)).numpy()
    np.testing.assert_allclose(apart.numpy(), together.numpy(), atol=1e-3)
    np.testing.assert_allclose(apart.numpy(), plain, atol=1e-3)


def integers(function):
    @tf.function(autograph=False)
    def run(x, y):
        session = Session()
        found = function(share(session, x, OWNER, "x", 0), share(session, y, OWNER, "y", 0))
        return reveal_integers(found, OWNER)

    spec = tf.TensorSpec((3, 4), tf.int64)
    return run.get_concrete_function(spec, spec)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: multiply(x, y), lambda x, y: x * y),
        (lambda x, y: is_negative(x - y), lambda x, y: (x < y).astype(np.int64)),
    ],
)
def test_integers_are_exact(function, expected):
    rng = np.random.default_rng(1)
    x, y = (rng.integers(-(2**30), 2**30, (3, 4)) for _ in range(2))
    (found,) = Apart(integers(function))(x, y)
    np.testing.assert_array_equal(found.numpy(), expected(x, y))


def test_portable_kernels_and_generator_are_cut_too():
    concrete = traced(lambda x: relu(x)[0], [(5,)], kernels=PortableKernels(), source=PortableSource())
    (found,) = Apart(concrete)(np.array([-2.0, -0.5, 0.0, 0.5, 2.0]))
    np.testing.assert_allclose(found.numpy(), [0, 0, 0, 0.5, 2], atol=2 * UNIT)


def test_each_part_holds_its_own_operations_alone():
    graphs = cut(traced(layer, [(2, 3), (3, 4)]), EVERYONE)
    for party, graph in graphs.items():
        labels = {
            node.attr[PARTY_ATTRIBUTE].s.decode()
            for stage in graph.stages
            for node in stage.graph.node
            if PARTY_ATTRIBUTE in node.attr
        }
        assert labels == {party}
        kinds = [node.op for stage in graph.stages for node in stage.graph.node]
        assert sum("UniformFull" in kind for kind in kinds) == (4 if party == OWNER else 1)
        # A key is 32 bytes: no part holds that many as a constant.
        constants = [node for stage in graph.stages for node in stage.graph.node if node.op == "Const"]
        values = [tf.make_ndarray(node.attr["value"].tensor) for node in constants]
        assert all(value.size < 32 for value in values if value.dtype == np.uint8)
    assert graphs[OWNER].outputs and not any(graphs[server].outputs for server in SERVERS)
    assert not graphs[SERVERS[0]].inputs


def test_messages_of_both_sides_agree():
    graphs = cut(traced(layer, [(2, 3), (3, 4)]), EVERYONE)
    for sender in EVERYONE:
        for receiver in EVERYONE:
            assert graphs[sender].sends.get(receiver) == graphs[receiver].receives.get(sender)


def test_every_frame_differs_between_two_runs_on_the_same_input():
    apart = Apart(traced(layer, [(32, 3), (3, 4)]))
    x, w = np.ones((32, 3)), np.ones((3, 4))
    apart(x, w)
    first = dict(apart.frames)
    apart(x, w)
    assert set(first) == set(apart.frames)
    # The least frames hold one bit a number, in a byte each: 32 of them differ but once in 2^32 runs.
    assert min(len(payload) for payload in first.values()) >= 32
    alike = [place for place in first if first[place] == apart.frames[place]]
    assert alike == []


def digests():
    return [graph.digest() for graph in cut(traced(layer, [(2, 3), (3, 4)]), EVERYONE).values()]


def test_the_digest_is_that_of_another_process():
    # Tracing something else first must not change it.
    traced(lambda x: relu(x)[0], [(7,)])
    code = "from tests.encrypted.cluster.test_cut import digests; print(*digests())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.split() == digests()


def test_the_portable_digest_is_that_of_another_trace():
    def once():
        concrete = traced(lambda x: relu(x)[0], [(3,)], kernels=PortableKernels(), source=PortableSource())
        return [graph.digest() for graph in cut(concrete, EVERYONE).values()]

    assert once() == once()


@pytest.mark.parametrize(
    "other", [lambda x, w: softmax(matmul(x, w)), lambda x, w: softmax(relu(matmul(x, w) + 2**-16)[0])]
)
@pytest.mark.long
def test_another_program_has_another_digest(other):
    found = [graph.digest() for graph in cut(traced(other, [(2, 3), (3, 4)]), EVERYONE).values()]
    assert found[0] != digests()[0]


def test_the_text_names_every_operation_and_message():
    graph = cut(traced(lambda x: multiply(x, x), [(2,)]), EVERYONE)["server0"]
    text = graph.text()
    for stage in graph.stages:
        assert all(f"{node.name} = {node.op}(" in text for node in stage.graph.node if node.op != "Const")
    assert text.count("send ") == sum(len(frames) for frames in graph.sends.values())
    assert "await" in text and "int64[2]" in text


def test_an_operation_without_a_party_is_refused():
    @tf.function(autograph=False)
    def run(x):
        session = Session()
        shared = share(session, x, OWNER, "x")
        return tf.add(shared.pairs[0][0], 1)

    with pytest.raises(ConfigurationError, match="belongs to no party"):
        cut(run.get_concrete_function(tf.TensorSpec((2,), tf.float64)), EVERYONE)


def test_a_foreign_party_is_refused():
    with pytest.raises(ConfigurationError, match="belongs to 'owner'"):
        cut(traced(lambda x: relu(x)[0], [(2,)]), SERVERS)


def test_a_message_whose_size_is_not_known_is_refused():
    with pytest.raises(ConfigurationError, match="sizes that are known"):
        cut(traced(lambda x: relu(x)[0], [(None,)]), EVERYONE)


def test_a_call_across_parties_is_refused():
    @tf.function(autograph=False)
    def inner(x):
        session = Session()
        return reveal_integers(share(session, x, OWNER, "x"), OWNER)

    @tf.function(autograph=False)
    def run(x):
        return inner(x)

    with pytest.raises(ConfigurationError, match="cannot be cut"):
        cut(run.get_concrete_function(tf.TensorSpec((2,), tf.float64)), EVERYONE)


class TestState:
    def make(self):
        variable = SharedVariable("total", (2,), 16)

        @tf.function(autograph=False)
        def run(x):
            session = Session()
            shared = multiply(share(session, x, OWNER, "x"), share(session, x, OWNER, "x"))
            variable.assign(variable.read(session) + shared)

        return variable, Apart(run.get_concrete_function(tf.TensorSpec((2,), tf.float64)))

    def value(self, variable):
        shares = variable.shares()
        return sum(shares[party][0] for party in range(3)) * UNIT

    def test_variables_keep_what_runs_assign(self):
        variable, apart = self.make()
        for count in (1, 2):
            apart(np.array([1.5, -2.0]))
            np.testing.assert_allclose(self.value(variable), np.array([2.25, 4.0]) * count, atol=4 * UNIT)
        shares = variable.shares()
        for party in range(3):
            np.testing.assert_array_equal(shares[party][1], shares[(party + 1) % 3][0])

    def test_a_run_that_is_broken_off_leaves_its_party_as_it_was(self):
        variable, apart = self.make()
        apart(np.array([1.0, 2.0]))
        before = variable.shares()
        last = max(number for _, target, number in apart.frames if target == "server1")

        def cut_off(source, target, number, payload):
            return None if target == "server1" and number == last else payload

        with pytest.raises(TransportError):
            apart(np.array([1.0, 2.0]), seconds=1.0, meddle=cut_off)
        for place in range(2):
            np.testing.assert_array_equal(variable.shares()[1][place], before[1][place])


def test_a_frame_of_another_size_ends_the_run():
    def shorten(source, target, number, payload):
        return payload[:-8] if (source, target, number) == ("server0", "server1", 2) else payload

    apart = Apart(traced(layer, [(2, 3), (3, 4)]))
    with pytest.raises(TransportError, match=r"bytes|broken off"):
        apart(np.ones((2, 3)), np.ones((3, 4)), meddle=shorten)
