"""FederatedModel against plain Keras, NumPy and TensorFlow Federated's own algorithms."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.errors import AggregationError, ClientDataError, ConfigurationError, UnsupportedModelError
from keras_private.federated import FedProx, Mean

K = tf.keras.layers
LOSS = "sparse_categorical_crossentropy"


def dense(seed: int = 0) -> tf.keras.Model:
    tf.keras.utils.set_random_seed(seed)
    return tf.keras.Sequential([K.Input((6,)), K.Dense(5, "tanh"), K.Dense(3, "softmax")])


def examples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, 6)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)


def difference(model: tf.keras.Model, other: tf.keras.Model) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(model.get_weights(), other.get_weights()))


def plainly_trained(model: tf.keras.Model, data, optimizer, batch_size: int, epochs: int = 1) -> tf.keras.Model:
    copy = tf.keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile(type(optimizer).from_config(optimizer.get_config()), LOSS)
    copy.fit(*data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return copy


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "mimelite"])
def test_one_client_and_one_step_are_plain_gradient_descent(algorithm):
    model, data = dense(), examples(12)
    rate = tf.keras.optimizers.SGD(0.3)
    expected = plainly_trained(model, data, rate, 12)
    fed = kp.FederatedModel(model)
    fed.compile(rate, loss=LOSS, algorithm=algorithm)
    fed.fit({"one": data}, batch_size=12, verbose=0)
    assert difference(model, expected) < 1e-6


def test_fedsgd_is_one_step_over_all_examples():
    model, data = dense(), examples(12)
    rate = tf.keras.optimizers.SGD(0.3)
    expected = plainly_trained(model, data, rate, 12)
    fed = kp.FederatedModel(model)
    fed.compile("adam", rate, loss=LOSS, algorithm="fedsgd")
    x, y = data
    fed.fit({"a": (x[:7], y[:7]), "b": (x[7:], y[7:])}, batch_size=3, verbose=0)
    assert difference(model, expected) < 1e-6


@pytest.mark.parametrize("optimizer", [tf.keras.optimizers.SGD(0.2, momentum=0.9), tf.keras.optimizers.Adam(0.05)])
def test_local_epochs_and_ragged_batches_are_those_of_keras_with_a_fresh_optimizer_each_round(optimizer):
    model, data = dense(), examples(11)
    expected = plainly_trained(model, data, optimizer, 4, epochs=3)
    expected = plainly_trained(expected, data, optimizer, 4, epochs=3)
    fed = kp.FederatedModel(model)
    fed.compile(optimizer, loss=LOSS)
    fed.fit({"one": data}, epochs=2, local_epochs=3, batch_size=4, shuffle=False, verbose=0)
    assert difference(model, expected) < 1e-5


def test_equal_clients_are_one_client():
    data = examples(10)
    one, many = dense(), dense()
    for model, clients in ((one, {"a": data}), (many, {"a": data, "b": data, "c": data})):
        fed = kp.FederatedModel(model)
        fed.compile(tf.keras.optimizers.SGD(0.5), loss=LOSS)
        fed.fit(clients, epochs=2, batch_size=5, shuffle=False, verbose=0)
    assert difference(one, many) < 1e-6


@pytest.mark.parametrize("weighted", [True, False])
def test_the_mean_is_that_of_numpy(weighted):
    model = dense()
    clients = {"a": examples(4, 1), "b": examples(9, 2), "empty": examples(0), "single": examples(1, 3)}
    rate = tf.keras.optimizers.SGD(0.5)
    begun = model.get_weights()
    updates, weights = [], []
    for x, y in clients.values():
        trained = plainly_trained(model, (x, y), rate, 4).get_weights() if len(x) else begun
        updates.append([new - old for new, old in zip(trained, begun)])
        weights.append(len(x) if weighted else float(len(x) > 0))
    expected = [old + np.average(each, axis=0, weights=weights) for old, each in zip(begun, zip(*updates))]
    fed = kp.FederatedModel(model, Mean(weighted=weighted))
    fed.compile(rate, loss=LOSS, metrics=["accuracy"])
    history = fed.fit(clients, batch_size=4, shuffle=False, verbose=0).history
    for found, wanted in zip(model.get_weights(), expected):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert history["clients"] == [3.0]
    assert history["left_out"] == [1.0]


def test_the_algorithms_are_those_of_tensorflow_federated(tff_rounds):
    clients = [examples(8, 1), examples(12, 2), examples(5, 3)]
    for algorithm, name, server in (
        ("fedavg", "build_weighted_fed_avg", "adam"),
        ("fedavg", "build_weighted_fed_avg", "yogi"),
        ("fedavg", "build_weighted_fed_avg", "adagrad"),
        ("mimelite", "build_weighted_mime_lite", "sgd"),
        ("fedsgd", "build_fed_sgd", "sgd"),
    ):
        expected = tff_rounds(name, clients, server, rounds=3)
        # After TensorFlow Federated made models in a graph, Keras wants new ones.
        model = dense()
        fed = kp.FederatedModel(model)
        fed.compile(
            tf.keras.optimizers.SGD(0.1, momentum=0.9 if algorithm == "mimelite" else 0.0),
            tf.keras.optimizers.SGD(0.5) if name == "build_fed_sgd" else server,
            loss=LOSS,
            algorithm=algorithm,
        )
        fed.fit(dict(zip("abc", clients)), epochs=3, batch_size=4, shuffle=False, verbose=0)
        for found, wanted in zip(model.get_weights(), expected):
            np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=f"{name} {server}")


def test_fedprox_is_drawn_back_to_where_it_began():
    """TensorFlow Federated 0.87 is no reference here: it adds mu * (w_0 - w), which drives the weights away."""
    x, y = examples(12, 1)
    model, expected = dense(), dense()
    begun = [weight.copy() for weight in model.get_weights()]
    loss = tf.keras.losses.SparseCategoricalCrossentropy()
    for first in (0, 4, 8):
        with tf.GradientTape() as tape:
            value = loss(y[first : first + 4], expected(x[first : first + 4]))
        for variable, gradient, start in zip(
            expected.trainable_variables, tape.gradient(value, expected.trainable_variables), begun
        ):
            variable.assign_sub(0.1 * (gradient + 2.0 * (variable - start)))
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(0.1), loss=LOSS, algorithm=FedProx(2.0))
    fed.fit({"a": (x, y)}, batch_size=4, shuffle=False, verbose=0)
    assert difference(model, expected) < 1e-6


@pytest.fixture
def tff_rounds():
    from keras_private._backends import tff_learning
    from keras_private.federated import workers

    tff = tff_learning.package()

    def run(name, clients, server, rounds):
        functional = tff.learning.models.functional_model_from_keras(
            dense,
            tf.keras.losses.SparseCategoricalCrossentropy(),
            (tf.TensorSpec([None, 6], tf.float32), tf.TensorSpec([None], tf.int64)),
        )
        optimizers = tff.learning.optimizers
        servers = {
            "sgd": lambda: optimizers.build_sgdm(1.0),
            "adam": lambda: optimizers.build_adam(0.01, 0.9, 0.99, 1e-3),
            "adagrad": lambda: optimizers.build_adagrad(0.1, 0.1, 1e-3),
            "yogi": lambda: optimizers.build_yogi(0.01, 0.9, 0.999, 1e-3, 1e-6),
        }
        if name == "build_weighted_mime_lite":
            process = tff.learning.algorithms.build_weighted_mime_lite(
                functional, base_optimizer=optimizers.build_sgdm(0.1, 0.9), server_optimizer=optimizers.build_sgdm(1.0)
            )
        elif name == "build_fed_sgd":
            process = tff.learning.algorithms.build_fed_sgd(functional, server_optimizer_fn=optimizers.build_sgdm(0.5))
        else:
            arguments = {"client_optimizer_fn": optimizers.build_sgdm(0.1), "server_optimizer_fn": servers[server]()}
            process = getattr(tff.learning.algorithms, name)(functional, **arguments)
        data = [tf.data.Dataset.from_tensor_slices(each).batch(4) for each in clients]
        with workers.use(None) as hosts:
            state = hosts.run(process.initialize)
            for _ in range(rounds):
                state = hosts.run(process.next, state, data).state
        return state.global_model_weights.trainable

    return run


def test_metrics_are_those_of_all_examples_and_evaluate_agrees_with_keras():
    model = dense()
    clients = {"a": examples(7, 1), "b": examples(12, 2)}
    x, y = (np.concatenate(parts) for parts in zip(*clients.values()))
    fed = kp.FederatedModel(model)
    fed.compile("sgd", loss=LOSS, metrics=["accuracy", tf.keras.metrics.SparseTopKCategoricalAccuracy(2, name="top")])
    expected = model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(fed.evaluate(clients, batch_size=4), expected, rtol=1e-5)
    np.testing.assert_allclose(fed.evaluate(x, y), expected, rtol=1e-5)
    overall, own = fed.evaluate(clients, per_client=True, return_dict=True)
    np.testing.assert_allclose(list(overall.values()), expected, rtol=1e-5)
    for name, data in clients.items():
        np.testing.assert_allclose(list(own[name].values()), model.evaluate(*data, verbose=0), rtol=1e-5)
    history = fed.fit(clients, batch_size=100, verbose=0, validation_data=(x, y)).history
    np.testing.assert_allclose([history[name][0] for name in ("loss", "accuracy", "top")], expected, rtol=1e-5)
    np.testing.assert_allclose(history["val_loss"][0], model.evaluate(x, y, verbose=0)[0], rtol=1e-5)


def test_callbacks_of_keras(tmp_path):
    model, clients = dense(), {name: examples(10, seed) for seed, name in enumerate("abcd")}
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(0.1), loss=LOSS, metrics=["accuracy"])
    callbacks = tf.keras.callbacks
    history = fed.fit(
        clients,
        epochs=6,
        initial_epoch=2,
        clients_per_round=2,
        validation_data=examples(20, 9),
        verbose=0,
        callbacks=[
            callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True),
            callbacks.TensorBoard(str(tmp_path / "board")),
            callbacks.CSVLogger(str(tmp_path / "log.csv")),
            callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
            callbacks.EarlyStopping("val_loss", baseline=-1.0, patience=2, min_delta=100.0),
        ],
    )
    assert history.epoch == [2, 3]
    np.testing.assert_allclose(history.history["lr"], [0.1 / 3, 0.1 / 4])
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["3.weights.h5", "4.weights.h5"]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    assert list((tmp_path / "board").rglob("events*"))
    again = dense(1)
    again.load_weights(str(tmp_path / "4.weights.h5"))
    assert difference(again, model) == 0
    assert fed.history is history


def test_the_learning_rate_of_the_moment_reaches_the_clients():
    model, data = dense(), examples(8)
    begun = model.get_weights()
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(0.1), loss=LOSS)
    fed.optimizer.learning_rate.assign(0.0)
    fed.fit({"a": data}, verbose=0)
    for old, new in zip(begun, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_moving_averages_are_averaged():
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.Sequential([K.Input((6,)), K.BatchNormalization(momentum=0.5), K.Dense(3, "softmax")])
    clients = {"a": examples(10, 1), "b": examples(30, 2)}
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(0.1), loss=LOSS)
    fed.fit(clients, batch_size=30, shuffle=False, verbose=0)
    means = [0.5 * x.mean(axis=0) for x, _ in clients.values()]
    np.testing.assert_allclose(model.layers[0].moving_mean, np.average(means, axis=0, weights=[10, 30]), atol=1e-5)


def test_subclassed_models_with_shared_layers_dropout_and_their_own_train_step():
    class Own(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.shared, self.drop, self.out = K.Dense(6, "tanh"), K.Dropout(0.2), K.Dense(3, "softmax")

        def call(self, x, training=False):
            return self.out(self.drop(self.shared(self.shared(x)), training=training))

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = 2.0 * self.compute_loss(x, y, self(x, training=True))
            self.optimizer.minimize(loss, self.trainable_variables, tape)
            return self.compute_metrics(x, y, self(x), None)

    clients = {name: examples(40, seed) for seed, name in enumerate("abc")}
    fed = kp.FederatedModel(Own())
    fed.compile(tf.keras.optimizers.SGD(0.2), loss=LOSS, metrics=["accuracy"])
    history = fed.fit(clients, epochs=12, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    with pytest.raises(UnsupportedModelError, match="train_step of its own"):
        fed.compile("sgd", loss=LOSS, algorithm="fedprox")
        fed.fit(clients, verbose=0)


def test_models_with_several_inputs_and_text():
    words = K.StringLookup(vocabulary=["a", "b"])
    inputs = {"number": K.Input((2,), name="number"), "id": K.Input((), dtype=tf.int32, name="id")}
    joined = K.Concatenate()([inputs["number"], K.Embedding(4, 3)(inputs["id"])])
    model = tf.keras.Model(inputs, K.Dense(1)(joined))
    draw = np.random.default_rng(0)
    clients = {
        name: ({"number": draw.normal(size=(9, 2)), "id": draw.integers(0, 4, 9).astype(np.int32)}, draw.normal(size=9))
        for name in "ab"
    }
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(0.05), loss="mse")
    history = fed.fit(clients, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    text = K.Input((), dtype=tf.string)
    lookup = tf.keras.Model(text, K.Dense(1)(tf.cast(words(text), tf.float32)[:, None]))
    fed = kp.FederatedModel(lookup)
    fed.compile("sgd", loss="mse")
    with pytest.raises(UnsupportedModelError, match="resource that is no variable"):
        fed.fit({"a": (np.array(["a", "b"]), np.array([0.0, 1.0]))}, verbose=0)


def test_clients_that_are_not_finite_or_empty_count_for_nothing():
    model, good = dense(), examples(8, 1)
    bad = (np.full((3, 6), np.nan, np.float32), np.zeros(3, np.int64))
    expected = dense()
    for target, clients in ((model, {"good": good, "bad": bad, "empty": examples(0)}), (expected, {"good": good})):
        fed = kp.FederatedModel(target)
        fed.compile("sgd", loss=LOSS)
        history = fed.fit(clients, shuffle=False, verbose=0).history
        assert history["clients"] == [1.0]
    assert difference(model, expected) < 1e-7
    fed.fit({"bad": bad, "empty": examples(0)}, verbose=0)
    assert difference(model, expected) < 1e-7


def test_a_mean_that_is_not_finite_leaves_the_model_as_it_was():
    model = tf.keras.Sequential([K.Input((1,)), K.Dense(1)])
    begun = model.get_weights()
    huge = {name: (np.full((2, 1), 1e19, np.float32), np.full(2, -1e19, np.float32)) for name in "abcdefgh"}
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(1.0), loss="mse")
    with pytest.raises(AggregationError, match="not finite"):
        fed.fit(huge, verbose=0)
    for old, new in zip(begun, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_a_seed_repeats_clients_and_orders():
    clients = {str(index): examples(9, index) for index in range(6)}
    models = [dense(), dense(), dense()]
    for model, seed in zip(models, (5, 5, 6)):
        fed = kp.FederatedModel(model)
        fed.compile("sgd", loss=LOSS)
        fed.fit(clients, epochs=3, clients_per_round=2, batch_size=2, seed=seed, verbose=0)
    assert difference(models[0], models[1]) < 1e-7
    assert difference(models[0], models[2]) > 1e-4


def test_clients_of_a_folder_are_read_where_the_work_runs(tmp_path):
    clients = {name: examples(6 + seed, seed) for seed, name in enumerate("abc")}
    kp.federated.Clients.from_arrays(clients).write_directory(tmp_path / "data")
    models = [dense(), dense()]
    for model, data in zip(models, (clients, tmp_path / "data")):
        fed = kp.FederatedModel(model)
        fed.compile("sgd", loss=LOSS)
        fed.fit(data, epochs=2, batch_size=4, shuffle=False, verbose=0)
    assert difference(*models) < 1e-6


def test_personalize_leaves_the_model_and_fits_the_client():
    model, clients = dense(), {"a": examples(30, 1), "b": examples(30, 2)}
    fed = kp.FederatedModel(model)
    fed.compile(tf.keras.optimizers.SGD(0.3), loss=LOSS, metrics=["accuracy"])
    begun = model.get_weights()
    own = fed.personalize(clients, "a", epochs=5)
    assert own.evaluate(*clients["a"], verbose=0)[0] < model.evaluate(*clients["a"], verbose=0)[0]
    for old, new in zip(begun, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_progress_and_silence(capsys):
    fed = kp.FederatedModel(dense())
    fed.compile("sgd", loss=LOSS)
    fed.fit({"a": examples(4)}, epochs=3, verbose=0)
    assert capsys.readouterr().out == ""
    fed.fit({"a": examples(4)}, epochs=3, verbose=1)
    assert "3/3 [=" in capsys.readouterr().out
    fed.fit({"a": examples(4)}, epochs=2, verbose=2)
    assert capsys.readouterr().out.count("Round ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clients_per_round": 3}, "from 1 to 2"),
        ({"epochs": -1}, "epochs is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"local_epochs": 1.5}, "local_epochs is 1.5"),
        ({"sampling": "often"}, "'often'"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    fed = kp.FederatedModel(dense())
    fed.compile("sgd", loss=LOSS)
    with pytest.raises(ConfigurationError, match=message):
        fed.fit({"a": examples(3), "b": examples(3)}, verbose=0, **arguments)


def test_what_cannot_be_compiled():
    fed = kp.FederatedModel(dense())
    with pytest.raises(ConfigurationError, match="not compiled"):
        fed.fit({"a": examples(3)})
    with pytest.raises(ConfigurationError, match="no loss"):
        fed.compile("sgd")
    with pytest.raises(ConfigurationError, match="nonsense"):
        fed.compile("nonsense", loss=LOSS)
    with pytest.raises(ConfigurationError, match="the algorithm 'fedbest'"):
        fed.compile("sgd", loss=LOSS, algorithm="fedbest")
    with pytest.raises(ConfigurationError, match="legacy"):
        fed.compile(tf.keras.optimizers.legacy.SGD(0.1), loss=LOSS)
    with pytest.raises(ConfigurationError, match="DPOptimizer"):
        fed.compile("sgd", kp.DPOptimizer("sgd", 1.0, 1.0, expected_batch_size=4), loss=LOSS)
    with pytest.raises(ConfigurationError, match="a str"):
        kp.FederatedModel("model")
    with pytest.raises(ConfigurationError, match="an aggregator"):
        kp.FederatedModel(dense(), Mean)
    with pytest.raises(ConfigurationError, match="proximal strength"):
        FedProx(-1.0)
    fed.compile("sgd", loss=LOSS)
    with pytest.raises(ClientDataError, match="does not take an example"):
        fed.fit({"a": (np.zeros((3, 7)), np.zeros(3))}, verbose=0)


def test_yogi_is_saved_with_its_settings():
    from keras_private.federated import Yogi

    config = tf.keras.optimizers.serialize(Yogi(0.3, beta_1=0.8, epsilon=0.1))
    again = tf.keras.optimizers.deserialize(config)
    assert isinstance(again, Yogi)
    assert again.get_config() == Yogi(0.3, beta_1=0.8, epsilon=0.1).get_config()
