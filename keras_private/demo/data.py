"""Real images for the demo: Fashion-MNIST where it can be had, else scikit-learn's digits."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Images:
    """A data set of grey images.

    Attributes:
        name: What it is and where it came from.
        x_train, x_test: float32 [examples, height, width, 1], between 0 and 1.
        y_train, y_test: int64 [examples], 0 to 9.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(wanted: str = "auto") -> Images:
    """Debian's dataset-fashion-mnist, else Keras's download, else scikit-learn's digits.

    Args:
        wanted: "auto", or "digits" for these at once.
    """
    if wanted == "digits":
        return digits()
    if DEBIAN_FOLDER.is_dir():
        name = "Fashion-MNIST (Debian package dataset-fashion-mnist)"
        x_train, x_test = _idx("train", "images-idx3"), _idx("t10k", "images-idx3")
        y_train, y_test = _idx("train", "labels-idx1"), _idx("t10k", "labels-idx1")
        return _images(name, x_train, y_train, x_test, y_test, scale=255.0)
    try:
        import tensorflow as tf

        (x_train, y_train), (x_test, y_test) = tf.keras.datasets.fashion_mnist.load_data()
        return _images("Fashion-MNIST (keras.datasets)", x_train, y_train, x_test, y_test, scale=255.0)
    except Exception as error:
        print(
            f"Fashion-MNIST cannot be downloaded here ({type(error).__name__}); using scikit-learn's digits."
        )
    return digits()


def digits() -> Images:
    """1,797 images of handwritten digits, 8x8, that come with scikit-learn."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x.reshape(-1, 8, 8)[order], y[order]
    return _images("digits (scikit-learn)", x[:1500], y[:1500], x[1500:], y[1500:], scale=16.0)


def _idx(part: str, kind: str) -> np.ndarray:
    with gzip.open(DEBIAN_FOLDER / f"{part}-{kind}-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8)
    return raw[16:].reshape(-1, 28, 28) if kind.startswith("images") else raw[8:]


def _images(
    name: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, scale: float
) -> Images:
    x_train, x_test = (x[..., np.newaxis].astype(np.float32) / np.float32(scale) for x in (x_train, x_test))
    return Images(name, x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64))
