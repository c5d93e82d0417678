"""pads.json: where the two parties listen; and the folders that go to the hosts of parties, coordinator and clients."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import secrets
import stat
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from ...encrypted.cluster.certificates import DAYS, authority, fingerprint, issue
from ...encrypted.cluster.config import Address, check_addresses, check_days, malformed, move_all
from ...errors import ConfigurationError
from ...files import write_whole
from ..aggregators.masking import keys
from ..checks import is_whole

FORMAT = 1
FILE = "pads.json"
PARTIES = ("party0", "party1")
COORDINATOR = "coordinator"
CLIENTS = "clients"
MASTER, BETWEEN = "master.key", "between.key"
SECONDS = 60.0
"""That a call may take, unless said otherwise."""
_SECRET_BYTES = 32


@dataclasses.dataclass(frozen=True)
class PadsConfig:
    """What both parties and the coordinator know; no secret.

    Attributes:
        parties: party0 and party1.
        min_clients: No party answers for fewer.
        fingerprint: SHA-256 of the authority's certificate.
    """

    INIT: ClassVar[str] = "keras-private pads init"
    START: ClassVar[str] = "keras-private pads party --name ... --config ..."

    parties: tuple[Address, Address]
    min_clients: int
    fingerprint: str

    def __post_init__(self) -> None:
        check_addresses(self.parties, PARTIES, self.INIT)
        if not is_whole(self.min_clients) or self.min_clients < 2:
            raise malformed(f"min_clients is {self.min_clients!r}", "a whole number, at least 2", self.INIT)

    def party(self, name: str) -> Address:
        """
        Raises:
            ConfigurationError: There is no such party.
        """
        if name not in PARTIES:
            raise ConfigurationError(f"{name!r} is no party", expected=f"one of {list(PARTIES)}", remedy="name one")
        return self.parties[PARTIES.index(name)]

    @staticmethod
    def load(path: Any) -> PadsConfig:
        """
        Raises:
            ConfigurationError: The file is missing or malformed.
        """
        place, init = pathlib.Path(path), PadsConfig.INIT
        try:
            found = json.loads(place.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise malformed(f"{place} cannot be read: {error}", f"what `{init}` wrote", init) from error
        fields = {"format", "parties", "min_clients", "fingerprint"}
        if not isinstance(found, dict) or set(found) != fields or found["format"] != FORMAT:
            raise malformed(f"{place} is of another format", f"the fields {sorted(fields)}, format {FORMAT}", init)
        try:
            if any(set(each) != {"name", "host", "port"} for each in found["parties"]) or len(found["parties"]) != 2:
                raise TypeError("two parties, each with name, host and port")
            if not isinstance(found["fingerprint"], str):
                raise TypeError("the fingerprint is no string")
            first, second = (Address(each["name"], each["host"], each["port"]) for each in found["parties"])
        except (KeyError, TypeError) as error:
            raise malformed(f"{place} is malformed: {error}", "two parties", init) from error
        return PadsConfig((first, second), found["min_clients"], found["fingerprint"])

    def save(self, path: Any) -> None:
        """Writes the file, whole or not at all."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        write_whole(pathlib.Path(path), (json.dumps(content, indent=1) + "\n").encode(), 0o644)


def init(
    folder: Any,
    hosts: Sequence[str],
    ports: Sequence[int],
    clients: Iterable[str] = (),
    min_clients: int = 2,
    days: float = DAYS,
    *,
    with_secrets: bool = True,
) -> PadsConfig:
    """Makes the files of two parties, a coordinator and clients, all of them or none.

    pads.json is for everyone. party0/ and party1/ hold a certificate, the party's master key and the key between both
    parties; coordinator/ a certificate and no key of a pad; clients/ two key files for each client; authority/ the key
    that can make anyone. Each folder belongs on its own host and, once it is there, nowhere else.

    Args:
        folder: Where to.
        hosts: Of party 0 and party 1.
        ports: Of both.
        clients: Names.
        min_clients: No party answers for fewer.
        days: Until certificates end.
        with_secrets: Draw the parties' keys here. Without, they draw their own.

    Raises:
        ConfigurationError: The folder holds such files, or an argument does not fit.
    """
    target, names = pathlib.Path(folder), list(clients)
    parts = ("authority", *PARTIES, COORDINATOR, CLIENTS)
    if any((target / each).exists() for each in (FILE, *parts)):
        raise ConfigurationError(f"{target} holds pad parties", expected="a new folder", remedy="choose another one")
    if len(hosts) != 2 or len(ports) != 2:
        raise ConfigurationError(
            f"{len(hosts)} hosts and {len(ports)} ports", expected="two of each", remedy="give one for each party"
        )
    check_days(days)
    keys.check_names(names)
    first, second = (Address(name, host, port) for name, host, port in zip(PARTIES, hosts, ports))
    PadsConfig((first, second), min_clients, "")
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".init.", dir=target) as temporary:
        new = pathlib.Path(temporary)
        authority(new / "authority", days)
        for name in (*PARTIES, COORDINATOR):
            issue(new / "authority", name, new / name, days)
        (new / CLIENTS).mkdir(mode=0o700)
        if with_secrets:
            between = secrets.token_bytes(_SECRET_BYTES)
            for name in PARTIES:
                write_whole(new / name / MASTER, keys.new_master(), 0o600)
                write_whole(new / name / BETWEEN, between, 0o600)
            write_keys(new, names, new / CLIENTS)
        config = PadsConfig((first, second), min_clients, fingerprint(new / "authority" / "ca.crt"))
        move_all(parts, new, target, lambda: config.save(target / FILE))
    return config


def write_keys(folder: Any, clients: Iterable[str], target: Any) -> list[str]:
    """Writes clients' key files from the masters that are in a folder.

    On the host of one party that is its own master alone: then each client gets this party's file here, and the other
    party's there.

    Args:
        folder: With party0/, party1/ or both.
        clients: Names.
        target: Folder for `<client>.party0.key` and `<client>.party1.key`; made if it is not there.

    Returns:
        The parties whose files were written.

    Raises:
        ConfigurationError: A name cannot be part of a file's name, no master is here, or one is damaged.
    """
    place, names = pathlib.Path(folder), list(clients)
    keys.check_names(names)
    found = [name for name in PARTIES if (place / name / MASTER).exists()]
    if not found:
        raise ConfigurationError(
            f"{place} holds no {PARTIES[0]}/{MASTER} and no {PARTIES[1]}/{MASTER}.",
            expected="the folder of `pads init`, or a part of it with a party's folder",
            remedy="Run the command where a party's folder is.",
        )
    for name in found:
        keys.write_party_keys(target, names, PARTIES.index(name), read_secret(place / name / MASTER))
    return found


def read_secret(path: pathlib.Path) -> bytes:
    """A key of 32 bytes from a file that its user alone can read.

    Raises:
        ConfigurationError: It is missing, of another length, or readable by others.
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigurationError(
                f"{path} can be read by others.", expected="a key for its user alone", remedy=f"chmod 600 {path}"
            )
        with path.open("rb") as file:
            content = file.read(_SECRET_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}", expected="a key", remedy="Bring the party's whole folder."
        ) from error
    if len(content) != _SECRET_BYTES:
        raise ConfigurationError(
            f"{path} is no key.", expected=f"{_SECRET_BYTES} bytes", remedy="Bring the party's file anew."
        )
    return content


def masters_here(folder: pathlib.Path) -> list[pathlib.Path]:
    """Master keys in a folder of `init` that this process could read."""
    return [path for name in PARTIES if os.access(path := folder / name / MASTER, os.R_OK)]
