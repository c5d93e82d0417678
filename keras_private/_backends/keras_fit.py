"""What a Keras callback cannot ask for: the data, the callbacks and the execution size of the running fit.

Keras 2.14 gives callbacks the model and {verbose, epochs, steps}, never the data. These functions read the frame
of `keras.Model.fit` that is running. Where that fails they say "unknown", and callers refuse.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Optional

import tensorflow as tf

from ..errors import BackendError, ConfigurationError

_SAVED_EPOCH = "ckpt_saved_epoch/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class RunningFit:
    """A `model.fit` that is on the stack.

    Attributes:
        model: The model that fits.
        data: What it iterates: the Sequence of its data adapter, else the `x` it was given.
        callbacks: The live list of its callbacks, in the order in which Keras calls them; None if unknown.
        initial_epoch: The epoch it starts at.
    """

    model: Any
    data: Any
    callbacks: Optional[list[Any]]
    initial_epoch: int


def running_fit(model: Any = None) -> Optional[RunningFit]:
    """The innermost `fit` on this thread's stack; None if there is none or it is not `model`'s."""
    fit = next(_fits_below(sys._getframe(1)), None)
    return fit if fit is not None and (model is None or fit.model is model) else None


def data_of_running_fit(model: Any = None) -> Optional[Any]:
    """The object that the innermost running `fit` iterates; None if that cannot be determined."""
    fit = running_fit(model)
    return None if fit is None else fit.data


def is_in_running_fit(callback: Any) -> bool:
    """Whether some thread is inside a `fit` that `callback` takes part in."""
    for frame in sys._current_frames().values():
        for fit in _fits_below(frame):
            if fit.callbacks is None or any(item is callback for item in fit.callbacks):
                return True
    return False


def move_first(callback: Any, callbacks: list[Any]) -> None:
    """Moves `callback` to the front of the live list while Keras iterates it, from inside that callback's hook.

    Keras iterates by index: what stood before the callback moves up to its place, so none is skipped or repeated.
    """
    place = next(index for index, item in enumerate(callbacks) if item is callback)
    callbacks.insert(0, callbacks.pop(place))


def leave_untimed(callback: Any) -> None:
    """Keeps Keras from warning that `callback` is slow, in the running fit: a ledger is flushed before steps run.

    If the fit has callbacks of the user's own, they are timed as ever.
    """
    names: dict[str, Any] = next(_names_in_fits_below(sys._getframe(1)), {})
    container: Any = names.get("callbacks")
    callbacks = getattr(container, "callbacks", None)
    if isinstance(callbacks, list) and any(item is callback for item in callbacks):
        others = [item for item in callbacks if item is not callback]
        container._check_timing = any(not type(item).__module__.startswith("keras.") for item in others)


def backs_up(callbacks: Iterable[Any]) -> bool:
    return any(isinstance(callback, tf.keras.callbacks.BackupAndRestore) for callback in callbacks)


def take_backup(callbacks: Any, epoch_is: str) -> tuple[Any, Optional[Any]]:
    """Takes the BackupAndRestore out of the callbacks of a fit that keeps its own checkpoints in that one's folder.

    Args:
        callbacks: As `fit` was given them: one, several, a CallbackList, or None.
        epoch_is: What an epoch of this fit is, for the message: why it cannot be saved in its middle.

    Returns:
        The others, and the BackupAndRestore; `callbacks` themselves and None if there is none.

    Raises:
        ConfigurationError: It counts batches, there are two, or it is in a CallbackList.
    """
    in_list = isinstance(callbacks, tf.keras.callbacks.CallbackList)
    given = callbacks.callbacks if in_list else callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    found = [each for each in given if isinstance(each, tf.keras.callbacks.BackupAndRestore)]
    if not found:
        return callbacks, None
    if in_list or len(found) > 1:
        raise ConfigurationError(
            f"BackupAndRestore came {'in a CallbackList' if in_list else 'twice'}.",
            expected="one in fit(callbacks=[...])",
            remedy="Give one, in a list.",
        )
    backup = found[0]
    if backup.save_freq != "epoch" or backup.save_before_preemption:
        raise ConfigurationError(
            f"BackupAndRestore has save_freq={backup.save_freq!r} and "
            f"save_before_preemption={backup.save_before_preemption}.",
            expected=f"save_freq='epoch': {epoch_is}",
            remedy="Leave both at their defaults.",
        )
    return [each for each in given if each is not backup], backup


def epoch_after_restoring(callbacks: Iterable[Any], initial_epoch: int) -> int:
    """The epoch that fit will begin with, if a BackupAndRestore among `callbacks` finds what it has saved."""
    first = initial_epoch
    for callback in callbacks:
        if not isinstance(callback, tf.keras.callbacks.BackupAndRestore):
            continue
        path = tf.train.latest_checkpoint(os.path.join(callback.backup_dir, "chief"))
        if path is not None:
            reader = tf.train.load_checkpoint(path)
            if reader.has_tensor(_SAVED_EPOCH):
                # Saved after batches, the epoch is not done.
                first = max(first, int(reader.get_tensor(_SAVED_EPOCH)) + (callback.save_freq == "epoch"))
    return first


def steps_per_execution(model: Any) -> int:
    """Steps that the next call of the train function runs.

    Raises:
        ConfigurationError: Keras tunes the number while it trains.
    """
    tuned = getattr(model, "_steps_per_execution_tuner", None) is not None
    if tuned or getattr(model, "enable_tune_steps_per_execution", False):
        raise ConfigurationError(
            "the model was compiled with steps_per_execution='auto'.",
            expected="a fixed number, so that steps can be charged before they run",
            remedy="Compile with steps_per_execution=1 or another whole number.",
        )
    variable = getattr(model, "_steps_per_execution", None)
    return 1 if variable is None else int(variable.numpy())


def _fits_below(frame: Optional[FrameType]) -> Iterator[RunningFit]:
    for names in _names_in_fits_below(frame):
        yield _read(names)


def _names_in_fits_below(frame: Optional[FrameType]) -> Iterator[dict[str, Any]]:
    code = _code_of_fit()
    while frame is not None:
        if frame.f_code is code:
            yield frame.f_locals
        frame = frame.f_back


def _read(names: dict[str, Any]) -> RunningFit:
    adapter = getattr(names.get("data_handler"), "_adapter", None)
    data = getattr(adapter, "_keras_sequence", names.get("x"))
    callbacks = getattr(names.get("callbacks"), "callbacks", None)
    callbacks = callbacks if isinstance(callbacks, list) else None
    return RunningFit(names.get("self"), data, callbacks, int(names.get("initial_epoch") or 0))


def _code_of_fit() -> CodeType:
    function = inspect.unwrap(tf.keras.Model.fit)
    code = getattr(function, "__code__", None)
    needed = ("data_handler", "callbacks", "self")
    if code is None or not all(name in code.co_varnames + code.co_cellvars for name in needed):
        raise BackendError(
            f"keras.Model.fit of Keras {tf.keras.__version__} is not the one this package knows.",
            expected="Keras 2.14",
            remedy="Install keras==2.14.0, or remove what replaces keras.Model.fit.",
        )
    return code
