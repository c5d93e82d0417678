"""Keras's BackupAndRestore in a fit on shares: the shares of each epoch, in the folder that it names."""

from __future__ import annotations

import pathlib
import re
import shutil
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_private.encrypted import saving, storing
from keras_private.errors import ConfigurationError, ShareFileError

if TYPE_CHECKING:
    from keras_private.encrypted.model import EncryptedModel

_NAME = re.compile(r"epoch-(\d{8})\Z")


class Backup:
    """What the BackupAndRestore among the callbacks of a fit asks for.

    Keras's own would write the shares of all parties into one file; here each party has a file, as `save` makes them.

    Attributes:
        callbacks: Those of the fit, without it.

    Raises:
        ConfigurationError: It counts batches, or there are two.
    """

    def __init__(self, callbacks: Any, model: EncryptedModel) -> None:
        self.callbacks, self._model = callbacks, model
        self._folder: pathlib.Path | None = None
        self._delete = False
        in_list = isinstance(callbacks, tf.keras.callbacks.CallbackList)
        given = callbacks.callbacks if in_list else callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
        found = [each for each in given if isinstance(each, tf.keras.callbacks.BackupAndRestore)]
        if not found:
            return
        if in_list or len(found) > 1:
            raise ConfigurationError(
                f"BackupAndRestore came {'in a CallbackList' if in_list else 'twice'}",
                expected="one in fit(callbacks=[...])",
                remedy="give one, in a list",
            )
        backup = found[0]
        if backup.save_freq != "epoch" or backup.save_before_preemption:
            raise ConfigurationError(
                f"BackupAndRestore has save_freq={backup.save_freq!r} and "
                f"save_before_preemption={backup.save_before_preemption}",
                expected="save_freq='epoch': an epoch on shares is done as a whole or undone",
                remedy="leave both at their defaults",
            )
        self.callbacks = [each for each in given if each is not backup]
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
