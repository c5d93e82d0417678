"""Checkpoints of a federated training, one for each round."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import warnings
import zipfile
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf

from ..errors import CheckpointError
from ..files import flush_folder, write_whole

KEPT = 3
"""Checkpoints that stay in the folder."""
_MAGIC = b"keras-private round 1\n"
_NAME = re.compile(r"round-(\d{8})\.kpr\Z")


class Checkpoints:
    """A folder with the state after each of the last rounds.

    Guarantees:
        - A file is whole and has the digest of its content, or it is not used: it is written beside its place,
          flushed to disk and renamed, and checked when it is read. A damaged one is passed over, with a warning, for
          the one before.
        - What belongs to another model, algorithm or optimizer is refused.
        - Values are read as numbers only; nothing in a file is executed.

    Not guaranteed:
        - Secrecy or authenticity: the weights are there in the clear, and a digest keeps out accidents, not a writer.
        - That privacy spent after a checkpoint is given back: the ledger of PrivacyBudget counts every round that ran.

    Args:
        folder: Made if it is not there.
        identity: What a checkpoint must have been made with; JSON values.
        variables: All that it holds.
    """

    def __init__(self, folder: Union[str, os.PathLike[str]], identity: Any, variables: list[tf.Variable]) -> None:
        self._folder = pathlib.Path(folder)
        self._identity = json.dumps(identity, sort_keys=True)
        self._variables = variables
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def write(self, number: int) -> None:
        """The state after this round.

        Raises:
            CheckpointError: It cannot be written; earlier ones are as they were.
        """
        content = io.BytesIO()
        arrays = {str(index): variable.numpy() for index, variable in enumerate(self._variables)}
        np.savez(content, identity=np.frombuffer(self._identity.encode(), np.uint8), round=np.int64(number), **arrays)
        body = content.getvalue()
        target = self._folder / f"round-{number:08d}.kpr"
        try:
            write_whole(target, _MAGIC + hashlib.sha256(body).digest() + body, 0o600)
            flush_folder(self._folder)
        except OSError as error:
            raise _unwritable(target, error) from error
        # A later round of a training that was wound back is no longer one of this training.
        found = sorted(self._files())
        for past, path in found:
            if past > number or (past, path) in found[:-KEPT]:
                with contextlib.suppress(OSError):
                    path.unlink()

    def restore(self) -> int:
        """Sets the variables to the newest whole checkpoint.

        Returns:
            Its round; 0 if there is none.

        Raises:
            CheckpointError: It belongs to another training.
        """
        for number, path in sorted(self._files(), reverse=True):
            values = self._read(path, number)
            if values is None:
                warnings.warn(f"{path} is damaged and passed over for an earlier checkpoint.", stacklevel=4)
                continue
            for variable, value in zip(self._variables, values):
                variable.assign(value)
            return number
        return 0

    def _files(self) -> list[tuple[int, pathlib.Path]]:
        found = ((_NAME.match(path.name), path) for path in self._folder.iterdir())
        return [(int(match[1]), path) for match, path in found if match]

    def _read(self, path: pathlib.Path, number: int) -> Optional[list[np.ndarray]]:
        """The values; None if the file is damaged."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", expected="a readable file", remedy="Look at its permissions."
            ) from error
        head = len(_MAGIC) + 32
        if content[: len(_MAGIC)] != _MAGIC or hashlib.sha256(content[head:]).digest() != content[len(_MAGIC) : head]:
            return None
        try:
            with np.load(io.BytesIO(content[head:]), allow_pickle=False) as held:
                identity, own = bytes(held["identity"]).decode(), int(held["round"])
                values = [held[str(index)] for index in range(len(held.files) - 2)]
        except (ValueError, KeyError, OSError, zipfile.BadZipFile):
            return None
        if own != number:
            return None
        if identity != self._identity or [v.shape for v in values] != [tuple(v.shape) for v in self._variables]:
            raise CheckpointError(
                f"{path} belongs to another training: {_difference(identity, self._identity)}.",
                expected="checkpoints of the same model, algorithm and optimizers",
                remedy="Give another folder, or the arguments of the first fit.",
            )
        return values


def _difference(one: str, other: str) -> str:
    first, second = json.loads(one), json.loads(other)
    names = sorted(name for name in {*first, *second} if first.get(name) != second.get(name))
    return f"{', '.join(names)} differ" if names else "its values have other shapes"


def _unwritable(path: pathlib.Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be written: {error}",
        expected="a folder with room for a checkpoint",
        remedy="Make room, or give another folder; earlier checkpoints are as they were.",
    )
