"""Uncompressed .npz files of x and y, read by TensorFlow's own operations where the work runs.

A file of `np.savez` is a zip archive of two stored members, `x.npy` and `y.npy`, each a text header and the bytes of
the array. Formats: PKWARE APPNOTE 6.3, sections 4.3.7 and 4.5.3; NumPy's numpy.lib.format.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from ..errors import ClientDataError

PARTS = ("x", "y")
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
MAGIC = b"\x93NUMPY\x01\x00"
LOCAL_BYTES, SIZES_BYTES, IN_EXTRA = 30, 20, 0xFFFFFFFF
REMEDY = "Write it by np.savez(file, x=x, y=y), or let Clients.write_directory make the folder."


@dataclasses.dataclass(frozen=True)
class Form:
    """What is stored of one array: dtype as NumPy writes it ("<f4"), and the shape of one example."""

    descr: str
    shape: tuple[int, ...]

    @property
    def pattern(self) -> str:
        """A regular expression, for Python and RE2 alike, of the header; its group is the number of examples."""
        inner = "".join(f" {size}," for size in self.shape).rstrip(",")
        return rf"\{{'descr': '{re.escape(self.descr)}', 'fortran_order': False, 'shape': \(([0-9]+),{inner}\), \}} *\n"

    @property
    def stored(self) -> tf.DType:
        return tf.as_dtype(np.dtype(self.descr))

    @property
    def spec(self) -> tf.TensorSpec:
        """Floats become Keras's floatx, as arrays do."""
        dtype = tf.as_dtype(tf.keras.backend.floatx()) if self.stored.is_floating else self.stored
        return tf.TensorSpec(self.shape, dtype)


def inspect(path: str) -> tuple[tuple[Form, Form], int]:
    """Forms of x and y, and the number of examples, from the headers of a file; no example is read.

    Raises:
        ClientDataError: No file that `opener` can read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sorted(members) != [f"{part}.npy" for part in PARTS] or len(archive.infolist()) != len(PARTS):
                raise _unreadable(path, f"holds {', '.join(members) or 'nothing'}")
            if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
                raise _unreadable(path, "is compressed")
            forms, counts = zip(*(_header(path, archive, f"{part}.npy") for part in PARTS))
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        if isinstance(error, ClientDataError):
            raise
        raise _unreadable(path, f"is no .npz file ({error})") from error
    if counts[0] != counts[1]:
        raise _unreadable(path, f"has {counts[0]} rows of x and {counts[1]} of y")
    return forms, counts[0]


def opener(forms: tuple[Form, Form]) -> Callable[..., tf.data.Dataset]:
    """A function from a path (string scalar) to the examples of its file, by stock TensorFlow operations.

    Guarantees:
        - Nothing is unpickled or executed; only stored members x.npy and y.npy, in either order and none beside
          them, of exactly these dtypes and row shapes are read. Anything else raises, a truncated file included.
        - Not found out: bytes of the arrays that were altered in place, since zip's checksums are not computed.
    """

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def open_npz(path: tf.Tensor) -> tf.data.Dataset:
        content = tf.io.read_file(path)
        first = _Member(content, tf.constant(0, tf.int64))
        second = _Member(content, first.end)
        arrays = []
        with tf.control_dependencies([_must(tf.equal(_bytes(content, second.end, 4), CENTRAL), "two members")]):
            for part, form in zip(PARTS, forms):
                name = f"{part}.npy"
                in_first, in_second = tf.equal(first.name, name), tf.equal(second.name, name)
                with tf.control_dependencies([_must(tf.not_equal(in_first, in_second), f"one {name}")]):
                    start = tf.where(in_first, first.start, second.start)
                    size = tf.where(in_first, first.size, second.size)
                arrays.append(_array(content, start, size, form))
        return tf.data.Dataset.from_tensor_slices(tuple(arrays))

    return open_npz


class _Member:
    """Name, place and size of the stored member whose local header begins at `offset`."""

    def __init__(self, content: tf.Tensor, offset: tf.Tensor) -> None:
        header = _bytes(content, offset, LOCAL_BYTES)
        checks = [
            _must(tf.equal(_bytes(header, 0, 4), LOCAL), "a zip member"),
            # Bit 11, names in UTF-8, is the only flag that changes nothing here.
            _must(
                tf.equal(tf.bitwise.bitwise_and(_whole(header, 6, 2), 0xF7FF), 0),
                "no encryption and no data descriptor",
            ),
            _must(tf.equal(_whole(header, 8, 2), 0), "no compression"),
            _must(tf.equal(_whole(header, 26, 2), 5), "x.npy or y.npy"),
            _must(tf.equal(_whole(header, 18, 4), _whole(header, 22, 4)), "equal sizes"),
        ]
        with tf.control_dependencies(checks):
            extra_bytes = _whole(header, 28, 2)
        self.name = _bytes(content, offset + LOCAL_BYTES, 5)
        after_name = offset + LOCAL_BYTES + 5
        short = _whole(header, 18, 4)
        self.size = tf.cond(
            tf.equal(short, IN_EXTRA), lambda: _long_size(content, after_name, extra_bytes), lambda: short
        )
        self.start = after_name + extra_bytes
        self.end = self.start + self.size


def _long_size(content: tf.Tensor, offset: tf.Tensor, extra_bytes: tf.Tensor) -> tf.Tensor:
    """The size of a member in the Zip64 field, that is the only extra field."""
    with tf.control_dependencies([_must(tf.equal(extra_bytes, SIZES_BYTES), "only a Zip64 field")]):
        field = _bytes(content, offset, SIZES_BYTES)
    size = _whole(field, 4, 8)
    checks = [
        _must(tf.logical_and(tf.equal(_whole(field, 0, 2), 1), tf.equal(_whole(field, 2, 2), 16)), "a Zip64 field"),
        _must(tf.logical_and(tf.equal(size, _whole(field, 12, 8)), size >= 0), "equal sizes"),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(size)


def _array(content: tf.Tensor, start: tf.Tensor, size: tf.Tensor, form: Form) -> tf.Tensor:
    prefix = _bytes(content, start, 10)
    with tf.control_dependencies([_must(tf.equal(_bytes(prefix, 0, 8), MAGIC), "NumPy's format 1.0")]):
        header_bytes = _whole(prefix, 8, 2)
    header = _bytes(content, start + 10, header_bytes)
    checks = [_must(tf.strings.regex_full_match(header, form.pattern), f"{form.descr} rows of shape {form.shape}")]
    with tf.control_dependencies(checks):
        count = tf.strings.to_number(tf.strings.regex_replace(header, form.pattern, r"\1"), tf.int64)
    row_bytes = np.dtype(form.descr).itemsize * int(np.prod(form.shape, dtype=np.int64))
    body_bytes = size - 10 - header_bytes
    with tf.control_dependencies([_must(tf.equal(body_bytes, count * row_bytes), "as many bytes as its header says")]):
        body = _bytes(content, start + 10 + header_bytes, body_bytes)
    signed = {tf.uint32: tf.int32, tf.uint64: tf.int64}.get(form.stored, form.stored)
    values = tf.io.decode_raw(body, signed, little_endian=True)
    if signed != form.stored:
        values = tf.bitcast(values, form.stored)
    values = tf.reshape(values, tf.concat([[count], np.asarray(form.shape, np.int64)], 0))
    return tf.ensure_shape(tf.cast(values, form.spec.dtype), [None, *form.shape])


def _bytes(content: tf.Tensor, start: Any, size: Any) -> tf.Tensor:
    """A piece of a string, that has to be there in full."""
    start, size = tf.cast(start, tf.int64), tf.cast(size, tf.int64)
    there = tf.strings.length(content)
    fits = tf.logical_and(start >= 0, tf.logical_and(size >= 0, start + size <= tf.cast(there, tf.int64)))
    with tf.control_dependencies([_must(fits, "a complete file")]):
        return tf.strings.substr(content, start, size)


def _whole(content: tf.Tensor, start: int, size: int) -> tf.Tensor:
    """A little-endian number of 2, 4 or 8 bytes, as int64."""
    if size == 8:
        return tf.io.decode_raw(_bytes(content, start, 8), tf.int64, little_endian=True)[0]
    halves = tf.cast(tf.io.decode_raw(_bytes(content, start, size), tf.uint16, little_endian=True), tf.int64)
    return halves[0] if size == 2 else halves[0] + halves[1] * 65536


def _must(condition: tf.Tensor, expected: str) -> tf.Operation:
    # Conditions are made by tf.equal: where TFF traces, == compares Python objects and is plain False.
    return tf.debugging.Assert(condition, [f"A client's .npz file was refused. Expected: {expected}. {REMEDY}"])


def _header(path: str, archive: zipfile.ZipFile, name: str) -> tuple[Form, int]:
    with archive.open(name) as member:
        prefix = member.read(10)
        if prefix[:8] != MAGIC:
            raise _unreadable(path, f"has a {name} in another format than NumPy's 1.0")
        text = member.read(int.from_bytes(prefix[8:], "little")).decode("latin-1")
    found = re.fullmatch(
        r"\{'descr': '([<|][biuf][0-9]+)', 'fortran_order': False, 'shape': \(([0-9]+),((?: [0-9]+,?)*)\), \} *\n", text
    )
    if not found:
        raise _unreadable(path, f"has a {name} with the header {text.strip()}")
    form = Form(found[1], tuple(int(size) for size in found[3].replace(",", " ").split()))
    if not re.fullmatch(form.pattern, text):
        raise _unreadable(path, f"has a {name} with the header {text.strip()}")
    return form, int(found[2])


def _unreadable(path: str, problem: str) -> ClientDataError:
    return ClientDataError(
        f"{path} {problem}.",
        expected="uncompressed arrays x and y with one row per example: numbers or truth values, little-endian, in "
        "row-major order",
        remedy=REMEDY,
    )
