"""Three party processes, as an owner or a client of them sees them."""

from __future__ import annotations

import functools
import pathlib
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from keras_private.encrypted.cluster.certificates import Identity
from keras_private.encrypted.cluster.children import LOCAL, Child, end, listening, wait_for
from keras_private.encrypted.cluster.config import FILE, ClusterConfig, init
from keras_private.encrypted.cluster.links import dial
from keras_private.encrypted.cluster.wire import Wire
from keras_private.errors import ConfigurationError

Result = TypeVar("Result")
START_SECONDS = 120.0
_MODULE = "keras_private.encrypted.cluster.process"


class Cluster:
    """The three parties of a cluster.json, and the certificates of those who speak to them from this process.

    | who                                | learns                                                               |
    |------------------------------------|----------------------------------------------------------------------|
    | each party                         | architecture, shapes, who asks when for how many rows                |
    | two parties that collude           | everything: weights, inputs and predictions                          |
    | owner of a model                   | nothing of the requests                                              |
    | client                             | its predictions, the input's shape and range                         |
    | network                            | who speaks to whom, when, how much                                   |

    Args:
        config: Addresses, and who may do what.
        folder: With a folder of certificates for each name that this process speaks as.
        processes: Those that this process has started, by party.

    Attributes:
        runtimes: Those of the tensor chain, by the name that they speak as.
    """

    def __init__(self, config: ClusterConfig, folder: pathlib.Path, processes: dict[str, Child] | None = None) -> None:
        self.config, self.folder = config, folder
        self.parties: tuple[str, ...] = tuple(each.name for each in config.parties)
        self._processes = processes or {}
        self.runtimes: dict[str, Any] = {}
        self._finalizer = weakref.finalize(self, end, self._processes, folder) if processes else None

    @classmethod
    def load(cls, path: Any, folder: Any = None) -> Cluster:
        """
        Args:
            path: cluster.json, as `keras-private cluster init` writes it.
            folder: Where certificates are, in a folder for each name; by default beside cluster.json.

        Raises:
            ConfigurationError: The file is missing or malformed.
        """
        place = pathlib.Path(path)
        return cls(ClusterConfig.load(place), pathlib.Path(folder) if folder else place.parent)

    @classmethod
    def local(
        cls,
        clients: Sequence[str] = ("client",),
        owners: Sequence[str] = ("owner",),
        *,
        delay: float = 0.002,
        seconds: float = 60.0,
        verbose: bool = True,
    ) -> Cluster:
        """Three processes on this machine, with certificates of their own; ended by `close` or with this process.

        They protect from each other as far as the operating system keeps processes of one user apart: whoever runs as
        this user, or as root, can read all three. For protection put them on hosts of different owners.

        Args:
            clients: Names that may ask for predictions.
            owners: Names that may publish models.
            delay: Seconds that a request waits for others to be computed with.
            seconds: The longest that a run may take.
            verbose: Whether a line says that the parties are starting.

        Raises:
            TransportError: A party did not start.
        """
        folder = pathlib.Path(tempfile.mkdtemp(prefix="keras_private_cluster_"))
        processes: dict[str, Child] = {}
        sockets: list[socket.socket] = []
        try:
            sockets = [listening(LOCAL) for _ in range(3)]
            ports = [found.getsockname()[1] for found in sockets]
            config = init(folder, [LOCAL] * 3, ports, clients=tuple(clients), owners=tuple(owners))
            for each, found in zip(config.parties, sockets):
                options = ("--delay", str(delay), "--seconds", str(seconds))
                processes[each.name] = Child(_MODULE, folder / FILE, each, options)
                processes[each.name].start(found)
            cluster = cls(config, folder, processes)
            if verbose:
                print("Starting three parties on this machine ...", file=sys.stderr, flush=True)
            cluster.wait()
            return cluster
        except BaseException:
            end(processes, folder)
            raise
        finally:
            for found in sockets:
                found.close()

    @property
    def simulated(self) -> bool:
        """Whether all three run on this machine under this user."""
        return bool(self._processes)

    def identity(self, name: str) -> Identity:
        """Certificate and key of one who speaks to the parties from here.

        Raises:
            PrivacyError: They are missing, expired or foreign.
        """
        return Identity.load(self.folder / name, name)

    def dial(self, name: str, party: str, deadline: float) -> Wire:
        """A connection to one party, as `name`.

        Raises:
            TransportError: It cannot be reached in time, or is somebody else.
        """
        return dial(self.config, self.identity(name), party, deadline)

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Until all three answer.

        Raises:
            TransportError: One of them has ended, or does not answer in time.
        """
        deadline = time.monotonic() + seconds
        for party in self.parties:
            wait_for(party, functools.partial(self.dial, self._speaker(), party), self._processes.get(party), deadline)

    def _speaker(self) -> str:
        for name in (*self.config.owners, *self.config.clients):
            if (self.folder / name).is_dir():
                return name
        raise ConfigurationError(
            f"{self.folder} holds no certificate of an owner or client",
            expected=f"a folder for one of {[*self.config.owners, *self.config.clients]}",
            remedy="copy it from where `keras-private cluster init` ran, or give folder=",
        )

    def status(self) -> dict[str, dict[str, Any]]:
        """What each party says of itself: its models, runs, rows, bytes sent.

        Raises:
            TransportError: One does not answer.
        """

        def ask(party: str) -> dict[str, Any]:
            deadline = time.monotonic() + 10.0
            wire = self.dial(self._speaker(), party, deadline)
            try:
                return wire.call({"call": "ping"}, deadline=deadline).facts
            finally:
                wire.close()

        return dict(zip(self.parties, at_all(self.parties, ask)))

    def restart(self, party: str) -> None:
        """Ends one local party and starts it again; what was published there must be published again.

        Raises:
            ConfigurationError: This process did not start it.
        """
        if party not in self._processes:
            raise ConfigurationError(
                f"{party!r} was not started here",
                expected=f"one of {sorted(self._processes)}",
                remedy="restart it there",
            )
        self._processes[party].stop()
        self._processes[party].start(None)
        self.wait()

    def process_ids(self) -> dict[str, int]:
        """Of the processes that were started here."""
        return {name: process.pid for name, process in self._processes.items()}

    def close(self) -> None:
        """Ends the processes that were started here, and removes their certificates."""
        while self.runtimes:
            self.runtimes.popitem()[1].close()
        if self._finalizer is not None:
            self._finalizer()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        places = ", ".join(f"{each.name} at {each.host}:{each.port}" for each in self.config.parties)
        return f"<Cluster {places}{', processes of this machine' if self.simulated else ''}>"


def require_cluster(cluster: Any) -> None:
    """
    Raises:
        ConfigurationError: It is no Cluster; the two parties of secure aggregation are none.
    """
    if not isinstance(cluster, Cluster):
        raise ConfigurationError(
            f"cluster is a {type(cluster).__name__}",
            expected="a Cluster, whose three parties compute on shares",
            remedy="use Cluster.local(), or Cluster.load of the file that `keras-private cluster init` made",
        )


def at_all(parties: Sequence[str], work: Callable[[str], Result]) -> list[Result]:
    """The same work at every party, at once; of several errors the first party's is raised, after all have ended."""
    with ThreadPoolExecutor(len(parties)) as pool:
        return [each.result() for each in [pool.submit(work, party) for party in parties]]
