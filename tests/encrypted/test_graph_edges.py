"""Messages between parties, read from graphs: what is found, and what is refused, in nested bodies too."""

from __future__ import annotations

import pytest
import tensorflow as tf

from keras_private._backends.graph_edges import cross_edges, rounds
from keras_private.encrypted.protocol.products import multiply
from keras_private.encrypted.protocol.sharing import reshare, reveal, share
from keras_private.encrypted.session import SERVERS, Session
from keras_private.encrypted.shared import Shared
from keras_private.errors import ConfigurationError
from tests.encrypted.harness import OWNER

ROWS = 3


def traced(function, shape=(ROWS,)):
    """`function` of a session and a shared input, traced."""

    @tf.function(autograph=False)
    def run(value):
        session = Session()
        return function(session, share(session, value, OWNER, "x"))

    return run.get_concrete_function(tf.TensorSpec(shape, tf.float64))


def shares(concrete):
    return [
        edge for edge in cross_edges(concrete) if OWNER not in (edge.source, edge.target) and edge.dtype == tf.int64
    ]


def passed_on(session, tensors):
    """Each party's tensor after one message from its neighbour."""
    return [pair[1] for pair in reshare(session, tensors)]


def own(x):
    return [pair[0] for pair in x.pairs]


def test_every_message_of_sharing_a_product_and_revealing():
    concrete = traced(lambda session, x: reveal(multiply(x, x, truncated=False), OWNER))
    edges = cross_edges(concrete)
    links = [(edge.source, edge.target, edge.dtype, edge.bytes) for edge in edges]
    keys = [(SERVERS[i - 2], SERVERS[i], tf.uint8, 32) for i in range(3)]
    given = [(OWNER, server, tf.int64, 8 * ROWS) for server in SERVERS for _ in range(2)]
    product = [(SERVERS[i - 2], SERVERS[i], tf.int64, 8 * ROWS) for i in range(3)]
    opened = [(server, OWNER, tf.int64, 8 * ROWS) for server in SERVERS]
    assert links == keys + given + product + opened
    assert all(f"send_{edge.source}_to_{edge.target}" in edge.name for edge in edges)
    assert [edge.name.split("/")[0] for edge in edges[:4]] == ["keys"] * 3 + ["share_1"]
    # One for the keys, one for the product that waits for them.
    assert rounds(concrete, SERVERS) == 2


def test_a_size_that_is_not_known_is_none():
    sizes = {edge.bytes for edge in cross_edges(traced(lambda session, x: reveal(x, OWNER), (None,)))}
    assert sizes == {32, None}


@pytest.mark.parametrize("count", [1, 4])
def test_rounds_count_the_longest_chain(count):
    def chain(session, x):
        tensors = own(x)
        for _ in range(count):
            tensors = passed_on(session, tensors)
        return passed_on(session, own(x)), tensors

    assert rounds(traced(chain), SERVERS) == count


def test_rounds_count_messages_of_servers_alone():
    def there_and_back(session, x):
        return session.send(session.send(x.pairs[0][0], 0, OWNER), OWNER, 1)

    concrete = traced(there_and_back)
    assert rounds(concrete, SERVERS) == 1, "that of the keys"
    assert rounds(concrete, (*SERVERS, OWNER)) == 3


# What each must be refused for.
LEAKS = {}


def leak(message):
    def register(function):
        LEAKS[function.__name__] = (function, message)
        return function

    return register


@leak("a message between them")
def direct(session, x):
    with session.at(1):
        return x.pairs[0][0] + x.pairs[1][1]


@leak("a message between them")
def through_an_identity_of_nobody(session, x):
    passed = tf.identity(tf.identity(x.pairs[0][0]))
    with session.at(1):
        return passed + x.pairs[1][1]


@leak("a message between them")
def by_a_message_of_others(session, x):
    with session.at(1):
        return tf.identity(x.pairs[0][0], name="send_server0_to_server2")


@leak("a message between them")
def by_a_message_that_computes(session, x):
    with session.at(1):
        return tf.negative(x.pairs[0][0], name="send_server0_to_server1")


@leak("belongs to no party")
def at_nobody(session, x):
    return x.pairs[0][0] + x.pairs[1][1]


@leak("a message between them")
def inside_a_call(session, x):
    @tf.function(autograph=False)
    def inner(one, other):
        with session.at(1):
            return one + other

    return inner(x.pairs[0][0], x.pairs[1][1])


@leak("a message between them")
def by_a_captured_tensor(session, x):
    @tf.function(autograph=False)
    def inner():
        with session.at(1):
            return x.pairs[0][0] + x.pairs[1][1]

    return inner()


@leak("a message between them")
def of_what_a_call_returns(session, x):
    @tf.function(autograph=False)
    def inner(one):
        with session.at(0):
            return one + 1

    mine = inner(x.pairs[0][0])
    with session.at(1):
        return mine + x.pairs[1][1]


@leak("runs .* of server1")
def inside_a_call_of_another_party(session, x):
    @tf.function(autograph=False)
    def inner(one):
        with session.at(1):
            return one + 1

    with session.at(0):
        return inner(x.pairs[0][0])


@leak("belongs to no party")
def at_nobody_inside_a_call(session, x):
    @tf.function(autograph=False)
    def inner(one):
        return one + 1

    return inner(x.pairs[0][0])


@leak("a message between them")
def inside_a_loop(session, x):
    def body(i, total):
        with session.at(0):
            return i + 1, total + x.pairs[1][1]

    return tf.while_loop(lambda i, _: i < 3, body, (0, x.pairs[0][0]))


@leak("a message between them")
def in_the_second_iteration(session, x):
    def body(i, one, other):
        with session.at(0):
            changed = one + 1
        return i + 1, changed, one

    _, _, other = tf.while_loop(lambda i, *_: i < 3, body, (0, x.pairs[0][0], tf.zeros([ROWS], tf.int64)))
    with session.at(1):
        return other + x.pairs[1][1]


@leak("belongs to server0 or server1")
def exchanged_in_a_loop(session, x):
    return tf.while_loop(lambda i, *_: i < 3, lambda i, a, b: (i + 1, b, a), (0, x.pairs[0][0], x.pairs[1][1]))


@leak("a message between them")
def inside_a_branch(session, x):
    def leaking():
        with session.at(1):
            return x.pairs[0][0] + x.pairs[1][1]

    return tf.cond(tf.constant(True), leaking, lambda: x.pairs[1][1])


@leak("decides what")
def a_decision_by_a_share(session, x):
    with session.at(0):
        positive = x.pairs[0][0][0] > 0
    return tf.cond(positive, lambda: x.pairs[1][0], lambda: x.pairs[1][1])


@leak("decides what")
def as_many_iterations_as_a_share_says(session, x):
    def condition(i, value):
        with session.at(0):
            return i < value[0]

    return tf.while_loop(condition, lambda i, value: (i + 1, value), (tf.constant(0, tf.int64), x.pairs[0][0]))


@pytest.mark.parametrize("name", LEAKS)
def test_other_ways_between_parties_are_refused(name):
    function, message = LEAKS[name]
    concrete = traced(function)
    for look in (cross_edges, lambda each: rounds(each, SERVERS)):
        with pytest.raises(ConfigurationError, match=message):
            look(concrete)


def test_messages_inside_calls_are_found_and_chained():
    def nested(session, x):
        @tf.function(autograph=False)
        def inner(tensors):
            @tf.function(autograph=False)
            def innermost(tensors):
                return passed_on(session, tensors)

            return innermost(innermost(tensors))

        return passed_on(session, inner(own(x)))

    concrete = traced(nested)
    assert len(shares(concrete)) == 9
    assert {edge.bytes for edge in shares(concrete)} == {8 * ROWS}
    assert rounds(concrete, SERVERS) == 3
    inside = next(edge.name for edge in shares(concrete))
    assert inside.count("PartitionedCall/") == 2


def test_messages_of_a_loop_are_found_once_and_their_number_is_not_known():
    def loop(session, x):
        def body(i, *tensors):
            return i + 1, *passed_on(session, tensors)

        return tf.while_loop(lambda i, *_: i < 3, body, (tf.constant(0), *own(x)))

    concrete = traced(loop)
    assert [edge.every_run for edge in shares(concrete)] == [False] * 3
    assert {edge.bytes for edge in shares(concrete)} == {None}
    with pytest.raises(ConfigurationError, match="only the run counts"):
        rounds(concrete, SERVERS)


def test_a_loop_of_local_work_and_a_public_count_is_fine():
    @tf.function(autograph=False)
    def run(value, count):
        session = Session()
        x = share(session, value, OWNER, "x")

        def body(i, *tensors):
            changed = []
            for party, tensor in enumerate(tensors):
                with session.at(party):
                    changed.append(tensor + x.pairs[party][0])
            return i + 1, *changed

        _, *tensors = tf.while_loop(lambda i, *_: i < count, body, (tf.constant(0), *own(x)))
        return passed_on(session, tensors)

    concrete = run.get_concrete_function(tf.TensorSpec([ROWS], tf.float64), tf.TensorSpec([], tf.int32))
    assert len(shares(concrete)) == 3
    assert rounds(concrete, SERVERS) == 1


def test_messages_of_branches_count_the_longest_and_no_bytes():
    def branches(session, x):
        return tf.cond(
            tf.constant(True),
            lambda: passed_on(session, passed_on(session, own(x))),
            lambda: passed_on(session, own(x)),
        )

    concrete = traced(branches)
    assert len(shares(concrete)) == 9
    assert {edge.bytes for edge in shares(concrete)} == {None}
    assert rounds(concrete, SERVERS) == 2


def test_local_loops_and_branches_of_one_party_are_that_party_s():
    def local(session, x):
        with session.at(0):
            _, total = tf.while_loop(lambda i, _: i < 3, lambda i, t: (i + 1, t + x.pairs[0][1]), (0, x.pairs[0][0]))
            chosen = tf.cond(total[0] > 0, lambda: total, lambda: -total)
        return session.send(chosen, 0, 1)

    concrete = traced(local)
    assert [(edge.source, edge.target) for edge in shares(concrete)] == [("server0", "server1")]


def test_results_are_those_of_the_protocol():
    concrete = traced(lambda session, x: reveal(Shared(session, x.pairs, x.fraction), OWNER))
    assert concrete(tf.constant([1.0, 2.0, 3.0], tf.float64)).numpy().tolist() == [1, 2, 3]
