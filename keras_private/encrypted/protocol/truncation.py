"""Division by 2^f, right to one unit in the last place for every value below 2^62.

The local truncation of Mohassel and Rindal 2018 (section 5.1.1) fails, with an error as large as the ring, with a
probability of |x| / 2^63 for each number. Here the carry that makes it fail is computed instead, as in the
probabilistic truncation of Dalskov, Escudero and Keller 2020 ("Secure evaluation of quantized neural networks",
section 5), with party 2 as the dealer of the random number.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_private.encrypted.session import Session
from keras_private.encrypted.shared import Shared


def truncate(value: Shared, bits: int) -> Shared:
    """Removes `bits` bits after the point; stochastic rounding to a neighbouring unit. Needs |ring value| < 2^62."""
    if bits == 0:
        return value
    return truncate_summands(value.session, [pair[0] for pair in value.pairs], bits, value.fraction - bits)


def truncate_summands(session: Session, summands: Sequence[tf.Tensor], bits: int, fraction: int) -> Shared:
    """From unmasked summands z_i at party i of some x, to a sharing of x / 2^bits.

    1. Party 2 derives r = F(key_0) + F(key_2) and sends party 1 its halves of shares of r >> bits and of msb(r); party
       0 derives its own halves from key_0. Party 2 sends z_2 + F'(key_2) to party 0.
    2. Party 0 computes c_0 = z_0 + z_2 + F'(key_2) + F(key_0) + 2^62, party 1 c_1 = z_1 - F'(key_2) + F(key_2); they
       swap them. c = c_0 + c_1 = x + 2^62 + r is uniform to both, since neither knows all of r.
    3. x + 2^62 = c - r + 2^64 w, where w = msb(r) and not msb(c). Parties 0 and 1 so hold summands of the truncated
       value, mask them by F''(key_0) and F''(key_2), and swap them: their sum is share 1; shares 0 and 2 are the masks.

    What each party learns: party 0 two uniform words a number (z_2 masked, c_1) and the masked summand of party 1;
    party 1 four (two of the dealer, c_0, the summand of party 0); party 2 nothing. Seven words in three rounds.
    """
    kernels, nonce = session.kernels, session.nonce()
    with tf.name_scope("truncate"):
        z0, z1, z2 = summands
        with session.at(2):
            key0, key2 = session.key(2, 0), session.key(2, 2)
            here = nonce.here()
            a1, m1 = kernels.trunc_dealer(key0, key2, here, tf.shape(z2), bits)
            z2m = kernels.trunc_mask(z2, key2, here)
            shape = z2.shape
        a1, m1 = session.send(a1, 2, 1), session.send(m1, 2, 1)
        z2m = session.send(z2m, 2, 0)
        with session.at(0):
            c0 = kernels.trunc_open0(z0, z2m, session.key(0, 0), nonce.here())
        with session.at(1):
            c1 = kernels.trunc_open1(z1, session.key(1, 2), nonce.here())
        c0_at_1, c1_at_0 = session.send(c0, 0, 1), session.send(c1, 1, 0)
        with session.at(0):
            u0 = kernels.trunc_close0(c0, c1_at_0, session.key(0, 0), nonce.here(), bits)
        with session.at(1):
            u1 = kernels.trunc_close1(c0_at_1, c1, a1, m1, session.key(1, 2), nonce.here(), bits)
        u0_at_1, u1_at_0 = session.send(u0, 0, 1), session.send(u1, 1, 0)

        def final(party: int, index: int) -> tf.Tensor:
            stream = tf.concat([nonce.here()[:11], tf.constant([4], tf.uint8)], 0)
            reference = summands[party]
            return tf.ensure_shape(
                kernels.keystream(session.key(party, index), stream, tf.shape(reference), tf.int64), shape
            )

        with session.at(0):
            pair0 = (final(0, 0), u0 + u1_at_0)
        with session.at(1):
            pair1 = (u0_at_1 + u1, final(1, 2))
        with session.at(2):
            pair2 = (final(2, 2), final(2, 0))
        return Shared(session, (pair0, pair1, pair2), fraction)
