"""Sums of updates that nobody can take apart: masked by the clients, unmasked by two parties together."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ...errors import AggregationError, ConfigurationError, OverflowPreflightError
from ..checks import is_whole, require
from .base import Aggregator, Cohort, Noise, Payload, Place, Reports, Round, Total, finite_or_nothing
from .masking import keys, pads
from .masking.parties import PadParty, Party, Request, multiple_of, noise_of, simulated_parties

_HEADROOM_BITS = 62
_TAIL = 3
"""Words after the update: the weight, and whether the client counts and was clamped."""
_REFUSED = 1e-9
"""Probability of a round below the minimum cohort that a private fit may have."""


class SecureAggregation(Aggregator):
    """The sum of the updates, and no single update, for the coordinator and each of two parties.

    Each client's host shares a key with party 0 and one with party 1. The client's graph encodes its weighted update in
    fixed point as integers modulo 2^64 and adds two pads, one from each key. The coordinator adds the masked vectors;
    each party answers the negated sum of its own pads over the clients that reported. The coordinator's sum and both
    answers are three additive shares of the true sum. A client that drops out before it reports costs nothing. (The
    masks of Bonawitz et al. 2017, section 4.0, between clients and two parties instead of between pairs of clients.)

    Args:
        min_clients: No sum over fewer clients is opened; at least 2.
        weighted: Weigh each client by the number of its examples.
        bound: Coordinates of an update are clamped to [-bound, bound].
        max_weight: Weights above are counted as this.
        fraction_bits: Bits after the point.
        parties: Those of `pad_parties` or `local_pad_parties`, or two objects with `propose`, `answer` and `simulated`.
            None makes both in this process, a simulation.
        keys: With `parties`: the folder, under the name it has where clients' work runs, that holds a client's
            `<client>.party0.key` and `<client>.party1.key`.

    Guarantees:
        - What the coordinator gets of one client is uniform and independent of its update, to whoever lacks one of the
          client's two keys. The parties get names and nonces.
        - Any two of coordinator, party 0 and party 1 that pool what they see learn no single update, as long as both
          keys are not among them: coordinator and one party lack the other's pad; the parties lack the masked vector.
        - Pads are never used twice: a nonce is drawn while a client's graph executes, so that one that is run again has
          others, and each party takes a nonce, and answers a round, once.
        - Sums cannot wrap: cohort, bound, weight and scale are checked before the first round.
        - With noise (DPAggregator around this), coordinator and parties each add theirs, such that what is left without
          any one of them has the full standard deviation; and weights and counts are not opened.

    Not guaranteed:
        - Anything against the coordinator and both parties together, or whoever reads a client's host.
        - In a simulation, anything against whoever reads this process or the folder of keys; `simulated` lists what is
          one. Who reads the hosts of the parties is not for this process to see.
        - That the sum itself tells nothing of a client: that is what DPAggregator around this is for. Against two of
          the three together, the noise that is left has 1/sqrt(2) of its standard deviation.
        - A right sum from clients or parties that lie.

    Raises:
        ConfigurationError: An argument is out of range.
    """

    hides_updates = True
    draws_per_coordinate = 6

    def __init__(
        self,
        min_clients: int = 2,
        weighted: bool = True,
        bound: float = 64.0,
        max_weight: float = 1e4,
        fraction_bits: int = 24,
        parties: Optional[Sequence[Party]] = None,
        keys: Any = None,
    ) -> None:
        if isinstance(min_clients, Aggregator):
            raise ConfigurationError(
                f"{type(min_clients).__name__} was given to SecureAggregation, which opens a sum and nothing else.",
                expected="no aggregator inside",
                remedy="DPAggregator(SecureAggregation()) and Zeroing(SecureAggregation(), l2_norm_bound=...) go "
                "around it. Trimmed, Median and Zeroing by a quantile read every update, which is what it hides.",
            )
        require(is_whole(min_clients) and min_clients >= 2, "min_clients", min_clients, "a whole number, at least 2")
        require(_positive(bound), "bound", bound, "a positive number")
        require(_positive(max_weight) and max_weight >= 1, "max_weight", max_weight, "a number, at least 1")
        require(
            is_whole(fraction_bits) and 1 <= fraction_bits <= 50,
            "fraction_bits",
            fraction_bits,
            "a whole number, 1 to 50",
        )
        require((parties is None) == (keys is None), "keys", keys, "a folder with `parties`, None without")
        two = isinstance(parties, (tuple, list)) and len(parties) == 2
        require(parties is None or two, "parties", parties, "party 0 and party 1, of pad_parties or local_pad_parties")
        self.weighted = bool(weighted)
        self._min_clients, self._bound, self._max_weight = min_clients, float(bound), float(max_weight)
        self._fraction_bits = fraction_bits
        self._given = None if parties is None else tuple(parties)
        self._keys = None if keys is None else os.fspath(keys)
        self._parties: Optional[tuple[Party, ...]] = None
        self._folder: Optional[str] = None
        self._cleanup: Any = None
        self._dimension: Optional[int] = None
        self._cohort: Optional[Cohort] = None

    @property
    def simulated(self) -> tuple[str, ...]:
        """What this process can read and would have to be elsewhere, as far as it can see; empty if nothing.

        That is asked of the parties, and looked for in the folder of clients' keys, each time.
        """
        if self._given is None:
            return ("both parties, their keys and those of the clients are in this process",)
        found: list[str] = []
        for index, party in enumerate(self._given):
            found += getattr(party, "simulated", (f"party {index} does not say where it is",))
        if keys.some_readable(self._keys):
            found.append(f"keys of clients can be read by this process, in {self._keys}")
        return tuple(found)

    def prepare(self, dimension: int, cohort: Cohort) -> None:
        self._check_headroom(cohort)
        keys.check_names(cohort.names)
        if cohort.largest < self._min_clients:
            raise ConfigurationError(
                f"A round has at most {cohort.largest} clients.",
                expected=f"at least {self._min_clients}: no sum over fewer is opened",
                remedy="Raise clients_per_round.",
            )
        self._dimension, self._cohort = dimension, cohort
        if self._given is not None:
            self._parties, self._folder = self._given, self._keys
            return
        self.close()
        self._parties, masters = simulated_parties(self._min_clients)
        self._folder = tempfile.mkdtemp(prefix="keras-private-")
        self._cleanup = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        keys.write_client_keys(self._folder, cohort.names, masters)

    def close(self) -> None:
        if self._cleanup is not None:
            self._cleanup()
            self._cleanup = None
            for party in self._parties or ():
                if isinstance(party, PadParty):
                    party.close()
        self._parties = None

    def encode(self, update: tf.Tensor, weight: tf.Tensor, place: Place) -> tuple[Payload, Payload]:
        dimension, _ = self._prepared()
        update, weight, counts = finite_or_nothing(tf.cast(update, tf.float64), tf.cast(weight, tf.float64))
        inside = tf.reduce_all(tf.abs(update) <= self._bound) & (weight <= self._max_weight)
        weight = tf.minimum(weight, self._max_weight)
        clamped = tf.clip_by_value(update, -self._bound, self._bound) * weight
        scale = tf.constant(2.0**self._fraction_bits, tf.float64)
        words = tf.concat(
            [
                tf.cast(tf.round(clamped * scale), tf.int64),
                tf.cast(tf.round(weight * scale), tf.int64)[tf.newaxis],
                counts[tf.newaxis],
                tf.cast(~inside, tf.int64)[tf.newaxis],
            ],
            axis=0,
        )
        nonce, session = pads.fresh_nonce(), pads.bytes_of(place.session)
        paths = (tf.strings.join([f"{self._folder}/", place.client, keys.suffix(n)]) for n in range(keys.PARTIES))
        own = tf.stack([pads.read_key(path) for path in paths])
        words += pads.sum_of_pads(own, session, place.round, nonce, dimension + _TAIL)
        return {"masked": words}, {"nonce": tf.cast(nonce, tf.int32)}

    def total(self, reports: Reports, round: Round, noise: Optional[Noise] = None) -> Total:
        dimension, cohort = self._prepared()
        assert self._parties is not None
        if len(round.clients) < self._min_clients:
            raise AggregationError(
                f"Round {round.number} has {len(round.clients)} clients.",
                expected=f"at least {self._min_clients}, so that their sum hides each of them",
                remedy="Raise clients_per_round: with Poisson sampling the number varies.",
            )
        stddev = 0.0 if noise is None else self._party_noise(noise, dimension)
        answered = dimension + _TAIL if noise is None else dimension
        nonces = [bytes(np.asarray(each["nonce"]).astype(np.uint8)) for each in reports.each]
        request = Request(
            round.session, round.number, dimension + _TAIL, tuple(zip(round.clients, nonces)), answered, stddev
        )
        proofs = [party.propose(request) for party in self._parties]
        with np.errstate(over="ignore"):
            opened = np.asarray(reports.summed["masked"], np.int64)[:answered] + noise_of(stddev, answered)
            for index, party in enumerate(self._parties):
                opened = opened + party.answer(request, proofs[1 - index])
        scale = 2.0**self._fraction_bits
        update = opened[:dimension].astype(np.float64) / scale
        if noise is not None:
            return Total(update, float(cohort.expected))
        clients = int(opened[dimension + 1])
        if not 0 <= clients <= len(round.clients):
            raise AggregationError(
                f"The sum of round {round.number} opens to {clients} clients of {len(round.clients)}.",
                expected="keys that clients and parties share",
                remedy="Write the clients' key files anew with write_client_keys, from the parties' masters.",
            )
        figures = {"left_out": len(round.clients) - clients, "clamped": int(opened[dimension + 2])}
        return Total(update, float(opened[dimension]) / scale, clients, figures)

    def check_noise(self, noise: Noise) -> None:
        dimension, cohort = self._prepared()
        stddev = self._party_noise(noise, dimension)
        if stddev == 0.0:
            return
        multiple_of(stddev)
        if not cohort.fixed:
            # A party may ask for more than this aggregator.
            least = max([self._min_clients, *(getattr(party, "min_clients", 0) for party in self._parties or ())])
            refused = too_few(cohort, least)
            if refused > _REFUSED:
                raise ConfigurationError(
                    f"Of the rounds, {refused:.1e} would have fewer than {least} clients and end the fit, "
                    "which tells of who is there.",
                    expected=f"at most {_REFUSED:g}",
                    remedy="Raise clients_per_round.",
                )

    def description(self) -> dict[str, Any]:
        simulated = list(self.simulated)
        return {
            "name": "SecureAggregation",
            "weighted": self.weighted,
            "min_clients": self._min_clients,
            "bound": self._bound,
            "max_weight": self._max_weight,
            "fraction_bits": self._fraction_bits,
            "protects_from": [] if simulated else ["the coordinator, party 0 and party 1, or any two of them"],
            "simulated": simulated,
        }

    def _party_noise(self, noise: Noise, dimension: int) -> float:
        """What each of three adds, in units of the ring: any two of them make the full standard deviation."""
        if noise.noise_multiplier == 0:
            return 0.0
        # Rounding moves each coordinate by half a unit at most.
        sensitivity = noise.l2_norm_clip * 2.0**self._fraction_bits + math.sqrt(dimension) / 2
        return noise.noise_multiplier * sensitivity / math.sqrt(2.0)

    def _check_headroom(self, cohort: Cohort) -> None:
        weight = self._max_weight if self.weighted else 1.0
        largest = cohort.largest * max(self._bound, 1.0) * weight
        bits = math.log2(largest) + self._fraction_bits
        if bits > _HEADROOM_BITS:
            raise OverflowPreflightError(
                f"The sum over {cohort.largest} clients could take {bits:.1f} bits.",
                expected=f"at most {_HEADROOM_BITS}, so that it never wraps",
                remedy="Lower bound, max_weight or fraction_bits, or use weighted=False.",
            )

    def _prepared(self) -> tuple[int, Cohort]:
        if self._dimension is None or self._cohort is None or self._parties is None:
            raise ConfigurationError(
                "The aggregator was not prepared.", expected="prepare before encode and total", remedy="Train by fit."
            )
        return self._dimension, self._cohort


def too_few(cohort: Cohort, least: int) -> float:
    """Probability that a round of Poisson sampling has fewer clients."""
    n, q = cohort.population, min(cohort.expected / cohort.population, 1.0)
    if q == 1.0:
        return float(n < least)

    def logarithm(k: int) -> float:
        choices = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return choices + k * math.log(q) + (n - k) * math.log1p(-q)

    return min(math.fsum(math.exp(logarithm(k)) for k in range(min(least, n + 1))), 1.0)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
