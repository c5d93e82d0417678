"""Both pad parties as processes of this one, on loopback, for as long as a context lasts."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ...encrypted.cluster.certificates import Identity
from ...encrypted.cluster.children import LOCAL, Child, end, listening, wait_for
from ...encrypted.cluster.links import dial
from ...files import write_whole
from ..aggregators.masking import keys
from .config import CLIENTS, COORDINATOR, FILE, PARTIES, SECONDS, init

if TYPE_CHECKING:
    from .remote import RemotePadParty

START_SECONDS = 120.0
_MODULE = "keras_private.federated.pad_service.process"
_NAMES = "names.json"


class LocalPadParties(tuple["RemotePadParty", "RemotePadParty"]):
    """Two parties, and where they are.

    Attributes:
        keys: Folder with the key files of the clients that were named, for `SecureAggregation(keys=...)`.
        config: Path of their pads.json.
        process_ids: By the party's name.
    """

    keys: str
    config: str
    process_ids: dict[str, int]


@contextlib.contextmanager
def local_pad_parties(
    clients: Iterable[str] = (), *, min_clients: int = 2, seconds: float = SECONDS, verbose: bool = True
) -> Iterator[LocalPadParties]:
    """Two processes on this machine, with temporary certificates; gone when the context is left or this process ends.

    Guarantees:
        - Each party draws its master key itself and keeps it in memory: no file has it, and this process never has it.
          The key between both goes through a pipe that only they hold.
        - They end with this process, however that ends, and their folder is removed, unless they are killed as well.

    Not guaranteed:
        - Protection from whoever runs this process: it started them, as this user, and can read the clients' keys, as
          `simulated` says. For protection, put the parties on hosts of different owners: `pad_parties`.

    Args:
        clients: Names for which the parties write key files.
        min_clients: No sum over fewer is opened.
        seconds: That a call may take.
        verbose: Whether a line says that the parties are starting.

    Raises:
        ConfigurationError: A name cannot be part of a file's name, or a number is out of range.
        TransportError: A party did not start.
    """
    names = list(clients)
    keys.check_names(names)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="keras-private-pads-"))
    processes: dict[str, Child] = {}
    try:
        found = _started(folder, names, min_clients, seconds, verbose, processes)
        yield found
    finally:
        end(processes, folder)


def _started(
    folder: pathlib.Path,
    names: list[str],
    min_clients: int,
    seconds: float,
    verbose: bool,
    processes: dict[str, Child],
) -> LocalPadParties:
    with contextlib.ExitStack() as open_here:
        sockets: list[socket.socket] = [open_here.enter_context(listening(LOCAL)) for _ in PARTIES]
        ports = [each.getsockname()[1] for each in sockets]
        config = init(folder, [LOCAL] * 2, ports, (), min_clients, with_secrets=False)
        write_whole(folder / _NAMES, json.dumps(names).encode(), 0o600)
        reading, writing = os.pipe()
        for each in (reading, writing):
            open_here.callback(os.close, each)
        # First who writes.
        for address, open_socket, pipe in zip(config.parties, sockets, (writing, reading)):
            options = ("--between", str(pipe), "--clients", str(folder / _NAMES))
            processes[address.name] = Child(_MODULE, folder / FILE, address, options)
            processes[address.name].start(open_socket, [pipe])
    if verbose:
        print("Starting two pad parties on this machine ...", file=sys.stderr, flush=True)
    # While they start, this process imports what they do.
    from .remote import RemotePadParty

    identity = Identity.load(folder / COORDINATOR, COORDINATOR)
    deadline = time.monotonic() + START_SECONDS
    for name in PARTIES:
        wait_for(name, functools.partial(dial, config, identity, name), processes[name], deadline)
    parties = LocalPadParties(
        RemotePadParty(config, name, identity, seconds, functools.partial(_simulated, name)) for name in PARTIES
    )
    parties.keys, parties.config = str(folder / CLIENTS), str(folder / FILE)
    parties.process_ids = {name: process.pid for name, process in processes.items()}
    return parties


def _simulated(name: str) -> tuple[str, ...]:
    return (f"{name} is a process of this machine and user, which this process has started",)
