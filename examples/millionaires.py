"""Yao's millionaires: who is richer is told, how rich is not.

Works on the protocol itself, below the models: two players share a number each, three parties compare.
"""

import tensorflow as tf

from keras_private.encrypted.protocol.comparison import maximum
from keras_private.encrypted.protocol.sharing import reveal, share
from keras_private.encrypted.session import Session


@tf.function(autograph=False)
def compare(alice: tf.Tensor, bob: tf.Tensor) -> tf.Tensor:
    session = Session()
    of_alice = share(session, alice, "alice", "Alice's fortune")
    of_bob = share(session, bob, "bob", "Bob's fortune")
    _, alice_has_as_much = maximum(of_alice, of_bob)
    return reveal(alice_has_as_much, "everyone")


def main() -> None:
    for alice, bob in ((3.2e6, 2.9e6), (1.0e6, 7.5e6), (5e6, 5e6)):
        told = bool(compare(tf.constant([alice], tf.float64), tf.constant([bob], tf.float64))[0])
        print("Alice has at least as much as Bob" if told else "Bob is richer")
        assert told == (alice >= bob)


if __name__ == "__main__":
    main()
