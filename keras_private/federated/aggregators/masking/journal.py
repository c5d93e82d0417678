"""What a party has answered, remembered across restarts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any, Optional

from ....errors import LedgerError
from ....files import flush_folder, write_whole

_START = hashlib.sha256(b"keras-private pads").hexdigest()


class Journal:
    """Rounds that were answered, and nonces that were used.

    Guarantees:
        - What `record` took is on disk before it returns, and found again after a kill at any point.
        - Each line holds the digest of all before it: an altered file is refused. An unfinished last line is of an
          answer that was never given, and is dropped.
        - One process at a time.
        - Its head, a second file, holds how many lines there were and the digest of all of them. A journal from which
          whole lines were cut, or that is missing, is refused as long as the head is not as old.

    Not guaranteed:
        - That a journal is refused which was put back together with its head, as from a backup of both: keep the head
          on another disk, both where the party alone can write, and never restore them while the master key is in use.

    Args:
        path: The file, made if it is not there; None keeps it in memory.
        head: Of the second file; by default `path` with .head after it.

    Raises:
        LedgerError: Another process has it, or it was altered.
    """

    def __init__(self, path: Any = None, head: Any = None) -> None:
        self._rounds: set[tuple[str, int]] = set()
        self._nonces: set[bytes] = set()
        self._last = _START
        self._file: Optional[int] = None
        self._broken = False
        if path is None:
            return
        self._path = pathlib.Path(path)
        self._head = self._path.with_name(f"{self._path.name}.head") if head is None else pathlib.Path(head)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            flush_folder(self._path.parent)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self.close()
            raise LedgerError(
                f"{self._path} is in use by another process.",
                expected="one party to a journal",
                remedy="End the other.",
            ) from error
        except BaseException:
            self.close()
            raise

    def has_round(self, session: str, number: int) -> bool:
        return (session, number) in self._rounds

    def has_nonce(self, nonce: bytes) -> bool:
        return nonce in self._nonces

    def record(self, session: str, number: int, nonces: Iterable[bytes]) -> None:
        """Remembers a round and its nonces.

        Raises:
            OSError: It cannot be written; then nothing may be answered.
        """
        if self._broken:
            raise OSError(f"{self._path}: closed, or an earlier line was not written whole; start the party again")
        used = list(nonces)
        body = json.dumps([session, number, [each.hex() for each in used]])
        digest = _chained(self._last, body)
        if self._file is not None:
            line = f"{digest} {body}\n".encode()
            # Until all of it is on disk nothing may follow it.
            self._broken = True
            if os.write(self._file, line) != len(line):
                raise OSError(f"{self._path}: only a part was written")
            os.fsync(self._file)
            self._write_head(len(self._rounds) + 1, digest)
            self._broken = False
        self._remember(digest, session, number, used)

    def _remember(self, digest: str, session: str, number: int, nonces: list[bytes]) -> None:
        self._last = digest
        self._rounds.add((session, number))
        self._nonces.update(nonces)

    def _read(self) -> None:
        assert self._file is not None
        content, head = self._path.read_bytes(), self._read_head()
        whole, separator, rest = content.rpartition(b"\n")
        digests = [_START]
        for line in (whole + separator).splitlines():
            try:
                digest, _, body = line.decode().partition(" ")
                session, number, nonces = json.loads(body)
                used = [bytes.fromhex(each) for each in nonces]
            except (ValueError, TypeError) as error:
                raise self._altered() from error
            if digest != _chained(self._last, body):
                raise self._altered()
            self._remember(digest, session, number, used)
            digests.append(digest)
        # A kill after a line and before the head leaves the head behind, and the first line without one.
        if head is None and len(digests) > 2:
            raise self._altered(f"{self._head} is missing")
        if head is not None and (head[0] >= len(digests) or digests[head[0]] != head[1]):
            raise self._altered(f"{self._head} knows of {head[0]} answers")
        if rest:
            os.ftruncate(self._file, len(content) - len(rest))
            os.fsync(self._file)

    def _write_head(self, count: int, digest: str) -> None:
        write_whole(self._head, f"{count} {digest}\n".encode(), 0o600)
        flush_folder(self._head.parent)

    def _read_head(self) -> Optional[tuple[int, str]]:
        try:
            count, digest = self._head.read_text().split()
            return int(count), digest
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise self._altered(f"{self._head} is damaged") from error

    def _altered(self, how: str = "") -> LedgerError:
        return LedgerError(
            f"{self._path} was altered{f': {how}' if how else ''}.",
            expected="the journal as this party wrote it",
            remedy="Restore it, or give the party a new key and its clients new files; the old pads are lost.",
        )

    def close(self) -> None:
        if self._file is not None:
            # Nothing is answered any more: it would be forgotten.
            self._broken = True
            os.close(self._file)
            self._file = None


def _chained(last: str, body: str) -> str:
    return hashlib.sha256(f"{last} {body}".encode()).hexdigest()
