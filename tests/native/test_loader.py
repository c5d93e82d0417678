"""The loader refuses what does not fit, before any foreign code runs, and names the way out."""

from __future__ import annotations

import json
import pathlib
import platform

import pytest
import tensorflow as tf

from keras_private import native
from keras_private import random as secure_random
from keras_private.errors import BackendError, RandomnessError
from keras_private.random import entropy

GOOD_STAMP = {"tensorflow": tf.__version__, "machine": platform.machine()}


@pytest.fixture()
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths handed to dlopen."""
    paths: list[str] = []
    real = tf.load_op_library

    def record(path: str) -> object:
        paths.append(path)
        return real(path)

    monkeypatch.setattr(tf, "load_op_library", record)
    return paths


def write(folder: pathlib.Path, stamp: object, library: bytes | None = b"no library") -> pathlib.Path:
    if library is not None:
        (folder / "_keras_private_ops.so").write_bytes(library)
    if stamp is not None:
        (folder / "_keras_private_ops.json").write_text(
            stamp if isinstance(stamp, str) else json.dumps(stamp)
        )
    return folder


def test_the_built_library_loads_once_and_is_openssl() -> None:
    assert native.load() is native.load()
    status = native.status()
    assert status.available and not status.reason and status.openssl_version.startswith("OpenSSL ")
    assert pathlib.Path(status.path).is_file()


@pytest.mark.parametrize(
    ("stamp", "named"),
    [
        ({**GOOD_STAMP, "tensorflow": "2.9.1"}, "tensorflow 2.9.1"),
        ({**GOOD_STAMP, "machine": "vax"}, "machine vax"),
        ({}, "tensorflow None"),
        ([1], "tensorflow None"),
        ("{broken", "stamp"),
        (None, "stamp"),
    ],
)
def test_a_wrong_stamp_is_refused_before_dlopen(
    tmp_path: pathlib.Path, opened: list[str], stamp: object, named: str
) -> None:
    folder = write(tmp_path, stamp)
    with pytest.raises(BackendError, match=f"(?s){named}.*What to do: build it with"):
        native.load(folder)
    assert not opened
    status = native.status(folder)
    assert not status.available and named in status.reason and status.openssl_version == ""


def test_a_missing_library_is_refused_with_its_remedy(tmp_path: pathlib.Path, opened: list[str]) -> None:
    with pytest.raises(BackendError, match=r"(?s)not built.*libssl-dev"):
        native.load(write(tmp_path, GOOD_STAMP, library=None))
    assert not opened


def test_a_library_that_cannot_be_opened_is_refused(tmp_path: pathlib.Path, opened: list[str]) -> None:
    with pytest.raises(BackendError, match="cannot be loaded"):
        native.load(write(tmp_path, GOOD_STAMP))
    assert len(opened) == 1


def test_status_survives_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda folder: 1 // 0)
    status = native.status()
    assert not status.available and "ZeroDivisionError" in status.reason


@pytest.fixture()
def no_native(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setattr(secure_random, "_chosen", None)


def test_native_is_chosen_when_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secure_random, "_chosen", None)
    source = secure_random.secure_source()
    assert source.name == "native" and secure_random.secure_source() is source


def test_portable_is_chosen_without_the_library(no_native: None) -> None:
    source = secure_random.secure_source()
    assert source.name == "portable" and isinstance(source, secure_random.PortableSource)


def test_neither_source_is_an_error(no_native: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(count: int) -> bytes:
        raise NotImplementedError("no generator")

    monkeypatch.setattr(entropy, "UUID_PATH", "/nonexistent/uuid")
    monkeypatch.setattr("os.urandom", refuse)
    with pytest.raises(RandomnessError, match=r"(?s)native: .*not built.*portable: .*no generator"):
        secure_random.secure_source()
