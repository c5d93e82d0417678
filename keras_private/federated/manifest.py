"""clients.json: names, numbers of examples, and the form of one example."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, Optional

import tensorflow as tf

from ..errors import ClientDataError

MANIFEST = "clients.json"
SCHEMA = "keras_private.clients/1"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of clients says of itself.

    Attributes:
        sizes: Name -> number of examples, or None if the writer did not count them.
        element_spec: Pair (x, y) of tf.TensorSpec, or dicts and tuples of them.
    """

    sizes: Mapping[str, Optional[int]]
    element_spec: Any

    @classmethod
    def load(cls, path: str) -> Manifest:
        """Reads a manifest.

        Raises:
            ClientDataError: It is missing, or anything in it is not as `save` writes it.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file, object_pairs_hook=_without_repetition)
            _expect(isinstance(content, dict) and content.get("schema") == SCHEMA, f"the schema {SCHEMA}")
            _expect(isinstance(content.get("clients"), list) and bool(content["clients"]), "a list of clients")
            sizes: dict[str, Optional[int]] = {}
            for client in content["clients"]:
                _expect(isinstance(client, dict) and set(client) == {"name", "examples"}, "name and examples of each")
                name, size = client["name"], client["examples"]
                _expect(isinstance(name, str) and name not in sizes, "different names")
                _expect(size is None or (type(size) is int and size >= 0), "whole numbers of examples")
                sizes[name] = size
            spec = _spec(content.get("element"))
            _expect(isinstance(spec, tuple) and len(spec) == 2, "elements that are pairs")
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ClientDataError(
                f"{path} cannot be used: {error}.",
                expected=f"the {MANIFEST} of a folder of clients, as Clients.write_directory writes it",
                remedy="Write the folder anew, or restore the file.",
            ) from error
        return cls(sizes, spec)

    def save(self, path: str) -> None:
        """Writes a new file, flushed to disk."""
        content = {
            "schema": SCHEMA,
            "element": _plain(self.element_spec),
            "clients": [{"name": name, "examples": size} for name, size in self.sizes.items()],
        }
        with open(path, "x", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


def _plain(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        return {"dict": {str(key): _plain(value) for key, value in spec.items()}}
    if isinstance(spec, (tuple, list)):
        return {"tuple": [_plain(value) for value in spec]}
    return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}


def _spec(content: Any) -> Any:
    _expect(isinstance(content, dict), "a form of the examples")
    if set(content) == {"dict"} and isinstance(content["dict"], dict):
        return {key: _spec(value) for key, value in content["dict"].items()}
    if set(content) == {"tuple"} and isinstance(content["tuple"], list):
        return tuple(_spec(value) for value in content["tuple"])
    shape = content.get("shape")
    _expect(set(content) == {"dtype", "shape"} and isinstance(shape, list), "dtype and shape of each tensor")
    _expect(all(type(size) is int and size >= 0 for size in shape), "shapes of whole numbers")
    return tf.TensorSpec(shape, tf.as_dtype(content["dtype"]))


def _expect(condition: bool, expected: str) -> None:
    if not condition:
        raise ValueError(f"it lacks {expected}")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key comes twice")
    return content
