"""`kp.encrypt` and `kp.PrivateTensor`: what the tensor chain encodes, shares and computes with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_private.chain import (
    DEFAULT_BOUND,
    DEFAULT_FRACTION,
    Backend,
    Form,
    Pair,
    PrivateTensor,
    Runtime,
    register_backend,
)
from keras_private.encrypted.cluster.sharing import decoded, encoded, joined, share_out, split
from keras_private.encrypted.embedded import EmbeddedRuntime, shelves_of
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.operations import VALUE_BITS
from keras_private.encrypted.parties import EMBEDDED
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, EncodingError

__all__ = ["PrivateTensor", "chains_of", "encrypt"]

_MOST_BITS = 52
"""A float64 has 53 bits: numbers of more are not encoded exactly."""


def encrypt(
    x: Any,
    cluster: Any = None,
    readers: Sequence[str] | None = None,
    name: str = "client",
    bound: float = DEFAULT_BOUND,
    fraction: int = DEFAULT_FRACTION,
) -> PrivateTensor:
    """PrivateTensor(x).fix_precision(fraction).share(cluster).send().

    | who                       | learns                                                                        |
    |---------------------------|-------------------------------------------------------------------------------|
    | each of the three parties | shape, bound, readers, and which operations are done; no number               |
    | two parties that collude  | everything                                                                    |
    | readers                   | this value, and results whose operands all name them, when they open them     |
    | who is given `to_json`    | what a party learns; may compute with the value and open nothing              |

    Args:
        x: Numbers: an array or a tensor.
        cluster: Three party processes; None: three parties embedded in this process, a simulation that protects from
            nobody who can read its memory.
        readers: Names that the value may be opened to; by default `name`.
        name: On whose behalf; with a cluster, that of a client whose certificate this process has.
        bound: Public; no number is larger in absolute value. It must not be computed from the data.
        fraction: Bits after the point.

    Returns:
        A chain that ends with pointers to the parties.

    Raises:
        EncodingError: A number is NaN or larger than `bound`.
        ConfigurationError: An argument does not fit.
        TransportError: A party cannot be reached.
    """
    private = PrivateTensor(x, bound=bound, readers=readers, name=name)
    return private.fix_precision(fraction).share(cluster).send()


def chains_of(
    variables: Mapping[str, SharedVariable], parties: str, owner: str, values: Mapping[str, np.ndarray]
) -> dict[str, PrivateTensor]:
    """Shared variables as chains, by name: each party's pair is copied to its shelf, and nothing is opened.

    Args:
        variables: Of the embedded parties.
        parties: Their name.
        owner: Who owns and reads the values.
        values: Numbers that the owner knows, whose size becomes the bound, up to a power of two; of others the bound
            is what fits the ring.
    """
    runtime = EmbeddedRuntime(shelves_of(parties), owner)
    found = {}
    for name, variable in variables.items():
        bound = 2.0 ** (VALUE_BITS - 1 - variable.fraction)
        if name in values:
            largest = float(np.max(np.abs(values[name]), initial=2.0**-variable.fraction))
            bound = 2.0 ** math.ceil(math.log2(largest))
        form = Form(variable.shape, variable.fraction, bound)
        pairs = [(first, second) for first, second in variable.shares()]
        found[name] = PrivateTensor.of_put(runtime, pairs, form, (owner,), "float32")
    return found


class Encryption(Backend):
    """Fixed point in the ring modulo 2^64, replicated shares, embedded parties or party processes."""

    def encode(self, values: np.ndarray, fraction: int, bound: float, name: str) -> np.ndarray:
        if type(fraction) is not int or not 0 <= fraction <= 28:
            raise ConfigurationError(
                f"{fraction!r} bits after the point", expected="an int from 0 to 28", remedy="use 16"
            )
        if bound > 2.0 ** (_MOST_BITS - max(fraction, 1)):
            raise ConfigurationError(
                f"a bound of {bound:g} with {fraction} bits after the point",
                expected=f"at most 2^{_MOST_BITS - max(fraction, 1)}",
                remedy="use fewer bits, or a smaller bound",
            )
        if not fraction:
            if not np.array_equal(values, np.rint(values)):
                raise EncodingError(f"{name} holds what is no integer", expected="integers", remedy="use a fraction")
            return np.asarray(values, np.int64)
        return encoded(values, FixedPoint(fraction, _integer_bits(bound, fraction)), name)

    def decode(self, ring: np.ndarray, fraction: int) -> np.ndarray:
        return decoded(ring, fraction)

    def replicated(self, ring: np.ndarray) -> list[Pair]:
        return share_out(ring)

    def additive(self, ring: np.ndarray, count: int) -> list[np.ndarray]:
        if type(count) is not int or count < 2:
            raise ConfigurationError(f"{count!r} summands", expected="an int of at least 2", remedy="use 2 or 3")
        return split(ring, count)

    def joined(self, summands: Sequence[np.ndarray]) -> np.ndarray:
        return joined(summands)

    def runtime(self, cluster: Any, name: str) -> Runtime:
        if cluster is None:
            return EmbeddedRuntime(shelves_of(EMBEDDED), name)
        from keras_private.encrypted.cluster.remote import runtime_of

        return runtime_of(cluster, name)


def _integer_bits(bound: float, fraction: int) -> int:
    """The fewest bits before the point with |x| < 2^bits for every |x| <= bound, as far as the fraction leaves them."""
    return max(1, min(math.floor(math.log2(bound)) + 1, _MOST_BITS - fraction))


register_backend(Encryption())
