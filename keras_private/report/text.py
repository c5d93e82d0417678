"""A privacy report as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from .content import LEVELS, OBSERVERS, Cost, Spending
from .document import KINDS, PrivacyReport

WIDTH = 110


def text_of(report: PrivacyReport) -> str:
    """The report in paragraphs and tables, for a terminal."""
    return "\n".join(map(printable, _lines(report)))


def printable(text: str) -> str:
    """With letters that would steer a terminal, break a line or turn its direction written out."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def summary(report: PrivacyReport) -> str:
    """One line: of what, and for each unit the epsilon against the observer who sees least."""
    units = dict.fromkeys(each.unit for each in report.spendings)
    order = list(OBSERVERS)
    firsts = [
        min((each for each in report.spendings if each.unit == unit), key=lambda each: order.index(each.observer))
        for unit in units
    ]
    found = [f"epsilon {each.shown} at delta {each.shown_delta} for one {each.unit}" for each in firsts]
    if not found:
        found = ["nothing is learnt"] if not report.learns else ["no epsilon"]
    return printable(", ".join([f"{report.kind} of {report.model}", *found, *["simulated"] * bool(report.simulated)]))


def _lines(report: PrivacyReport, within: bool = False) -> list[str]:
    lines = [f"Privacy report: {report.kind} of {report.model} ({KINDS[report.kind]})"]
    if report.created:
        lines.append(f"Made {report.created}")
    lines += _section("SIMULATED: protects nobody until it runs apart", _bullets(report.simulated))
    lines += _section("Differential privacy", _spendings(report))
    lines += _section("Who sees what", _matrix(report))
    lines += _section("Not covered", _bullets(report.not_covered))
    lines += _section(
        "Protocols",
        _bullets(f"{each.name}, if {'; '.join(each.assumptions)} ({each.source})" for each in report.protocols),
    )
    lines += _section("Cost", _costs(report))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines += _section("Versions", _wrapped(f"  {versions}", "  ") if versions and not within else [])
    for part in report.parts:
        lines += ["", "-" * WIDTH, *_lines(part, True)]
    return lines


def guarantee(spending: Spending) -> str:
    """One guarantee as a sentence without a full stop."""
    sampled = " and ".join(spending.samplers) or "no"
    counted = f"{spending.steps} {spending.steps_are}, " if spending.steps else ""
    return (
        f"epsilon {spending.shown} at delta {spending.shown_delta} for one {spending.unit}, against "
        f"{OBSERVERS[spending.observer]} ({spending.adjacency}; {counted}{sampled} sampling, "
        f"{spending.accountant or 'no accountant'})"
    )


def without_noise(report: PrivacyReport) -> str:
    """What to say where there is no epsilon."""
    if not report.learns:
        return "Nothing is learnt here; what the model tells of its training data is in the report of that training."
    return "None: no noise protects the training data from what comes out. Epsilon is infinite."


def size(count: int) -> str:
    """Bytes with a unit of 1000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def cost_cells(name: str, cost: Cost) -> tuple[str, str, str, str, str]:
    """One row of the table of costs; a dash for what was not measured."""
    return (
        name,
        "-" if cost.seconds is None else f"{cost.seconds:.1f} s",
        "-" if cost.bytes is None else size(cost.bytes),
        "-" if cost.rounds is None else str(cost.rounds),
        cost.says,
    )


def _spendings(report: PrivacyReport) -> list[str]:
    found = [guarantee(spending) for spending in report.spendings] or [without_noise(report)]
    for spending in report.spendings:
        if spending.mechanism:
            found.append(
                f"mechanism, for one {spending.unit}: "
                + ", ".join(f"{name} {value}" for name, value in spending.mechanism.items())
            )
    return _bullets(dict.fromkeys(found))


def _matrix(report: PrivacyReport) -> list[str]:
    notes = list(dict.fromkeys(sight.note for view in report.views for sight in view.sights if sight.note))
    lines: list[str] = []
    for view in report.views:
        lines += _wrapped(f"  {view.adversary}" + (f" (if {view.assumes})" if view.assumes else ""), "    ")
        for level in reversed(LEVELS):
            seen = [
                sight.item + (f" [{notes.index(sight.note) + 1}]" if sight.note else "")
                for sight in view.sights
                if sight.level == level
            ]
            if seen:
                lines += _wrapped(f"      {level:<8} {', '.join(seen)}", " " * 15)
    used = {sight.level for view in report.views for sight in view.sights}
    meanings = [f"  {level}: {meaning}" for level, meaning in LEVELS.items() if level in used]
    return (
        lines + meanings + [line for at, note in enumerate(notes, 1) for line in _wrapped(f"  [{at}] {note}", "      ")]
    )


def _costs(report: PrivacyReport) -> list[str]:
    rows = [cost_cells(name, cost) for name, cost in report.costs.items()]
    return _table([("phase", "time", "bytes", "rounds", "counted"), *rows]) if rows else []


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *lines] if lines else []


def _bullets(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in _wrapped(f"  - {text}", "    ")]


def _wrapped(line: str, indent: str) -> list[str]:
    line = printable(line)
    if len(line) <= WIDTH:
        return [line]
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, drop_whitespace=True) or [line]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
