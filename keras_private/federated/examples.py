"""The form of one example: nested arrays in, one specification for all clients out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable, Union

import numpy as np
import tensorflow as tf

from ..errors import ClientDataError, ConfigurationError

NUMBERS_AND_TEXT = "numbers, truth values, or text"


def arrays(what: str, data: Any) -> Any:
    """Nested NumPy arrays whose first axis counts examples.

    Floats become Keras's `floatx`, as in `model.fit`; text becomes byte strings in UTF-8. Lists of arrays, as Keras
    takes them for several inputs, become tuples.

    Args:
        what: Whose data it is, for messages.
        data: An array or eager tensor [examples, ...], or dicts, lists and tuples of them.

    Raises:
        ClientDataError: Another kind of value, or a scalar.
    """
    if isinstance(data, Mapping):
        return {key: arrays(f"{what}[{key!r}]", value) for key, value in data.items()}
    if isinstance(data, tuple) or (isinstance(data, list) and _is_list_of_arrays(data)):
        return tuple(arrays(f"{what}[{index}]", value) for index, value in enumerate(data))
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise _wrong_kind(what, f"no rectangular array ({error})") from error
    if array.dtype.kind == "f":
        array = array.astype(tf.keras.backend.floatx(), copy=False)
    elif array.dtype.kind in "USO":
        array = _text(what, array)
    elif array.dtype.kind not in "biu":
        raise _wrong_kind(what, f"of dtype {array.dtype}")
    if array.ndim == 0:
        raise ClientDataError(
            f"{what} is a single value, {array!r}.",
            expected="an array whose first axis counts the examples",
            remedy="Give one row per example.",
        )
    return array


def length(what: str, data: Any) -> int:
    """Number of examples, the same in each of the nested arrays.

    Raises:
        ClientDataError: Lengths differ, or there is no array.
    """
    lengths = sorted({len(array) for array in tf.nest.flatten(data)})
    if len(lengths) != 1:
        raise ClientDataError(
            f"{what} has arrays of {' and '.join(map(str, lengths)) or 'no'} examples.",
            expected="arrays with one row per example, all of one length",
            remedy="Give x and y with the same first axis.",
        )
    return lengths[0]


def rows(data: Any, index: np.ndarray) -> Any:
    """The chosen rows of each of the nested arrays."""
    return tf.nest.map_structure(lambda array: array[index], data)


def spec_of_arrays(data: Any) -> Any:
    """Specification of one example of nested arrays."""
    return tf.nest.map_structure(
        lambda array: tf.TensorSpec(array.shape[1:], tf.string if array.dtype.kind in "SO" else array.dtype), data
    )


def blank(spec: Any) -> Any:
    """One example of zeros and empty text, as a batch; axes of unknown length have length 1."""
    return tf.nest.map_structure(
        lambda each: tf.zeros([1, *(1 if size is None else size for size in each.shape)], each.dtype), spec
    )


def whole(name: str, dataset: tf.data.Dataset) -> Any:
    """All examples of a data set, as nested arrays [examples, ...].

    Args:
        name: Of the client, for messages.
        dataset: Single examples.

    Raises:
        ClientDataError: The examples have different shapes.
    """
    try:
        for batch in dataset.batch(2**31).as_numpy_iterator():
            return batch
    except tf.errors.InvalidArgumentError as error:
        raise ClientDataError(
            f"The examples of client {name!r} cannot be stacked: {error.message}",
            expected="examples of one shape",
            remedy="Pad them to one length.",
        ) from error
    return tf.nest.map_structure(
        lambda spec: np.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype.as_numpy_dtype),
        dataset.element_spec,
    )


def checked_pair(what: str, spec: Any) -> tuple[Any, Any]:
    """The specification of one example, as a pair of x and y of dense tensors.

    Args:
        what: Whose data it is, for messages.
        spec: `element_spec` of a data set.

    Raises:
        ClientDataError: No pair, something else than dense tensors of known rank, or batches instead of examples.
    """
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ClientDataError(
            f"An element of {what} is {describe(spec)}.",
            expected="a pair (x, y) of one example; x and y may be dicts and tuples of tensors",
            remedy="Map the data set to pairs, for instance data.map(lambda e: (e['pixels'], e['label'])).",
        )
    components = tf.nest.flatten(spec)
    for component in components:
        if not isinstance(component, tf.TensorSpec) or component.shape.rank is None:
            raise ClientDataError(
                f"{what} has the component {component}.",
                expected="dense tensors of known rank",
                remedy="Convert ragged and sparse tensors with .to_tensor() or tf.sparse.to_dense, and set shapes.",
            )
    if components and all(each.shape.rank and each.shape[0] is None for each in components):
        raise ClientDataError(
            f"Every tensor of {what} has a first axis of unknown length: {describe(spec)}.",
            expected="single examples, not batches",
            remedy="Call .unbatch() on the data set; pad examples of different lengths to one length.",
        )
    return tf.nest.map_structure(lambda each: tf.TensorSpec(each.shape, each.dtype), spec)


def describe(spec: Any) -> str:
    """A specification in one short line: `(float32[784], int64[])`."""
    if isinstance(spec, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in spec.items()) + "}"
    if isinstance(spec, (tuple, list)):
        return "(" + ", ".join(describe(each) for each in spec) + ")"
    if isinstance(spec, tf.TensorSpec):
        shape = "..." if spec.shape.rank is None else ", ".join("?" if n is None else str(n) for n in spec.shape)
        return f"{spec.dtype.name}[{shape}]"
    return str(spec)


def common(specs: Mapping[str, Any]) -> Any:
    """The one specification of all clients.

    Args:
        specs: Name -> pair of nested tf.TensorSpec.

    Raises:
        ClientDataError: A client has another one than the first.
    """
    first = next(iter(specs), None)
    for name, spec in specs.items():
        if not _same(spec, specs[first]):  # type: ignore[index]
            raise ClientDataError(
                f"Client {name!r} has examples {describe(spec)}.",
                expected=f"{describe(specs[first])}, as client {first!r} has",  # type: ignore[index]
                remedy="Bring all clients to one shape and dtype.",
            )
    return None if first is None else specs[first]


def named(data: Union[Mapping[str, Any], Iterable[tuple[str, Any]]]) -> list[tuple[str, Any]]:
    """Pairs of a client's name and its data.

    Raises:
        ConfigurationError: A name is no text, is empty, or comes twice.
    """
    pairs = list(data.items() if isinstance(data, Mapping) else data)
    seen = set()
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str) or not pair[0]:
            raise ConfigurationError(
                f"{pair[0] if isinstance(pair, tuple) and pair else pair!r} is no client's name.",
                expected="a dict name -> data, or pairs (name, data), with names that are non-empty text",
                remedy="Name each client.",
            )
        if pair[0] in seen:
            raise ConfigurationError(
                f"The client {pair[0]!r} comes twice.", expected="different names", remedy="Rename or merge them."
            )
        seen.add(pair[0])
    return pairs


def pair_maker(spec: Any) -> Callable[..., Any]:
    """A function from an element of this specification to its pair (x, y).

    Raises:
        ClientDataError: The specification is neither of a pair nor of a dict of x and y.
    """
    if isinstance(spec, Mapping) and set(spec) == {"x", "y"}:
        return lambda element: (element["x"], element["y"])
    if isinstance(spec, (tuple, list)) and len(spec) == 2:
        return lambda x, y: (x, y)
    raise ClientDataError(
        f"An element of the ClientData is {describe(spec)}.",
        expected="a pair (x, y), or a dict of x and y",
        remedy="Say how to make the pair: from_client_data(data, lambda e: (e['pixels'], e['label'])).",
    )


def _same(one: Any, other: Any) -> bool:
    try:
        tf.nest.assert_same_structure(one, other)
    except (TypeError, ValueError):
        return False
    return all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other)))


def _is_list_of_arrays(data: list[Any]) -> bool:
    return bool(data) and all(isinstance(each, (np.ndarray, tf.Tensor, Mapping)) for each in data)


def _text(what: str, array: np.ndarray) -> np.ndarray:
    encoded = np.empty(array.shape, dtype=object)
    for index, value in np.ndenumerate(array):
        if not isinstance(value, (str, bytes)):
            raise _wrong_kind(what, f"an object array that holds a {type(value).__name__}")
        encoded[index] = value.encode() if isinstance(value, str) else bytes(value)
    return encoded


def _wrong_kind(what: str, problem: str) -> ClientDataError:
    return ClientDataError(
        f"{what} is {problem}.",
        expected=f"an array [examples, ...] of {NUMBERS_AND_TEXT}",
        remedy="Convert it; pad rows of different lengths to one length.",
    )
