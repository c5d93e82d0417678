"""Writes requirements.lock and keras_private/requirements-federated.txt. Run by `make lock`.

    python requirements/lock.py path/to/uv

The lock holds hashes and no address, so it can be installed from any index that serves the same files.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
FEDERATED = ROOT / "keras_private" / "requirements-federated.txt"

LOCK_HEADER = """\
# Every package of the development environment, pinned and hashed, for CPython 3.11 on x86-64 Linux.
# Written by `make lock` from requirements/*.in and requirements/overrides.txt. Do not edit.
"""
FEDERATED_HEADER = """\
# What federated learning needs beyond a plain install; `keras-private doctor` prints the command that installs it.
# Without dependency resolution (--no-deps): tensorflow-federated's own pins cannot be resolved any more.
# Written by `make lock`. Do not edit.
"""


def compile_lock(uv: str) -> str:
    """Resolves the inputs to pinned, hashed lines; wheels only, so that installing runs no package's build."""
    command = [
        uv, "pip", "compile", "--quiet", "--no-config", "--upgrade",
        "requirements/base.in", "requirements/dev.in", "--override", "requirements/overrides.txt",
        "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_31", "--only-binary", ":all:",
        "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def entries(lock: str) -> dict[str, str]:
    """Package name -> its whole entry, hashes included."""
    found = re.findall(r"^(?P<entry>(?P<name>[a-z0-9][a-z0-9.-]*)==.*(?:\n    .*)*)", lock, re.MULTILINE)
    return {name: entry for entry, name in found}


def names(requirements: str) -> list[str]:
    """Package names of a requirements file, comments dropped."""
    return [line.strip() for line in requirements.splitlines() if line.strip() and not line.startswith("#")]


def main() -> None:
    lock = compile_lock(sys.argv[1])
    pinned = entries(lock)
    wanted = names((ROOT / "requirements" / "federated.in").read_text())
    LOCK.write_text(LOCK_HEADER + lock)
    FEDERATED.write_text(FEDERATED_HEADER + "".join(f"{pinned[name]}\n" for name in sorted(wanted)))
    print(f"{LOCK.name}: {len(pinned)} packages; {FEDERATED.name}: {len(wanted)}")


if __name__ == "__main__":
    main()
