"""A privacy report as JSON, of a schema with a version."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Union

from ..errors import ConfigurationError, ReportError
from .document import PrivacyReport
from .schema import SCHEMA, VERSION, plain, read


def to_json(report: PrivacyReport) -> str:
    """Text of a JSON object; `schema`, `schema_version` and `digest` come first."""
    content = plain(report)
    found = {"schema": SCHEMA, "schema_version": VERSION, "digest": digest_of(content), **content}
    return json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(text: Union[str, bytes]) -> PrivacyReport:
    """The report of `to_json`.

    Raises:
        ReportError: It is none, incomplete, altered, or of another version of the schema.
    """
    try:
        found = json.loads(text, object_pairs_hook=_each_once, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _unreadable(f"no JSON: {error}") from error
    if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
        raise _unreadable("JSON of another schema")
    version, digest = found.pop("schema_version", None), found.pop("digest", None)
    if type(version) is not int or version != VERSION:
        raise _unreadable(f"version {version!r} of the schema")
    try:
        report: PrivacyReport = read(PrivacyReport, found)
    except ConfigurationError as error:
        raise _unreadable(error.problem) from error
    except (TypeError, RecursionError) as error:
        raise _unreadable(f"incomplete or altered: {error}") from error
    if digest != digest_of(found):
        raise _unreadable("altered: its content is not the one that its digest was made of")
    return report


def digest_of(content: Any) -> str:
    """SHA-256 of the content, whatever its white space, order and way of writing letters."""
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name that stands twice in one object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}")
    return value


def _unreadable(what: str) -> ReportError:
    return ReportError(
        f"The privacy report cannot be read: {what}.",
        expected=f"JSON of schema {SCHEMA!r}, version {VERSION}, whole",
        remedy="Make the report anew, or read it with the version of keras_private that wrote it.",
    )
