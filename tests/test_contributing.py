"""The examples of CONTRIBUTING.md pass the contract suites that it sends them to.

Each section runs in a process of its own: its rule would stay registered in this one.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def blocks(section: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize(
    ("section", "tests"),
    [("Adding a layer rule", "test_upsampling"), ("Adding an aggregator", "TestRounded")],
)
@pytest.mark.long
def test_the_example_passes_its_suite(section: str, tests: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "test_example.py"
    path.write_text(blocks(section))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, f"{path}::{tests}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 1 and "skipped" not in done.stdout
