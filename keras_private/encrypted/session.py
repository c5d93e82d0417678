"""One run of the protocol: who the parties are, their fresh keys, and what they send each other."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from keras_private._backends.labels import at_party
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.kernels import Kernels, choose
from keras_private.encrypted.players import SERVERS
from keras_private.errors import ConfigurationError
from keras_private.random import SecureSource, secure_source

_OPERATIONS = 2**32


@dataclasses.dataclass(frozen=True)
class Nonce:
    """One number used once, as each party builds it for itself: operation, loop counter, stream."""

    operation: int
    counter: tf.Tensor | None

    def here(self) -> tf.Tensor:
        """uint8 [12], made by operations of the party in whose scope this is called; its last byte is 0."""
        head = struct.pack("<I", self.operation)
        if self.counter is None:
            return tf.constant(list(head) + [0] * 8, tf.uint8)
        counter = tf.bitcast(tf.cast(self.counter, tf.int64), tf.uint8)
        return tf.concat([tf.constant(list(head), tf.uint8), counter[:7], tf.zeros([1], tf.uint8)], 0)


class Session:
    """Keys and messages of one execution of a traced function.

    Made inside the function while it is traced. The operations that draw its keys are part of the graph, so that each
    execution has keys of its own.

    Party i holds shares i and i+1 of every value, key i (shared with party i-1) and key i+1 (shared with party i+1):
    the numbering of Mohassel and Rindal 2018, "ABY3", section 3.2.2.

    Guarantees, each locked by tests/encrypted/test_session.py:
      * Keys are drawn from the secure source by operations of the graph, afresh in each run, and are no constants.
      * Key i exists at parties i and i-1 only.
      * No nonce is used twice under one key: it holds the operation's number, counted from 0 in the order of tracing,
        and the counter of the loop around it.
      * Without a usable secure source a typed error is raised before anything is shared.

    Args:
        fixed_point: How real numbers are encoded.
        servers: Labels of the three parties.
        kernels: What a party computes with; by default the native kernels where they load.
        source: Where the parties draw secrets; by default the process's secure source.
    """

    def __init__(
        self,
        fixed_point: FixedPoint | None = None,
        servers: tuple[str, str, str] = SERVERS,
        kernels: Kernels | None = None,
        source: SecureSource | None = None,
    ) -> None:
        if tf.executing_eagerly():
            raise ConfigurationError(
                "a protocol session was opened outside of a traced function",
                expected="a session inside tf.function, whose graph can be cut by party",
                remedy="decorate the function that opens it with tf.function",
            )
        if len(set(servers)) != 3:
            raise ConfigurationError(f"servers are {servers}", expected="three different names", remedy="name three")
        self.source = source or secure_source()
        self.kernels = kernels or choose()
        self.fixed_point = fixed_point or FixedPoint()
        self.servers = servers
        self._operations = 0
        self._counter: tf.Tensor | None = None
        self.graph = tf.compat.v1.get_default_graph()
        self._counted = self.graph
        with tf.name_scope("keys"):
            drawn = []
            for party in range(3):
                with self.at(party):
                    drawn.append(self.source.uniform_full([32], tf.uint8))
            self._keys = [(drawn[i], self.send(drawn[(i + 1) % 3], (i + 1) % 3, i)) for i in range(3)]

    @contextlib.contextmanager
    def at(self, party: int | str) -> Iterator[None]:
        """Operations created inside are run by this party: 0, 1, 2, or the label of another player."""
        with at_party(self.servers[party] if isinstance(party, int) else party):
            yield

    def send(self, tensor: tf.Tensor, sender: int | str, receiver: int | str) -> tf.Tensor:
        """The tensor as the receiver has it; the only operation whose input may belong to another party."""
        if sender == receiver:
            return tensor
        names = [self.servers[each] if isinstance(each, int) else each for each in (sender, receiver)]
        with self.at(receiver):
            return tf.identity(tensor, name=f"send_{names[0]}_to_{names[1]}")

    def key(self, party: int, index: int) -> tf.Tensor:
        """Key `index` as `party` holds it.

        Raises:
            ConfigurationError: The party does not hold it.
        """
        offset = (index - party) % 3
        if offset == 2:
            raise ConfigurationError(
                f"party {party} does not hold key {index % 3}",
                expected=f"{party} or {(party + 1) % 3}",
                remedy="ask its holders",
            )
        return self._keys[party][offset]

    def nonce(self) -> Nonce:
        """A nonce that no other operation of this session has.

        Raises:
            ConfigurationError: In the body of a loop or branch outside of `iteration`, or of one inside of it: each
                pass would use it again.
        """
        if tf.compat.v1.get_default_graph() is not self._counted:
            raise ConfigurationError(
                "an operation of the protocol in the body of a loop, branch or function, where its masks would repeat",
                expected="operations of the function that opened the session, or directly inside Session.iteration",
                remedy="unroll the loop, or wrap its body in session.iteration(counter)",
            )
        if self._operations >= _OPERATIONS:
            raise ConfigurationError("a program of over 2^32 operations", expected="fewer", remedy="split it")
        self._operations += 1
        return Nonce(self._operations - 1, self._counter)

    @contextlib.contextmanager
    def iteration(self, counter: tf.Tensor) -> Iterator[None]:
        """Nonces made inside differ for each value of `counter`, the index of the loop's iteration, below 2^56.

        Raises:
            ConfigurationError: Loops are nested.
        """
        if self._counter is not None:
            raise ConfigurationError(
                "a protocol loop inside another", expected="one counter", remedy="count both loops in one counter"
            )
        self._counter, self._counted = counter, tf.compat.v1.get_default_graph()
        try:
            yield
        finally:
            self._counter, self._counted = None, self.graph

    def zero_mask(self, party: int, shape: Any, nonce: Nonce, dtype: tf.DType = tf.int64) -> tf.Tensor:
        """This party's summand of a sharing of zero; call inside its scope."""
        keys = self.key(party, party), self.key(party, party + 1)
        return self.kernels.zero_mask(*keys, nonce.here(), shape, dtype)

    def zero_mask_bits(self, party: int, shape: Any, nonce: Nonce, dtype: tf.DType) -> tf.Tensor:
        """The same, where sharings add up by exclusive or."""
        keys = self.key(party, party), self.key(party, party + 1)
        return self.kernels.zero_mask_bits(*keys, nonce.here(), shape, dtype)
