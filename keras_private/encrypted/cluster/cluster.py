"""Three party processes, as an owner or a client of them sees them."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from keras_private.encrypted.cluster.certificates import Identity
from keras_private.encrypted.cluster.config import ClusterConfig, init
from keras_private.encrypted.cluster.links import dial
from keras_private.encrypted.cluster.wire import Wire
from keras_private.errors import ConfigurationError, TransportError

Result = TypeVar("Result")
START_SECONDS = 120.0
_LOCAL = "127.0.0.1"


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

    def __init__(
        self, config: ClusterConfig, folder: pathlib.Path, processes: dict[str, _Process] | None = None
    ) -> None:
        self.config, self.folder = config, folder
        self.parties: tuple[str, ...] = tuple(each.name for each in config.parties)
        self._processes = processes or {}
        self.runtimes: dict[str, Any] = {}
        self._finalizer = weakref.finalize(self, _end, self._processes, folder) if processes else None

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
        processes: dict[str, _Process] = {}
        sockets = []
        try:
            for _ in range(3):
                found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                # Its connections inherit this: a party that is started again finds its port free of them.
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.bind((_LOCAL, 0))
                # Refuses nobody while the process starts.
                found.listen(64)
                sockets.append(found)
            ports = [found.getsockname()[1] for found in sockets]
            config = init(folder, [_LOCAL] * 3, ports, clients=tuple(clients), owners=tuple(owners))
            for each, listening in zip(config.parties, sockets):
                processes[each.name] = _Process(
                    folder, each.name, each.port, ("--delay", str(delay), "--seconds", str(seconds))
                )
                processes[each.name].start(listening)
            cluster = cls(config, folder, processes)
            if verbose:
                print("Starting three parties on this machine ...", file=sys.stderr, flush=True)
            cluster.wait()
            return cluster
        except BaseException:
            _end(processes, folder)
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
            process = self._processes.get(party)
            while True:
                try:
                    wire = self.dial(self._speaker(), party, min(deadline, time.monotonic() + 5.0))
                    try:
                        wire.call({"call": "ping"}, deadline=min(deadline, time.monotonic() + 60.0))
                    finally:
                        wire.close()
                    break
                except TransportError:
                    if process is not None and not process.alive:
                        raise TransportError(
                            f"{party} ended while it started: {process.last_words()}",
                            expected="a process that serves",
                            remedy="look at what it says; `keras-private doctor` checks the installation",
                        ) from None
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(0.1)

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


def at_all(parties: Sequence[str], work: Callable[[str], Result]) -> list[Result]:
    """The same work at every party, at once; of several errors the first party's is raised, after all have ended."""
    with ThreadPoolExecutor(len(parties)) as pool:
        return [each.result() for each in [pool.submit(work, party) for party in parties]]


class _Process:
    """One party's process. It ends when the pipe to its input closes: with this process, however that ends."""

    def __init__(self, folder: pathlib.Path, name: str, port: int, options: Sequence[str]) -> None:
        self._folder, self._name, self._port, self._options = folder, name, port, list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / name / "log.txt"

    def start(self, listening: socket.socket | None) -> None:
        if listening is None:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
                fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                fresh.bind((_LOCAL, self._port))
                fresh.listen(64)
                self._spawn(fresh)
        else:
            self._spawn(listening)

    def _spawn(self, listening: socket.socket) -> None:
        command = [sys.executable, "-m", "keras_private.encrypted.cluster.process"]
        command += ["--name", self._name, "--config", str(self._folder / "cluster.json")]
        command += ["--socket", str(listening.fileno()), "--while-input", "--temporary", *self._options]
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listening.fileno()],
                env=environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def last_words(self) -> str:
        try:
            return self._log.read_text(errors="replace").strip().splitlines()[-1]
        except (OSError, IndexError):
            return "nothing was said"

    def stop(self) -> None:
        if self._process is None:
            return
        # Before its input closes: that would have it remove the folder.
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _end(processes: dict[str, _Process], folder: pathlib.Path) -> None:
    threads = [threading.Thread(target=process.stop) for process in processes.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shutil.rmtree(folder, ignore_errors=True)
