"""cluster.json: who the three parties are, where they listen, and who may publish and ask."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

from keras_private.encrypted.cluster.certificates import (
    DAYS,
    Identity,
    authority,
    check_name,
    fingerprint,
    issue,
)
from keras_private.encrypted.players import SERVERS
from keras_private.errors import ConfigurationError
from keras_private.files import write_whole

FORMAT = 1
FILE = "cluster.json"
_MOST_DAYS = 3650


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a party listens."""

    name: str
    host: str
    port: int


class Members(Protocol):
    """What `dial` and a party's process have to know of those they belong to.

    Attributes:
        INIT: The command that makes their certificates.
        START: The command that starts a party.
    """

    INIT: ClassVar[str]
    START: ClassVar[str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate."""

    def party(self, name: str) -> Address:
        """Where a party listens; ConfigurationError if there is no such party."""


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """What all members of a cluster know.

    Attributes:
        parties: The three of them, in the protocol's order.
        owners: Names that may publish models.
        clients: Names that may ask for predictions.
        fingerprint: SHA-256 of the authority's certificate.
    """

    INIT: ClassVar[str] = "keras-private cluster init"
    START: ClassVar[str] = "keras-private party --name ... --config ..."

    parties: tuple[Address, Address, Address]
    owners: tuple[str, ...]
    clients: tuple[str, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        names = [each.name for each in self.parties]
        check_addresses(self.parties, SERVERS, self.INIT)
        members = [*names, *(check_name(each) for each in (*self.owners, *self.clients))]
        if len(set(members)) != len(members):
            raise _malformed(f"a name has two roles: {members}", "one role for each name")

    def party(self, name: str) -> Address:
        """
        Raises:
            ConfigurationError: There is no such party.
        """
        for each in self.parties:
            if each.name == name:
                return each
        raise ConfigurationError(f"{name!r} is no party", expected=f"one of {list(SERVERS)}", remedy="name one of them")

    @staticmethod
    def load(path: Any) -> ClusterConfig:
        """
        Raises:
            ConfigurationError: The file is missing or malformed.
        """
        place = pathlib.Path(path)
        try:
            found = json.loads(place.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise _malformed(f"{place} cannot be read: {error}", "what `keras-private cluster init` wrote") from error
        fields = {"format", "parties", "owners", "clients", "fingerprint"}
        if not isinstance(found, dict) or set(found) != fields or found["format"] != FORMAT:
            raise _malformed(f"{place} is of another format", f"the fields {sorted(fields)}, format {FORMAT}")
        try:
            parties = tuple(Address(each["name"], each["host"], each["port"]) for each in found["parties"])
            if any(set(each) != {"name", "host", "port"} for each in found["parties"]) or len(parties) != 3:
                raise TypeError("three parties, each with name, host and port")
            for field in ("owners", "clients"):
                if not isinstance(found[field], list):
                    raise TypeError(f"{field} is no list")
            if not isinstance(found["fingerprint"], str):
                raise TypeError("the fingerprint is no string")
        except (KeyError, TypeError) as error:
            raise _malformed(f"{place} is malformed: {error}", "three parties, owners and clients") from error
        return ClusterConfig(parties, tuple(found["owners"]), tuple(found["clients"]), found["fingerprint"])

    def save(self, path: Any) -> None:
        """Writes the file, whole or not at all."""
        place = pathlib.Path(path)
        facts = dataclasses.asdict(self)
        content = {
            "format": FORMAT,
            **{key: list(value) if key != "fingerprint" else value for key, value in facts.items()},
        }
        write_whole(place, (json.dumps(content, indent=1) + "\n").encode(), 0o644)


def init(
    folder: Any,
    hosts: Sequence[str],
    ports: Sequence[int],
    clients: Sequence[str] = ("client",),
    owners: Sequence[str] = ("owner",),
    days: float = DAYS,
) -> ClusterConfig:
    """Makes a cluster's files, all of them or none.

    cluster.json and, for each party, owner and client, a folder with its certificate, to be brought to its host; the
    authority's key stays in authority/, and should be kept away from all of them.

    Raises:
        ConfigurationError: The folder holds a cluster, or an argument does not fit.
    """
    target = pathlib.Path(folder)
    if (target / FILE).exists() or (target / "authority").exists():
        raise ConfigurationError(f"{target} holds a cluster", expected="a new folder", remedy="choose another one")
    if len(hosts) != 3 or len(ports) != 3:
        raise ConfigurationError(
            f"{len(hosts)} hosts and {len(ports)} ports", expected="three of each", remedy="give one for each party"
        )
    check_days(days)
    parties = tuple(Address(name, host, port) for name, host, port in zip(SERVERS, hosts, ports))
    ClusterConfig(parties, tuple(owners), tuple(clients), "")  # type: ignore[arg-type]
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".init.", dir=target) as temporary:
        new = pathlib.Path(temporary)
        authority(new / "authority", days)
        for name in (*SERVERS, *owners, *clients):
            issue(new / "authority", name, new / name, days)
        mark = fingerprint(new / "authority" / "ca.crt")
        config = ClusterConfig(parties, tuple(owners), tuple(clients), mark)  # type: ignore[arg-type]
        names = ("authority", *SERVERS, *owners, *clients)
        move_all(names, new, target, lambda: config.save(target / FILE))
    return config


def add_client(folder: Any, name: str, days: float = DAYS) -> ClusterConfig:
    """Adds a client to a cluster: its folder of certificates, and its name in cluster.json, both or neither.

    The parties learn of it once they have the new cluster.json and have been started again.

    Args:
        folder: Where `init` made the cluster, with the authority's key.
        name: Of the client.
        days: Until its certificate ends; it ends with the authority at the latest.

    Raises:
        ConfigurationError: The name cannot be used or is in use, or the authority is missing or another cluster's.
    """
    target = pathlib.Path(folder)
    before = ClusterConfig.load(target / FILE)
    check_days(days)
    config = dataclasses.replace(before, clients=(*before.clients, name))
    if (target / name).exists():
        raise ConfigurationError(f"{target / name} exists", expected="no such folder", remedy="choose another name")
    with tempfile.TemporaryDirectory(prefix=".client.", dir=target) as temporary:
        new = pathlib.Path(temporary) / name
        issue(target / "authority", name, new, days)
        if fingerprint(new / "ca.crt") != before.fingerprint:
            raise ConfigurationError(
                f"the authority in {target} is not that of {FILE}", expected="one cluster", remedy="restore the folder"
            )
        new.rename(target / name)
        try:
            config.save(target / FILE)
        except BaseException:
            shutil.rmtree(target / name, ignore_errors=True)
            raise
    return config


def move_all(names: Sequence[str], source: pathlib.Path, target: pathlib.Path, last: Callable[[], None]) -> None:
    """Moves files and folders from one folder to another and calls `last`, all of it or nothing."""
    moved: list[pathlib.Path] = []
    try:
        for each in names:
            (source / each).rename(target / each)
            moved.append(target / each)
        last()
    except BaseException:
        for each_folder in moved:
            shutil.rmtree(each_folder, ignore_errors=True)
        raise


def check_addresses(parties: Sequence[Address], names: Sequence[str], init: str) -> None:
    """
    Raises:
        ConfigurationError: They are not the parties of these names, or an address is none, or of two of them.
    """
    found = [each.name for each in parties]
    if found != list(names):
        raise malformed(f"the parties are {found}", f"{list(names)}, in this order", init)
    for each in parties:
        if not isinstance(each.host, str) or not each.host:
            raise malformed(f"the host of {each.name} is {each.host!r}", "a name or address", init)
        if type(each.port) is not int or not 1 <= each.port <= 65535:
            raise malformed(f"the port of {each.name} is {each.port!r}", "an integer from 1 to 65535", init)
    if len({(each.host, each.port) for each in parties}) != len(names):
        raise malformed("two parties have one address", f"{len(names)} addresses", init)


def check_days(days: float) -> None:
    """
    Raises:
        ConfigurationError: Certificates cannot hold so long.
    """
    if not 0 < days <= _MOST_DAYS:
        raise ConfigurationError(
            f"{days} days", expected=f"more than 0, at most {_MOST_DAYS}", remedy="choose when certificates end"
        )


def check_fingerprint(config: Members, identity: Identity) -> None:
    """
    Raises:
        ConfigurationError: The certificate is of another authority than the cluster's.
    """
    if identity.fingerprint != config.fingerprint:
        raise ConfigurationError(
            f"the certificate of {identity.name!r} is of another authority than the cluster's",
            expected=f"the authority {config.fingerprint[:16]}...",
            remedy=f"bring configuration and certificates of one `{config.INIT}`",
        )


def malformed(problem: str, expected: str, init: str) -> ConfigurationError:
    """What is wrong with a configuration that the command `init` makes."""
    return ConfigurationError(problem, expected=expected, remedy=f"make it anew with `{init}`")


def _malformed(problem: str, expected: str) -> ConfigurationError:
    return malformed(problem, expected, ClusterConfig.INIT)
