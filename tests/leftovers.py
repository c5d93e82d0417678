"""A command run as a user would, and what it leaves: processes, files, lines on standard error."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARK = "KERAS_PRIVATE_TEST_RUN"
GRACE_SECONDS = 15.0

# What TensorFlow's own C++ code says, unless TF_CPP_MIN_LOG_LEVEL is set before it is imported.
TENSORFLOW_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] tensorflow/.*|To enable the following instructions: .*"
)


def run(
    command: Sequence[str], folder: pathlib.Path, seconds: float, more: Mapping[str, str] = {}
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs it with `folder` for its temporary files and as its working folder.

    Returns:
        How it ended, and the command lines of processes that it started and that are left some seconds later. They are
        known by their environment.
    """
    mark = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), MARK: mark, **more}
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=seconds,
        check=False,
    )
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := list(marked(mark).values())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return done, left


def marked(mark: str) -> dict[int, str]:
    """Living processes that have this mark in their environment: their ids and command lines."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace")
    return found


def own_lines(stderr: str) -> list[str]:
    """Lines on standard error that are not TensorFlow's own."""
    return [line for line in stderr.splitlines() if line.strip() and not TENSORFLOW_LINE.fullmatch(line)]
