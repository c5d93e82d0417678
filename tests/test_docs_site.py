"""The site of docs/: it builds without a warning, holds every public name, and loads nothing from elsewhere."""

from __future__ import annotations

import functools
import html.parser
import http.server
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import keras_private as kp

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
PACKAGES = [name for name in ("dp", "federated", "encrypted", "audit", "layers") if name in kp.__all__]

# Attributes by which a browser fetches by itself; links that a reader follows are none.
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("audio", "src"),
          ("embed", "src"), ("object", "data"), ("link", "href"), ("img", "srcset"), ("use", "href")}  # fmt: skip
ELSEWHERE = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"(?:@import\s*|url\()\s*[\"']?([^\"')\s]+)")
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)


class Page(html.parser.HTMLParser):
    """What a page loads, what it links to, and where one can link to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        for name, value in attrs:
            if value is None:
                continue
            if (tag, name) in LOADED:
                self.loaded.append(value)
            elif name == "style":
                self.loaded += IN_STYLES.findall(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif name == "id":
                self.anchors.add(value)

    def handle_data(self, data: str) -> None:
        if self._style:
            self.loaded += IN_STYLES.findall(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: pathlib.Path) -> dict[pathlib.Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def navigation() -> list[str]:
    def leaves(item: Any) -> Iterator[str]:
        if isinstance(item, str):
            yield item
        else:
            for each in item.values() if isinstance(item, dict) else item:
                yield from leaves(each)

    return list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_every_page_is_in_the_navigation_and_in_the_site(site: pathlib.Path) -> None:
    listed = navigation()
    assert len(set(listed)) == len(listed)
    assert {each for each in listed if not each.startswith("repository/")} == set(PAGES)
    for each in listed:
        assert (site / each).with_suffix(".html").is_file(), each


def entries() -> dict[str, pathlib.Path]:
    found: dict[str, pathlib.Path] = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        for name in ENTRY.findall(page.read_text()):
            assert name not in found, f"{name} is on {page.name} and on {found[name].name}"
            found[name] = page
    return found


def the(path: str) -> Any:
    """The object of a dotted path; none of keras_private's names needs more than getattr."""
    value: Any = kp
    for name in path.split(".")[1:]:
        value = getattr(value, name) if hasattr(value, name) else importlib.import_module(f"{value.__name__}.{name}")
    return value


def test_every_public_name_has_one_entry(pages: dict[pathlib.Path, Page], site: pathlib.Path) -> None:
    written = entries()
    places = {path: the(path) for path in written}
    for package in ["", *(f".{name}" for name in PACKAGES)]:
        for name in the(f"keras_private{package}").__all__:
            value = the(f"keras_private{package}.{name}")
            if isinstance(value, types.ModuleType) and hasattr(value, "__all__"):
                continue  # its own names have entries
            paths = [path for path, each in places.items() if each is value]
            assert len(paths) == 1, f"keras_private{package}.{name} has the entries {paths}"
    for path, page in written.items():
        assert path in pages[(site / "api" / page.name).with_suffix(".html")].anchors, path


@pytest.mark.parametrize("module", ["errors", "federated.partition"])
def test_public_names_of_a_module_are_on_its_page(module: str, pages: dict[pathlib.Path, Page]) -> None:
    path = f"keras_private.{module}"
    value = the(path)
    own = [name for name, each in vars(value).items() if getattr(each, "__module__", "") == path and name[0] != "_"]
    assert own
    anchors = set().union(*(page.anchors for page in pages.values()))
    assert {f"{path}.{name}" for name in own} <= anchors


def test_links_and_their_anchors_exist(pages: dict[pathlib.Path, Page]) -> None:
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            address = urllib.parse.urlsplit(link)
            if address.scheme or address.netloc or path.name == "404.html":
                continue
            place = (path.parent / urllib.parse.unquote(address.path)).resolve() if address.path else path
            place = place / "index.html" if place.is_dir() else place
            assert place.is_file(), f"{path.name} links to {link}"
            if address.fragment and place in pages:
                assert urllib.parse.unquote(address.fragment) in pages[place].anchors, f"{path.name} links to {link}"
            checked += 1
    assert checked > 100


FENCE = re.compile(r"^```.*?^```\s*?$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
WRITTEN = [path for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")] if path.is_file()]


def anchors_on_a_code_host(path: pathlib.Path) -> set[str]:
    """Headings in lower case, spaces as hyphens, without punctuation."""
    headings = re.findall(r"^#+ (.*?)\s*$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_work_on_a_code_host(path: pathlib.Path) -> None:
    for target, anchor in LINK.findall(FENCE.sub("", path.read_text())):
        place = (path.parent / target).resolve() if target else path
        assert place.exists() and place.is_relative_to(ROOT), f"{target} is no file of the repository"
        assert not anchor or anchor in anchors_on_a_code_host(place), f"{target} has no heading {anchor!r}"


def test_pages_load_nothing_from_elsewhere(site: pathlib.Path, pages: dict[pathlib.Path, Page]) -> None:
    loaded = [(path, each) for path, page in pages.items() for each in page.loaded]
    loaded += [(path, each) for path in site.rglob("*.css") for each in IN_STYLES.findall(path.read_text())]
    assert len(loaded) > len(pages)
    assert [(path.name, each) for path, each in loaded if ELSEWHERE.match(each)] == []


def test_what_is_loaded_is_told_from_links() -> None:
    page = Page(
        '<a href="https://example.org">x</a><script src="//example.org/a.js"></script>'
        "<style>@import 'https://example.org/a.css'; p { background: url(https://example.org/b.png) }</style>"
    )
    assert [each for each in page.loaded if ELSEWHERE.match(each)] == [
        "//example.org/a.js",
        "https://example.org/a.css",
        "https://example.org/b.png",
    ]
    assert page.links == ["https://example.org"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no browser")
def test_a_browser_asks_nobody_else(site: pathlib.Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/"
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(here + "api/dp.html")
        browser.execute_script("document.querySelector('[data-md-component=search-query]').focus()")
        browser.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").send_keys("epsilon")
        results = "[data-md-component=search-result] .md-search-result__item"
        WebDriverWait(browser, 30).until(lambda _: browser.find_elements(By.CSS_SELECTOR, results))
        events = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    finally:
        browser.quit()
        server.shutdown()
        server.server_close()
    asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert any(url.endswith("search_index.json") for url in asked)
    # A browser's own blank page, and pages and workers that the site makes itself.
    assert [url for url in asked if not url.startswith((here, "data:", "blob:", "chrome:"))] == []
