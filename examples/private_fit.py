"""An ordinary fit and a private one of the same network; what was spent, and that the budget is a hard stop."""

import tensorflow as tf
from sklearn.datasets import load_digits

import keras_private as kp

EPSILON, DELTA = 3.0, 1e-5


def network() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    return tf.keras.Sequential([tf.keras.Input((64,)), layers.Dense(32, "tanh"), layers.Dense(10)])


def main() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    train, test = (x[:1500], y[:1500]), (x[1500:], y[1500:])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    plain = network()
    plain.compile(tf.keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
    plain.fit(*train, batch_size=150, epochs=20, verbose=0)

    model = network()
    private = kp.make_private(model, epsilon=EPSILON, delta=DELTA, l2_norm_clip=0.5)
    private.compile(tf.keras.optimizers.SGD(2.0), loss=loss, metrics=["accuracy"])
    history = private.fit(*train, batch_size=150, epochs=20, verbose=0).history

    accuracy = [each.evaluate(*test, verbose=0, return_dict=True)["accuracy"] for each in (plain, private)]
    print(f"accuracy on images that were not trained on: {accuracy[0]:.2f} plain, {accuracy[1]:.2f} private")
    print("epsilon after each epoch:", " ".join(f"{epsilon:.2f}" for epsilon in history["epsilon"]))
    print(f"It holds at delta {DELTA:g} for adding or removing one image, against who sees the weights of every step.")
    assert accuracy[1] > 0.8
    assert 0 < history["epsilon"][0] < history["epsilon"][-1] <= EPSILON

    before = model.get_weights()
    try:
        private.fit(*train, batch_size=150, epochs=1, verbose=0)
        raise SystemExit("one more epoch was trained, past the budget")
    except kp.errors.BudgetExhaustedError as error:
        print("one more epoch is refused:", error.problem)
    assert all((one == other).all() for one, other in zip(before, model.get_weights()))


if __name__ == "__main__":
    main()
