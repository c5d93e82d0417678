"""Keras's BackupAndRestore in a fit on shares: the shares of each epoch, in the folder that it names."""

from __future__ import annotations

import pathlib
import re
import shutil
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_private._backends.keras_fit import take_backup
from keras_private.encrypted import saving, storing
from keras_private.errors import ShareFileError

if TYPE_CHECKING:
    from keras_private.encrypted.model import EncryptedModel

_NAME = re.compile(r"epoch-(\d{8})\Z")


class Backup:
    """What the BackupAndRestore among the callbacks of a fit asks for.

    Keras's own would write the shares of all parties into one file; here each party has a file, as `save` makes them.

    Attributes:
        callbacks: Those of the fit, without it.

    Raises:
        ConfigurationError: It counts batches, there are two, or it is in a CallbackList.
    """

    def __init__(self, callbacks: Any, model: EncryptedModel) -> None:
        self._model = model
        self._folder: pathlib.Path | None = None
        self._delete = False
        self.callbacks, backup = take_backup(callbacks, "an epoch on shares is done as a whole or undone")
        if backup is None:
            return
        # A folder of its own in the one that was named, which may hold other things.
        self._folder, self._delete = pathlib.Path(backup.backup_dir) / "shares", bool(backup.delete_checkpoint)

    def restored(self, initial_epoch: int) -> int:
        """Puts back the last epoch's shares, if there are any.

        Returns:
            The epoch to begin with.

        Raises:
            ShareFileError: They are damaged, or of another model, first weights or optimizer.
        """
        folders = self._folders()
        if not folders:
            return initial_epoch
        done, folder = folders[-1]
        was, optimizer = saving.read_manifest(folder)["compiled"], self._model.optimizer
        now = tf.keras.optimizers.serialize(optimizer)
        if was is None or was["optimizer"]["class_name"] != now["class_name"]:
            raise ShareFileError(
                f"{folder} was trained with another optimizer than {now['class_name']}",
                expected="the compile of the fit that was interrupted",
                remedy="compile so, or give another folder",
            )
        self._model.load_weights(folder)
        optimizer.iterations.assign(was["iterations"])
        rate = was["optimizer"]["config"]["learning_rate"]
        if isinstance(rate, (int, float)):
            optimizer.learning_rate = rate
        return max(initial_epoch, done + 1)

    def write(self, epoch: int) -> None:
        """The shares after this epoch; earlier ones go.

        Raises:
            ShareFileError: The folder holds something else.
        """
        if self._folder is None:
            return
        storing.save(self._model, self._folder / f"epoch-{epoch:08d}", overwrite=True)
        for other, folder in self._folders():
            if other != epoch:
                shutil.rmtree(folder, ignore_errors=True)

    def finished(self) -> None:
        """The fit has ended as it should: as with Keras, nothing is left to restore."""
        if self._folder is not None and self._delete:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _folders(self) -> list[tuple[int, pathlib.Path]]:
        if self._folder is None or not self._folder.is_dir():
            return []
        found = ((_NAME.match(path.name), path) for path in self._folder.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)
