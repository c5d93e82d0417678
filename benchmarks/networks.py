"""The networks of the step-time and memory benchmarks."""

from __future__ import annotations

import tensorflow as tf

BATCH = 256
SHAPES = {"mlp": (784,), "cnn": (28, 28, 1)}


def mlp() -> tf.keras.Model:
    """784-256-256-10."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input(SHAPES["mlp"]),
            layers.Dense(256, activation="relu"),
            layers.Dense(256, activation="relu"),
            layers.Dense(10),
        ]
    )


def cnn() -> tf.keras.Model:
    """16 8x8/2, pool, 32 4x4/2, pool, 32, 10."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input(SHAPES["cnn"]),
            layers.Conv2D(16, 8, strides=2, padding="same", activation="relu"),
            layers.MaxPool2D(2, 1),
            layers.Conv2D(32, 4, strides=2, activation="relu"),
            layers.MaxPool2D(2, 1),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(10),
        ]
    )


NETWORKS = {"mlp": mlp, "cnn": cnn}


def batches(name: str, batch: int = BATCH) -> tf.data.Dataset:
    """The same random batch, for ever, with the batch axis unknown while tracing, as in private training."""
    x = tf.random.normal((batch, *SHAPES[name]))
    y = tf.random.uniform((batch,), 0, 10, tf.int64)
    signature = (tf.TensorSpec((None, *SHAPES[name])), tf.TensorSpec((None,), tf.int64))
    data = tf.data.Dataset.from_tensors((x, y)).cache().repeat()
    return data.map(lambda x, y: tuple(tf.ensure_shape(t, s.shape) for t, s in zip(_open(x, y), signature)))


def _open(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.raw_ops.PlaceholderWithDefault(
        input=x, shape=[None, *x.shape[1:]]
    ), tf.raw_ops.PlaceholderWithDefault(input=y, shape=[None])


def compiled(name: str, optimizer: object, reduction: str = "sum_over_batch_size") -> tf.keras.Model:
    model = NETWORKS[name]()
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile(optimizer, loss=loss, metrics=["accuracy"])
    return model
