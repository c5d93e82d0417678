"""make_private: an ordinary fit, private; refusals; saving and resuming."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.dp.accounting import epsilon as epsilon_of
from keras_private.dp.model import PrivateTraining
from keras_private.errors import BudgetExhaustedError, ConfigurationError, UnsupportedModelError

EXAMPLES = 240


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(EXAMPLES, 6)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


def sequential() -> tf.keras.Model:
    layers = tf.keras.layers
    return tf.keras.Sequential([tf.keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(2)])


class Subclassed(tf.keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = tf.keras.layers.Dense(8), tf.keras.layers.Dense(2)

    @tf.function
    def body(self, x: tf.Tensor) -> tf.Tensor:
        return self.second(tf.nn.relu(self.first(x)))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.body(x)


def compiled(model: tf.keras.Model | None = None, **options) -> PrivateTraining:
    settings = {"epsilon": 3.0, "delta": 1e-4, **options}
    private = kp.make_private(model or sequential(), **settings)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    private.compile("adam", loss=loss, metrics=["accuracy"])
    return private


def test_fit_is_ordinary_and_reports_epsilon():
    private = compiled()
    x, y = data()
    history = private.fit(x, y, batch_size=24, epochs=3, verbose=0, validation_data=(x, y)).history
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "epsilon"} <= set(history)
    spent = history["epsilon"]
    assert len(spent) == 3 and 0 < spent[0] < spent[1] < spent[2] <= 3.0
    assert spent[2] > 2.9, "the calibrated noise should use the budget up"
    assert int(private.optimizer.steps_done) == 30
    assert isinstance(private, tf.keras.Model)
    assert private.predict(x, verbose=0).shape == (EXAMPLES, 2)


def test_epsilon_is_that_of_the_charges():
    private = compiled()
    x, y = data()
    last = private.fit(x, y, batch_size=24, epochs=2, verbose=0).history["epsilon"][-1]
    charges = private.optimizer.ledger.charges_of(private.optimizer)
    assert sum(charge.steps for charge in charges) == 20
    assert charges[0].sampling_probability == pytest.approx(0.1, rel=1e-6)
    assert last == pytest.approx(epsilon_of(charges, 1e-4), rel=1e-9)


def test_the_noise_agrees_with_dp_accounting():
    import dp_accounting

    private = compiled()
    x, y = data()
    private.fit(x, y, batch_size=24, epochs=2, verbose=0)

    def event(noise: float) -> dp_accounting.DpEvent:
        step = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(noise))
        return dp_accounting.SelfComposedDpEvent(step, 20)

    expected = dp_accounting.calibrate_dp_mechanism(dp_accounting.pld.PLDAccountant, event, 3.0, 1e-4)
    assert private.optimizer.noise_multiplier == pytest.approx(expected, rel=0.01)


def test_tf_functions_inside_the_model_are_inlined():
    x, y = data()
    private = compiled(Subclassed())
    private.fit(x, y, batch_size=24, epochs=1, verbose=0)
    assert int(private.optimizer.steps_done) == 10
    model = Subclassed()
    model.compile(kp.DPOptimizer("sgd", 1.0, 1.0, 24), loss="mse")
    with pytest.raises(UnsupportedModelError, match="make_private"):
        model.fit(x, np.zeros((EXAMPLES, 2), np.float32), batch_size=24, verbose=0)


def test_weights_are_shared_with_the_original():
    model = sequential()
    private = compiled(model)
    x, y = data()
    before = [weight.numpy() for weight in model.weights]
    private.fit(x, y, batch_size=24, epochs=1, verbose=0)
    assert all((old != new.numpy()).any() for old, new in zip(before, model.weights))
    np.testing.assert_array_equal(model(x), private(x))


def test_an_exhausted_budget_refuses_the_next_fit():
    private = compiled()
    x, y = data()
    private.fit(x, y, batch_size=24, epochs=1, verbose=0)
    after = [weight.numpy() for weight in private.weights]
    with pytest.raises(BudgetExhaustedError):
        private.fit(x, y, batch_size=24, epochs=1, verbose=0)
    for old, new in zip(after, private.weights):
        np.testing.assert_array_equal(old, new.numpy())


def test_fixed_noise_lets_several_fits_compose_and_stops_at_the_budget():
    private = compiled(noise_multiplier=1.5, epsilon=3.0)
    x, y = data()
    first = private.fit(x, y, batch_size=24, epochs=1, verbose=0).history["epsilon"][-1]
    second = private.fit(x, y, batch_size=24, epochs=1, verbose=0).history["epsilon"][-1]
    assert second > first
    private.fit(x, y, batch_size=24, epochs=1000, verbose=0)
    total = epsilon_of(private.optimizer.ledger.charges_of(private.optimizer), 1e-4)
    assert total <= 3.0
    assert int(private.optimizer.steps_done) < 10_000


def test_no_step_runs_outside_fit():
    private = compiled()
    x, y = data()
    with pytest.raises(UnsupportedModelError, match="train_on_batch"):
        private.train_on_batch(x[:8], y[:8])
    before = [weight.numpy() for weight in private.weights]
    iterator = iter(tf.data.Dataset.from_tensors((x[:8], y[:8])))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not authorized"):
        private.make_train_function()(iterator)
    for old, new in zip(before, private.weights):
        np.testing.assert_array_equal(old, new.numpy())


def test_validation_split_never_trains_on_the_held_out_rows():
    private = compiled()
    x, y = data()
    x[-48:] *= 1e20
    history = private.fit(x, y, batch_size=24, epochs=1, verbose=0, validation_split=0.2).history
    assert history["loss"][0] < 10 and history["val_loss"][0] > 1e10
    charge = private.optimizer.ledger.charges_of(private.optimizer)[0]
    assert charge.sampling_probability == pytest.approx(24 / 192)


@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_steps_per_execution(steps_per_execution):
    private = kp.make_private(sequential(), epsilon=3.0, delta=1e-4)
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    private.compile("sgd", loss=loss, steps_per_execution=steps_per_execution)
    x, y = data()
    history = private.fit(x, y, batch_size=30, epochs=2, verbose=0).history
    assert int(private.optimizer.steps_done) == 16
    assert history["epsilon"][-1] <= 3.0


def test_class_and_sample_weights():
    private = compiled()
    x, y = data()
    weight = np.ones(EXAMPLES, np.float32)
    private.fit(x, y, batch_size=24, epochs=1, verbose=0, sample_weight=weight, class_weight={0: 1.0, 1: 2.0})
    assert int(private.optimizer.steps_done) == 10


def test_save_and_load_keep_architecture_budget_and_steps(tmp_path):
    ledger = tmp_path / "ledger.json"
    private = compiled(noise_multiplier=1.5, ledger=ledger)
    x, y = data()
    private.fit(x, y, batch_size=24, epochs=1, verbose=0)
    path = tmp_path / "model.keras"
    private.save(path)
    loaded = tf.keras.models.load_model(path)
    assert isinstance(loaded, PrivateTraining)
    np.testing.assert_array_equal(loaded(x), private(x))
    assert loaded.optimizer.identity == private.optimizer.identity
    assert int(loaded.optimizer.steps_done) == 10
    before = private.optimizer.ledger
    assert before is not loaded.optimizer.ledger
    more = loaded.fit(x, y, batch_size=24, epochs=1, verbose=0).history["epsilon"][-1]
    fresh = compiled(noise_multiplier=1.5)
    once = fresh.fit(x, y, batch_size=24, epochs=1, verbose=0).history["epsilon"][-1]
    assert more > once


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"run_eagerly": True}, "run_eagerly"),
        ({"jit_compile": True}, "jit_compile"),
        ({"steps_per_execution": "auto"}, "steps_per_execution"),
    ],
)
def test_compile_refuses_what_cannot_be_private(options, name):
    private = kp.make_private(sequential(), epsilon=1.0, delta=1e-4)
    with pytest.raises(ConfigurationError, match=name):
        private.compile("sgd", loss="mse", **options)


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon": 0},
        {"epsilon": -1.0},
        {"delta": 0.0},
        {"delta": 1.0},
        {"l2_norm_clip": 0.0},
        {"epsilon": float("nan")},
    ],
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        kp.make_private(sequential(), **{"epsilon": 1.0, "delta": 1e-4, **bad})


def test_batch_normalization_is_refused_with_the_way_out():
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [tf.keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(2)]
    )
    with pytest.raises(UnsupportedModelError, match=r"keras_private\.fix"):
        kp.make_private(model, epsilon=1.0, delta=1e-4)
    x, y = data()
    compiled(kp.fix(model)).fit(x, y, batch_size=24, epochs=1, verbose=0)


def test_own_train_step_and_own_loss_are_refused():
    class OwnStep(tf.keras.Model):
        def train_step(self, data):
            return {}

    class OwnLoss(tf.keras.Model):
        def compute_loss(self, *arguments, **options):
            return 0.0

    for model, name in ((OwnStep(), "train_step"), (OwnLoss(), "compute_loss")):
        with pytest.raises(UnsupportedModelError, match=name):
            kp.make_private(model, epsilon=1.0, delta=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(8),
        lambda x, y: (batch for batch in [(x[:8], y[:8])]),
    ],
)
def test_data_that_does_not_say_how_it_samples_is_refused(make):
    private = compiled()
    with pytest.raises(ConfigurationError, match="PoissonSampler"):
        private.fit(make(*data()), epochs=1, verbose=0)


def test_a_second_budget_is_refused():
    private = compiled()
    x, y = data()
    with pytest.raises(ConfigurationError, match="PrivacyBudget"):
        private.fit(x, y, callbacks=[kp.PrivacyBudget(1.0, 1e-4)], verbose=0)


def test_mixed_float16_is_refused():
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        with pytest.raises(ConfigurationError, match="mixed_float16"):
            kp.make_private(sequential(), epsilon=1.0, delta=1e-4)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def test_float64_and_bfloat16_policies_train():
    x, y = data()
    for policy in ("float64", "mixed_bfloat16"):
        tf.keras.mixed_precision.set_global_policy(policy)
        try:
            private = compiled()
            private.fit(x, y, batch_size=24, epochs=1, verbose=0)
        finally:
            tf.keras.mixed_precision.set_global_policy("float32")
        assert all(np.isfinite(weight.numpy()).all() for weight in private.weights)


def test_shapes_of_the_data_are_known_while_tracing():
    """Keras drops shapes from a Sequence; a deferred model that needs them must still train."""

    class NeedsShapes(tf.keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf.keras.layers.Dense(2)

        def call(self, x):
            assert x.shape[1:] == (6,)
            return self.dense(x)

    x, y = data()
    private = compiled(NeedsShapes())
    private.fit(x, y, batch_size=24, epochs=1, verbose=0)
    assert int(private.optimizer.steps_done) == 10


def test_a_reshape_by_the_static_shape_keeps_examples_apart():
    """Flatten right after the data: its target is a number that only the checked shape explains."""
    layers = tf.keras.layers
    private = compiled(tf.keras.Sequential([tf.keras.Input((2, 3, 1)), layers.Flatten(), layers.Dense(2)]))
    x, y = data()
    private.fit(x.reshape(-1, 2, 3, 1), y, batch_size=24, epochs=1, verbose=0)
    assert int(private.optimizer.steps_done) == 10


def test_grouped_convolutions_are_refused_by_name():
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input((6, 6, 4)),
            layers.Conv2D(4, 3, groups=2, name="grouped"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    private = compiled(model)
    with pytest.raises(UnsupportedModelError, match="grouped"):
        private.fit(np.zeros((48, 6, 6, 4), np.float32), np.zeros(48, np.int64), batch_size=8, verbose=0)


def test_metric_state_is_not_kept_after_fit():
    private = compiled()
    x, y = data()
    private.fit(x, y, batch_size=24, epochs=1, verbose=0)
    assert all(not variable.numpy().any() for metric in private.metrics for variable in metric.variables)


def test_empty_draws_still_take_their_noisy_step():
    """One expected example a draw: more than a third of the draws are empty, and convolutions must bear it."""
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input((6, 6, 1)),
            layers.Conv2D(2, 3),
            layers.MaxPool2D(2),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    private = compiled(model, noise_multiplier=1.0, epsilon=50.0)
    x = np.random.default_rng(0).normal(size=(64, 6, 6, 1)).astype(np.float32)
    kernels = []
    watch = tf.keras.callbacks.LambdaCallback(
        on_batch_end=lambda batch, logs: kernels.append(model.layers[0].kernel.numpy())
    )
    private.fit(x, np.arange(64) % 2, batch_size=1, verbose=0, callbacks=[watch])
    assert int(private.optimizer.steps_done) == 64
    assert all(np.isfinite(kernel).all() for kernel in kernels)
    assert all((one != other).all() for one, other in zip(kernels, kernels[1:]))


def test_the_row_added_to_an_empty_batch_adds_nothing():
    from keras_private.dp.empty import with_a_row

    model = sequential()
    model.compile(loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer = kp.DPOptimizer("sgd", 1.0, 0.0, 8)

    @tf.function(input_signature=[tf.TensorSpec([None, 6]), tf.TensorSpec([None], tf.int64)], autograph=False)
    def gradients(x, y):
        x, y, weight = with_a_row(x, y, None)
        loss = model.compute_loss(x, y, model(x), weight)
        return [gradient for gradient, _ in optimizer.compute_gradients(loss, model.trainable_variables)]

    x, y = data()
    assert all(not gradient.numpy().any() for gradient in gradients(x[:0], y[:0]))
    assert all(gradient.numpy().any() for gradient in gradients(x[:4], y[:4]))


def test_winding_steps_back_lets_no_more_steps_run():
    optimizer = kp.DPOptimizer("sgd", 1.0, 0.0, 8)
    weight = tf.Variable(tf.ones([3, 1]))

    @tf.function
    def step(x):
        optimizer.minimize(tf.reduce_sum(x @ weight, axis=-1), [weight])

    optimizer.gate()
    optimizer.authorize(2)
    x = tf.ones([4, 3])
    step(x)
    optimizer.steps_done.assign(0)
    step(x)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not authorized"):
        step(x)
