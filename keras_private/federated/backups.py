"""Keras's BackupAndRestore in a federated fit: the checkpoints of rounds, in the folder that it names."""

from __future__ import annotations

import os
import shutil
from typing import Any, Optional

from .._backends.keras_fit import take_backup
from ..errors import ConfigurationError


class Backup:
    """What the BackupAndRestore among the callbacks of a fit asks for.

    Keras's own writes the variables of a Keras model. Rounds have more state: the server's optimizer, what was spent,
    how often each client took part. So the fit keeps checkpoints of rounds in its place.

    Attributes:
        callbacks: Those of the fit, without it.
        folder: For the checkpoints; None if there is no BackupAndRestore.

    Raises:
        ConfigurationError: It counts batches, there are two, it is in a CallbackList, or the fit names a folder too.
    """

    def __init__(self, callbacks: Any, checkpoints: Any) -> None:
        self.folder: Optional[str] = None
        self._delete = False
        self.callbacks, backup = take_backup(callbacks, "a round is an epoch, and is done as a whole or not at all")
        if backup is None:
            return
        if checkpoints is not None:
            raise ConfigurationError(
                f"BackupAndRestore came together with checkpoints={checkpoints!r}.",
                expected="fit(callbacks=[BackupAndRestore(folder)]) or fit(checkpoints=folder)",
                remedy="Give one of the two.",
            )
        # A folder of its own in the one that was named, which may hold other things.
        self.folder, self._delete = os.path.join(backup.backup_dir, "rounds"), bool(backup.delete_checkpoint)

    def finished(self) -> None:
        """The fit has ended as it should: as with Keras, nothing is left to restore."""
        if self.folder is not None and self._delete:
            shutil.rmtree(self.folder, ignore_errors=True)
