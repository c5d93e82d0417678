"""A party's connections to the other two: one in each direction, so that neither waits for the other."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_private.encrypted.cluster.certificates import Identity, client_context, server_hostname
from keras_private.encrypted.cluster.config import ClusterConfig, Members, check_fingerprint
from keras_private.encrypted.cluster.wire import DATA, NOTICE, Frame, Header, Wire
from keras_private.errors import TransportError

_CONNECT_SECONDS = 5.0
_PATIENCE = 10.0
"""Seconds for which a party may leave what it is sent unread."""
_NOTICE_LIMIT = 1 << 20


def dial(config: Members, identity: Identity, party: str, deadline: float) -> Wire:
    """A connection to a party that has proved its name.

    Raises:
        TransportError: It cannot be reached in time, or it is somebody else.
    """
    check_fingerprint(config, identity)
    found = config.party(party)
    context = client_context(identity)
    try:
        plain = socket.create_connection((found.host, found.port), timeout=max(deadline - time.monotonic(), 1e-3))
    except OSError as error:
        raise TransportError(
            f"{party} cannot be reached at {found.host}:{found.port}: {error}",
            expected="a party that listens there",
            remedy=f"start it: {config.START}",
        ) from error
    try:
        return Wire(context.wrap_socket(plain, server_hostname=server_hostname(party)), party)
    except socket.timeout as error:
        plain.close()
        raise TransportError(
            f"{party} did not answer in time at {found.host}:{found.port}",
            expected="an answer before the deadline",
            remedy="look at its log; the request can be sent again",
        ) from error
    except (OSError, ValueError) as error:
        plain.close()
        raise TransportError(
            f"{party} at {found.host}:{found.port} is not who it should be, or does not know {identity.name}: {error}",
            expected="certificates of one authority, in their time",
            remedy=f"issue certificates anew: {config.INIT}",
        ) from error


class Links:
    """Sends to the other parties, and hands on what they send.

    Args:
        config: Of the cluster.
        identity: This party's.
        on_data: Called with (sender, frame) for each frame of a run.
        on_notice: Called with (sender, facts).
        limit: The most bytes that a data frame may have.
        on_loss: Called with (party, reason) when a connection from it ends.
    """

    def __init__(
        self,
        config: ClusterConfig,
        identity: Identity,
        on_data: Callable[[str, Frame], None],
        on_notice: Callable[[str, dict[str, Any]], None],
        limit: Callable[[str, Header], int],
        on_loss: Callable[[str, str], None],
    ) -> None:
        self._config, self._identity = config, identity
        self._on_data, self._on_notice, self._limit, self._on_loss = on_data, on_notice, limit, on_loss
        self.others = tuple(each.name for each in config.parties if each.name != identity.name)
        self._outgoing: dict[str, Wire] = {}
        self._locks = {each: threading.Lock() for each in self.others}
        self._incoming: dict[str, Wire] = {}
        self._closed = False
        self.bytes_sent = 0

    def data(self, target: str, key: bytes, number: int, arrays: Sequence[np.ndarray], deadline: float) -> None:
        """Sends a frame of a run.

        Raises:
            TransportError: The party cannot be reached.
        """
        self._send(target, DATA, None, arrays, key, number, deadline)

    def notice(self, target: str, facts: dict[str, Any], deadline: float | None = None) -> None:
        """Sends facts.

        Raises:
            TransportError: The party cannot be reached.
        """
        self._send(target, NOTICE, facts, (), bytes(16), 0, deadline or time.monotonic() + _CONNECT_SECONDS)

    def _send(
        self,
        target: str,
        kind: int,
        facts: dict[str, Any] | None,
        arrays: Sequence[np.ndarray],
        key: bytes,
        number: int,
        deadline: float,
    ) -> None:
        with self._locks[target]:
            # A run's later frames are lost with its earlier ones: only a run's first frame opens a new connection.
            if target not in self._outgoing:
                if self._closed or (kind == DATA and number):
                    raise TransportError(
                        f"the connection to {target} is gone", expected="an open one", remedy="send the request again"
                    )
                self._outgoing[target] = self._open(target, deadline)
            try:
                self.bytes_sent += self._outgoing[target].send(kind, facts, arrays, key, number, deadline)
            except TransportError:
                self._outgoing.pop(target).close()
                raise

    def _open(self, target: str, deadline: float) -> Wire:
        wire = dial(self._config, self._identity, target, min(deadline, time.monotonic() + _CONNECT_SECONDS))
        wire.call({"call": "link"}, deadline=deadline, most=0)
        return Wire(wire.connection, target, _PATIENCE)

    def renew(self, target: str) -> None:
        """Drops a connection that its receiver has lost, so that the next notice opens another."""
        with self._locks[target]:
            if target in self._outgoing:
                self._outgoing.pop(target).close()

    def receive(self, wire: Wire) -> None:
        """Reads what another party sends, until the connection ends."""
        party = wire.peer
        older = self._incoming.get(party)
        self._incoming[party] = wire
        if older is not None:
            older.close()
        reason = "closed"
        try:
            while True:
                frame = wire.receive(lambda header: self._most(party, header))
                if frame.header.kind == DATA:
                    self._on_data(party, frame)
                elif frame.header.kind == NOTICE:
                    self._on_notice(party, frame.facts)
                else:
                    raise TransportError(f"{party} sent kind {frame.header.kind}", expected="data", remedy="check it")
        except TransportError as error:
            reason = error.problem
        finally:
            wire.close()
            if self._incoming.get(party) is wire:
                self._incoming.pop(party)
                if not self._closed:
                    self._on_loss(party, reason)

    def _most(self, party: str, header: Header) -> int:
        if header.kind == NOTICE:
            return 0 if header.facts <= _NOTICE_LIMIT else -1
        return self._limit(party, header)

    def close(self) -> None:
        """Ends every connection."""
        self._closed = True
        for wire in [*self._outgoing.values(), *self._incoming.values()]:
            wire.close()
