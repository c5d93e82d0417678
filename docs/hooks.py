"""Takes what pages link to outside of docs/ into the site, so that one link works on the code host and in the site.

Markdown files become pages, Python files and the license pages with their text, folders a list of their scripts;
anything else is copied. Links are rewritten to match. Lists need no empty line before them, as on code hosts and in
docstrings. mkdocs.yml names this file; it is no page.
"""

from __future__ import annotations

import ast
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import Any, Callable

import markdown
from markdown.preprocessors import Preprocessor
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "examples")

FENCE = re.compile(r"^```.*?^```\s*?$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)#\s]+)(?=[)#])")
ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")


def on_config(config: Any) -> Any:
    config.markdown_extensions.append(Lists())
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the files that README.md, the pages, and what they link to name."""
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting, seen = [*ALWAYS, *pages], set()
    while waiting:
        path = _readme(waiting.pop())
        if path in seen or not (ROOT / path).exists():
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(_file(path, config))
        if path.endswith(".md"):
            waiting.extend(_links((ROOT / path).read_text(), path))
        elif (ROOT / path).is_dir():
            waiting.extend(_scripts(path))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Any) -> str:
    """Points the links of a page at where their targets are in the site."""
    source = _sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if target.startswith("../") or not (ROOT / target).exists():
            return match[1]
        return posixpath.relpath(_place(target), here or ".")

    return _outside_fences(text, lambda part: LINK.sub(moved, part))


class Lists(markdown.Extension):
    """A list may follow a paragraph without an empty line."""

    def extendMarkdown(self, md: Any) -> None:
        md.preprocessors.register(_EmptyLines(md), "lists", 20)


class _EmptyLines(Preprocessor):
    """Runs after fences are put away (priority 25), so that it sees no code."""

    def run(self, lines: list[str]) -> list[str]:
        done: list[str] = []
        in_paragraph = False
        for line in lines:
            if ITEM.match(line):
                if in_paragraph:
                    done.append("")
                in_paragraph = False
            elif not done or not done[-1].strip():
                in_paragraph = bool(line.strip()) and not line[0].isspace()
            done.append(line)
        return done


_sources: dict[str, str] = {}
"""Where a page of the site comes from, for those that are no pages of docs/."""


def _place(path: str) -> str:
    """Where a file of the repository is in the site, as a path of its source."""
    path = _readme(path)
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    folder, name = posixpath.split(path)
    # A page called README becomes the index of its folder. That of the repository is not the index of the site.
    named = {"README.md": "index.md" if folder else "readme.md", "LICENSE": "LICENSE.md"}
    return posixpath.join("repository", folder, named.get(name, re.sub(r"\.py$", ".md", name)))


def _readme(path: str) -> str:
    """The page that a code host shows for a folder, if it has one."""
    return f"{path}/README.md" if (ROOT / path / "README.md").exists() else path


def _file(path: str, config: Any) -> Any:
    place = _place(path)
    _sources[place] = path
    if (ROOT / path).is_dir():
        _sources[place] = f"{path}/"
        return File.generated(config, place, content=_listing(path))
    if path.endswith(".py"):
        text = (ROOT / path).read_text()
        return File.generated(config, place, content=f"# {path}\n\n```python\n{text}```\n")
    if path == "LICENSE":
        return File.generated(config, place, content=f"# License\n\n```text\n{(ROOT / path).read_text()}```\n")
    return File.generated(config, place, abs_src_path=os.fspath(ROOT / path))


def _listing(folder: str) -> str:
    lines = [f"- [{path}]({posixpath.relpath(path, folder)}): {_first_line(path)}" for path in _scripts(folder)]
    return "\n".join([f"# {folder.capitalize()}", "", *lines, ""])


def _scripts(folder: str) -> list[str]:
    found = [*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("notebooks/*.ipynb")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def _first_line(path: str) -> str:
    if not path.endswith(".py"):
        return "a notebook"
    return (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").partition("\n")[0]


def _links(text: str, source: str) -> Iterator[str]:
    """What relative links name in the repository."""
    for match in LINK.finditer(FENCE.sub("", text)):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        if not target.startswith("../"):
            yield target


def _outside_fences(text: str, change: Callable[[str], str]) -> str:
    parts, at = [], 0
    for fence in FENCE.finditer(text):
        parts += [change(text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, change(text[at:])])
