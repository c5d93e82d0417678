"""Folders of clients: one file for each, and a manifest; written whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any, Callable, Optional, Union

import tensorflow as tf

from ..errors import ClientDataError, ConfigurationError
from ..files import flush_folder
from . import npz, records
from .manifest import MANIFEST, Manifest

RECORDS, ARRAYS = ".tfrecord", ".npz"
# A file system takes 255 bytes; while it is written a record file has a neighbour with a longer name.
NAME_BYTES = 200


@dataclasses.dataclass(frozen=True)
class Folder:
    """What is known of a folder without reading an example.

    Attributes:
        keys: Name -> absolute path of the file.
        sizes: Name -> number of examples, or None.
        element_spec: Pair (x, y) of tf.TensorSpec.
        opener: Makes the function from a key to the examples.
    """

    keys: Mapping[str, str]
    sizes: Mapping[str, Optional[int]]
    element_spec: Any
    opener: Callable[[], Callable[..., tf.data.Dataset]]


def file_name(name: str, suffix: str) -> str:
    """The file of a client.

    Raises:
        ClientDataError: The name would lead out of the folder, or cannot be the name of a file.
    """
    wrong = (
        name.startswith(".")
        or any(sign in "/\\:" or not sign.isprintable() for sign in name)
        or len(os.fsencode(name)) > NAME_BYTES
    )
    if not name or wrong:
        raise ClientDataError(
            f"The client's name {name!r} cannot be the name of a file in the folder.",
            expected=f"printable text of at most {NAME_BYTES} bytes without / \\ : that does not begin with a dot",
            remedy="Rename the client.",
        )
    return name + suffix


def read(path: Union[str, os.PathLike[str]], manifest: Any = None) -> Folder:
    """A folder as `Clients.from_directory` takes it; see there."""
    folder = os.path.abspath(os.fspath(path))
    if manifest is not None:
        return _of_manifest(folder, Manifest.load(os.fspath(manifest)))
    if not os.path.isdir(folder):
        raise ClientDataError(
            f"{folder} is no folder.",
            expected="a folder with one file for each client",
            remedy="Make one by Clients.write_directory(path); give manifest= if it is on other machines only.",
        )
    if os.path.exists(os.path.join(folder, MANIFEST)):
        found = _of_manifest(folder, Manifest.load(os.path.join(folder, MANIFEST)))
        missing = [name for name, key in found.keys.items() if not os.path.isfile(key)]
        if missing:
            raise ClientDataError(
                f"{folder} has no file for {len(missing)} of the clients in its {MANIFEST}, {missing[0]!r} first.",
                expected="one .tfrecord file for each client",
                remedy="Restore the files; give manifest= if they are on other machines only.",
            )
        return found
    return _of_arrays(folder)


def write(path: Union[str, os.PathLike[str]], datasets: Mapping[str, tf.data.Dataset], element_spec: Any) -> None:
    """Writes a folder, whole or not at all; see `Clients.write_directory`."""
    target = os.path.abspath(os.fspath(path))
    parent, base = os.path.split(target)
    records.check(element_spec)
    files = {name: file_name(name, RECORDS) for name in datasets}
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise ConfigurationError(
            f"Something is at {target} already.", expected="a new folder", remedy="Choose another path, or remove it."
        )
    if not os.path.isdir(parent):
        raise ConfigurationError(
            f"There is no folder {parent}.", expected="a folder to write into", remedy="Make it first."
        )
    unfinished = tempfile.mkdtemp(prefix=f".{base[:100]}.", dir=parent)
    try:
        sizes: dict[str, Optional[int]] = {}
        for name, dataset in datasets.items():
            sizes[name] = records.write(os.path.join(unfinished, files[name]), dataset, element_spec)
        Manifest(sizes, element_spec).save(os.path.join(unfinished, MANIFEST))
        flush_folder(unfinished)
        os.rename(unfinished, target)
        flush_folder(parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _of_manifest(folder: str, manifest: Manifest) -> Folder:
    keys = {name: os.path.join(folder, file_name(name, RECORDS)) for name in manifest.sizes}
    records.check(manifest.element_spec)
    return Folder(keys, manifest.sizes, manifest.element_spec, lambda: records.opener(manifest.element_spec))


def _of_arrays(folder: str) -> Folder:
    files = sorted(entry for entry in os.listdir(folder) if entry.endswith((RECORDS, ARRAYS)))
    if any(entry.endswith(RECORDS) for entry in files):
        raise ClientDataError(
            f"{folder} has .tfrecord files and no {MANIFEST}.",
            expected=f"the {MANIFEST} that says what the records hold, or .npz files only",
            remedy="Write the folder by Clients.write_directory(path).",
        )
    names = [entry[: -len(ARRAYS)] for entry in files]
    keys = {name: os.path.join(folder, file_name(name, ARRAYS)) for name in names}
    found = {name: npz.inspect(key) for name, key in keys.items()}
    if not found:
        raise ConfigurationError(
            f"{folder} has no clients.",
            expected=f"<name>.npz files, or <name>.tfrecord files and {MANIFEST}",
            remedy="Make the folder by Clients.write_directory(path).",
        )
    first = names[0]
    forms = found[first][0]
    for name, (other, _) in found.items():
        if other != forms:
            raise ClientDataError(
                f"{keys[name]} holds {_stored(other)}.",
                expected=f"{_stored(forms)}, as {first}{ARRAYS} does",
                remedy="Bring all files to one shape and dtype.",
            )
    sizes: dict[str, Optional[int]] = {name: count for name, (_, count) in found.items()}
    return Folder(keys, sizes, tuple(form.spec for form in forms), lambda: npz.opener(forms))


def _stored(forms: tuple[npz.Form, npz.Form]) -> str:
    return " and ".join(f"{part} {form.descr}{list(form.shape)}" for part, form in zip(npz.PARTS, forms))
