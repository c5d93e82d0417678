"""The page: one file that loads nothing, runs nothing, and holds what the report says."""

from __future__ import annotations

import dataclasses
import html.parser
import re

import pytest

from keras_private.report.content import LEVELS
from keras_private.report.text import printable
from tests.report import samples

VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADS = {"src", "srcset", "href", "data", "action", "formaction", "poster", "background", "xlink:href", "ping", "style"}
ALL = {**samples.KINDS, "hostile": samples.hostile}


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text; complains of tags that are not closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def cells(self, level):
        return sum(attributes.get("class") == f"level {level}" for tag, attributes in self.tags if tag == "td")


@pytest.mark.parametrize("kind", ALL)
def test_it_loads_nothing_and_runs_nothing(kind):
    source = ALL[kind]().to_html()
    page = Page(source)
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert not {"script", "img", "iframe", "object", "embed", "form", "base", "image", "use"} & tags
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in LOADS & attributes.keys():
            assert (tag, name, attributes[name]) == ("link", "href", "data:,") or (
                name == "style" and re.fullmatch(r"(stroke|fill|background):var\(--line-\d\)", attributes[name])
            )
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)[1]
    assert "url(" not in source and "@import" not in source and "http" not in style
    assert "default-src 'none'" in source.split("<style>")[0], "the browser is told so before anything else"


@pytest.mark.parametrize("kind", samples.KINDS)
def test_it_says_what_the_report_says(kind):
    report = samples.KINDS[kind]()
    text = " ".join(Page(report.to_html()).text)
    for part in (report, *report.parts):
        for each in part.spendings:
            for said in (each.shown, each.shown_delta, each.adjacency, each.accountant, f"one {each.unit}"):
                assert said in text
        for said in (*part.simulated, *part.not_covered, *part.items, *(view.adversary for view in part.views)):
            assert said in text
    for name, version in report.versions.items():
        assert f"{name}\xa0{version}" in text


@pytest.mark.parametrize("kind", samples.KINDS)
def test_the_matrix_has_a_cell_for_every_adversary_and_thing(kind):
    report = samples.KINDS[kind]()
    page, parts = Page(report.to_html()), (report, *report.parts)
    for level in LEVELS:
        wanted = sum(sight.level == level for part in parts for view in part.views for sight in view.sights)
        assert page.cells(level) == wanted


def test_what_is_simulated_comes_before_anything_that_is_protected():
    for kind in ("federated fit", "encrypted model", "joint"):
        source = samples.KINDS[kind]().to_html()
        assert source.index('class="simulated"') < source.index("<section>")


def test_hostile_names_are_shown_as_they_are():
    text = " ".join(Page(samples.hostile().to_html()).text)
    assert text.count(printable(samples.HOSTILE)) >= 18
    assert not any(each in text for each in "\x1b\x00\u202e")


def test_every_figure_of_training_with_a_chart_is_drawn():
    names = [f"val_accuracy_{at}" for at in range(9)] + ["epsilon", "epsilon_of_clients", "loss", "val_loss", "auc"]
    report = dataclasses.replace(samples.ledger(), series=tuple(samples.rising(1.0, name) for name in names))
    source = report.to_html()
    assert source.count("<polyline") == len(names) and all(f"</i>{name}<" in source for name in names)


def test_series_over_epochs_and_over_rounds_have_charts_of_their_own():
    series = (samples.rising(1.0, "loss"), samples.rising(1.0, "val_loss", "round"))
    assert dataclasses.replace(samples.ledger(), series=series).to_html().count("<svg") == 2


def test_without_figures_there_are_no_empty_headings():
    source = samples.ledger().to_html()
    assert "Over training" not in source and "Who sees what" not in source and "Cost" not in source
