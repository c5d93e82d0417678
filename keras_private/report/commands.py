"""`keras-private report`: shows saved reports, several as one."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from typing import Any

from ..errors import PrivacyError, ReportError
from ..files import write_whole
from .document import PrivacyReport

COMMANDS = ("report",)


def add_commands(commands: Any) -> None:
    """Adds it to the parser of the command keras-private."""
    report = commands.add_parser("report", help="show saved privacy reports, several joined into one")
    report.add_argument("files", nargs="+", metavar="FILE.json", help="as PrivacyReport.save wrote it")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--text", action="store_true", help="print it as text; so without any of these")
    form.add_argument("--html", metavar="OUT", help="write it as one page")
    form.add_argument("--json", metavar="OUT", help="write it as JSON")


def run(options: argparse.Namespace) -> int:
    """Runs the command that was parsed.

    Returns:
        The exit code: 2 after an error that the message explains.
    """
    try:
        reports = [_load(name) for name in options.files]
        report = reports[0] if len(reports) == 1 else PrivacyReport.joined(reports)
        if options.html is not None:
            _write(options.html, report.to_html())
        elif options.json is not None:
            _write(options.json, report.to_json())
        else:
            print(report)
    except (PrivacyError, OSError) as error:
        print(f"keras-private {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _load(name: str) -> PrivacyReport:
    try:
        return PrivacyReport.load(name)
    except ReportError as error:
        raise ReportError(f"{name}: {error.problem}", expected=error.expected, remedy=error.remedy) from error


def _write(name: str, content: str) -> None:
    write_whole(pathlib.Path(name), content.encode("utf-8"), 0o644)
    print(f"Wrote {os.path.abspath(name)}")
