"""The JSON of a privacy report, told from the classes of its content: its JSON Schema, and the reader of values."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from .document import PrivacyReport

SCHEMA = "keras_private.privacy_report"
VERSION = 1
"""Raised by every change to the fields or their meaning. A reader takes its own version alone."""
INFINITE, MINUS_INFINITE, UNDEFINED = "infinite", "-infinite", "undefined"
_WORDS = {INFINITE: math.inf, MINUS_INFINITE: -math.inf, UNDEFINED: math.nan}
"""How JSON, which has no such numbers, says them. An infinite epsilon: no guarantee is known."""


def json_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    kinds: dict[str, Any] = {}
    _schema_of(PrivacyReport, kinds)
    whole = kinds[PrivacyReport.__name__]
    head = {
        "schema": {"const": SCHEMA},
        "schema_version": {"const": VERSION},
        "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Privacy report of keras_private",
        **whole,
        "properties": {**head, **whole["properties"]},
        "required": [*head, *whole["required"]],
        "$defs": kinds,
    }


def plain(value: Any) -> Any:
    """A value of the report as JSON has it."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return UNDEFINED if math.isnan(value) else INFINITE if value > 0 else MINUS_INFINITE
    return value


def read(kind: Any, value: Any, where: str = "report") -> Any:
    """A value of the report from JSON.

    Neither more nor less than the fields of a class is taken: what is left out of a report may be what matters.

    Raises:
        TypeError: It is of another form; says where.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            raise _other(where, f"an object with {', '.join(hints)}", value)
        return kind(**{name: read(hints[name], value[name], f"{where}.{name}") for name in hints})
    if origin is tuple:
        if not isinstance(value, list):
            raise _other(where, "a list", value)
        return tuple(read(inner[0], each, f"{where}[{at}]") for at, each in enumerate(value))
    if origin is collections.abc.Mapping:
        if not isinstance(value, dict):
            raise _other(where, "an object", value)
        return {read(str, key, where): read(inner[1], each, f"{where}[{key!r}]") for key, each in value.items()}
    if origin is Union:
        for each in inner:
            if _fits(each, value):
                return read(each, value, where)
        raise _other(where, " or ".join(map(_named, inner)), value)
    if not _fits(kind, value):
        raise _other(where, _named(kind), value)
    return _WORDS[value] if kind is float and isinstance(value, str) else value


def _fits(kind: Any, value: Any) -> bool:
    if kind is type(None) or kind is bool:
        return isinstance(value, kind)
    if kind is str:
        # A text that has no bytes, half of a pair of surrogates, could not be written again.
        return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int)
    return isinstance(value, (int, float)) or (isinstance(value, str) and value in _WORDS)


def _schema_of(kind: Any, kinds: dict[str, Any]) -> dict[str, Any]:
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]
        if name not in kinds:
            kinds[name] = {}  # For a class within itself.
            hints = _hints(kind)
            properties = {
                each.name: _with(each.metadata, _schema_of(hints[each.name], kinds))
                for each in dataclasses.fields(kind)
            }
            kinds[name] = {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{name}"}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(inner[0], kinds)}
    if origin is collections.abc.Mapping:
        return {"type": "object", "additionalProperties": _schema_of(inner[1], kinds)}
    if origin is Union:
        return {"anyOf": [_schema_of(each, kinds) for each in inner]}
    if kind is float:
        return {"anyOf": [{"type": "number"}, {"enum": list(_WORDS)}]}
    return {"type": {str: "string", int: "integer", bool: "boolean", type(None): "null"}[kind]}


def _with(metadata: Mapping[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "one_of" in metadata:
        return {"enum": list(metadata["one_of"])}
    return {**schema, "minimum": metadata["at_least"]} if "at_least" in metadata else schema


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _named(kind: Any) -> str:
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "null")


def _other(where: str, expected: str, value: Any) -> TypeError:
    shown = repr(value)
    return TypeError(f"{where} is {shown if len(shown) < 80 else shown[:77] + '...'}, not {expected}")
