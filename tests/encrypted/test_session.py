"""Keys and messages of a run: fresh, at their owners, uniform; and no run without a secure source."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_private._backends.graph_edges import cross_edges
from keras_private._backends.labels import party_of
from keras_private.encrypted import session as session_module
from keras_private.encrypted.kernels import PortableKernels, choose
from keras_private.encrypted.protocol.comparison import is_negative, largest, relu
from keras_private.encrypted.protocol.functions import softmax
from keras_private.encrypted.protocol.products import matmul, multiply, scale
from keras_private.encrypted.protocol.sharing import reveal, share
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.session import SERVERS, Session
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, RandomnessError
from keras_private.random import PortableSource
from tests.contracts.secure_transcript import assert_fresh, assert_uniform
from tests.encrypted.harness import OWNER, traced
from tests.selection import long_but

ROWS = 64
PROGRAMS = {
    "share and truncate": lambda x: truncate(x, 8),
    "elementwise product": lambda x: multiply(x, x),
    "broadcast product": lambda x: multiply(x, x[:1]),
    "untruncated product": lambda x: multiply(x, x, truncated=False),
    "matrix product": lambda x: matmul(x, x, transpose_b=True),
    "public factor": lambda x: scale(x, 0.3),
    "sign": is_negative,
    "relu": lambda x: relu(x)[0],
    "largest": lambda x: list(largest(x)),
    "softmax": softmax,
}


def recorder(function, **options):
    """A function from a secret to the messages that the servers receive in one more run of one traced function.

    The secret is shared once: what repeats in two runs does so in spite of their keys.
    """
    variable = SharedVariable("x", (ROWS, ROWS), 16)
    shared_last = []

    @tf.function(autograph=False)
    def put(value):
        variable.assign(share(Session(), value, OWNER, "x"))

    @tf.function(autograph=False)
    def run():
        session = Session(**options)
        results = function(variable.read(session))
        results = results if isinstance(results, list) else [results]
        opened = [reveal(each, OWNER) for each in results]
        sends = [
            operation
            for operation in session.graph.get_operations()
            if operation.name.rsplit("/", 1)[-1].startswith("send_") and party_of(operation) in SERVERS
        ]
        return opened, {operation.name: operation.outputs[0] for operation in sends}

    concrete = run.get_concrete_function()

    def messages(secret):
        if shared_last != [id(secret)]:
            put(tf.constant(secret))
            shared_last[:] = [id(secret)]
        _, sent = concrete()
        # Keys are uniform, and 32 bytes: too few for statistics.
        return {
            name.replace("/", "."): (name.rsplit("_to_", 1)[1].split("_")[0], words.numpy())
            for name, words in sent.items()
            if words.dtype != tf.uint8
        }

    return messages


SECRETS = {
    "zeros": np.zeros((ROWS, ROWS)),
    "numbers": np.random.default_rng(0).normal(0, 3, (ROWS, ROWS)),
}


@pytest.mark.parametrize("name", long_but(PROGRAMS, *list(PROGRAMS)[:-2]))
def test_messages_are_fresh_and_uniform_whatever_the_secret(name):
    messages = recorder(PROGRAMS[name])
    for secret in SECRETS.values():
        assert_fresh(lambda secret=secret: messages(secret))
        assert_uniform(lambda secret=secret: messages(secret))


class Unmasked(type(choose())):
    """Kernels that leave out sharings of zero."""

    def zero_mask(self, key_a, key_b, nonce, shape, dtype=tf.int64):
        return tf.zeros(shape, dtype)


class OneNonce(type(choose())):
    """Kernels that use one nonce for all sharings of zero."""

    def zero_mask(self, key_a, key_b, nonce, shape, dtype=tf.int64):
        return super().zero_mask(key_a, key_b, tf.zeros([12], tf.uint8), shape, dtype)


class OneKey(type(choose())):
    """Kernels whose keys are the same in every run."""

    def zero_mask(self, key_a, key_b, nonce, shape, dtype=tf.int64):
        return super().zero_mask(key_a * 0, key_b * 0 + 1, nonce, shape, dtype)


def untruncated(x):
    return multiply(multiply(x, x, truncated=False), x, truncated=False)


def test_the_suite_rejects_products_without_masks():
    messages = recorder(untruncated, kernels=Unmasked())
    with pytest.raises(AssertionError, match="not uniform"):
        assert_uniform(lambda: messages(SECRETS["zeros"]))


def test_the_suite_rejects_a_nonce_used_twice():
    messages = recorder(untruncated, kernels=OneNonce())
    with pytest.raises(AssertionError, match="not uniform"):
        assert_uniform(lambda: messages(SECRETS["zeros"]))


def test_the_suite_rejects_keys_used_in_two_runs():
    messages = recorder(untruncated, kernels=OneKey())
    with pytest.raises(AssertionError, match="repeat"):
        assert_fresh(lambda: messages(SECRETS["zeros"]))


def key_origins(graph):
    """(party, draw) for each use of a key: the operation's label and the operation that drew the key."""
    for operation in graph.get_operations():
        for number, argument in enumerate(operation.op_def.input_arg):
            if argument.name.startswith("key"):
                source = operation.inputs[number].op
                while source.type == "Identity":
                    source = source.inputs[0].op
                yield party_of(operation), source


@pytest.mark.parametrize("name", ["matrix product", "relu", "softmax"])
def test_keys_are_drawn_in_the_run_and_used_by_their_holders_only(name):
    graph = traced(PROGRAMS[name], [(4, 4)]).graph
    uses = list(key_origins(graph))
    assert len(uses) > 5
    for party, draw in uses:
        assert draw.type == "KerasPrivateUniformFull" and draw.op_def.is_stateful
        holder = SERVERS.index(party_of(draw))
        # Key i is drawn by party i, and sent to party i - 1.
        assert party in (SERVERS[holder], SERVERS[holder - 1])
    constants = [each for each in graph.get_operations() if each.type == "Const" and each.outputs[0].dtype == tf.uint8]
    assert all(tf.get_static_value(each.outputs[0]).size <= 12 for each in constants), "a nonce is the longest"


def test_messages_are_the_only_edges_between_parties():
    concrete = traced(PROGRAMS["softmax"], [(4, 4)])
    assert cross_edges(concrete)

    @tf.function(autograph=False)
    def leaking(value):
        session = Session()
        shared = share(session, value, OWNER, "x")
        with session.at(0):
            return shared.pairs[0][0] + shared.pairs[0][1] + shared.pairs[1][1]

    with pytest.raises(ConfigurationError, match="a message between them"):
        cross_edges(leaking.get_concrete_function(tf.TensorSpec([3], tf.float64)))


def test_nonces_differ_for_operations_and_iterations():
    @tf.function(autograph=False)
    def run(count):
        session = Session()

        def body(i, found):
            with session.iteration(i), session.at(0):
                masks = [session.zero_mask(0, [4], session.nonce()) for _ in range(2)]
            return i + 1, tf.concat([found, tf.stack(masks)], 0)

        shapes = (tf.TensorShape([]), tf.TensorShape([None, 4]))
        start = (tf.constant(0, tf.int64), tf.zeros([0, 4], tf.int64))
        return tf.while_loop(lambda i, _: i < count, body, start, shape_invariants=shapes)[1]

    masks = np.concatenate([run(tf.constant(5, tf.int64)).numpy() for _ in range(2)])
    assert masks.shape == (20, 4) and len(np.unique(masks)) == masks.size


def test_shares_of_two_runs_have_nothing_in_common():
    @tf.function(autograph=False)
    def run():
        session = Session()
        return [pair for pair in share(session, tf.zeros([1000], tf.float64), OWNER, "x").pairs]

    one, other = run(), run()
    for pair, again in zip(one, other):
        for first, second in zip(pair, again):
            assert not np.any(first.numpy() == second.numpy())


def test_without_a_secure_source_nothing_is_shared(monkeypatch):
    def none():
        raise RandomnessError("no secure source of randomness")

    monkeypatch.setattr(session_module, "secure_source", none)
    with pytest.raises(RandomnessError, match="no secure source"):
        traced(relu, [(3,)])


def test_the_portable_source_and_kernels_alone_suffice():
    portable = {"source": PortableSource(), "kernels": PortableKernels()}
    run = traced(lambda x: matmul(x, x), [(3, 3)], **portable)
    x = np.arange(9.0).reshape(3, 3)
    np.testing.assert_allclose(run(tf.constant(x))[0], x @ x, atol=1e-4)
    messages = recorder(lambda x: multiply(x, x), **portable)
    assert_fresh(lambda: messages(SECRETS["zeros"]))
    assert_uniform(lambda: messages(SECRETS["zeros"]))


def test_a_session_needs_a_graph_and_three_names():
    with pytest.raises(ConfigurationError, match="outside of a traced function"):
        Session()
    with pytest.raises(ConfigurationError, match="three different names"):
        tf.function(lambda: Session(servers=("a", "a", "b")).servers, autograph=False)()


def test_keys_are_refused_to_those_who_do_not_hold_them():
    @tf.function(autograph=False)
    def run():
        session = Session()
        for party in range(3):
            session.key(party, party), session.key(party, party + 1)
            with pytest.raises(ConfigurationError, match="does not hold"):
                session.key(party, party + 2)
        return tf.constant(0)

    run()
