"""Two hospitals hold different measurements of the same patients, and train one model that neither could train alone.

Wisconsin's breast cancer data (scikit-learn): the north has 15 columns, the south the other 15 and the diagnosis.
"""

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_breast_cancer

import keras_private as kp
from keras_private.encrypted import Owned, Vertical


def main() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    # Each hospital scales its own columns.
    x = np.clip((x - x[:400].mean(0)) / x[:400].std(0), -4, 4)
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((30,)),
            tf.keras.layers.Dense(8, activation="relu"),
            tf.keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    encrypted = kp.EncryptedModel(model, input_range=(-4.0, 4.0))
    encrypted.compile(tf.keras.optimizers.SGD(0.3), "binary_crossentropy", metrics=["accuracy"])

    def owned(rows: slice) -> Vertical:
        return Vertical(Owned("north", x[rows, :15]), Owned("south", x[rows, 15:]))

    encrypted.fit(owned(slice(0, 400)), Owned("south", y[:400]), batch_size=40, epochs=4, verbose=2)
    test = slice(400, 560)
    logs = encrypted.evaluate(owned(test), Owned("south", y[test]), batch_size=40, verbose=0, return_dict=True)
    print(f"accuracy on 160 other patients: {logs['accuracy']:.3f}")
    assert logs["accuracy"] > 0.92


if __name__ == "__main__":
    main()
