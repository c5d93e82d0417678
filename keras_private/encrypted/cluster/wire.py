"""Frames over a TLS connection: a header of fixed length, facts as JSON, and the bytes of tensors.

The size of a frame is checked before it is read, and by whoever knows what to expect.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from keras_private import errors
from keras_private.errors import PrivacyError, TransportError

_HEADER = struct.Struct("!4sB16sIIQ")
_MAGIC = b"KPW1"
_JOINED = 1 << 16
_RECORD = 1 << 14
FACTS_LIMIT = 16 << 20
NO_KEY = bytes(16)

_Call = TypeVar("_Call")

CALL, REPLY, REFUSAL, DATA, NOTICE = range(1, 6)


class Header(NamedTuple):
    """What is known of a frame before it is read.

    Attributes:
        kind: CALL, REPLY or REFUSAL between a caller and a party; DATA or NOTICE between parties.
        key: Of the run or request that it belongs to.
        number: Of the frame in its run.
        facts: Length of the JSON.
        size: Bytes of tensors.
    """

    kind: int
    key: bytes
    number: int
    facts: int
    size: int


class Frame(NamedTuple):
    """A frame that was read."""

    header: Header
    facts: dict[str, Any]
    payload: memoryview


class Wire:
    """One connection; of one thread at a time, and in one direction at a time.

    Args:
        connection: After its handshake.
        peer: Name of the other side, as its certificate says.
        patience: Seconds that the other side may take to accept bytes, whatever the deadline; None obeys deadlines.
    """

    def __init__(self, connection: ssl.SSLSocket, peer: str, patience: float | None = None) -> None:
        self.connection, self.peer = connection, peer
        self._broken = False
        self._limited: float | None = -1.0
        self._patience = patience
        self._kept = memoryview(b"")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(
        self,
        kind: int,
        facts: dict[str, Any] | None = None,
        arrays: Sequence[np.ndarray] = (),
        key: bytes = NO_KEY,
        number: int = 0,
        deadline: float | None = None,
    ) -> int:
        """Sends one frame; returns its length in bytes.

        Raises:
            TransportError: The connection is gone, or the deadline passed.
        """
        text = b"" if facts is None else json.dumps(facts, separators=(",", ":")).encode()
        size = sum(array.nbytes for array in arrays)
        head = _HEADER.pack(_MAGIC, kind, key, number, len(text), size) + text
        buffers = [np.ascontiguousarray(array).data.cast("B") for array in arrays if array.nbytes]
        try:
            self._wait_until(deadline)
            if size <= _JOINED:
                self.connection.sendall(b"".join([head, *buffers]))
            else:
                self.connection.sendall(head)
                for buffer in buffers:
                    self.connection.sendall(buffer)
        except (OSError, ValueError) as error:
            raise self._gone(error) from error
        return len(head) + size

    def receive(self, limit: Callable[[Header], int], deadline: float | None = None) -> Frame:
        """Reads one frame.

        Args:
            limit: The most bytes of tensors that a frame of this header may have; may raise.
            deadline: On time.monotonic(); None waits for ever.

        Raises:
            TransportError: The connection is gone, the deadline passed, or what came is no frame or too large.
        """
        magic, kind, key, number, length, size = _HEADER.unpack(self._exactly(_HEADER.size, deadline))
        self._broken = self._broken or magic != _MAGIC
        if magic != _MAGIC:
            raise TransportError(
                f"{self.peer} sent bytes that are no frame", expected="this package's protocol", remedy="check versions"
            )
        header = Header(kind, key, number, length, size)
        if length > FACTS_LIMIT or size > limit(header):
            self._broken = True
            raise TransportError(
                f"{self.peer} announced a frame of {length} + {size} bytes",
                expected="a frame of the size that the program says",
                remedy="check that both sides run the same version",
            )
        facts: dict[str, Any] = {}
        if length:
            try:
                facts = json.loads(bytes(self._exactly(length, deadline)))
            except (ValueError, RecursionError) as error:
                raise TransportError(
                    f"{self.peer} sent what is no JSON: {error}", expected="a frame", remedy="check versions"
                ) from error
            if not isinstance(facts, dict):
                raise TransportError(f"{self.peer} sent a {type(facts).__name__}", expected="facts", remedy="check it")
        return Frame(header, facts, self._exactly(size, deadline))

    def _exactly(self, count: int, deadline: float | None) -> memoryview:
        """The next `count` bytes. A small frame is one record: its header brings what follows along."""
        kept = self._kept
        if len(kept) >= count:
            self._kept = kept[count:]
            return kept[:count]
        view = memoryview(bytearray(count))
        view[: len(kept)] = kept
        done, self._kept = len(kept), kept[:0]
        while count - done >= _JOINED:
            done += self._some(view[done:], deadline)
        while done < count:
            record = memoryview(bytearray(_RECORD))
            found = self._some(record, deadline)
            used = min(found, count - done)
            view[done : done + used] = record[:used]
            done, self._kept = done + used, record[used:found]
        return view

    def _some(self, view: memoryview, deadline: float | None) -> int:
        try:
            self._wait_until(deadline)
            found = self.connection.recv_into(view)
        except (OSError, ValueError) as error:
            raise self._gone(error) from error
        if not found:
            raise self._gone(EOFError("it was closed"))
        return found

    def _wait_until(self, deadline: float | None) -> None:
        """Sets the time limit of the next call; as a system call only where it has changed."""
        if self._patience is not None:
            left: float | None = self._patience
            known = self._limited == left
        else:
            left = _left(deadline)
            known = left is None and self._limited is None
        if known:
            return
        self._limited = left
        self.connection.settimeout(left)

    @property
    def usable(self) -> bool:
        """Whether another call can be made: all frames were whole, and the other side has not closed it."""
        try:
            return not self._broken and not self._kept and not select.select([self.connection], [], [], 0)[0]
        except (OSError, ValueError):
            return False

    def _gone(self, error: BaseException) -> TransportError:
        self._broken = True
        late = isinstance(error, TimeoutError) or "timed out" in str(error)
        return TransportError(
            f"{self.peer} did not answer in time" if late else f"the connection to {self.peer} broke: {error}",
            expected="an answer before the deadline" if late else "a process that lives on",
            remedy="look at its log; the request can be sent again" if late else "look whether it runs, and try again",
        )

    def close(self) -> None:
        """Closes at once, whoever is reading."""
        with contextlib.suppress(OSError, ValueError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def call(
        self,
        facts: dict[str, Any],
        arrays: Sequence[np.ndarray] = (),
        deadline: float | None = None,
        most: int = 1 << 32,
    ) -> Frame:
        """Sends a call and waits for its reply.

        Raises:
            TransportError: As send and receive.
            PrivacyError: What the other side raised.
        """
        self.send(CALL, facts, arrays, deadline=deadline)
        frame = self.receive(lambda header: most, deadline)
        if frame.header.kind == REFUSAL:
            raise raised_there(frame.facts, self.peer)
        if frame.header.kind != REPLY:
            raise TransportError(f"{self.peer} sent no reply", expected="a reply", remedy="check versions")
        return frame


def described(arrays: Sequence[np.ndarray]) -> list[list[Any]]:
    """dtype and shape of each, for the facts of a frame."""
    return [[array.dtype.name, list(array.shape)] for array in arrays]


class Layout:
    """How the tensors of a frame lie in its payload, worked out once.

    Args:
        specs: dtype and shape of each, in order: what the receiver expects.
    """

    def __init__(self, specs: Sequence[tuple[str, Sequence[int]]]) -> None:
        self._specs = [(dtype, tuple(shape)) for dtype, shape in specs]
        self._places: list[tuple[np.dtype[Any], int, int, tuple[int, ...]]] = []
        self.size = 0
        for dtype, shape in self._specs:
            kind, count = np.dtype(dtype), math.prod(shape)
            self._places.append((kind, count, self.size, shape))
            self.size += count * kind.itemsize

    def arrays(self, payload: memoryview, peer: str) -> list[np.ndarray]:
        """The tensors, without a copy.

        Args:
            payload: Of the frame.
            peer: Who sent it.

        Raises:
            TransportError: The payload has another length.
        """
        if len(payload) != self.size:
            raise TransportError(
                f"{peer} sent {len(payload)} bytes of tensors",
                expected=f"tensors of {', '.join(f'{kind}{list(shape)}' for kind, shape in self._specs) or 'no size'}",
                remedy="check that both sides run the same version",
            )
        return [np.frombuffer(payload, kind, count, start).reshape(shape) for kind, count, start, shape in self._places]


def arrays_of(payload: memoryview, specs: Sequence[tuple[str, Sequence[int]]], peer: str) -> list[np.ndarray]:
    """The tensors of a frame that comes once; see Layout."""
    return Layout(specs).arrays(payload, peer)


def chosen(calls: Mapping[str, _Call], frame: Frame, peer: str) -> _Call:
    """The one of a peer's calls that its frame asks for.

    Raises:
        TransportError: It is none of them.
    """
    call = calls.get(str(frame.facts.get("call")))
    if call is None:
        raise TransportError(
            f"{peer} may not call {frame.facts.get('call')!r}",
            expected=f"one of {sorted(calls)}",
            remedy="use a certificate for that role",
        )
    return call


def refusal(error: BaseException) -> dict[str, Any]:
    """An error as facts. Of errors that are not ours the class alone: a message might hold values."""
    if isinstance(error, PrivacyError):
        return {
            "type": type(error).__name__,
            "problem": error.problem,
            "expected": error.expected,
            "remedy": error.remedy,
        }
    return {"type": "TransportError", "problem": f"an internal {type(error).__name__}", "expected": "", "remedy": ""}


def raised_there(facts: dict[str, Any], peer: str) -> PrivacyError:
    """The error that `refusal` described."""
    kind = getattr(errors, str(facts.get("type")), TransportError)
    if not (isinstance(kind, type) and issubclass(kind, PrivacyError)):
        kind = TransportError
    problem = f"{peer}: {facts.get('problem', 'refused')}"
    return kind(problem, expected=str(facts.get("expected", "")), remedy=str(facts.get("remedy", "")))


def after(seconds: float) -> float:
    """The deadline that is so far away."""
    return time.monotonic() + seconds


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    return max(deadline - time.monotonic(), 1e-3)
