"""Executes the notebooks, or those that are named, each in a fresh kernel; what they print is not kept.

    python examples/notebooks/run.py private_fit
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = pathlib.Path(__file__).resolve().parent
CELL_SECONDS = 300


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; the file stays as it is.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=resources).execute()
    return notebook


def main(names: Sequence[str]) -> int:
    failed = 0
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        begun = time.perf_counter()
        try:
            execute(path)
            outcome = "done"
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            outcome, failed = "FAILED", failed + 1
        print(f"{path.stem:24}{outcome} in {time.perf_counter() - begun:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
