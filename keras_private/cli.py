"""The command keras-private: `doctor` says what works here, `demo` tells the whole story, `serve` and its kin compute
on shares, `report` shows saved reports."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

import keras_private
from keras_private import _backends
from keras_private.encrypted.cluster import commands
from keras_private.federated import commands as worker_commands
from keras_private.federated.pad_service import commands as pads_commands
from keras_private.report import commands as report_commands

PYTHON_VERSIONS = ((3, 9), (3, 11))


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found.

    Attributes:
        keras_private: Version of this package.
        python: Version of the interpreter.
        python_fits: It is one this package runs on.
        platform: Operating system and machine.
        packages: Each package underneath.
        native: The native operations: available, path, and why not.
        random_source: "native", "portable", or empty when neither serves.
        problems: What keeps differential privacy from working; empty when it works.
    """

    keras_private: str
    python: str
    python_fits: bool
    platform: str
    packages: list[_backends.Installed]
    native: dict[str, Any]
    random_source: str
    problems: list[str]

    @property
    def dp_works(self) -> bool:
        return not self.problems


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Here and not at import: only the command speaks for the whole process.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    has_demo = importlib.util.find_spec("keras_private.demo") is not None
    if has_demo and arguments[:1] == ["demo"]:
        # The demo reads its own arguments.
        return int(importlib.import_module("keras_private.demo").main(arguments[1:]) or 0)
    parser = _parser(has_demo)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    for group in (commands, worker_commands, pads_commands, report_commands):
        if options.command in group.COMMANDS:
            return group.run(options)
    found = diagnose()
    as_json = {**dataclasses.asdict(found), "dp_works": found.dp_works}
    print(json.dumps(as_json, indent=2) if options.json else text(found))
    return 0 if found.dp_works else 1


def _parser(has_demo: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="keras-private", description="Private deep learning for Keras.")
    parser.add_argument("--version", action="version", version=f"keras-private {keras_private.__version__}")
    known = parser.add_subparsers(dest="command", metavar="command")
    doctor = known.add_parser("doctor", help="what is installed, what is missing, and the command that adds it")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of text")
    if has_demo:
        known.add_parser("demo", help="real images: plain, private, over clients, and asked on shares", add_help=False)
    commands.add_commands(known)
    worker_commands.add_commands(known)
    pads_commands.add_commands(known)
    report_commands.add_commands(known)
    return parser


def diagnose() -> Diagnosis:
    """Looks at this environment. Never raises for something that is missing."""
    packages = _backends.installed()
    python_fits = PYTHON_VERSIONS[0] <= sys.version_info[:2] <= PYTHON_VERSIONS[1]
    problems = [] if python_fits else [f"Python {platform.python_version()} is not one of 3.9 to 3.11"]
    problems += [
        f"{each.name} {each.wanted} is needed, {each.version or 'nothing'} is installed"
        for each in packages
        if each.needed_for_dp and not each.fits
    ]
    random_source = ""
    try:
        random_source = importlib.import_module("keras_private.random").secure_source().name
        importlib.import_module("keras_private.dp.optimizer")
    except Exception as error:  # Whatever it is, the reader shall see it in the list.
        problems.append(f"{type(error).__name__}: {error}")
    return Diagnosis(
        keras_private=keras_private.__version__,
        python=platform.python_version(),
        python_fits=python_fits,
        platform=platform.platform(),
        packages=packages,
        native=dataclasses.asdict(importlib.import_module("keras_private.native").status()),
        random_source=random_source,
        problems=problems,
    )


def text(found: Diagnosis) -> str:
    """The diagnosis as a page of text."""
    lines = [f"keras_private {found.keras_private}, Python {found.python}, {found.platform}", "", "Packages"]
    for each in found.packages:
        state = "ok" if each.fits else "missing" if each.version is None else "differs"
        lines.append(f"  {state:8} {each.name:21} {each.version or '-':9} wanted {each.wanted:10} {each.purpose}")
        if not each.fits:
            lines.append(f"           add it: {each.remedy}")
    lines += ["", "Native operations"]
    if found.native["available"]:
        lines.append(f"  ok       {found.native['openssl_version']}")
    else:
        lines.append(f"  missing  {found.native['reason']}")
        lines.append("           add them: apt-get install g++ libssl-dev, then")
        lines.append(f"                     {sys.executable} -m keras_private.native.build")
    slower = " (as secure as the native one, several times slower)" if found.random_source == "portable" else ""
    lines += ["", "Secret randomness", f"  {found.random_source or 'none'}{slower}", "", "Differential privacy"]
    lines += [f"  cannot work: {problem}" for problem in found.problems] or ["  works"]
    return "\n".join(lines)
