"""Links to workers of other hosts: TLS 1.3 with a certificate on both sides, around the worker's own protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Collection
from typing import Any, Callable, Optional

from ..encrypted.cluster.certificates import Identity, client_context, peer_name, server_context, server_hostname
from ..errors import TransportError
from ..files import SOCKET_NAME, folder_for_socket

_CHUNK = 1 << 18
CONNECT_SECONDS = 10.0
_SILENT_SECONDS, _PROBE_SECONDS, _PROBES = 30, 10, 3
"""After how long without a byte the other host is asked whether it is there, how often, and how many times. A host that
was switched off, or a middlebox that forgot the connection, says nothing by itself."""


class Tunnel:
    """Carries the connections that come to one place on to another, on a thread of its own.

    Made by `to_worker` at a coordinator and by `from_coordinators` at a worker's host.

    Attributes:
        port: Where it listens, if it listens on TCP.
    """

    def __init__(self, listen: Callable[[Any], Any], connect: Callable[[], Any], admit: Callable[[Any], bool]) -> None:
        self._listen, self._connect, self._admit = listen, connect, admit
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._failure: Optional[BaseException] = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keras-private-tunnel", daemon=True)
        self.port: Optional[int] = None
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._server = self._loop.run_until_complete(self._listen(self._come))
            name = self._server.sockets[0].getsockname()
            self.port = name[1] if isinstance(name, tuple) else None
        except BaseException as error:
            self._failure = error
            self._started.set()
            return
        self._started.set()
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _come(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other: Optional[asyncio.StreamWriter] = None
        try:
            if not self._admit(writer):
                return
            answers, there = await asyncio.wait_for(self._connect(), CONNECT_SECONDS)
            other = there
            for each in (writer, there):
                _ask_when_silent(each.get_extra_info("socket"))
            ways = [asyncio.ensure_future(_carry(reader, there)), asyncio.ensure_future(_carry(answers, writer))]
            _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, ssl.SSLError, asyncio.TimeoutError, asyncio.CancelledError):
            pass
        finally:
            for each in (writer, other):
                if each is not None:
                    with contextlib.suppress(Exception):
                        each.close()

    def close(self) -> None:
        """Ends it and its connections."""

        def end() -> None:
            self._server.close()
            self._loop.stop()

        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(end)
            self._thread.join(10)


def _ask_when_silent(connection: Any) -> None:
    """Has the system end a TCP connection whose other side is gone without a word."""
    if connection is None or connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENT_SECONDS),
        ("TCP_KEEPINTVL", _PROBE_SECONDS),
        ("TCP_KEEPCNT", _PROBES),
        # Bytes that nobody confirms, for which no question is sent: in milliseconds.
        ("TCP_USER_TIMEOUT", 1000 * (_SILENT_SECONDS + _PROBE_SECONDS * _PROBES)),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


class LinkToWorker:
    """A Unix socket of this process that leads to a worker on another host.

    Guarantees:
        - The link is TLS 1.3; the worker proves `name` by a certificate of the cluster's authority before a byte is
          sent, and this side proves the name of `identity`.

    Args:
        name: The name that the worker must prove.
        host: Where it listens.
        port: Where it listens.
        identity: Of this side.

    Raises:
        TransportError: Nobody is there, or somebody who cannot prove the name.
    """

    def __init__(self, name: str, host: str, port: int, identity: Identity) -> None:
        context = client_context(identity)
        self._folder = folder_for_socket()
        path = os.path.join(self._folder, SOCKET_NAME)

        async def connect() -> Any:
            return await asyncio.open_connection(
                host, port, ssl=context, server_hostname=server_hostname(name), limit=_CHUNK
            )

        async def listen(come: Any) -> Any:
            # Tried once at the start: what fails later could only be seen as a broken connection.
            try:
                _, writer = await asyncio.wait_for(connect(), CONNECT_SECONDS)
            except ssl.SSLError as error:
                raise TransportError(
                    f"Who answers as the worker {name!r} at {host}:{port} is not who it should be: {error}",
                    expected="a certificate of this name, of the same authority, in its time",
                    remedy="Nothing was sent. Find out who listens there; issue certificates anew if they ended.",
                ) from error
            except (OSError, asyncio.TimeoutError) as error:
                raise TransportError(
                    f"The worker {name!r} at {host}:{port} cannot be reached: {error or type(error).__name__}",
                    expected="a worker that listens there",
                    remedy="Start it with `keras-private worker`, and look at addresses and firewalls.",
                ) from error
            writer.close()
            return await asyncio.start_unix_server(come, path, limit=_CHUNK)

        try:
            self._tunnel = Tunnel(listen, connect, lambda writer: True)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self.target = f"unix:{path}"

    def close(self) -> None:
        self._tunnel.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def from_coordinators(host: str, port: int, identity: Identity, admitted: Collection[str], door: str) -> Tunnel:
    """Listens for coordinators, and leads those that prove an admitted name to a worker's Unix socket.

    Args:
        host: Interface to listen on.
        port: Port; 0 for any.
        identity: Of the worker.
        admitted: Names of coordinators.
        door: Path of the worker's socket.

    Raises:
        TransportError: It cannot listen there.
    """
    context = server_context(identity)

    async def connect() -> Any:
        return await asyncio.open_unix_connection(door, limit=_CHUNK)

    async def listen(come: Any) -> Any:
        try:
            return await asyncio.start_server(
                come, host, port, ssl=context, limit=_CHUNK, ssl_handshake_timeout=CONNECT_SECONDS
            )
        except OSError as error:
            raise TransportError(
                f"Nothing can listen on {host}:{port}: {error}", expected="a free port", remedy="Choose another one."
            ) from error

    def admit(writer: asyncio.StreamWriter) -> bool:
        try:
            return peer_name(writer.get_extra_info("ssl_object")) in admitted
        except TransportError:
            return False

    return Tunnel(listen, connect, admit)
