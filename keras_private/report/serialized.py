"""A privacy report as JSON, of a schema with a version."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Union

from ..errors import ConfigurationError, ReportError
from .content import Cost, Protocol, Series, Sight, Spending, View
from .document import PrivacyReport

SCHEMA = "keras_private.privacy_report"
VERSION = 1
INFINITE = "infinite"
"""How JSON, which knows no infinity, says that there is no guarantee."""


def to_json(report: PrivacyReport) -> str:
    """Text of a JSON object; `schema` and `schema_version` come first."""
    found = {"schema": SCHEMA, "schema_version": VERSION, **_plain(report)}
    return json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(text: Union[str, bytes]) -> PrivacyReport:
    """The report of `to_json`.

    Raises:
        ReportError: It is none, incomplete, or of a newer schema.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _unreadable(f"no JSON: {error}") from error
    if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
        raise _unreadable("JSON of another schema")
    version = found.pop("schema_version", None)
    if version != VERSION:
        raise _unreadable(f"version {version!r} of the schema")
    try:
        return _report(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigurationError):
            raise _unreadable(error.problem) from error
        raise _unreadable(f"incomplete: {error!r}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value == math.inf:
        return INFINITE
    return value


def _report(found: Mapping[str, Any]) -> PrivacyReport:
    values = dict(_exactly(PrivacyReport, found))
    values["views"] = tuple(
        View(**{**_exactly(View, view), "sights": tuple(_made(Sight, sight) for sight in view["sights"])})
        for view in values["views"]
    )
    values["spendings"] = tuple(
        Spending(
            **{**_exactly(Spending, each), "epsilon": _number(each["epsilon"]), "samplers": tuple(each["samplers"])}
        )
        for each in values["spendings"]
    )
    values["protocols"] = tuple(
        Protocol(**{**_exactly(Protocol, each), "assumptions": tuple(each["assumptions"])})
        for each in values["protocols"]
    )
    values["series"] = tuple(
        Series(**{**_exactly(Series, each), "x": _numbers(each["x"]), "y": _numbers(each["y"])})
        for each in values["series"]
    )
    values["costs"] = {name: _made(Cost, cost) for name, cost in values["costs"].items()}
    values["parts"] = tuple(_report(part) for part in values["parts"])
    for name in ("simulated", "not_covered"):
        if not isinstance(values[name], list):
            raise TypeError(f"{name} is no list")
        values[name] = tuple(str(each) for each in values[name])
    if not isinstance(values["learns"], bool):
        raise TypeError("learns is not true or false")
    return PrivacyReport(**values)


def _made(kind: Any, found: Mapping[str, Any]) -> Any:
    return kind(**_exactly(kind, found))


def _exactly(kind: Any, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Neither more nor less than the fields: what is left out of a report may be what matters."""
    wanted = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(found, dict) or set(found) != wanted:
        raise TypeError(f"{kind.__name__} has {sorted(found)}, not {sorted(wanted)}")
    return found


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(_number(value) for value in values)


def _number(value: Any) -> float:
    if value == INFINITE:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return value


def _unreadable(what: str) -> ReportError:
    return ReportError(
        f"The privacy report cannot be read: {what}.",
        expected=f"JSON of schema {SCHEMA!r}, version {VERSION}, whole",
        remedy="Make the report anew, or read it with the version of keras_private that wrote it.",
    )
