"""PrivacyReport: who learns what, at which epsilon, under which assumptions, at which cost."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

from ..errors import ConfigurationError
from ..files import write_whole
from .composition import joint
from .content import CLEAR, LEVELS, Cost, Protocol, Series, Spending, View, one_of

KINDS: dict[str, str] = {
    "private fit": "training with noise, in one place",
    "federated fit": "training where the data is",
    "encrypted model": "training and prediction on shares",
    "prediction service": "prediction on shares",
    "ledger": "what a record of private steps says",
    "joint": "several of these together",
}

_JOINT = "joint"
_UNLESS_JOINED = "what was learnt from the same data by models whose reports are not among these"


@dataclass(frozen=True, repr=False)
class PrivacyReport:
    """What one training or service tells whom; `print` shows it as text, a notebook as a page.

    Guarantees, each locked by tests/report:
        - It says nothing of an adversary by omission: every adversary has an entry for every thing named.
        - An epsilon stands with delta, unit, neighbouring relation, sampling and accountant. Both are rounded up.
        - What was simulated is named, in every form of the report, before anything that is protected.
        - What is read back equals what was written; a file of another schema, of a newer version, cut short or altered
          is refused. Its digest keeps out accidents, not a forger: anybody can write a report.
        - A joint report has the epsilons that its parts add up to.
        - The page is one file that loads nothing and runs no script. No name in a report can change how it reads.

    Attributes:
        kind: A key of KINDS.
        model: Name of the model.
        views: One for each adversary.
        spendings: Every epsilon; empty where no noise protects anything.
        learns: Whether what comes out was learnt from protected data. A prediction service answers with a model that
            was learnt before, and adds nothing to what that model tells.
        protocols: How things are hidden.
        simulated: What ran in one place and protects nobody until it runs apart.
        not_covered: What no epsilon and no protocol above covers.
        costs: By phase.
        series: Figures over training.
        versions: Package -> version.
        created: Date and time, ISO 8601, UTC.
        parts: The reports that a joint one is made of.
    """

    kind: str = field(metadata=one_of(KINDS))
    model: str
    views: tuple[View, ...]
    spendings: tuple[Spending, ...] = ()
    learns: bool = True
    protocols: tuple[Protocol, ...] = ()
    simulated: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)
    series: tuple[Series, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    parts: tuple[PrivacyReport, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _wrong("kind", self.kind, f"one of {', '.join(KINDS)}")
        names = [view.adversary for view in self.views]
        if len(set(names)) < len(names):
            raise _wrong("views", names, "each adversary once")
        for view in self.views:
            missing = sorted(set(self.items) - {sight.item for sight in view.sights})
            if missing:
                raise _wrong("views", f"{view.adversary} without {missing}", "an entry for every thing that is named")
        self._check_parts()

    def _check_parts(self) -> None:
        if bool(self.parts) != _is_joint(self) or any(_is_joint(part) for part in self.parts):
            raise _wrong("parts", [part.kind for part in self.parts], "reports that are not joint, in one that is")
        if self.parts:
            expected = joint([(part.learns, part.spendings) for part in self.parts])
            if not _agree(self.spendings, expected) or self.learns != any(part.learns for part in self.parts):
                raise _wrong("spendings", list(self.spendings), f"what the parts add up to: {list(expected)}")

    @property
    def items(self) -> tuple[str, ...]:
        """Everything that some adversary might see."""
        return tuple(dict.fromkeys(sight.item for view in self.views for sight in view.sights))

    def who_sees(self, item: str, level: str = CLEAR) -> tuple[str, ...]:
        """The adversaries who see at least so much of one thing.

        Raises:
            ConfigurationError: The report does not speak of it, or there is no such level.
        """
        if item not in self.items:
            raise _wrong("item", item, f"one of {', '.join(self.items)}")
        if level not in LEVELS:
            raise _wrong("level", level, f"one of {', '.join(LEVELS)}")
        order = list(LEVELS)
        least = order.index(level)
        return tuple(view.adversary for view in self.views if order.index(view.of(item).level) >= least)

    @staticmethod
    def joined(reports: Sequence[PrivacyReport]) -> PrivacyReport:
        """Several reports on the same people's data as one, with epsilons and deltas added up.

        Every released model counts, since whoever has one may have all. Epsilons add for each unit (Dwork and Roth
        2014, theorem 3.16), which holds whatever the reports have in common; steps of one ledger are composed more
        tightly before they come here. A guarantee for a client covers each of its examples at twice its epsilon; one
        for examples covers no client. A report that learnt from the data without a guarantee for a unit makes that
        unit's sum infinite. What two reports both count, such as a ledger and the fit that wrote it, counts twice.

        Raises:
            ConfigurationError: There are none, or something else is among them.
        """
        parts = tuple(part for each in reports for part in (each.parts if _is_joint(each) else (each,)))
        if not parts:
            raise _wrong("reports", [], "at least one")
        return PrivacyReport(
            kind=_JOINT,
            model=", ".join(dict.fromkeys(part.model for part in parts)),
            views=(),
            spendings=joint([(part.learns, part.spendings) for part in parts]),
            learns=any(part.learns for part in parts),
            simulated=tuple(dict.fromkeys(f"{part.model}: {item}" for part in parts for item in part.simulated)),
            not_covered=(*dict.fromkeys(_learnt_before(part) for part in parts if not part.learns), _UNLESS_JOINED),
            versions=_all_versions(parts),
            created=max(part.created for part in parts),
            parts=parts,
        )

    # Forms.

    def to_json(self) -> str:
        """The report as JSON, of the schema that docs/report.md describes."""
        from .serialized import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: Union[str, bytes]) -> PrivacyReport:
        """What `to_json` wrote.

        Raises:
            ReportError: It is not JSON, of another schema or of another version, altered or incomplete.
        """
        from .serialized import from_json

        return from_json(text)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of what `to_json` writes."""
        from .schema import json_schema

        return json_schema()

    def to_html(self) -> str:
        """The report as one page that needs no other file."""
        from .page import page_of

        return page_of(self)

    def save(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes the report, as a whole or not at all; the form is told by the end of the name.

        Args:
            path: Ends with .json, .html or .txt.

        Raises:
            ConfigurationError: It ends otherwise.
        """
        forms = {".json": self.to_json, ".html": self.to_html, ".txt": self.__str__}
        suffix = pathlib.Path(path).suffix.lower()
        if suffix not in forms:
            raise _wrong("path", os.fspath(path), f"a name that ends with {', '.join(forms)}")
        write_whole(pathlib.Path(path), (forms[suffix]().rstrip("\n") + "\n").encode("utf-8"), 0o644)

    @staticmethod
    def load(path: Union[str, os.PathLike[str]]) -> PrivacyReport:
        """Reads a report that `save` wrote as .json.

        Raises:
            ReportError: As `from_json`.
            OSError: The file cannot be read.
        """
        return PrivacyReport.from_json(pathlib.Path(path).read_bytes())

    def __str__(self) -> str:
        from .text import text_of

        return text_of(self)

    def __repr__(self) -> str:
        from .text import summary

        return f"<PrivacyReport: {summary(self)}>"

    def _repr_html_(self) -> str:
        from .page import fragment_of

        return fragment_of(self)


def _is_joint(report: Any) -> bool:
    if not isinstance(report, PrivacyReport):
        raise _wrong("reports", report, "PrivacyReports")
    return report.kind == _JOINT


def _agree(found: Sequence[Spending], expected: Sequence[Spending]) -> bool:
    """Equal, but for what a sum may differ by between machines."""
    return len(found) == len(expected) and all(
        replace(one, epsilon=other.epsilon, delta=other.delta) == other
        and math.isclose(one.epsilon, other.epsilon, rel_tol=1e-9)
        and math.isclose(one.delta, other.delta, rel_tol=1e-9)
        for one, other in zip(found, expected)
    )


def _learnt_before(part: PrivacyReport) -> str:
    return f"what {part.model} ({part.kind}) had learnt before, unless the report of that training is among these"


def _all_versions(parts: Sequence[PrivacyReport]) -> dict[str, str]:
    names = dict.fromkeys(name for part in parts for name in part.versions)
    return {
        name: " and ".join(dict.fromkeys(part.versions[name] for part in parts if name in part.versions))
        for name in names
    }


def _wrong(name: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r}.", expected=expected, remedy=f"Correct {name}.")
