"""Signs of life while something takes long, and an orderly end when somebody does not want to wait."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

SILENCE = 4.0
"""Seconds without a line after which one is printed."""


class Waiting:
    """What is being waited for, and when somebody last heard of it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun = self._heard = time.monotonic()

    def said(self) -> None:
        """Somebody has just printed a line."""
        self._heard = time.monotonic()

    def speak(self) -> None:
        now = time.monotonic()
        if now - self._heard >= SILENCE:
            print(f"  ... {self._what}, {now - self._begun:.0f} s", flush=True)
            self._heard = now

    def callback(self) -> Any:
        """A Keras callback for a fit that prints a line after each epoch."""
        import tensorflow as tf

        return tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self.said())


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Waiting]:
    """Prints a line whenever nothing was heard for `SILENCE` seconds."""
    found, over = Waiting(what), threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            found.speak()

    thread = threading.Thread(target=watch, name="waiting", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, once: a second one shall not disturb the cleaning up."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: Any) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        print("\nInterrupted: ending the processes of the demo ...", flush=True)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
