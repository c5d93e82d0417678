"""Files that are whole or not there, on disk before they count."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from typing import Union

SOCKET_NAME = "door"
_PREFIX = "keras-private-"
_SOCKET_PATH = 107


def write_whole(path: pathlib.Path, content: bytes, mode: int) -> None:
    """A new file, whole or not at all, that nobody else could read meanwhile."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def flush_folder(path: Union[str, os.PathLike[str]]) -> None:
    """Makes what was created, renamed and removed in a folder last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_for_socket() -> str:
    """A new temporary folder of this user alone, for a Unix socket.

    Such a socket's path has at most 107 bytes (unix(7)): a longer temporary folder is not used, but /tmp.
    """
    room = _SOCKET_PATH - len(f"/{_PREFIX}12345678/{SOCKET_NAME}")
    own = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix=_PREFIX, dir=own if len(os.fsencode(own)) <= room else "/tmp")
