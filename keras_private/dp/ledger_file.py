"""One JSON document on disk with one writer: written whole, durable when `write` returns, refused when altered.

A write goes: temporary file beside the document, fsync, rename over it, fsync of the folder (the order that
rename(2) and fsync(2) need for a crash at any point to leave the old document or the new one, never a mixture).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import weakref
from typing import Any, Optional

from ..errors import LedgerError

FORMAT = "keras_private privacy ledger"
SCHEMA = 1
KEYS = {"format", "schema", "sequence", "sessions", "digest"}

_open_locks: weakref.WeakSet[DurableDocument] = weakref.WeakSet()
_at_fork: list[int] = []


class DurableDocument:
    """A list of plain dictionaries in a file, held by one process at a time.

    Guarantees:
        - `write` returns only when the new document would survive a power cut.
        - A reader sees a whole document or `LedgerError`: any byte changed, added or missing is found, since the
          file must equal the canonical form of its content and carry that content's SHA-256.
        - The lock goes with the process, however it dies; forked children neither hold it nor can write.
        - A second opener, in this process or another, gets `LedgerError`, so no update is lost.

    Not guaranteed: that nobody puts back an older copy, or forges a document with a right digest.

    Args:
        path: The document; its folder must exist. Beside it lie `path.lock` for good and `path.tmp` for moments.

    Raises:
        LedgerError: The document is held elsewhere, unreadable, truncated, altered or of another schema.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.sequence = 0
        self.sessions: Optional[list[dict[str, Any]]] = None
        self._temporary = self.path + ".tmp"
        self._lock: Optional[int] = _lock(self.path)
        self._owner = os.getpid()
        self._seen: Optional[tuple[int, ...]] = None
        _open_locks.add(self)
        try:
            self._remove_temporary()
            self._read()
        except BaseException:
            self.close()
            raise

    def write(self, sessions: list[dict[str, Any]]) -> None:
        """Replaces the document.

        Raises:
            LedgerError: It could not be made durable, was changed by someone else, or this object is closed or
                was inherited through a fork. After a failure nothing more is written: reopen to go on.
        """
        if self._lock is None or os.getpid() != self._owner:
            raise LedgerError(
                f"ledger {self.path} is not held by this process.",
                expected="the process that opened it, with the ledger open",
                remedy="Open the ledger in the process that trains.",
            )
        if _stamp(self.path) != self._seen:
            self.close()
            raise LedgerError(
                f"ledger {self.path} was changed or removed while it was in use.",
                expected="the file as this process last wrote it",
                remedy="Find out who touched it; nothing was overwritten.",
            )
        try:
            self._replace(render(self.sequence + 1, sessions))
        except OSError as error:
            self.close()
            raise LedgerError(
                f"ledger {self.path} could not be written: {error}.",
                expected="a writable folder with room on the disk",
                remedy="Repair that and start the fit again; reserved steps stay charged.",
            ) from error
        self.sequence += 1
        self.sessions = sessions
        self._seen = _stamp(self.path)

    def close(self) -> None:
        """Lets the next opener in. The lock file stays, since removing it would let two openers in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        _open_locks.discard(self)

    @property
    def closed(self) -> bool:
        return self._lock is None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()

    def _replace(self, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            file = os.open(self._temporary, flags, 0o600)
            try:
                while content:
                    content = content[os.write(file, content) :]
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(self._temporary, self.path)
        except OSError:
            self._remove_temporary()
            raise
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _remove_temporary(self) -> None:
        if os.path.lexists(self._temporary):
            os.unlink(self._temporary)

    def _read(self) -> None:
        try:
            with open(self.path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _damaged(self.path, str(error)) from error
        document = _parse(self.path, content)
        self.sequence, self.sessions = document["sequence"], document["sessions"]
        self._seen = _stamp(self.path)


def render(sequence: int, sessions: list[dict[str, Any]]) -> bytes:
    """The canonical bytes of a document."""
    body = {"format": FORMAT, "schema": SCHEMA, "sequence": sequence, "sessions": sessions}
    return (_canonical({**body, "digest": _digest(body)}) + "\n").encode()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=True)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def _parse(path: str, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no JSON document ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise _damaged(path, "it is no privacy ledger")
    if document.get("schema") != SCHEMA:
        raise _damaged(path, f"its schema is {document.get('schema')!r}, this version reads {SCHEMA}")
    sequence, sessions = document.get("sequence"), document.get("sessions")
    if set(document) != KEYS or type(sequence) is not int or type(sessions) is not list:
        raise _damaged(path, "its fields are not those of the schema")
    try:
        whole = sequence > 0 and all(isinstance(s, dict) for s in sessions) and render(sequence, sessions) == content
    except (TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not whole:
        raise _damaged(path, "its digest does not fit its content")
    return document


def _damaged(path: str, reason: str) -> LedgerError:
    return LedgerError(
        f"ledger {path} cannot be trusted: {reason}.",
        expected="the file as keras_private wrote it",
        remedy="Restore the ledger from a backup made after the last training; never start a new one for data "
        "that was trained on.",
    )


def _lock(path: str) -> int:
    if not _at_fork:
        os.register_at_fork(after_in_child=_forget_inherited)
        _at_fork.append(1)
    try:
        lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(
            f"ledger {path} cannot be opened: {error}.",
            expected="a path in an existing, writable folder",
            remedy="Create the folder, or name another path.",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise LedgerError(
            f"ledger {path} is in use by another training run.",
            expected="one writer at a time",
            remedy="Wait until that run ends, or stop it.",
        ) from error
    except OSError as error:
        os.close(lock)
        raise LedgerError(
            f"ledger {path} cannot be locked: {error}.",
            expected="a file system with flock",
            remedy="Keep the ledger on a local disk.",
        ) from error
    return lock


def _forget_inherited() -> None:
    """In a forked child: an inherited descriptor would keep the lock after the parent died."""
    for document in list(_open_locks):
        document.close()


def _stamp(path: str) -> Optional[tuple[int, ...]]:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
