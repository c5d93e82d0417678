"""The operations of the tensor chain: for each a rule for shape and bound, and a function on shares.

Every party applies both to a description, an operation's name and its options, with its own copy of this file: what is
refused is refused by each of them, and what is computed is traced by each of them.
"""

from __future__ import annotations

from keras_private.encrypted.operations.bounds import VALUE_BITS
from keras_private.encrypted.operations.calls import OPEN, Call
from keras_private.encrypted.operations.catalogue import CATALOGUE, Operation

__all__ = ["CATALOGUE", "OPEN", "VALUE_BITS", "Call", "Operation"]
