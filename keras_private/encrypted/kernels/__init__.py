"""What one party computes by itself on ring elements: natively where the library loads, else in stock ops."""

from __future__ import annotations

from keras_private.encrypted.kernels.interface import Kernels
from keras_private.encrypted.kernels.portable import PortableKernels
from keras_private.errors import BackendError
from keras_private.native import load as load_library

__all__ = ["Kernels", "PortableKernels", "choose"]


def choose() -> Kernels:
    """The fastest kernels of this process; both give the same bits."""
    try:
        load_library()
    except BackendError:
        return PortableKernels()
    from keras_private.encrypted.kernels.native import NativeKernels

    return NativeKernels()
