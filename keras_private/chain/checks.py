"""Arguments of chains and their operations, checked."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_private.errors import ConfigurationError, ExposureError

FORMAT = 1


def numbers_of(value: Any) -> np.ndarray:
    try:
        found = value.numpy() if hasattr(value, "numpy") else value
        array = np.array(found)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ConfigurationError(
            f"a {type(value).__name__} without numbers", expected="an array or tensor", remedy="give values"
        ) from error
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise ConfigurationError(f"a value of {array.dtype}", expected="numbers of at most 64 bits", remedy="cast it")
    return array


def checked_bound(bound: Any) -> float:
    if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < math.inf:
        raise ConfigurationError(f"bound={bound!r}", expected="a positive number", remedy="bound the data's magnitude")
    return float(bound)


def names_of(given: Sequence[str] | None, name: str) -> tuple[str, ...]:
    found = (name,) if given is None else given
    if isinstance(found, str) or not all(isinstance(each, str) and each for each in found):
        raise ConfigurationError(f"readers {given!r}", expected="a tuple of names", remedy="write ('name',)")
    return tuple(dict.fromkeys(found))


def number_of(value: Any, operation: str) -> float:
    """Of a public number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ConfigurationError(
            f"{operation} with a {type(value).__name__}", expected="a PrivateTensor or a number", remedy="kp.encrypt it"
        )
    number = float(value)
    if not math.isfinite(number):
        raise ConfigurationError(f"{operation} with {number}", expected="a finite number", remedy="check it")
    return number


def whole(value: Any, what: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ConfigurationError(f"{what} is {value!r}", expected="an int", remedy="correct it")
    return int(value)


def axes_of(axis: Any, shape: Sequence[int]) -> list[int]:
    rank = len(shape)
    given = range(rank) if axis is None else axis if isinstance(axis, (tuple, list)) else (axis,)
    found = [whole(each, "axis") for each in given]
    if any(not -rank <= each < rank for each in found):
        raise ConfigurationError(f"axis={axis!r}", expected=f"axes of a tensor of rank {rank}", remedy="correct it")
    return sorted({each % rank for each in found}) if rank else []


def index_as_json(index: Any) -> list[Any]:
    """Of a public index.

    Raises:
        ConfigurationError: It is none of ints, slices, None and Ellipsis.
    """
    found: list[Any] = []
    for each in index if isinstance(index, tuple) else (index,):
        if isinstance(each, (int, np.integer)) and not isinstance(each, (bool, np.bool_)):
            found.append(int(each))
        elif each is None or each is Ellipsis:
            found.append("new" if each is None else "...")
        elif isinstance(each, slice):
            parts = [each.start, each.stop, each.step]
            if any(part is not None and not isinstance(part, (int, np.integer)) for part in parts):
                raise bad_index(each)
            found.append([None if part is None else int(part) for part in parts])
        else:
            raise bad_index(each)
    return found


def bad_index(index: Any) -> ConfigurationError:
    """For an index that is not public, or of another kind."""
    return ConfigurationError(
        f"an index of {type(index).__name__}", expected="ints, slices, None or ...", remedy="use public indices"
    )


def parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise malformed("no JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise malformed("of another format")
    return found


def malformed(what: str) -> ConfigurationError:
    return ConfigurationError(f"a pointer that is {what}", expected="what to_json gives", remedy="write it anew")


def out_of_order(problem: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(problem, expected="PrivateTensor(x).fix_precision().share(cluster).send()", remedy=remedy)


def exposed(what: str) -> ExposureError:
    return ExposureError(
        f"a private value was to be {what}",
        expected="values that stay secret until they are opened to a reader",
        remedy="compute on the chain, and open the result with reveal()",
    )
