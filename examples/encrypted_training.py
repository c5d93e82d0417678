"""Trains a classifier of handwritten digits on secret shares, and compares it with plaintext Keras."""

import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp


def build() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(1)
    return tf.keras.Sequential(
        [
            tf.keras.layers.Input((64,)),
            tf.keras.layers.Dense(32, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = x / 16.0
    plain = build()
    plain.compile(tf.keras.optimizers.SGD(0.3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    plain.fit(x[:1500], y[:1500], batch_size=50, epochs=5, verbose=0)
    expected = plain.evaluate(x[1500:], y[1500:], verbose=0, return_dict=True)["accuracy"]

    encrypted = kp.EncryptedModel(build(), input_range=(0.0, 1.0))
    encrypted.compile(tf.keras.optimizers.SGD(0.3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    encrypted.summary()
    encrypted.fit(x[:1500], y[:1500], batch_size=50, epochs=5, verbose=2)
    found = encrypted.evaluate(x[1500:], y[1500:], batch_size=99, verbose=0, return_dict=True)["accuracy"]
    print(encrypted.cost(batch_size=50))
    print(f"accuracy on 297 digits: {expected:.3f} in plaintext, {found:.3f} on shares")
    assert found > 0.8 and abs(found - expected) < 0.08


if __name__ == "__main__":
    main()
