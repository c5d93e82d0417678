"""The process of one pad party: `keras-private pads party`, and what `local_pad_parties` starts."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Any, Optional

from ...encrypted.cluster.process import begin, serve
from ...errors import ConfigurationError, PrivacyError

_BETWEEN_BYTES = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `keras-private pads party`."""
    parser.add_argument("--name", required=True, help="which party this is: party0 or party1")
    parser.add_argument("--config", required=True, help="pads.json")
    parser.add_argument("--folder", help="with its certificate and keys; by default its name's, beside pads.json")
    parser.add_argument("--journal", help="what it has answered; by default `journal` in its folder")
    parser.add_argument("--head", help="notices a cut journal, best on another disk; by default beside it")
    parser.add_argument("--min-clients", type=int, help="answer for no fewer; by default what pads.json says")
    parser.add_argument("--min-noise", type=float, default=0.0, help="answer with no less, in units of the ring")
    for hidden in ("--socket", "--between"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    for hidden in ("--while-input", "--temporary"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--clients", help=argparse.SUPPRESS)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs a party until it is told to end."""
    parser = argparse.ArgumentParser(prog="keras-private pads party")
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """
    Returns:
        The exit code: 2 when the party cannot start.
    """
    place = begin(options)
    try:
        service = _service(options, place)
    except PrivacyError as error:
        print(f"keras-private pads party: {error}", file=sys.stderr)
        return 2
    serve(service, service.stop, service.config.party(options.name), announce=not options.while_input)
    return 0


def _service(options: argparse.Namespace, place: pathlib.Path) -> Any:
    from ...encrypted.cluster.certificates import Identity
    from .config import BETWEEN, MASTER, PARTIES, PadsConfig, read_secret

    config = PadsConfig.load(place)
    config.party(options.name)
    index = PARTIES.index(options.name)
    folder = pathlib.Path(options.folder or place.parent / options.name)
    identity = Identity.load(folder, options.name)
    least = config.min_clients if options.min_clients is None else options.min_clients
    if least < config.min_clients:
        raise ConfigurationError(
            f"--min-clients {least}", expected=f"at least {config.min_clients}, as {place} says", remedy="Raise it."
        )
    if options.between is None:
        master, between = read_secret(folder / MASTER), read_secret(folder / BETWEEN)
        journal = options.journal or folder / "journal"
    else:
        # Nothing outlives the process: with its master, what it has answered may be forgotten.
        master, between = _own_secrets(index, options.between, place.parent, options.clients)
        journal = None
    # After what may be wrong with files: these take seconds.
    from ..aggregators.masking.parties import PadParty
    from .service import PadService

    party = PadParty(
        index, master, between, least, journal=journal, head=options.head, min_noise=options.min_noise
    )
    listening = None if options.socket is None else socket.socket(fileno=options.socket)
    try:
        return PadService(config, identity, party, listening)
    except BaseException:
        party.close()
        raise


def _own_secrets(index: int, pipe: int, folder: pathlib.Path, clients: Optional[str]) -> tuple[bytes, bytes]:
    """A master that this process has drawn, and the key between both: the first party sends it to the second."""
    from ..aggregators.masking import keys
    from .config import CLIENTS

    master = keys.new_master()
    if index == 0:
        between = secrets.token_bytes(_BETWEEN_BYTES)
        os.write(pipe, between)
    else:
        between = os.read(pipe, _BETWEEN_BYTES)
    os.close(pipe)
    if clients is not None:
        keys.write_party_keys(folder / CLIENTS, json.loads(pathlib.Path(clients).read_text()), index, master)
    return master, between


if __name__ == "__main__":
    sys.exit(main())
