"""A privacy report as one HTML page that loads nothing and runs no script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .content import LEVELS, OBSERVERS, Series
from .document import KINDS, PrivacyReport
from .drawing import chart, escaped
from .style import PAGE_STYLE, STYLE
from .text import cost_cells, without_noise

_SHARE = re.compile(r"accuracy|auc|precision|recall")
_MOST_LINES = 4
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What a browser may load for the page: nothing."""


def page_of(report: PrivacyReport) -> str:
    """The whole page."""
    title = f"Privacy report: {report.kind} of {report.model}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escaped(title)}</title><style>{PAGE_STYLE}</style></head><body><main>{fragment_of(report)}</main></body></html>\n"
    )


def fragment_of(report: PrivacyReport) -> str:
    """What stands in the page's body, for a notebook."""
    return f'<style>{STYLE}</style><div class="kp-report">{_article(report, 1)}</div>'


def _article(report: PrivacyReport, depth: int) -> str:
    parts = [
        f"<h{depth}>{escaped(report.model)}: {escaped(report.kind)}</h{depth}>",
        f'<p class="lead">{escaped(KINDS[report.kind].capitalize())}.'
        + (f" Made {escaped(report.created)}." if report.created else "")
        + "</p>",
        _simulated(report),
        _part("Differential privacy", _spendings(report), depth),
        _part("Who sees what", _matrix(report), depth),
        _part("Over training", _charts(report), depth),
        _part("Not covered", _list(report.not_covered), depth),
        _part("Protocols", _protocols(report), depth),
        _part("Cost", _costs(report), depth),
    ]
    parts += [f'<article class="part">{_article(part, depth + 1)}</article>' for part in report.parts]
    if report.versions and depth == 1:
        versions = ", ".join(f"{escaped(name)}&nbsp;{escaped(version)}" for name, version in report.versions.items())
        parts.append(f'<p class="versions">{versions}</p>')
    return "".join(parts)


def _part(title: str, content: str, depth: int) -> str:
    return f"<section><h{depth + 1}>{title}</h{depth + 1}>{content}</section>" if content else ""


def _simulated(report: PrivacyReport) -> str:
    if not report.simulated:
        return ""
    return (
        '<div class="simulated" role="note"><strong>Simulated: this protects nobody until it runs apart.</strong>'
        f"{_list(report.simulated)}</div>"
    )


def _spendings(report: PrivacyReport) -> str:
    if not report.spendings:
        return f"<p>{escaped(without_noise(report))}</p>"
    cards = []
    for each in report.spendings:
        facts: list[tuple[str, str]] = [
            ("against", OBSERVERS[each.observer]),
            ("neighbours", each.adjacency),
            ("sampling", " and ".join(each.samplers) or "none"),
            ("accountant", each.accountant or "none"),
            (each.steps_are, str(each.steps)),
            *((name, str(value)) for name, value in each.mechanism.items()),
        ]
        rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in facts)
        none = "" if each.shown != "infinite" else " none"
        cards.append(
            f'<div class="card{none}"><p class="unit">one {escaped(each.unit)}</p>'
            f'<p class="epsilon"><span>&epsilon;</span> {escaped(each.shown)}</p>'
            f'<p class="delta">&delta; {escaped(each.shown_delta)}</p><dl>{rows}</dl></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _matrix(report: PrivacyReport) -> str:
    if not report.views:
        return ""
    notes: list[str] = []
    rows = []
    for view in report.views:
        cells = []
        for item in report.items:
            sight, mark = view.of(item), ""
            if sight.note:
                if sight.note not in notes:
                    notes.append(sight.note)
                mark = f"<sup>{notes.index(sight.note) + 1}</sup>"
            cells.append(f'<td class="level {sight.level}">{sight.level}{mark}</td>')
        assumes = f"<small>if {escaped(view.assumes)}</small>" if view.assumes else ""
        rows.append(f'<tr><th scope="row">{escaped(view.adversary)}{assumes}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col">{escaped(item)}</th>' for item in report.items)
    used = {sight.level for view in report.views for sight in view.sights}
    legend = "".join(
        f'<li><span class="level {level}">{level}</span> {escaped(meaning)}</li>'
        for level, meaning in LEVELS.items()
        if level in used
    )
    listed = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return (
        f'<div class="wide" tabindex="0"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><ul class="legend">{legend}</ul>'
        + (f'<ol class="notes">{listed}</ol>' if listed else "")
    )


def _charts(report: PrivacyReport) -> str:
    """Epsilon, then shares such as accuracy on one pair of axes, then losses."""
    epsilon = [each for each in report.series if each.name.startswith("epsilon")]
    shares = [each for each in report.series if _SHARE.search(each.name) and each not in epsilon]
    losses = [each for each in report.series if "loss" in each.name and each not in (*epsilon, *shares)]
    found = [
        chart(some, title)
        for group, title in ((epsilon, "Epsilon"), (shares, "Accuracy"), (losses, "Loss"))
        for some in _few(group)
    ]
    return f'<div class="charts">{"".join(found)}</div>' if any(found) else ""


def _few(group: Sequence[Series]) -> list[list[Series]]:
    """So many as one chart can tell apart, of one meaning of x."""
    found: list[list[Series]] = []
    for each in group:
        if not found or len(found[-1]) == _MOST_LINES or found[-1][-1].x_is != each.x_is:
            found.append([])
        found[-1].append(each)
    return found


def _protocols(report: PrivacyReport) -> str:
    return "".join(
        f"<p><strong>{escaped(each.name)}</strong> <cite>{escaped(each.source)}</cite></p>{_list(each.assumptions)}"
        for each in report.protocols
    )


def _costs(report: PrivacyReport) -> str:
    if not report.costs:
        return ""
    rows = [("phase", "time", "bytes", "rounds", "counted"), *(cost_cells(*each) for each in report.costs.items())]
    return f'<div class="wide" tabindex="0">{_table(rows)}</div>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escaped(cell)}</th>' for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escaped(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""
