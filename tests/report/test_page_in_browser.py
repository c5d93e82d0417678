"""The page in a browser: headless Chromium, from a file, as wide as a desktop and as a telephone, light and dark.

    apt-get install chromium chromium-driver     (`make test` does so where it may)
"""

from __future__ import annotations

import contextlib
import io
import shutil

import numpy as np
import pytest

from keras_private.report.content import LEVELS
from tests.report import samples

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs a browser: sudo apt-get install -y chromium chromium-driver"
)

OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --force-device-scale-factor=1"
)
PAGES = {**samples.KINDS, "hostile": samples.hostile}
PHONE, DESKTOP = 360, 1200
PAPER = {"light": (255, 255, 255), "dark": (21, 25, 29)}

# What lies under the text of an element: its colour, and those of everything behind it that is not transparent.
COLOURS = """
const parse = (text) => {
  const found = text.match(/[\\d.]+/g).map(Number);
  return found.length < 4 ? [...found, 1] : found;
};
const over = (top, below) => [0, 1, 2].map((at) => top[3] * top[at] + (1 - top[3]) * below[at]).concat([1]);
const behind = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
  if (!text || ['STYLE', 'title'].includes(element.tagName)) continue;
  const style = getComputedStyle(element), svg = element.closest('svg');
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  // Letters of a chart stand on its own ground.
  found.push({text, tag: element.tagName, kind: element.className.baseVal ?? element.className,
              size: parseFloat(style.fontSize) * scale, ground: behind(svg ?? element),
              ink: over(parse(svg ? style.fill : style.color), behind(svg ?? element))});
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for each in OPTIONS.split():
        options.add_argument(each)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_page_load_timeout(60)
        yield driver
    finally:
        with contextlib.suppress(Exception):
            driver.quit()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for kind, make in PAGES.items():
        make().save(folder / f"{kind}.html")
    return folder


def show(browser, path, width=DESKTOP, scheme="light"):
    """Opens a page as on a screen so wide; returns what the browser's console said."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("browser")
    browser.get(path.as_uri())
    return browser.get_log("browser")


def luminance(colour):
    """Relative luminance of sRGB in 0 to 255 (WCAG 2.1)."""
    shares = [value / 255 for value in colour[:3]]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """Contrast ratio, 1 to 21 (WCAG 2.1)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def pixels(browser):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB"))


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def width(request):
    return request.param


@pytest.mark.parametrize("kind", PAGES)
def test_the_console_is_silent_and_nothing_is_fetched(browser, files, kind):
    assert show(browser, files / f"{kind}.html") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.compatMode") == "CSS1Compat"
    assert browser.title.startswith("Privacy report: ")


@pytest.mark.parametrize("kind", PAGES)
def test_it_is_not_blank_and_has_the_colours_asked_for(browser, files, kind, width, scheme):
    show(browser, files / f"{kind}.html", width, scheme)
    shot = pixels(browser)
    paper = np.all(shot == PAPER[scheme], axis=-1)
    assert shot.shape[1] == width and paper[:, 0].all(), "the page's ground reaches its edge"
    assert 0.15 < paper.mean() < 0.99 and shot.std() > 10
    assert len(np.unique(shot.astype(np.uint32) @ np.uint32([65536, 256, 1]))) > 50
    assert not paper[:200].all(), "it begins at its top"


@pytest.mark.parametrize("kind", PAGES)
def test_on_a_telephone_nothing_is_cut_off_and_letters_are_large_enough(browser, files, kind):
    show(browser, files / f"{kind}.html", PHONE)
    assert browser.execute_script("return document.scrollingElement.scrollWidth") <= PHONE
    outside = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter((each) => !each.closest('.wide') && "
        f"each.getBoundingClientRect().right > {PHONE} + 0.5).map((each) => each.outerHTML.slice(0, 80))"
    )
    assert outside == []
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.wide')].map((each) => [each.clientWidth, "
        "getComputedStyle(each).overflowX, each.tabIndex])"
    )
    assert all(inner <= PHONE and overflow == "auto" and tab == 0 for inner, overflow, tab in wide)
    small = [each for each in browser.execute_script(COLOURS) if each["size"] < 14]
    assert small == []


@pytest.mark.parametrize("kind", samples.KINDS)
def test_adversaries_stay_in_sight_when_their_row_is_moved(browser, files, kind):
    show(browser, files / f"{kind}.html", PHONE)
    lefts = browser.execute_script(
        "return [...document.querySelectorAll('.wide')].filter((each) => each.querySelector('.matrix')).map((each) => {"
        "each.scrollLeft = 1000;"
        "const [name, box] = [each.querySelector('tbody th'), each].map((one) => one.getBoundingClientRect());"
        "return [name.left - box.left, each.scrollLeft]})"
    )
    # A margin of the table's own between cells.
    assert all(abs(left) <= 3 for left, _ in lefts)
    assert not samples.KINDS[kind]().views or any(moved > 50 for _, moved in lefts) or kind == "prediction service"


@pytest.mark.parametrize("kind", samples.KINDS)
def test_every_text_can_be_read(browser, files, kind, scheme):
    show(browser, files / f"{kind}.html", DESKTOP, scheme)
    found = browser.execute_script(COLOURS)
    assert len(found) > 8
    dim = [(each["text"], contrast(each["ink"], each["ground"])) for each in found]
    assert [each for each in dim if each[1] < 4.5] == []
    if any(part.views for part in (samples.KINDS[kind](), *samples.KINDS[kind]().parts)):
        grounds = {each["kind"]: tuple(each["ground"]) for each in found if each["kind"].startswith("level ")}
        assert len(set(grounds.values())) == len(grounds) >= 3, "levels differ in colour"
        assert set(grounds) <= {f"level {level}" for level in LEVELS}


def test_contrast_is_that_of_the_standard():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("kind", ["private fit", "federated fit", "encrypted model", "joint"])
def test_charts_are_there_with_their_lines_in_sight(browser, files, kind, width, scheme):
    show(browser, files / f"{kind}.html", width, scheme)
    charts = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map((svg) => { const box = svg.getBoundingClientRect();"
        "return {width: box.width, height: box.height, right: box.right, title: svg.querySelector('title').textContent,"
        "lines: [...svg.querySelectorAll('polyline')].map((line) => { const inner = line.getBoundingClientRect();"
        "return {stroke: getComputedStyle(line).stroke, ground: getComputedStyle(svg).backgroundColor, within:"
        "inner.left >= box.left && inner.right <= box.right && inner.top >= box.top && inner.bottom <= box.bottom,"
        "size: inner.width * inner.height};})};})"
    )
    titles = [each["title"] for each in charts]
    assert "Accuracy" in titles and "Loss" in titles and ("Epsilon" in titles or kind == "encrypted model")
    for each in charts:
        assert each["width"] >= 250 and each["height"] >= 150 and each["right"] <= width and each["lines"]
        for line in each["lines"]:
            stroke, ground = (
                [float(part) for part in line[name].strip("rgba() ").split(",")] for name in ("stroke", "ground")
            )
            assert line["within"] and line["size"] > 1000 and contrast(stroke, ground) >= 3


def test_hostile_names_run_nothing(browser, files):
    show(browser, files / "hostile.html")
    assert browser.execute_script("return document.querySelectorAll('script, img').length") == 0
    assert "<script>alert(1)</script>" in browser.execute_script("return document.querySelector('h1').textContent")


def test_what_would_be_loaded_or_run_is_kept_out_by_the_page_itself(browser, files, tmp_path):
    """The page's own policy: with a script and an image put into it, neither comes."""
    source = (files / "private fit.html").read_text()
    (tmp_path / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    forced = '<script>document.title = "ran"</script><img id="dot" src="dot.svg"></body>'
    (tmp_path / "page.html").write_text(source.replace("</body>", forced))
    said = show(browser, tmp_path / "page.html")
    assert browser.title != "ran" and browser.execute_script("return document.getElementById('dot').naturalWidth") == 0
    assert len([each for each in said if "Content Security Policy" in each["message"]]) == 2
