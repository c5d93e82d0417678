"""Signs of shared values, as shared bits, and what is chosen by them.

The sign is the carry into bit 63 of a + b, with a = x_0 + x_1 known to party 0 and b = x_2 known to parties 1 and 2
(Mohassel and Rindal 2018, section 5.3), computed by a tree of carries over words of bits: width 64, 32, ... 1, one
round a level.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import tensorflow as tf

from keras_private.encrypted.protocol.products import multiply
from keras_private.encrypted.protocol.sharing import masked, reshare
from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import Pairs, Shared, concat

_JOINED = {64: tf.int64, 32: tf.int32, 16: tf.int16, 8: tf.int8, 4: tf.int8, 2: tf.int8}


@dataclasses.dataclass(frozen=True, eq=False)
class SharedBits:
    """b = b_0 ^ b_1 ^ b_2 in bit 0 of int8; party i holds (b_i, b_{i+1}). Other bits are zero."""

    session: Session
    pairs: Pairs


def negative(value: Shared) -> SharedBits:
    """1 where the ring value is negative, as a signed number of 64 bits.

    1. Party 0 shares a = x_0 + x_1 by exclusive or: share 0 is F(key_0), share 1 is a ^ F(key_0), sent to party 1, and
       share 2 is zero. b = x_2 is its own share 2.
    2. Propagating bits a ^ b are local; generating bits a & b are one round of conjunctions.
    3. Six levels join neighbours: G = G_hi ^ (P_hi & G_lo), P = P_hi & P_lo; 64, 32, ... 2 bits a number become half.
    4. The sign is a_63 ^ b_63 ^ carry, locally.

    Every message is masked by a fresh sharing of zero. 33 bytes a number, in 8 rounds, besides party 0's first one.
    """
    session, kernels = value.session, value.session.kernels
    nonce = session.nonce()
    with tf.name_scope("negative"):
        shape = value.shape
        flat = value.local(lambda share: tf.reshape(share, [-1]))
        count = flat.shape
        with session.at(0):
            sum_a = flat.pairs[0][0] + flat.pairs[0][1]
            s0_at_0 = tf.ensure_shape(
                kernels.keystream(session.key(0, 0), nonce.here(), tf.shape(sum_a), tf.int64), count
            )
            s1_at_0 = tf.bitwise.bitwise_xor(sum_a, s0_at_0)
            zero_at_0 = tf.zeros_like(sum_a)
        s1_at_1 = session.send(s1_at_0, 0, 1)
        with session.at(1):
            b_at_1 = flat.pairs[1][1]
            zero_at_1 = tf.zeros_like(b_at_1)
        with session.at(2):
            b_at_2 = flat.pairs[2][0]
            zero_at_2 = tf.zeros_like(b_at_2)
            s0_at_2 = tf.ensure_shape(
                kernels.keystream(session.key(2, 0), nonce.here(), tf.shape(b_at_2), tf.int64), count
            )
        a = ((s0_at_0, s1_at_0), (s1_at_1, zero_at_1), (zero_at_2, s0_at_2))
        b = ((zero_at_0, zero_at_0), (zero_at_1, b_at_1), (b_at_2, zero_at_2))

        generating, propagating = [], []
        nonce = session.nonce()
        for party in range(3):
            with session.at(party):
                mask = session.zero_mask_bits(party, tf.shape(a[party][0]), nonce, tf.int64)
                g, p0, p1 = kernels.carry_leaf(*a[party], *b[party], mask)
                generating.append(g)
                propagating.append((p0, p1))
        shared_g = reshare(session, generating)
        containers = []
        for party in range(3):
            with session.at(party):
                containers.append(tuple(tf.stack([g, p], 0) for g, p in zip(shared_g[party], propagating[party])))
        carry: Pairs = tuple(containers)
        width = 64
        while width > 1:
            carry = _level(session, width, carry)
            width //= 2
        bits = []
        for party in range(3):
            with session.at(party):
                bits.append(
                    tuple(
                        tf.reshape(
                            _top_bit(a[party][place]) ^ _top_bit(b[party][place]) ^ carry[party][place],
                            _sizes(value, party),
                        )
                        for place in range(2)
                    )
                )
        out = SharedBits(session, tuple(bits))
        for pair in out.pairs:
            for each in pair:
                each.set_shape(shape)
        return out


def _sizes(value: Shared, party: int) -> tf.Tensor:
    return tf.shape(value.pairs[party][0])


def _top_bit(word: tf.Tensor) -> tf.Tensor:
    return tf.cast(word < 0, tf.int8)


def _level(session: Session, width: int, containers: Pairs) -> Pairs:
    nonce = session.nonce()
    dtype = _JOINED[width]
    summands = []
    for party in range(3):
        with session.at(party):
            x0, x1 = containers[party]
            shape = tf.shape(x0)[1:] if width == 64 else tf.shape(x0)
            mask = session.zero_mask_bits(party, shape, nonce, dtype)
            summands.append(session.kernels.carry_level(width, x0, x1, mask))
    return reshare(session, summands)


def to_integer(bits: SharedBits) -> Shared:
    """The bit as a shared integer 0 or 1 (Mohassel and Rindal 2018, section 5.4, by one product).

    With u = b_0 ^ b_1, known to party 0, and v = b_2, known to parties 1 and 2: b = u + v - 2 u v.

    1. Party 0 shares u: share 0 is F(key_0), share 1 is u - F(key_0), sent to party 1, share 2 is zero. v is its own
       share 2.
    2. u v = u_0 v + u_1 v: party 2 computes the first summand, party 1 the second; masked and passed on.
    """
    session, kernels = bits.session, bits.session.kernels
    with tf.name_scope("to_integer"):
        nonce = session.nonce()
        shape = bits.pairs[0][0].shape
        with session.at(0):
            u = tf.cast(tf.bitwise.bitwise_xor(*bits.pairs[0]), tf.int64)
            u0_at_0 = tf.ensure_shape(kernels.keystream(session.key(0, 0), nonce.here(), tf.shape(u), tf.int64), shape)
            u1_at_0 = u - u0_at_0
            none_at_0 = tf.zeros_like(u)
        u1_at_1 = session.send(u1_at_0, 0, 1)
        with session.at(1):
            v_at_1 = tf.cast(bits.pairs[1][1], tf.int64)
            none_at_1 = tf.zeros_like(v_at_1)
            uv1 = u1_at_1 * v_at_1
        with session.at(2):
            v_at_2 = tf.cast(bits.pairs[2][0], tf.int64)
            none_at_2 = tf.zeros_like(v_at_2)
            u0_at_2 = tf.ensure_shape(
                kernels.keystream(session.key(2, 0), nonce.here(), tf.shape(v_at_2), tf.int64), shape
            )
            uv2 = u0_at_2 * v_at_2
        u_shared = Shared(session, ((u0_at_0, u1_at_0), (u1_at_1, none_at_1), (none_at_2, u0_at_2)), 0)
        v_shared = Shared(session, ((none_at_0, none_at_0), (none_at_1, v_at_1), (v_at_2, none_at_2)), 0)
        product = Shared(session, reshare(session, masked(session, [none_at_0, uv1, uv2], session.nonce())), 0)
        return u_shared + v_shared - product.times_integer(2)


def is_negative(value: Shared) -> Shared:
    """1 where value < 0, else 0: a shared integer."""
    return to_integer(negative(value))


def is_positive_or_zero(value: Shared) -> Shared:
    return 1 - is_negative(value)


def choose(bit: Shared, one: Shared, other: Shared) -> Shared:
    """`one` where bit is 1, `other` where it is 0; bit is a shared integer."""
    return other + multiply(bit, one - other)


def relu(value: Shared) -> tuple[Shared, Shared]:
    """(max(x, 0), the bit x >= 0), exactly."""
    bit = is_positive_or_zero(value)
    return multiply(bit, value), bit


def maximum(left: Shared, right: Shared) -> tuple[Shared, Shared]:
    """(max, the bit left >= right); |left - right| must stay below 2^63 in the ring."""
    difference = left - right
    bit = is_positive_or_zero(difference)
    return right + multiply(bit, difference), bit


def clip(value: Shared, low: float | None = None, high: float | None = None) -> Shared:
    """Values held between two public numbers."""
    if low is not None:
        value = relu(value - low)[0] + low
    if high is not None:
        value = high - relu(high - value)[0]
    return value


def largest(value: Shared, one_hot: bool = True) -> tuple[Shared, Shared | None]:
    """The largest along the last axis, by a tournament, and where it is.

    Args:
        value: Of shape [..., n], n known and at least 1.
        one_hot: Whether to compute the second result.

    Returns:
        (values of shape [...], integers of shape [..., n] that are 1 at the largest; of equal ones, at the last).
    """
    count = value.shape[-1]
    candidates = value
    groups: list[Sequence[int]] = [[place] for place in range(count)]
    winners: list[Shared] | None = None
    while candidates.shape[-1] > 1:
        size = candidates.shape[-1]
        half = size // 2
        left, right, rest = candidates[..., :half], candidates[..., half : 2 * half], candidates[..., 2 * half :]
        # Later entries win ties: left must be strictly greater.
        bit = is_negative(right - left)
        best = right + multiply(bit, left - right)
        if one_hot:
            winners = _winners(winners, groups, bit, half, size, value)
        groups = [[*groups[i], *groups[half + i]] for i in range(half)] + groups[2 * half :]
        candidates = concat([best, rest], -1) if size % 2 else best
    if not one_hot:
        return candidates[..., 0], None
    if winners is None:
        return candidates[..., 0], value.local(tf.zeros_like, fraction=0) + 1
    order = list(groups[0])
    inverse = [order.index(place) for place in range(count)]
    return candidates[..., 0], winners[0].local(lambda share: tf.gather(share, inverse, axis=-1))


def _winners(
    before: list[Shared] | None, groups: list[Sequence[int]], bit: Shared, half: int, size: int, value: Shared
) -> list[Shared]:
    """For each candidate, the one-hot vector over the leaves under it."""
    opposite = 1 - bit
    if before is None:
        after = [concat([bit[..., i : i + 1], opposite[..., i : i + 1]], -1) for i in range(half)]
        if size % 2:
            after.append(value[..., :1].local(tf.zeros_like, fraction=0) + 1)
        return after
    # One product for all candidates of this level.
    factors, vectors = [], []
    for i in range(half):
        for chosen, group in ((bit, before[i]), (opposite, before[half + i])):
            width = group.shape[-1]
            factors.append(chosen[..., i : i + 1].local(functools.partial(tf.repeat, repeats=width, axis=-1)))
            vectors.append(group)
    product = multiply(concat(factors, -1), concat(vectors, -1))
    start, after = 0, []
    for i in range(half):
        width = before[i].shape[-1] + before[half + i].shape[-1]
        after.append(product[..., start : start + width])
        start += width
    return after + before[2 * half :]
