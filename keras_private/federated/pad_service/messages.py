"""Requests as frames: what travels between coordinator and parties, and its limits."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...encrypted.cluster.wire import Frame, Header, arrays_of
from ...errors import AggregationError, ConfigurationError, TransportError
from ..aggregators.masking import keys, pads
from ..aggregators.masking.parties import Request

PROOF_BYTES = 32
MOST_CLIENTS = 1 << 16
"""Of one round."""
MOST_WORDS = 1 << 27
"""Of one pad: 1 GiB."""
_FACTS = 1 << 12
_NAME = 104
"""Bytes of one name in a frame: the longest, quotes and a comma."""
_LARGEST_ROUND = 1 << 62


def limit(header: Header) -> int:
    """Bytes of nonces and proof that a frame to a party may have; -1 if its names are too long already."""
    most = _FACTS + _NAME * MOST_CLIENTS
    return PROOF_BYTES + pads.NONCE_BYTES * MOST_CLIENTS if header.facts <= most else -1


def to_frame(call: str, request: Request, proof: bytes = b"") -> tuple[dict[str, Any], list[np.ndarray]]:
    """Facts and tensors of a request.

    Raises:
        AggregationError: It has more clients or words than a party takes.
    """
    if len(request.clients) > MOST_CLIENTS or request.words > MOST_WORDS:
        raise AggregationError(
            f"A round of {len(request.clients)} clients and {request.words} words.",
            expected=f"at most {MOST_CLIENTS} clients and {MOST_WORDS} words",
            remedy="Lower clients_per_round, or train a smaller model.",
        )
    facts = {
        "call": call,
        "session": request.session,
        "round": request.number,
        "words": request.words,
        "answered": request.answered,
        "noise": float(request.noise).hex(),
        "names": [name for name, _ in request.clients],
    }
    nonces = b"".join(nonce for _, nonce in request.clients)
    return facts, [np.frombuffer(nonces, np.uint8), np.frombuffer(proof, np.uint8)]


def from_frame(frame: Frame, peer: str, proof_bytes: int) -> tuple[Request, bytes]:
    """The request of a frame, and the proof after it.

    Raises:
        TransportError: It is none.
    """
    facts = frame.facts
    names = facts.get("names")
    numbers: list[Any] = [facts.get(field) for field in ("round", "words", "answered")]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > MOST_CLIENTS:
        raise _malformed(peer, f"at most {MOST_CLIENTS} names")
    if any(type(number) is not int for number in numbers) or not all(
        0 <= number <= most for number, most in zip(numbers, (_LARGEST_ROUND, MOST_WORDS, MOST_WORDS))
    ):
        raise _malformed(peer, f"a round, and at most {MOST_WORDS} words")
    if not isinstance(facts.get("session"), str) or not isinstance(facts.get("noise"), str):
        raise _malformed(peer, "a session and a noise")
    try:
        noise = float.fromhex(facts["noise"])
        keys.check_names(names)
    except (ValueError, OverflowError, ConfigurationError) as error:
        raise _malformed(peer, "a noise and names that can be") from error
    specs = [("uint8", [len(names), pads.NONCE_BYTES]), ("uint8", [proof_bytes])]
    nonces, proof = arrays_of(frame.payload, specs, peer)
    clients = tuple(zip(names, (row.tobytes() for row in nonces)))
    number, words, answered = numbers
    return Request(facts["session"], number, words, clients, answered, noise), proof.tobytes()


def _malformed(peer: str, expected: str) -> TransportError:
    return TransportError(f"{peer} sent a malformed request", expected=expected, remedy="check versions")
