"""Private values as chains of links, from a Keras or TensorFlow tensor down to the shares that three parties hold.

    PrivateTensor           the tensor, as its owner and Keras see it: shape, dtype, bound, readers
    FixedPrecisionTensor    its numbers as integers of the ring modulo 2^64
    ReplicatedSharedTensor  those integers as shares; AdditiveSharedTensor where each holder has one summand
    PointerTensor           where one party keeps its part, and under which id

The idea of such chains is PySyft's (Ryffel et al. 2018, "A generic framework for privacy preserving deep learning").
Links are immutable: `fix_precision`, `share`, `send`, and each operation give a new chain. What encodes, shares and
computes is a `Backend`, which keras_private.encrypted registers: this module knows of no protocol.
"""

from __future__ import annotations

from keras_private.chain.links import (
    AdditiveSharedTensor,
    FixedPrecisionTensor,
    Link,
    PointerTensor,
    ReplicatedSharedTensor,
)
from keras_private.chain.private import DEFAULT_BOUND, DEFAULT_FRACTION, PrivateTensor
from keras_private.chain.runtime import Backend, Form, Pair, Runtime, Stored, register_backend

__all__ = [
    "DEFAULT_BOUND",
    "DEFAULT_FRACTION",
    "AdditiveSharedTensor",
    "Backend",
    "FixedPrecisionTensor",
    "Form",
    "Link",
    "Pair",
    "PointerTensor",
    "PrivateTensor",
    "ReplicatedSharedTensor",
    "Runtime",
    "Stored",
    "register_backend",
]
