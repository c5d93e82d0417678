"""`keras-private pads`: the two parties that know the masks of secure aggregation, and their files."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from ...errors import PrivacyError
from . import process

COMMANDS = ("pads",)


def add_commands(commands: Any) -> None:
    """Adds it to the parser of the command keras-private."""
    pads = commands.add_parser("pads", help="the two parties of secure aggregation")
    kinds = pads.add_subparsers(dest="kind", required=True, metavar="what")
    new = kinds.add_parser("init", help="an authority, certificates, keys, and pads.json")
    new.add_argument("--dir", required=True, help="where to; each host is then given its own part")
    new.add_argument("--hosts", nargs=2, default=["127.0.0.1"] * 2, metavar="HOST", help="of party0 and party1")
    new.add_argument("--ports", nargs=2, type=int, default=[7721, 7722], metavar="PORT", help="of party0 and party1")
    new.add_argument("--clients", nargs="*", default=[], metavar="NAME", help="whose key files are made at once")
    new.add_argument("--min-clients", type=int, default=2, help="no sum over fewer is opened")
    new.add_argument("--days", type=float, default=90, help="until certificates end")
    keys = kinds.add_parser("keys", help="key files of more clients")
    keys.add_argument("--dir", required=True, help="that `pads init` made; at a party's host, with that party's folder")
    keys.add_argument("--clients", nargs="+", required=True, metavar="NAME", help="whose files are made")
    keys.add_argument("--output", metavar="FOLDER", help="by default `clients` in --dir")
    process.add_arguments(kinds.add_parser("party", help="run one of the two parties"))


def run(options: argparse.Namespace) -> int:
    """Runs the command that was parsed.

    Returns:
        The exit code: 2 after an error that the message explains.
    """
    try:
        return {"init": _init, "keys": _keys, "party": process.run}[options.kind](options)
    except PrivacyError as error:
        print(f"keras-private pads {options.kind}: {error}", file=sys.stderr)
        return 2


def _init(options: argparse.Namespace) -> int:
    from .config import CLIENTS, COORDINATOR, FILE, init

    config = init(options.dir, options.hosts, options.ports, options.clients, options.min_clients, options.days)
    folder = pathlib.Path(options.dir)
    print(f"{folder / FILE}: for both parties and the coordinator")
    for each in config.parties:
        print(f"{folder / each.name}: for {each.host} and nobody else, where `keras-private pads party` serves")
    print(f"{folder / COORDINATOR}: for the coordinator; it gets none of the other folders")
    print(f"{folder / CLIENTS}: two files for each client's host, and for nobody else")
    print(f"{folder / 'authority'}: for nobody; whoever has its key can be anyone")
    print("Once they are there, remove them here: whoever holds both parties' keys reads every update.")
    return 0


def _keys(options: argparse.Namespace) -> int:
    from .config import CLIENTS, write_keys

    target = pathlib.Path(options.output or pathlib.Path(options.dir) / CLIENTS)
    for party in write_keys(options.dir, options.clients, target):
        print(f"{target}: <client>.{party}.key of {len(options.clients)} clients, each for its client's host")
    return 0
