"""Keras's BackupAndRestore in a federated fit: the checkpoints of rounds, in the folder that it names."""

from __future__ import annotations

import os
import shutil
from typing import Any, Optional

import tensorflow as tf

from ..errors import ConfigurationError


class Backup:
    """What the BackupAndRestore among the callbacks of a fit asks for.

    Keras's own writes the variables of a Keras model. Rounds have more state: the server's optimizer, what was spent,
    how often each client took part. So the fit keeps checkpoints of rounds in its place.

    Attributes:
        callbacks: Those of the fit, without it.
        folder: For the checkpoints; None if there is no BackupAndRestore.

    Raises:
        ConfigurationError: It counts batches, there are two, or the fit names a folder of its own.
    """

    def __init__(self, callbacks: Any, checkpoints: Any) -> None:
        self.callbacks = callbacks
        self.folder: Optional[str] = None
        self._delete = False
        in_list = isinstance(callbacks, tf.keras.callbacks.CallbackList)
        given = callbacks.callbacks if in_list else callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
        found = [each for each in given if isinstance(each, tf.keras.callbacks.BackupAndRestore)]
        if not found:
            return
        if in_list or len(found) > 1 or checkpoints is not None:
            raise ConfigurationError(
                f"BackupAndRestore came {'in a CallbackList' if in_list else 'twice, or together with checkpoints'}.",
                expected="fit(callbacks=[BackupAndRestore(folder)]) or fit(checkpoints=folder)",
                remedy="Give one of the two.",
            )
        backup = found[0]
        if backup.save_freq != "epoch" or backup.save_before_preemption:
            raise ConfigurationError(
                f"BackupAndRestore has save_freq={backup.save_freq!r} and "
                f"save_before_preemption={backup.save_before_preemption}.",
                expected="save_freq='epoch': a round is an epoch, and is done as a whole or not at all",
                remedy="Leave both at their defaults.",
            )
        self.callbacks = [each for each in given if each is not backup]
        # A folder of its own in the one that was named, which may hold other things.
        self.folder, self._delete = os.path.join(backup.backup_dir, "rounds"), bool(backup.delete_checkpoint)

    def finished(self) -> None:
        """The fit has ended as it should: as with Keras, nothing is left to restore."""
        if self.folder is not None and self._delete:
            shutil.rmtree(self.folder, ignore_errors=True)
