"""An ordinary model and an ordinary fit; the largest layer is computed by three parties on shares."""

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp


def build(dense: type) -> tf.keras.Model:
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((64,)),
            dense(64, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = x / 16.0
    histories = []
    for dense in (tf.keras.layers.Dense, kp.layers.EncryptedDense):
        model = build(dense)
        histories.append(model.fit(x[:1500], y[:1500], batch_size=50, epochs=5, shuffle=False, verbose=0).history)
        accuracy = model.evaluate(x[1500:], y[1500:], verbose=0, return_dict=True)["accuracy"]
        print(f"{dense.__name__:<15} loss {histories[-1]['loss'][-1]:.5f}, accuracy on 297 digits {accuracy:.3f}")
    assert np.allclose(histories[0]["loss"], histories[1]["loss"], rtol=1e-2)


if __name__ == "__main__":
    main()
