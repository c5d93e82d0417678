"""Every test that docs/guarantees names exists, so that no promise stands without its test."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs" / "guarantees").glob("*.md"))

# `::name` alone is a test of the file that was named last, whether with its folder or without.
NAMED = re.compile(r"(?P<file>(?:[\w/]+/)?test_\w+\.py|tests/[\w/]+\.py)?(?P<names>(?:::\w+)+)?")


def named(page: str) -> list[tuple[str, tuple[str, ...]]]:
    """Files and names in the order of the page; a file that is named alone has no names."""
    found: list[tuple[str, tuple[str, ...]]] = []
    file = ""
    for match in NAMED.finditer(page):
        file = match["file"] or file
        if match[0] and file:
            found.append((file, tuple((match["names"] or "").split("::")[1:])))
    return found


@functools.cache
def definitions(path: pathlib.Path) -> dict[str, ast.stmt]:
    """Functions and classes of a file by name."""
    body = ast.parse(path.read_text()).body
    return {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def classes(path: pathlib.Path, name: str) -> Iterator[ast.ClassDef]:
    """The class of that name, of the file itself or of tests/contracts, and the classes that it inherits from."""
    for home in (path, *sorted((ROOT / "tests" / "contracts").glob("*.py"))):
        node = definitions(home).get(name)
        if isinstance(node, ast.ClassDef):
            yield node
            for base in node.bases:
                yield from classes(home, getattr(base, "id", getattr(base, "attr", "")))
            return


def is_defined(path: pathlib.Path, names: tuple[str, ...]) -> bool:
    if names[0] not in definitions(path) or len(names) > 2:
        return False
    methods = {item.name for each in classes(path, names[0]) for item in each.body if isinstance(item, ast.FunctionDef)}
    return len(names) == 1 or names[1] in methods


def files(name: str) -> list[pathlib.Path]:
    """A file by its path, or the tests of that name anywhere."""
    whole = ROOT / name
    return [whole] if whole.is_file() else sorted((ROOT / "tests").rglob(name))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_tests_that_are_named_exist(page: pathlib.Path) -> None:
    found = named(page.read_text())
    for name, path in found:
        homes = files(name)
        assert homes, f"{page.name} names {name}, which does not exist"
        if path:
            assert any(is_defined(home, path) for home in homes), f"{page.name} names {name}::{'::'.join(path)}"
    assert found or page.name == "index.md"


def test_names_are_found_with_the_file_before_them() -> None:
    text = "`tests/a/test_x.py::test_one`, `::test_two`, tests/b/test_y.py, `test_z.py::TestA::test_three` and tests/a"
    assert named(text) == [
        ("tests/a/test_x.py", ("test_one",)),
        ("tests/a/test_x.py", ("test_two",)),
        ("tests/b/test_y.py", ()),
        ("test_z.py", ("TestA", "test_three")),
    ]


def test_what_a_file_defines_is_known_with_what_it_inherits() -> None:
    path = ROOT / "tests" / "dp" / "test_exact.py"
    for names in (("test_models",), ("TestMatMul",), ("TestMatMul", "test_each_example_equals_its_own_gradient")):
        assert is_defined(path, names)
    for names in (("test_no_such_test",), ("TestMatMul", "test_no_such_test"), ("test_models", "test_models")):
        assert not is_defined(path, names)
