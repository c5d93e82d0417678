"""Models on disk: one file of shares a party, useless alone, the owner's own file, and a manifest of digests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ShareFileError

MANIFEST = "manifest.json"
OWNER_FILE = "model_owner.npz"
FORMAT = 1


def write(
    folder: Any,
    variables: Mapping[str, SharedVariable],
    owned: Sequence[np.ndarray],
    facts: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Writes a folder as a whole or not at all.

    Args:
        folder: To be made; an existing one is replaced if it holds a saved model.
        variables: By name.
        owned: What the model's owner keeps in a file of its own: the weights that it shared first.
        facts: What else the manifest holds; JSON.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        ShareFileError: The folder exists and may not be replaced, or is something else.
    """
    target = pathlib.Path(folder)
    if target.exists() and not (overwrite and _is_ours(target)):
        raise ShareFileError(
            f"{target} exists{'' if overwrite else ' already'}",
            expected="a new folder, or a saved model and overwrite=True",
            remedy="choose another folder",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        digests = {}
        shares = {name: variable.shares() for name, variable in variables.items()}
        for party in range(3):
            arrays = {f"{name}:{place}": pair[party][place] for name, pair in shares.items() for place in range(2)}
            digests[_file(party)] = _store(new / _file(party), arrays)
        digests[OWNER_FILE] = _store(new / OWNER_FILE, {str(place): array for place, array in enumerate(owned)})
        fractions = {name: variable.fraction for name, variable in variables.items()}
        manifest = {"format": FORMAT, "digests": digests, "fractions": fractions, **facts}
        whole = {"sha256": _digest_of(manifest), "content": manifest}
        _put(new / MANIFEST, json.dumps(whole, indent=1).encode(), 0o644)
        _swap(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _is_ours(folder: pathlib.Path) -> bool:
    """Whether a folder holds what `write` wrote, and nothing else."""
    try:
        read_manifest(folder)
    except ShareFileError:
        return False
    return {path.name for path in folder.iterdir()} <= {MANIFEST, OWNER_FILE, *map(_file, range(3))}


def read_manifest(folder: Any) -> dict[str, Any]:
    """
    Raises:
        ShareFileError: It is missing, unreadable, or of another format.
    """
    path = pathlib.Path(folder) / MANIFEST
    try:
        whole = json.loads(path.read_text())
        manifest = whole["content"]
        if whole["sha256"] != _digest_of(manifest):
            raise ValueError("it was altered")
        known = manifest["format"] == FORMAT and set(manifest["digests"]) == {OWNER_FILE, *map(_file, range(3))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _refused(f"{path} cannot be read: {error}") from error
    if not known:
        raise _refused(f"{path} is of another format")
    return dict(manifest)


def read_owned(folder: Any) -> list[np.ndarray]:
    """The file of the model's owner.

    Raises:
        ShareFileError: It is missing or altered.
    """
    arrays = _arrays(pathlib.Path(folder) / OWNER_FILE, read_manifest(folder)["digests"][OWNER_FILE])
    return [arrays[str(place)] for place in range(len(arrays))]


def read(folder: Any, variables: Mapping[str, SharedVariable]) -> None:
    """Puts the shares of every variable back, after checking all files.

    Raises:
        ShareFileError: A file is missing, altered, or of another model. Nothing has been changed then.
    """
    manifest = read_manifest(folder)
    parties = [_arrays(pathlib.Path(folder) / _file(party), manifest["digests"][_file(party)]) for party in range(3)]
    found: dict[str, list[list[np.ndarray]]] = {}
    for name, variable in variables.items():
        if manifest["fractions"].get(name) != variable.fraction:
            raise _refused(f"{folder} has no {name} with {variable.fraction} bits after the point")
        try:
            pairs = [[arrays[f"{name}:{place}"] for place in range(2)] for arrays in parties]
        except KeyError as error:
            raise _refused(f"{folder} has no {name}") from error
        if any(share.shape != variable.shape or share.dtype != np.int64 for pair in pairs for share in pair):
            raise _refused(f"{name} in {folder} is of another shape than {variable.shape}")
        found[name] = pairs
    for name, pairs in found.items():
        variables[name].put(pairs)


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _file(party: int) -> str:
    return f"server{party}.npz"


def _arrays(path: pathlib.Path, digest: str) -> dict[str, np.ndarray]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _refused(f"{path} was altered, or belongs to another saved model")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _store(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> str:
    content = io.BytesIO()
    np.savez(content, **arrays)
    _put(path, content.getvalue(), 0o600)
    return hashlib.sha256(content.getvalue()).hexdigest()


def _put(path: pathlib.Path, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _swap(new: pathlib.Path, target: pathlib.Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    old = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / "model")
    try:
        new.rename(target)
    except OSError:
        (old / "model").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _refused(problem: str) -> ShareFileError:
    return ShareFileError(
        problem,
        expected="the manifest and the files of all three parties, as they were written together",
        remedy="restore the folder from where it was saved",
    )
