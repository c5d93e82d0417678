"""Loader of the native TensorFlow ops. Importing this module loads nothing; `load()` does, once.

Guarantees, each locked by a test in tests/native/test_loader.py:
  * A library built for another TensorFlow is refused before it is opened: its code never runs.
  * Sources, machine or stamp missing or not matching give a BackendError that names the remedy.
  * The ciphers' known-answer tests run at load; a library that fails them is not handed out.
  * `status()` never raises.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import json
import pathlib
import platform
import threading
from collections.abc import Iterator
from typing import Any

from keras_private.errors import BackendError

_FOLDER = pathlib.Path(__file__).resolve().parent
_LIBRARY_NAME = "_keras_private_ops.so"
_STAMP_NAME = "_keras_private_ops.json"
_REMEDY = (
    "build it with: python -m keras_private.native.build (needs g++ and OpenSSL's headers: "
    "apt-get install g++ libssl-dev). Until then the portable source of randomness is used, which is slower"
)

_lock = threading.Lock()
_loaded: dict[pathlib.Path, tuple[Any, str]] = {}
_stock_only: contextvars.ContextVar[bool] = contextvars.ContextVar("stock_only", default=False)


@dataclasses.dataclass(frozen=True)
class NativeStatus:
    """What `keras-private doctor` shows of the native ops.

    Attributes:
        available: The ops can be used in this process.
        path: Where the library is, or would be.
        reason: Why it is not available; empty when it is.
        openssl_version: The libcrypto in use; empty when not available.
    """

    available: bool
    path: str
    reason: str = ""
    openssl_version: str = ""


def load(folder: pathlib.Path | None = None) -> Any:
    """Returns the module of native ops, loading it at the first call.

    Args:
        folder: Where the library and its stamp are; by default this package's own folder.

    Raises:
        BackendError: The library is absent, was built for another TensorFlow or machine, cannot be opened, or
            fails its self-test.
    """
    if folder is None and stock_only():
        raise BackendError(
            "the graph that is being traced will run in processes without native operations",
            expected="stock operations",
            remedy="none is needed: stock operations do the same, slower",
        )
    return _load(folder or _FOLDER)[0]


@contextlib.contextmanager
def stock_operations() -> Iterator[None]:
    """Within, this thread and context get no native operations: what they trace runs elsewhere, such as in a worker."""
    token = _stock_only.set(True)
    try:
        yield
    finally:
        _stock_only.reset(token)


def stock_only() -> bool:
    """Whether the graph that is being traced must do without native operations."""
    return _stock_only.get()


def status(folder: pathlib.Path | None = None) -> NativeStatus:
    """Tells whether the native ops are available, and why not. Never raises."""
    path = str((folder or _FOLDER) / _LIBRARY_NAME)
    try:
        return NativeStatus(True, path, openssl_version=_load(folder or _FOLDER)[1])
    except BackendError as error:
        return NativeStatus(False, path, reason=error.problem)
    except Exception as error:  # pylint: disable=broad-except  # doctor must always print.
        return NativeStatus(False, path, reason=f"{type(error).__name__}: {error}")


def _load(folder: pathlib.Path) -> tuple[Any, str]:
    with _lock:
        if folder not in _loaded:
            _loaded[folder] = _open(folder)
        return _loaded[folder]


def _open(folder: pathlib.Path) -> tuple[Any, str]:
    import tensorflow as tf

    library = folder / _LIBRARY_NAME
    if not library.is_file():
        raise BackendError(f"the native ops are not built: {library} does not exist", remedy=_REMEDY)
    _check_stamp(folder / _STAMP_NAME, {"tensorflow": tf.__version__, "machine": platform.machine()})
    try:
        module = tf.load_op_library(str(library))
        with tf.device("/CPU:0"), tf.init_scope():
            version = module.keras_private_status().numpy().decode()
    except (tf.errors.OpError, OSError, AttributeError) as error:
        raise BackendError(
            f"the native ops cannot be loaded from {library}: {error}", remedy=_REMEDY
        ) from error
    return module, version


def _check_stamp(path: pathlib.Path, expected: dict[str, str]) -> None:
    # Before dlopen: static initializers of a library made for another ABI may crash the process.
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BackendError(
            f"the stamp of the native ops cannot be read: {path}: {error}", remedy=_REMEDY
        ) from error
    for key, value in expected.items():
        found = stamp.get(key) if isinstance(stamp, dict) else None
        if found != value:
            raise BackendError(
                f"the native ops were built for {key} {found}",
                expected=f"{key} {value}, as installed",
                remedy=_REMEDY,
            )
