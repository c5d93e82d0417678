"""Runs the Python blocks of README.md and docs/, page by page.

The blocks of one page run in order in one fresh process, in an empty folder. On the line before a block,

    <!-- no-run: reason -->   skips it,
    <!-- output -->           before a ```text block, asks that the Python block above printed this.

In an expected output, `...` stands for anything, white space is free, and a number matches one within a quarter of it
(or 0.05), since training is random.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]

BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>no-run:[^\n]*?|output) -->\n\s*)?^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```\s*?$",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
END = "\x1e end of block \x1e"
RUNNER = f"""
import json, sys
space = {{"__name__": "__main__"}}
for line, source in json.load(open(sys.argv[1])):
    exec(compile("\\n" * (line - 1) + source, sys.argv[2], "exec"), space)
    print({END!r}, flush=True)
"""


@dataclasses.dataclass
class Sample:
    """A Python block: the line it starts on, its source, and what it should print."""

    line: int
    source: str
    output: str | None = None


def samples(page: str) -> list[Sample]:
    found: list[Sample] = []
    runs = False
    for block in BLOCK.finditer(page):
        mark, language = block["mark"] or "", block["language"]
        if language == "python":
            runs = not mark.startswith("no-run")
            if runs:
                found.append(Sample(page[: block.start("body")].count("\n") + 1, block["body"]))
        elif mark == "output" and runs:
            found[-1].output = block["body"]
    return found


def matches(expected: str, printed: str) -> bool:
    parts = []
    for part in re.split(r"(\.\.\.)", expected.strip()):
        if part == "...":
            parts.append(r"[\s\S]*?")
            continue
        words = [f"({NUMBER.pattern})".join(map(re.escape, NUMBER.split(word))) for word in re.split(r"\s+", part)]
        parts.append(r"\s+".join(words))
    pattern = "".join(parts)
    # White space beside an ellipsis is part of it.
    pattern = pattern.replace(r"\s+[\s\S]*?", r"[\s\S]*?").replace(r"[\s\S]*?\s+", r"[\s\S]*?")
    found = re.fullmatch(pattern, printed.strip())
    if found is None:
        return False
    pairs = zip(map(float, NUMBER.findall(expected)), map(float, found.groups()))
    return all(abs(want - got) <= max(0.25 * abs(want), 0.05) for want, got in pairs)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_page(page: pathlib.Path, tmp_path: pathlib.Path) -> None:
    blocks = samples(page.read_text())
    if not blocks:
        pytest.skip("no Python block that runs")
    (tmp_path / "blocks.json").write_text(json.dumps([(each.line, each.source) for each in blocks]))
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(tmp_path / "blocks.json"), str(page.relative_to(ROOT))],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    printed = re.sub(r"[^\n]*[\b\r]+", "", done.stdout).split(END)
    for each, text in zip(blocks, printed):
        if each.output is not None:
            assert matches(each.output, text), f"{page.name}:{each.line} printed:\n{text}\nexpected:\n{each.output}"


def test_samples_are_found_skipped_and_paired() -> None:
    page = (
        "# Title\n```python\nprint(1)\n```\n<!-- output -->\n```text\n1\n```\n"
        "<!-- no-run: needs a server -->\n```python\nserve()\n```\n<!-- output -->\n```text\nx\n```\n```\nplain\n```\n"
    )
    assert samples(page) == [Sample(3, "print(1)\n", "1\n")]


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("epsilon 2.90", "epsilon 2.95\n", True),
        ("epsilon 2.90", "epsilon 9.95\n", False),
        ("a  b", "a\n b", True),
        ("a ... z 1e-5", "a b\nc z 0.00001", True),
        ("a ... z", "a b\nc", False),
        ("(x, y) [1]", "(x, y) [1]", True),
        ("(x, y)", "(x, z)", False),
    ],
)
def test_outputs_are_compared_with_tolerance(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
