"""Sharing inputs, passing shares on, and revealing results (Mohassel and Rindal 2018, section 3.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_private.encrypted.session import Nonce, Session
from keras_private.encrypted.shared import Shared


def share(session: Session, value: Any, owner: str, name: str, fraction: int | None = None) -> Shared:
    """Splits the owner's numbers into shares.

    1. The owner encodes x and draws x_0 and x_1 uniformly; x_2 = x - x_0 - x_1.
    2. It sends (x_i, x_{i+1}) to party i. A party sees two uniform ring elements.

    Args:
        session: The run.
        value: float32 or float64 tensor: encoded at the owner, who checks range, NaN and infinity; int64: taken as ring
            elements.
        owner: Label of the player that holds the value; it may be a server.
        name: What error messages call it.
        fraction: Bits after the point of an int64 value.
    """
    with tf.name_scope("share"), session.at(owner):
        tensor = tf.convert_to_tensor(value)
        if tensor.dtype == tf.int64:
            encoded = tf.identity(tensor)
        else:
            encoded, fraction = session.fixed_point.encode(tf.identity(tensor), name), session.fixed_point.fraction
        first, second = (session.source.uniform_full(tf.shape(encoded), tf.int64) for _ in range(2))
        first, second = (tf.ensure_shape(each, encoded.shape) for each in (first, second))
        parts = [first, second, encoded - first - second]
    with tf.name_scope("share"):
        pairs = tuple(
            (session.send(parts[party], owner, party), session.send(parts[(party + 1) % 3], owner, party))
            for party in range(3)
        )
    return Shared(session, pairs, fraction or 0)


def reshare(session: Session, summands: Sequence[tf.Tensor]) -> tuple[tuple[tf.Tensor, tf.Tensor], ...]:
    """From summand z_i at party i, already masked, to pairs: party i sends z_i to party i-1."""
    return tuple((summands[i], session.send(summands[(i + 1) % 3], (i + 1) % 3, i)) for i in range(3))


def masked(session: Session, summands: Sequence[tf.Tensor], nonce: Nonce) -> list[tf.Tensor]:
    """Adds a fresh sharing of zero, so that each summand alone is uniform."""
    out = []
    for party in range(3):
        with session.at(party):
            mask = session.zero_mask(party, tf.shape(summands[party]), nonce)
            out.append(summands[party] + tf.ensure_shape(mask, summands[party].shape))
    return out


def reveal_integers(value: Shared, receiver: str) -> tf.Tensor:
    """The ring elements themselves, at the receiver alone, who gets the shares that it lacks.

    Shares are re-randomized first: the receiver learns the value and nothing of how it was computed.
    """
    session = value.session
    with tf.name_scope("reveal"):
        own = masked(session, [pair[0] for pair in value.pairs], session.nonce())
        arrived = [session.send(own[party], party, receiver) for party in range(3)]
        with session.at(receiver):
            return tf.add_n(arrived)


def reveal(value: Shared, receiver: str) -> tf.Tensor:
    """Opens a value to one player: float64 numbers at `receiver`."""
    opened = reveal_integers(value, receiver)
    with value.session.at(receiver):
        return value.session.fixed_point.decode(opened, value.fraction)
