"""EncryptedModel: Keras's habits, what is opened, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_private._backends.graph_edges import cross_edges
from keras_private._backends.labels import party_of
from keras_private.encrypted import EncryptedModel, FixedPoint, Horizontal, Owned, Vertical
from keras_private.encrypted.session import SERVERS
from keras_private.errors import (
    ConfigurationError,
    EncodingError,
    OverflowPreflightError,
    PartiesError,
    UnsupportedLayerError,
)
from tests.selection import long_but

K = tf.keras.layers


def numbers(*shape, seed=0):
    return np.clip(np.random.default_rng(seed).normal(0, 1, shape), -3, 3).astype(np.float32)


def small(last="softmax", classes=3, hidden=8, inputs=5):
    tf.keras.utils.set_random_seed(4)
    return tf.keras.Sequential(
        [K.Input((inputs,)), K.Dense(hidden, "relu", name="first"), K.Dense(classes, last, name="second")]
    )


def labels(rows, classes=3):
    return np.random.default_rng(7).integers(0, classes, rows)


LOSSES = {
    "sparse": ("softmax", 3, "sparse_categorical_crossentropy", labels(32)),
    "categorical": ("softmax", 3, "categorical_crossentropy", np.eye(3)[labels(32)]),
    "logits": (None, 3, tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), labels(32)),
    "one class": ("softmax", 1, "categorical_crossentropy", np.ones((32, 1))),
    "binary": ("sigmoid", 1, "binary_crossentropy", labels(32, 2)),
    "several binary": ("sigmoid", 4, "binary_crossentropy", np.random.default_rng(0).integers(0, 2, (32, 4))),
    "binary logits": (None, 1, tf.keras.losses.BinaryCrossentropy(from_logits=True), labels(32, 2)),
    "squares": (None, 2, "mse", numbers(32, 2, seed=5)),
}


@pytest.mark.parametrize("name", long_but(LOSSES, "sparse", "binary"))
def test_a_fit_ends_where_keras_ends(name):
    last, classes, loss, y = LOSSES[name]
    model, x = small(last, classes), numbers(32, 5)
    metrics = [] if loss == "mse" else ["binary_accuracy" if name == "several binary" else "accuracy"]
    encrypted = EncryptedModel(model)
    encrypted.compile(tf.keras.optimizers.SGD(0.5), loss, metrics)
    found = encrypted.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    one = encrypted.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    weights = encrypted.reveal_to().get_weights()
    model.compile(tf.keras.optimizers.SGD(0.5), loss, metrics)
    expected = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["loss"], expected["loss"], atol=5e-3)
    for other, weight in zip(weights, model.get_weights()):
        np.testing.assert_allclose(other, weight, atol=5e-3)
    np.testing.assert_allclose(one["loss"], model.evaluate(x, y, verbose=0, return_dict=True)["loss"], atol=5e-3)
    # Keras compares logits with 0.5.
    for key in [] if name == "binary logits" else metrics:
        np.testing.assert_allclose(found[key], expected[key], atol=0.051)
    np.testing.assert_allclose(encrypted.predict(x, batch_size=16, verbose=0), model.predict(x, verbose=0), atol=5e-3)


@pytest.mark.long
def test_a_last_batch_of_fewer_rows_and_a_schedule_count_as_in_keras():
    def sgd():
        return tf.keras.optimizers.SGD(tf.keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5))

    model, x, y = small(), numbers(20, 5), labels(20)
    encrypted = EncryptedModel(model)
    encrypted.compile(sgd(), "sparse_categorical_crossentropy")
    found = encrypted.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    model.compile(sgd(), "sparse_categorical_crossentropy")
    expected = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(found["loss"], expected["loss"], atol=5e-3)
    for one, two in zip(encrypted.reveal_to().get_weights(), model.get_weights()):
        np.testing.assert_allclose(one, two, atol=5e-3)
    np.testing.assert_allclose(encrypted.predict(x, batch_size=16), model.predict(x, verbose=0), atol=5e-3)


def residual():
    tf.keras.utils.set_random_seed(2)
    inputs = tf.keras.Input((8, 8, 2))
    x = K.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    shared = K.Conv2D(4, 3, padding="same")
    y = K.BatchNormalization()(shared(x))
    y = K.BatchNormalization()(shared(K.Activation("relu")(y)))
    x = K.MaxPooling2D(2)(K.ReLU()(K.Add()([x, y])))
    x = K.Concatenate()([K.GlobalAveragePooling2D()(x), K.Flatten()(x)])
    model = tf.keras.Model(inputs, K.Dense(4, "softmax")(x))
    for layer in model.layers:
        if isinstance(layer, K.BatchNormalization):
            layer.moving_mean.assign(numbers(*layer.moving_mean.shape, seed=1) * 0.1)
            layer.moving_variance.assign(np.abs(numbers(*layer.moving_variance.shape, seed=2)) + 0.5)
    return model


def test_a_residual_network_with_normalization_predicts_as_keras_does():
    model, x = residual(), numbers(3, 8, 8, 2)
    encrypted = EncryptedModel(model)
    np.testing.assert_allclose(encrypted.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-2)
    errors = encrypted.parity_check(x, verbose=False)
    assert max(errors.values()) < 1e-2 and "max_pooling2d" in str(errors)


def test_nested_models_are_flattened():
    inner = small(None)
    inputs = tf.keras.Input((5,))
    model = tf.keras.Model(inputs, K.Add()([inner(inputs), inner(K.ReLU()(inputs))]))
    x = numbers(4, 5)
    np.testing.assert_allclose(EncryptedModel(model).predict(x), model.predict(x, verbose=0), atol=1e-2)


def test_several_inputs_and_outputs_predict():
    a, b = tf.keras.Input((3,)), tf.keras.Input((2,), dtype="int32")
    joined = K.Concatenate()([K.Dense(4)(a), K.Flatten()(K.Embedding(5, 2)(b))])
    model = tf.keras.Model([a, b], [K.Dense(2)(joined), K.Dense(1, "sigmoid")(joined)])
    data = [numbers(6, 3), np.random.default_rng(0).integers(0, 5, (6, 2))]
    encrypted = EncryptedModel(model)
    for found, expected in zip(encrypted.predict(data, batch_size=4), model.predict(data, verbose=0)):
        np.testing.assert_allclose(found, expected, atol=1e-2)
    with pytest.raises(EncodingError, match="no index"):
        encrypted.predict([data[0], data[1] + 4])


@pytest.mark.slow
def test_owners_of_columns_and_of_rows_train_as_one_owner_does():
    x, y = numbers(24, 5), labels(24)
    weights = []
    for data, target in (
        (x, y),
        (Vertical(Owned("north", x[:, :2]), Owned("south", x[:, 2:])), Owned("south", y)),
        (
            Horizontal(Owned("north", x[:16]), Owned("south", x[16:])),
            Horizontal(Owned("north", y[:16]), Owned("south", y[16:])),
        ),
    ):
        encrypted = EncryptedModel(small())
        encrypted.compile(tf.keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", reveal=())
        assert encrypted.fit(data, target, batch_size=8, shuffle=False, verbose=0).history == {}
        weights.append(encrypted.reveal_to().get_weights())
    for other in weights[1:]:
        for one, two in zip(weights[0], other):
            np.testing.assert_allclose(one, two, atol=1e-3)


def test_each_owner_shares_at_its_own_label():
    encrypted = EncryptedModel(small())
    encrypted.compile("sgd", "sparse_categorical_crossentropy")
    x, y = numbers(8, 5), labels(8)
    rows = encrypted._read(Vertical(Owned("north", x[:, :2]), Owned("south", x[:, 2:])), Owned("east", y), True)
    graph = encrypted.traced_training(rows.blocks[0])
    senders = {edge.source for edge in cross_edges(graph)}
    assert senders == {"north", "south", "east", *SERVERS}


def test_a_training_step_opens_nothing():
    """No party but the servers receives anything, and what leaves the function is no tensor."""
    encrypted = EncryptedModel(small())
    encrypted.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    graph = encrypted.traced_training(encrypted._read(numbers(8, 5), labels(8), True).blocks[0])
    assert {edge.target for edge in cross_edges(graph)} == set(SERVERS)
    assert graph.outputs == []
    kept = [op for op in graph.graph.get_operations() if op.type == "AssignVariableOp"]
    assert kept and {party_of(op) for op in kept} == set(SERVERS)


def test_history_and_callbacks():
    x, y = numbers(40, 5), labels(40)
    encrypted = EncryptedModel(small())
    encrypted.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"])
    seen = []
    history = encrypted.fit(
        x,
        y,
        epochs=6,
        batch_size=20,
        validation_split=0.25,
        verbose=0,
        callbacks=[
            tf.keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 * 2.0**epoch),
            tf.keras.callbacks.EarlyStopping("val_loss", patience=0, baseline=-1.0, restore_best_weights=True),
            tf.keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch)),
        ],
    )
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr"}
    assert len(history.epoch) == 2 and seen == [0, 1, 0, 1]


def test_training_resumes_at_an_epoch_and_from_a_dataset():
    x, y = numbers(20, 5), labels(20)
    encrypted = EncryptedModel(small())
    rate = tf.keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    encrypted.compile(tf.keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    assert encrypted.fit(data, batch_size=10, epochs=3, initial_epoch=1, verbose=0).epoch == [1, 2]
    assert int(encrypted.optimizer.iterations) == 4


@pytest.mark.parametrize(
    "x, says",
    [
        (numbers(4, 6), "shape"),
        (numbers(4, 5, 1), "shape"),
        (np.full((4, 5), np.nan), "NaN"),
        (np.full((4, 5), np.inf), "NaN or values"),
        (np.full((4, 5), 1e9), "declared range"),
        (np.array([["a"] * 5]), "dtype"),
        (np.zeros((0, 5)), "no rows"),
        (np.float32(1.0), "single number"),
        ([numbers(4, 5)] * 2, "2 arrays"),
    ],
)
def test_bad_inputs_are_refused_before_anything_is_shared(x, says):
    encrypted = EncryptedModel(small())
    encrypted.compile("sgd", "sparse_categorical_crossentropy")
    before = encrypted.get_weights()
    with pytest.raises((ConfigurationError, EncodingError), match=says):
        encrypted.predict(x)
    with pytest.raises((ConfigurationError, EncodingError), match=says):
        encrypted.fit(x, labels(len(x) if np.ndim(x) else 0), verbose=0)
    for one, two in zip(before, encrypted.get_weights()):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, bool])
@pytest.mark.long
def test_other_number_types_are_taken(dtype):
    x = (numbers(4, 5) > 0).astype(dtype)
    model = small()
    np.testing.assert_allclose(EncryptedModel(model).predict(x), model.predict(x.astype("float32")), atol=1e-2)


@pytest.mark.parametrize(
    "y, says",
    [
        (np.array([0, 1, 2, 3]), "no class"),
        (np.array([0.5, 1, 1, 1]), "no class"),
        (np.array([0, 1, 1]), "numbers of rows"),
        (np.eye(3)[[0, 1, 2, 0]], "labels of shape"),
        (np.array([np.nan, 1, 1, 1]), "NaN"),
        (None, "no labels"),
    ],
)
def test_bad_labels_are_refused(y, says):
    encrypted = EncryptedModel(small())
    encrypted.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises((ConfigurationError, EncodingError), match=says):
        encrypted.fit(numbers(4, 5), y, verbose=0)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"optimizer": "rmsprop", "loss": "mse"}, "RMSprop"),
        ({"optimizer": tf.keras.optimizers.SGD(clipnorm=1.0), "loss": "mse"}, "clipnorm"),
        ({"loss": "hinge"}, "hinge"),
        ({"loss": "mse"}, "metrics"),
        ({"loss": "binary_crossentropy"}, "from_logits"),
        ({"loss": tf.keras.losses.CategoricalCrossentropy(label_smoothing=0.1)}, "label_smoothing"),
        ({"loss": tf.keras.losses.CategoricalCrossentropy(reduction="sum")}, "reduction"),
        ({"loss": "categorical_crossentropy", "metrics": ["auc"]}, "auc"),
        ({"loss": "categorical_crossentropy", "reveal": ["labels"]}, "labels"),
    ],
)
def test_what_has_no_rule_is_refused_by_compile(arguments, says):
    encrypted = EncryptedModel(small())
    with pytest.raises(ConfigurationError, match=says):
        encrypted.compile(**{"metrics": ["accuracy"], **arguments})


def test_models_that_cannot_be_lowered_are_refused():
    class Own(tf.keras.Model):
        def call(self, inputs):
            return inputs

    for model in (Own(), tf.keras.Sequential([K.Dense(3)])):
        with pytest.raises(UnsupportedLayerError, match="no graph of layers"):
            EncryptedModel(model)
    with pytest.raises(UnsupportedLayerError, match="unknown length"):
        EncryptedModel(tf.keras.Sequential([K.Input((None, 3)), K.Dense(2)]))
    with pytest.raises(PartiesError, match="nowhere"):
        EncryptedModel(small(), parties="nowhere")


def test_training_before_compile_and_of_normalization_is_refused():
    with pytest.raises(ConfigurationError, match="not compiled"):
        EncryptedModel(small()).fit(numbers(4, 5), labels(4))
    encrypted = EncryptedModel(residual())
    encrypted.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(UnsupportedLayerError, match="trainable = False"):
        encrypted.fit(numbers(4, 8, 8, 2), labels(4))


def test_overflow_is_refused_before_training_and_found_after_an_epoch():
    with pytest.raises(OverflowPreflightError, match="second"):
        heavy = small()
        heavy.layers[-1].kernel.assign(heavy.layers[-1].kernel * 1e4)
        EncryptedModel(heavy, input_range=(-1e6, 1e6))
    with pytest.raises(OverflowPreflightError, match="declared range"):
        EncryptedModel(small(), input_range=(-1e9, 1e9))
    encrypted = EncryptedModel(small(), fixed_point=FixedPoint(fraction=24, integer=24), input_range=(-1000.0, 1000.0))
    encrypted.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(OverflowPreflightError, match=r"first|second"):
        encrypted.fit(numbers(64, 5), labels(64), batch_size=64)
    encrypted = EncryptedModel(small(), weight_growth=1.0)
    encrypted.compile(tf.keras.optimizers.SGD(20.0), "sparse_categorical_crossentropy")
    before = encrypted.reveal_to().get_weights()
    with pytest.raises(EncodingError, match="grown past"):
        encrypted.fit(numbers(64, 5), labels(64), epochs=3, verbose=0)
    # The first epoch was undone.
    for one, two in zip(before, encrypted.reveal_to().get_weights()):
        np.testing.assert_array_equal(one, two)


def test_evaluate_opens_what_reveal_names_alone():
    encrypted = EncryptedModel(small())
    encrypted.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"], reveal=("metrics",))
    x, y = numbers(20, 5), labels(20)
    assert list(encrypted.fit(x, y, verbose=0).history) == ["accuracy"]
    assert list(encrypted.evaluate(x, y, verbose=0, return_dict=True)) == ["accuracy"]
    encrypted.compile("sgd", "sparse_categorical_crossentropy", ["accuracy"], reveal=())
    with pytest.raises(ConfigurationError, match="nothing is opened"):
        encrypted.evaluate(x, y)
    with pytest.raises(ConfigurationError, match="weights for 'data_owner'"):
        encrypted.reveal_to("data_owner")


def test_cost_counts_what_every_layer_sends():
    encrypted = EncryptedModel(small())
    encrypted.compile("sgd", "sparse_categorical_crossentropy", reveal=())
    predict, train = encrypted.cost(16, training=False), encrypted.cost(16)
    # first: truncation of 16 x 8 products is seven words each; relu: 33 + 2 bytes of sign, 32 of bit, 24 of product.
    assert predict.by_layer["first"] == 16 * 8 * 56
    assert predict.by_layer["first_activation"] == 16 * 8 * (8 + 3 * (8 + 8 + 4 + 2 + 1 + 1 + 1) + 32 + 24)
    # Each input goes out as six words.
    assert predict.by_layer["share"] == 16 * 5 * 6 * 8
    assert train.bytes > predict.bytes and train.rounds > predict.rounds > 10
    assert "rounds" in str(train) and train.seconds(0.05, 1e8) > train.seconds(0.001, 1e9) > 0
