"""The largest of several elements, and its gradient: the winner's bits lead it back to where it came from."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_private.encrypted.protocol.comparison import is_positive_or_zero
from keras_private.encrypted.protocol.products import multiply
from keras_private.encrypted.shared import Shared, concat, local


def largest_of(value: Shared) -> tuple[Shared, list[Shared]]:
    """Neighbours play against each other, then the winners, log2(n) times; of equal ones the first wins.

    Args:
        value: Of shape [..., n, c], n known and at least 1; differences must stay below 2^63 in the ring.

    Returns:
        The largest along the axis before the last, of shape [..., c], and for each round its shared bits of shape
        [..., matches, c].
    """
    candidates, rounds = value, []
    while candidates.shape[-2] > 1:
        paired = candidates.shape[-2] // 2 * 2
        left, right = candidates[..., 0:paired:2, :], candidates[..., 1:paired:2, :]
        difference = left - right
        bit = is_positive_or_zero(difference)
        winners = right + multiply(bit, difference)
        candidates = concat([winners, candidates[..., paired:, :]], -2) if paired < candidates.shape[-2] else winners
        rounds.append(bit)
    return candidates[..., 0, :], rounds


def to_the_largest(gradient: Shared, rounds: Sequence[Shared]) -> Shared:
    """Zeros of shape [..., n, c], but for `gradient`, of shape [..., c], at the place of the largest.

    One product of integers for each match, without truncation: exact.
    """
    found = gradient.local(lambda share: share[..., None, :])
    for bit in reversed(rounds):
        matches = bit.shape[-2]
        of_winners = found[..., :matches, :]
        to_left = multiply(bit, of_winners)
        paired = local(_interleaved, to_left, of_winners - to_left)
        unpaired = found.shape[-2] - matches
        found = concat([paired, found[..., matches:, :]], -2) if unpaired else paired
    return found


def _interleaved(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    shape = left.shape.as_list()
    shape[-2] *= 2
    return tf.reshape(tf.stack([left, right], -2), shape)
