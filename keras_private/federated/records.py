"""Examples of a fixed form as TFRecord files: one tf.train.Example a record, one bytes feature a tensor.

Numbers are stored as their little-endian bytes, text as it is. Features are numbered in the order of tf.nest.flatten.
The first record says how many examples follow: TensorFlow takes a file cut between two records, or in the first bytes
of one, for a complete one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from ..errors import ClientDataError
from .examples import describe

PARSED_TOGETHER = 256
# What decode_raw reads, by the dtype of the tensor; those it cannot read come as their signed twins.
_BITS = {tf.uint32: tf.int32, tf.uint64: tf.int64}


def check(element_spec: Any) -> None:
    """Refuses specifications that a record of fixed form cannot hold.

    Raises:
        ClientDataError: A shape is not fully known, a dtype is neither a number, a truth value nor text, or a key of
            a dict is no text.
    """
    if not _has_text_keys(element_spec):
        raise ClientDataError(
            f"Examples {describe(element_spec)} have a key that is no text.",
            expected="dicts with text as keys",
            remedy="Rename the inputs.",
        )
    for each in tf.nest.flatten(element_spec):
        number = each.dtype.is_floating or each.dtype.is_integer or each.dtype.is_bool
        if not each.shape.is_fully_defined() or each.dtype.is_quantized or not (number or each.dtype == tf.string):
            raise ClientDataError(
                f"Examples {describe(element_spec)} have the component {describe(each)}.",
                expected="tensors of fixed shape, of numbers, truth values or text",
                remedy="Pad examples to one shape, and set it with tf.ensure_shape in Dataset.map.",
            )


def write(path: str, dataset: tf.data.Dataset, element_spec: Any) -> int:
    """Writes all examples of a data set to a new file, flushed to disk.

    Returns:
        The number of examples.

    Raises:
        OSError: The file cannot be written in full.
        ClientDataError: An example has another form than `element_spec`.
    """
    specs = tf.nest.flatten(element_spec)
    count = 0
    with _Writer(path) as writer:
        writer.put(_count(0))
        for example in dataset.as_numpy_iterator():
            writer.put(_record(tf.nest.flatten(example), specs))
            count += 1
    # The number is known now: a record of the same length takes the place of the first.
    with _Writer(path + ".count") as writer:
        writer.put(_count(count))
    with open(path + ".count", "rb") as first, open(path, "r+b") as file:
        file.write(first.read())
        file.flush()
        os.fsync(file.fileno())
    os.remove(path + ".count")
    return count


def opener(element_spec: Any) -> Callable[..., tf.data.Dataset]:
    """A function from a path (string scalar) to the examples of its file, by stock TensorFlow operations.

    Guarantees:
        - A record whose checksum, number of features or number of bytes is wrong raises when it is reached.
        - A file without its first record raises when it is opened, one with fewer or more examples than that says
          when its end, or the first one too many, is reached.
    """
    specs = tf.nest.flatten(element_spec)
    features = {
        str(index): tf.io.FixedLenFeature(spec.shape if spec.dtype == tf.string else [], tf.string)
        for index, spec in enumerate(specs)
    }

    def parse(records: tf.Tensor) -> Any:
        parsed = tf.io.parse_example(records, features)
        return tf.nest.pack_sequence_as(
            element_spec, [_decoded(parsed[str(index)], spec) for index, spec in enumerate(specs)]
        )

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def open_records(path: tf.Tensor) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(path)
        count = tf.io.decode_raw(records.take(1).get_single_element(), tf.int64, little_endian=True)
        examples = records.skip(1).apply(tf.data.experimental.assert_cardinality(tf.reshape(count, [])))
        return examples.batch(PARSED_TOGETHER).map(parse).unbatch()

    return open_records


class _Writer:
    """A TFRecord file whose failures are OSErrors."""

    def __init__(self, path: str) -> None:
        self._path = path
        with self._failures():
            self._writer = tf.io.TFRecordWriter(path)

    def put(self, record: bytes) -> None:
        with self._failures():
            self._writer.write(record)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        with self._failures():
            self._writer.close()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            # It has no errno: the message says "No space left on device", "File too large" and the like.
            raise OSError(f"{os.path.basename(self._path)} was not written: {error.message}") from error


def _has_text_keys(spec: Any) -> bool:
    if isinstance(spec, Mapping):
        return all(isinstance(key, str) and _has_text_keys(value) for key, value in spec.items())
    return not isinstance(spec, (tuple, list)) or all(map(_has_text_keys, spec))


def _count(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _record(values: list[Any], specs: list[tf.TensorSpec]) -> bytes:
    features = {}
    for index, (value, spec) in enumerate(zip(values, specs)):
        array = np.asarray(value)
        if array.shape != tuple(spec.shape):
            raise ClientDataError(
                f"An example has a tensor of shape {list(array.shape)}.",
                expected=describe(spec),
                remedy="Pad examples to one shape.",
            )
        if spec.dtype == tf.string:
            content = [bytes(each) for each in array.ravel()]
        else:
            content = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()]
        features[str(index)] = tf.train.Feature(bytes_list=tf.train.BytesList(value=content))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _decoded(content: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    if spec.dtype == tf.string:
        return content
    values = tf.io.decode_raw(content, _BITS.get(spec.dtype, spec.dtype), little_endian=True)
    if spec.dtype in _BITS:
        values = tf.bitcast(values, spec.dtype)
    return tf.reshape(values, [-1, *spec.shape])
