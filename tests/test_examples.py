"""Every script of examples/ runs by itself, asserts its outcome, is quiet on standard error, and leaves nothing."""

from __future__ import annotations

import subprocess

import pytest

from tests import leftovers
from tests.leftovers import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.long
def test_the_example_runs_and_leaves_nothing(script, tmp_path, monkeypatch):
    # As a user's shell: TensorFlow's own lines on standard error are there, and nothing besides.
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    done, left = leftovers.run([str(ROOT / "examples" / script)], tmp_path, 800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    assert leftovers.own_lines(done.stderr) == []
    assert left == []
    assert list(tmp_path.iterdir()) == []


def test_every_script_and_notebook_has_a_line_in_the_readme():
    readme = (ROOT / "examples" / "README.md").read_text()
    notebooks = [f"notebooks/{path.name}" for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")]
    for name in [*SCRIPTS, *notebooks]:
        assert readme.count(f"]({name}) |") == 1, name


STARTS_A_CHILD = """
import subprocess
quiet = subprocess.DEVNULL
child = subprocess.Popen(["sleep", "60"], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
print(child.pid)
"""


def test_a_process_that_is_left_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE_SECONDS", 0.5)
    done, left = leftovers.run(["-c", STARTS_A_CHILD], tmp_path, 60)
    subprocess.run(["kill", done.stdout.strip()], check=True)
    assert left == ["sleep 60 "]


def test_only_lines_of_tensorflow_itself_are_passed_over():
    line = "2026-01-01 10:00:00.000001: I tensorflow/tsl/cuda/cudart_stub.cc:28] Could not find cuda drivers"
    assert leftovers.own_lines(f"{line}\nTo enable the following instructions: AVX2 FMA, in\n\n") == []
    for other in ("WARNING:tensorflow:slow", "UserWarning: x", "a.py:3: UserWarning: tensorflow/", f"x {line}"):
        assert leftovers.own_lines(other) == [other]
