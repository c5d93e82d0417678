"""Keys that clients share with the parties."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from ....errors import ConfigurationError
from ....files import write_whole

PARTIES = 2
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\Z")


def new_master() -> bytes:
    """A party's key, from which those of its clients follow: 32 bytes from the operating system."""
    return secrets.token_bytes(32)


def client_key(master: bytes, party: int, client: str) -> bytes:
    """The key that a client shares with a party: keyed BLAKE2b of the client's name (RFC 7693)."""
    return hashlib.blake2b(client.encode(), digest_size=32, key=master, person=f"pad party {party}".encode()).digest()


def suffix(party: int) -> str:
    """What follows the client's name in the name of its file."""
    return f".party{party}.key"


def file_name(client: str, party: int) -> str:
    return client + suffix(party)


def check_names(clients: Iterable[str]) -> None:
    """
    Raises:
        ConfigurationError: A name cannot be part of a file's name.
    """
    for each in clients:
        if not _NAME.match(each):
            raise ConfigurationError(
                f"The client's name {each!r} cannot be part of a file's name.",
                expected="letters, digits, dots, hyphens and underscores, at most 100",
                remedy="Rename the client.",
            )


def write_client_keys(folder: Any, clients: Iterable[str], masters: Sequence[bytes]) -> None:
    """Writes `<client>.party0.key` and `<client>.party1.key`, 32 bytes each, which their user alone can read.

    Each client's two files belong on the host where its work runs, and nowhere else.

    Args:
        folder: Made if it is not there.
        clients: Names.
        masters: Of party 0 and of party 1.

    Raises:
        ConfigurationError: A name cannot be part of a file's name, or there are not two masters of 32 bytes.
    """
    names = list(clients)
    check_names(names)
    if len(masters) != PARTIES or any(len(each) != 32 for each in masters):
        raise ConfigurationError(
            "The masters are not two of 32 bytes.", expected="those of party 0 and party 1", remedy="Use new_master()."
        )
    for party, master in enumerate(masters):
        write_party_keys(folder, names, party, master)


def write_party_keys(folder: Any, clients: Iterable[str], party: int, master: bytes) -> None:
    """Writes the file of one party for each client, as `write_client_keys` does for both.

    Raises:
        ConfigurationError: A name cannot be part of a file's name.
    """
    names = list(clients)
    check_names(names)
    place = pathlib.Path(folder)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in names:
        write_whole(place / file_name(name, party), client_key(master, party, name), 0o600)


def some_readable(folder: Any) -> bool:
    """Whether this process could read both keys of some client in a folder."""
    return any(
        os.access(first, os.R_OK) and os.access(first.with_name(first.name.replace(suffix(0), suffix(1))), os.R_OK)
        for first in pathlib.Path(folder).glob(f"*{suffix(0)}")
    )
