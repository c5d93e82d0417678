"""Callbacks of a federated fit, and its progress bar over rounds."""

from __future__ import annotations

import time
from typing import Any, Optional

import tensorflow as tf

_HIDDEN = ("lr",)


class RoundProgress(tf.keras.callbacks.Callback):
    """One bar for all rounds, or one line for each.

    Args:
        verbose: 1 for the bar, 2 for lines.
    """

    def __init__(self, verbose: int) -> None:
        super().__init__()
        self._verbose = verbose
        self._bar: Any = None
        self._done, self._begun = 0, 0.0

    def on_train_begin(self, logs: Optional[dict[str, Any]] = None) -> None:
        self._bar = None

    def on_epoch_begin(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Optional[dict[str, Any]] = None) -> None:
        self._done = epoch + 1
        shown = [(name, value) for name, value in (logs or {}).items() if name not in _HIDDEN]
        rounds = self.params.get("epochs")
        if self._verbose == 2:
            figures = " - ".join(f"{name}: {value:.4f}" for name, value in shown)
            seconds = time.perf_counter() - self._begun
            print(f"Round {epoch + 1}/{rounds} - {seconds:.1f}s - {figures}", flush=True)
            return
        if self._bar is None:
            self._bar = tf.keras.utils.Progbar(rounds, stateful_metrics=[n for n, _ in shown], unit_name="round")
        # Names that appear late, such as those of validation, are stateful as well.
        self._bar.stateful_metrics |= {name for name, _ in shown}
        self._bar.update(epoch + 1, shown)

    def on_train_end(self, logs: Optional[dict[str, Any]] = None) -> None:
        # A bar that reached its end has a line of its own; one that was stopped early has not.
        if self._bar is not None and self._done < (self.params.get("epochs") or 0):
            print(flush=True)


def callback_list(callbacks: Any, owner: Any, verbose: Any, epochs: int) -> Any:
    """Keras's list of callbacks with History, and with the progress of rounds."""
    level = 1 if verbose == "auto" else int(verbose)
    if isinstance(callbacks, tf.keras.callbacks.CallbackList):
        return callbacks
    given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks] if callbacks else []
    if level:
        given.append(RoundProgress(level))
    return tf.keras.callbacks.CallbackList(
        given, add_history=True, add_progbar=False, model=owner, verbose=level, epochs=epochs, steps=1
    )
