"""Where connections come in: each proves a name before anything else, and has a thread of its own."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from keras_private.encrypted.cluster.certificates import Identity, peer_name, server_context
from keras_private.encrypted.cluster.config import Address
from keras_private.encrypted.cluster.wire import REFUSAL, Wire, after, refusal
from keras_private.errors import PrivacyError, TransportError

HANDSHAKE_SECONDS = 10.0
_PASSING = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
)
"""Errors of accept after which the next connection may come: the first four for want of room, the others of one that
was gone before it was taken (accept(2))."""
_PAUSE_SECONDS = 0.1


class Door:
    """Accepts connections that prove a name by a certificate of the same authority.

    Args:
        identity: Of who listens.
        listening: A socket that is bound.
        admit: Called with the name of who comes and the names of those who are here; raises TransportError to refuse.
        converse: Called with each connection that was admitted, on a thread of its own; it is closed afterwards.
        log: Says who was refused and who left.
        most: Connections together, those counted that have proved nothing yet; None for any number.
    """

    def __init__(
        self,
        identity: Identity,
        listening: socket.socket,
        admit: Callable[[str, list[str]], None],
        converse: Callable[[Wire], None],
        log: logging.Logger,
        most: int | None = None,
    ) -> None:
        self._context = server_context(identity)
        self._listening, self._admit, self._converse, self._log = listening, admit, converse, log
        self._free = None if most is None else threading.BoundedSemaphore(most)
        self._open: set[Wire] = set()
        self._lock = threading.Lock()
        self._closed = False

    def serve(self) -> None:
        """Accepts connections until `close`."""
        self._listening.listen(64)
        while not self._closed:
            try:
                plain, address = self._listening.accept()
            except OSError as error:
                if self._closed or error.errno not in _PASSING:
                    break
                # Whoever opens many connections shall not end who listens.
                self._log.warning("cannot accept a connection now: %s", error)
                time.sleep(_PAUSE_SECONDS)
                continue
            if self._free is not None and not self._free.acquire(blocking=False):
                self._log.warning("refused a connection from %s: there are too many", address[0])
                plain.close()
                continue
            try:
                threading.Thread(target=self._come, args=(plain, address), name="connection", daemon=True).start()
            except RuntimeError as error:
                self._log.warning("refused a connection from %s: %s", address[0], error)
                plain.close()
                if self._free is not None:
                    self._free.release()

    def close(self) -> None:
        """Accepts no more; those who are here stay until `end_all`. May be called by a signal's handler."""
        self._closed = True
        # A thread in accept would hold the address until somebody comes.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def names(self) -> list[str]:
        """Of those who are here, one for each connection."""
        with self._lock:
            return [each.peer for each in self._open]

    def end_all(self) -> None:
        """Ends every connection."""
        with self._lock:
            wires = list(self._open)
        for wire in wires:
            wire.close()

    def _come(self, plain: socket.socket, address: Any) -> None:
        try:
            self._talk(plain, address)
        finally:
            if self._free is not None:
                self._free.release()

    def _talk(self, plain: socket.socket, address: Any) -> None:
        try:
            plain.settimeout(HANDSHAKE_SECONDS)
            secured = self._context.wrap_socket(plain, server_side=True)
            wire = Wire(secured, peer_name(secured))
        except (OSError, ssl.SSLError, ValueError, PrivacyError) as error:
            self._log.warning("refused a connection from %s: %s", address[0], error)
            plain.close()
            return
        try:
            self._enter(wire)
            self._converse(wire)
        except TransportError as error:
            self._log.info("%s left: %s", wire.peer, error.problem)
        finally:
            wire.close()
            with self._lock:
                self._open.discard(wire)

    def _enter(self, wire: Wire) -> None:
        with self._lock:
            if self._closed:
                raise TransportError("it is closed", expected="an open one", remedy="start it again")
            try:
                self._admit(wire.peer, [each.peer for each in self._open])
            except TransportError as error:
                refused = error
            else:
                self._open.add(wire)
                return
        wire.send(REFUSAL, refusal(refused), deadline=after(HANDSHAKE_SECONDS))
        raise refused


def bound(address: Address, config: str) -> socket.socket:
    """A socket at a party's address, which refuses nobody from now on.

    Args:
        address: The party's.
        config: Name of the file that says so.

    Raises:
        TransportError: The address is not of this host, or in use.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((address.host, address.port))
        found.listen(64)
    except OSError as error:
        found.close()
        raise TransportError(
            f"{address.name} cannot listen at {address.host}:{address.port}: {error}",
            expected="an address of this host whose port is free",
            remedy=f"end what uses the port, or change {config} at all parties",
        ) from error
    return found
