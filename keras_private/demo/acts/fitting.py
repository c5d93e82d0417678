"""A fit of images as the demo shows it, plain or private."""

from __future__ import annotations

from typing import Any

from ..data import Images
from ..progress import waiting


def fitted(model: Any, images: Images, batch_size: int, epochs: int) -> dict[str, tuple[float, ...]]:
    """Trains a compiled model, with a line for each epoch.

    Returns:
        Its History, by name.
    """
    with waiting("training") as wait:
        history = model.fit(
            images.x_train,
            images.y_train,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=(images.x_test, images.y_test),
            validation_batch_size=1000,
            verbose=2,
            callbacks=[wait.callback()],
        ).history
    return {name: tuple(map(float, values)) for name, values in history.items()}
