"""The notebooks are whole and clean and say which Python they need. That they run is a long test."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

from tests import leftovers
from tests.leftovers import ROOT

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_all_four_are_there():
    assert NOTEBOOKS == ["all_together", "encrypted_prediction", "federated", "private_fit"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_valid_and_holds_no_outputs_and_no_paths_of_a_machine(name):
    found = notebook(name)
    nbformat.validate(found)
    assert found.nbformat == 4 and found.metadata.kernelspec.name == "python3"
    for cell in found.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            compile(cell.source, name, "exec")
    text = (FOLDER / f"{name}.ipynb").read_text()
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
    assert "http://" not in text.replace("git+https://", "") and "https://" not in text.replace("git+https://", "")


FIRST = """
import importlib.util, subprocess, sys
find_spec = importlib.util.find_spec
missing = set(sys.argv[3].split(","))
importlib.util.find_spec = lambda name, *more: None if name in missing else find_spec(name, *more)
subprocess.run = lambda command, **more: print("RUN", *command[1:])
sys.version_info = tuple(map(int, sys.argv[2].split(".")))
exec(open(sys.argv[1]).read())
"""


def first_cell(name: str, folder: pathlib.Path, python: str, missing: str, cwd: pathlib.Path):
    cell = notebook(name).cells[0]
    assert cell.cell_type == "code"
    (folder / "first.py").write_text(cell.source)
    return subprocess.run(
        [sys.executable, "-c", FIRST, str(folder / "first.py"), python, missing],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_first_cell_says_which_python_it_needs_and_fetches_nothing_where_nothing_is_missing(name, tmp_path):
    assert "needs Python 3.9 to 3.11" in notebook(name).cells[0].source.splitlines()[0]
    done = first_cell(name, tmp_path, "3.11.7", "none", tmp_path)
    assert done.returncode == 0 and done.stdout == "" and done.stderr == "", done.stderr


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.parametrize("python", ["3.12.1", "3.8.10", "3.13.0"])
def test_a_python_that_does_not_fit_is_told_the_way_out_before_anything_is_fetched(name, python, tmp_path):
    done = first_cell(name, tmp_path, python, "keras_private", tmp_path)
    assert done.returncode == 1 and "RUN" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"RuntimeError: This kernel runs Python {python.rpartition('.')[0]}.")
    assert "3.9 to 3.11" in last and "make install" in last


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_where_the_package_is_missing_the_checkout_is_installed(name, tmp_path):
    done = first_cell(name, tmp_path, "3.11.7", "keras_private", FOLDER)
    assert done.returncode == 0, done.stderr
    assert f"RUN -m pip install --quiet {ROOT}[demo]" in done.stdout
    lost = first_cell(name, tmp_path, "3.11.7", "keras_private", tmp_path)
    assert lost.returncode == 1 and "put one's path into SOURCE" in lost.stderr


@pytest.mark.parametrize("name", ["federated", "all_together"])
def test_where_federation_is_missing_its_pinned_list_is_installed(name, tmp_path):
    done = first_cell(name, tmp_path, "3.10.1", "tensorflow_federated", FOLDER)
    assert f"--no-deps -r {ROOT / 'keras_private' / 'requirements-federated.txt'}" in done.stdout, done.stderr


@pytest.mark.timeout(900)
@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_and_leaves_nothing(name, tmp_path):
    here, apart = tmp_path / "here", tmp_path / "apart"
    here.mkdir()
    apart.mkdir()
    # What Jupyter and its kernels keep for later is no temporary file of the notebook.
    names = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "MPLCONFIGDIR")
    kept = {each: str(apart / each) for each in names}
    done, left = leftovers.run([str(FOLDER / "run.py"), name], here, 800, kept)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{name} " in done.stdout and "done in" in done.stdout
    assert left == []
    assert list(here.iterdir()) == []
