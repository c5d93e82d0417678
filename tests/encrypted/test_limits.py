"""What could leave the ring is refused: by losses, momentum, later labels, narrow encodings, loaded weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import keras_private as kp
from keras_private.encrypted import FixedPoint, Owned, Vertical
from keras_private.encrypted.losses import MeanSquaredError
from keras_private.encrypted.optimizers import StepScale
from keras_private.encrypted.protocol.functions import GUARDED, reciprocal, with_fraction
from keras_private.encrypted.protocol.products import scale
from keras_private.encrypted.protocol.truncation import truncate
from keras_private.encrypted.ranges import Preflight
from keras_private.errors import (
    ConfigurationError,
    OverflowPreflightError,
    ShareFileError,
)
from tests.encrypted.harness import compute, traced

layers = tf.keras.layers


def dense(inputs=3, units=1, **options):
    model = tf.keras.Sequential([tf.keras.Input((inputs,)), layers.Dense(units, **options)])
    return model


def encrypted(model, loss="mse", optimizer="sgd", metrics=None, **options):
    found = kp.EncryptedModel(model, **{"input_range": (-1, 1), **options})
    found.compile(optimizer, loss, metrics)
    return found


class TestLosses:
    def test_labels_whose_squared_error_would_wrap_are_refused(self):
        model = encrypted(dense())
        x, y = np.zeros((4, 3)), np.full((4, 1), 40000.0)
        for work in (lambda: model.evaluate(x, y, verbose=0), lambda: model.fit(x, y, verbose=0)):
            with pytest.raises(OverflowPreflightError, match="loss"):
                work()

    def test_large_batches_of_large_errors_are_right(self):
        plain = dense(units=3)
        model = encrypted(plain)
        x, y = np.zeros((512, 3)), np.full((512, 3), 3000.0)
        plain.compile("sgd", "mse")
        expected = plain.evaluate(x, y, batch_size=512, verbose=0)
        assert model.evaluate(x, y, batch_size=512, verbose=0) == pytest.approx(expected, rel=1e-3)

    def test_totals_that_would_wrap_are_refused(self):
        model = encrypted(dense())
        with pytest.raises(OverflowPreflightError, match="000 rows"):
            model.evaluate(np.zeros((300000, 3)), np.full((300000, 1), 30000.0), batch_size=100000, verbose=0)

    @pytest.mark.parametrize("loss", ["mse", "binary_crossentropy"])
    def test_sums_over_many_outputs_that_would_wrap_are_refused(self, loss):
        wide = dense(1, 1000, use_bias=False)
        wide.set_weights([np.full((1, 1000), 1000.0)])
        given = tf.keras.losses.BinaryCrossentropy(from_logits=True) if loss == "binary_crossentropy" else loss
        # Labels of 20000 square to less than the bound on products; logits and labels multiply to less as well.
        span = 100.0 if loss == "binary_crossentropy" else 1.0
        model = encrypted(wide, given, input_range=(-span, span))
        labels = 10000.0 if loss == "binary_crossentropy" else 20000.0
        with pytest.raises(OverflowPreflightError, match="over 1000 outputs"):
            model.evaluate(np.full((4, 1), span), np.full((4, 1000), labels), verbose=0)

    def test_positions_count_as_rows(self):
        plain = tf.keras.Sequential([tf.keras.Input((2048, 1)), layers.Dense(1)])
        model = encrypted(plain)
        with pytest.raises(OverflowPreflightError, match="loss of 524288 rows"):
            model.evaluate(np.zeros((256, 2048, 1)), np.full((256, 2048, 1), 20000.0), batch_size=256, verbose=0)

    def test_gradients_that_would_wrap_are_refused_where_no_loss_is_wanted(self):
        # A difference of 10^7 times 2/3, each with 24 bits after the point.
        arguments = {"outputs": 1.0, "labels": 1e7, "batch": 4, "rows": 4, "wants": ()}
        MeanSquaredError().check(Preflight(FixedPoint(24)), width=1, **arguments)
        with pytest.raises(OverflowPreflightError, match="the gradient of a row"):
            MeanSquaredError().check(Preflight(FixedPoint(24)), width=3, **arguments)

    def test_labels_that_cannot_be_encoded_are_refused_before_training(self):
        model = kp.EncryptedModel(dense(1), input_range=(-1, 1))
        model.compile("sgd", "mse", reveal=())
        with pytest.raises(OverflowPreflightError, match="a label"):
            model.fit(np.zeros((4, 1)), np.full((4, 1), 2.0**24), verbose=0)

    def test_a_last_function_that_the_loss_goes_through_is_checked(self):
        last = layers.Activation("sigmoid", name="last")
        model = tf.keras.Sequential([tf.keras.Input((1,)), layers.Dense(1, use_bias=False), last])
        program = kp.EncryptedModel(model, input_range=(-1e-6, 1e-6)).program
        values = {name: np.full((1, 1), 1e-3) for name in program.parameters}
        arguments = (FixedPoint(), [(-1e-6, 1e-6)], values, lambda _: 2.0**33)
        program.check_ranges(*arguments, to_logits=True)
        with pytest.raises(OverflowPreflightError, match="'last'"):
            program.check_ranges(*arguments, to_logits=False)

    def test_validation_labels_count_too(self):
        model = encrypted(dense())
        x, y = np.zeros((4, 3)), np.zeros((4, 1))
        before = model.reveal_to().get_weights()
        with pytest.raises(OverflowPreflightError, match="loss"):
            model.fit(x, y, validation_data=(x, y + 1e6), verbose=0)
        for old, new in zip(before, model.reveal_to().get_weights()):
            np.testing.assert_array_equal(old, new)

    def test_a_later_fit_with_larger_labels_is_traced_anew(self):
        x, y = np.random.default_rng(0).uniform(8, 10, (32, 4)), np.ones((32, 1))
        found = []
        for warm in (False, True):
            plain = dense(4)
            plain.set_weights([np.full((4, 1), 0.5), np.zeros(1)])
            model = encrypted(plain, optimizer=tf.keras.optimizers.SGD(1e-6), input_range=(-10, 10))
            if warm:
                model.fit(x, y, verbose=0)
            before = model.reveal_to().get_weights()[0]
            model.fit(x, 20000 * y, verbose=0)
            found.append(model.reveal_to().get_weights()[0] - before)
        np.testing.assert_allclose(found[1], found[0], rtol=0.01)
        assert np.all(found[0] > 0.3)

    @pytest.mark.parametrize("loss", ["mse", "binary_crossentropy", "categorical_crossentropy"])
    @pytest.mark.long
    def test_outputs_of_rank_three_are_averaged_as_in_keras(self, loss):
        last = {"mse": None, "binary_crossentropy": "sigmoid", "categorical_crossentropy": "softmax"}[loss]
        tf.keras.utils.set_random_seed(1)
        plain = tf.keras.Sequential([tf.keras.Input((5, 3)), layers.Dense(4, last)])
        metric = "binary_accuracy" if loss == "binary_crossentropy" else "accuracy"
        metrics = None if loss == "mse" else [metric]
        model = encrypted(plain, loss, tf.keras.optimizers.SGD(0.5), metrics)
        rng = np.random.default_rng(0)
        x, y = rng.uniform(-1, 1, (8, 5, 3)), np.eye(4)[rng.integers(0, 4, (8, 5))]
        plain.compile(tf.keras.optimizers.SGD(0.5), loss, metrics)
        expected = np.ravel(plain.evaluate(x, y, verbose=0))
        np.testing.assert_allclose(np.ravel(model.evaluate(x, y, verbose=0)), expected, atol=2e-3)
        model.fit(x, y, batch_size=8, verbose=0)
        plain.fit(x, y, batch_size=8, verbose=0)
        for ours, theirs in zip(model.reveal_to().get_weights(), plain.get_weights()):
            np.testing.assert_allclose(ours, theirs, atol=2e-3)

    def test_labels_that_are_no_probabilities_are_refused(self):
        model = encrypted(dense(units=3, activation="softmax"), "categorical_crossentropy")
        with pytest.raises(ConfigurationError, match="add up to 1"):
            model.evaluate(np.zeros((2, 3)), np.ones((2, 3)), verbose=0)


def test_the_bound_counts_the_largest_bias_beside_the_largest_column():
    model = tf.keras.Sequential([tf.keras.Input((2,)), layers.Dense(2, name="a")])
    values = {"a/kernel": np.array([[100.0, 0.0], [100.0, 0.0]]), "a/bias": np.array([0.0, 300.0])}
    program = kp.EncryptedModel(model, input_range=(-1, 1)).program
    assert program.check_ranges(FixedPoint(), [(-1.0, 1.0)], values).outputs == pytest.approx(500)


def test_velocities_that_could_leave_the_ring_are_refused_before_training():
    model = dense(3, 2)
    model.set_weights([np.zeros((3, 2)), np.full(2, 4200.0)])
    optimizer = tf.keras.optimizers.SGD(1e5, momentum=0.9)
    found = encrypted(model, optimizer=optimizer)
    with pytest.raises(OverflowPreflightError, match="velocities"):
        found.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)


@pytest.mark.parametrize("momentum", [1.0, 0.99999])
def test_a_momentum_that_never_fades_is_refused(momentum):
    with pytest.raises(ConfigurationError, match="momentum"):
        encrypted(dense(), optimizer=tf.keras.optimizers.SGD(0.01, momentum=momentum))


def test_a_last_batch_of_one_row_needs_no_more_room_for_velocities():
    optimizer = tf.keras.optimizers.SGD(100.0, momentum=0.9)
    found = encrypted(dense(1), optimizer=optimizer)
    found.fit(np.zeros((513, 1)), np.zeros((513, 1)), batch_size=512, verbose=0)


def test_a_step_that_is_refused_leaves_the_epoch_undone():
    rates = tf.keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.01, 1e9])
    found = encrypted(dense(), optimizer=tf.keras.optimizers.SGD(rates, momentum=0.9))
    before = found.reveal_to().get_weights()
    with pytest.raises(OverflowPreflightError, match="velocities"):
        found.fit(np.ones((16, 3)), np.ones((16, 1)), batch_size=4, verbose=0)
    assert int(found.optimizer.iterations) == 0
    for old, new in zip(before, found.reveal_to().get_weights()):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("high", [2.0, 100.0, 499.0, 501.0, 2000.0, 3984.0, 4096.0, 20000.0, 2.0**18])
@pytest.mark.long
def test_reciprocals_on_long_intervals(high):
    rng = np.random.default_rng(0)
    x = np.concatenate([[1.0, high, high / 2, (1 + high) / 2], np.exp(rng.uniform(0, np.log(high), 20))])
    found = compute(lambda value: reciprocal(with_fraction(value, GUARDED), 1.0, high), x)
    np.testing.assert_allclose(found, 1 / x, atol=3e-4)


def test_an_interval_too_long_for_a_reciprocal_is_refused():
    with pytest.raises(ConfigurationError, match="Expected: 0 < low"):
        traced(lambda value: reciprocal(value, 1.0, 2.0**20), [(2,)])


def test_an_operation_in_a_loop_without_a_counter_is_refused():
    def loop(value):
        def body(step, first):
            return step + 1, truncate(dataclasses.replace(value, pairs=((first, first),) * 3), 3).pairs[0][0]

        tf.while_loop(lambda step, _: step < 2, body, (tf.constant(0), value.pairs[0][0]))
        return value

    with pytest.raises(ConfigurationError, match="masks would repeat"):
        traced(loop, [(2,)])


def test_a_loop_inside_one_that_is_counted_is_refused():
    def loops(value):
        session = value.session

        def inner(step, outer):
            session.nonce()
            return step + 1, outer

        def outer(step):
            with session.iteration(step):
                session.nonce()
                tf.while_loop(lambda place, _: place < 2, inner, (tf.constant(0), step))
            return (step + 1,)

        tf.while_loop(lambda step: step < 2, outer, (tf.constant(0),))
        return value

    with pytest.raises(ConfigurationError, match="masks would repeat"):
        traced(loops, [(2,)])


@pytest.mark.parametrize("fraction", [4, 8, 10])
def test_public_factors_of_narrow_encodings_stay_in_the_ring(fraction):
    fixed_point = FixedPoint(fraction, 52 - fraction)
    x = np.array([2.0 ** (50 - fraction), -(2.0 ** (50 - fraction))])
    found = compute(lambda value: scale(value, 0.3), x, fixed_point=fixed_point)
    np.testing.assert_allclose(found, 0.3 * x, rtol=2.0 ** (1 - fraction))


def test_limits_of_a_narrow_encoding_are_no_inputs():
    model = encrypted(dense(3, 2), fixed_point=FixedPoint(16, 6))
    model.fit(np.zeros((4, 3)), np.zeros((4, 2)), verbose=0)


def test_an_epoch_that_is_interrupted_is_undone():
    class Interrupt(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    model = encrypted(dense(), optimizer=tf.keras.optimizers.SGD(0.5))
    before = model.reveal_to().get_weights()
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.ones((16, 3)), np.ones((16, 1)), batch_size=4, callbacks=[Interrupt()], verbose=0)
    assert int(model.optimizer.iterations) == 0
    for old, new in zip(before, model.reveal_to().get_weights()):
        np.testing.assert_array_equal(old, new)


def test_weights_that_were_not_checked_are_not_kept(monkeypatch):
    model = encrypted(dense(), optimizer=tf.keras.optimizers.SGD(0.5))
    before = model.reveal_to().get_weights()

    def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(model.steps, "weights_exceed", broken)
    with pytest.raises(RuntimeError, match="a fault"):
        model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
    assert int(model.optimizer.iterations) == 0
    for old, new in zip(before, model.reveal_to().get_weights()):
        np.testing.assert_array_equal(old, new)


class TestFiles:
    def test_shares_of_a_model_that_was_not_checked_are_refused(self, tmp_path):
        tf.keras.utils.set_random_seed(0)
        small = tf.keras.Sequential([tf.keras.Input((3,)), layers.Dense(2, name="a")])
        large = tf.keras.models.clone_model(small)
        large.set_weights([np.full((3, 2), 1e5), np.zeros(2)])
        kp.EncryptedModel(large, input_range=(-1, 1)).save(tmp_path / "large")
        found = kp.EncryptedModel(small, input_range=(-1, 1))
        before = found.reveal_to().get_weights()
        with pytest.raises(ShareFileError, match="another model"):
            found.load_weights(tmp_path / "large")
        np.testing.assert_array_equal(found.reveal_to().get_weights()[0], before[0])

    def test_a_foreign_folder_is_not_replaced(self, tmp_path):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "manifest.json").write_text("{}")
        (tmp_path / "site" / "src.js").write_text("keep me")
        with pytest.raises(ShareFileError, match="exists"):
            kp.EncryptedModel(dense()).save(tmp_path / "site")
        assert (tmp_path / "site" / "src.js").read_text() == "keep me"

    def test_a_saved_model_with_other_files_beside_is_not_replaced(self, tmp_path):
        model = kp.EncryptedModel(dense())
        model.save(tmp_path / "model")
        model.save(tmp_path / "model")
        (tmp_path / "model" / "notes.txt").write_text("keep me")
        with pytest.raises(ShareFileError, match="exists"):
            model.save(tmp_path / "model")
        assert (tmp_path / "model" / "notes.txt").exists()


class TestData:
    def test_a_split_without_rows_is_refused(self):
        with pytest.raises(ConfigurationError, match="a split into"):
            encrypted(dense()).fit(np.zeros((4, 3)), np.zeros((4, 1)), validation_split=0.1, verbose=0)

    def test_owners_may_hold_other_columns_the_next_time(self):
        model = kp.EncryptedModel(dense(), input_range=(-1, 1))
        x = np.random.default_rng(0).uniform(-1, 1, (4, 3))
        found = [
            model.predict(Vertical(Owned("a", x[:, :width]), Owned("b", x[:, width:])), verbose=0) for width in (1, 2)
        ]
        np.testing.assert_allclose(found[0], found[1], atol=1e-3)

    def test_indices_of_two_owners(self):
        plain = tf.keras.Sequential([tf.keras.Input((3,)), layers.Embedding(5, 2), layers.Flatten()])
        model = kp.EncryptedModel(plain)
        x = np.array([[0, 1, 2], [3, 4, 0]])
        found = model.predict(Vertical(Owned("a", x[:, :1]), Owned("b", x[:, 1:])), verbose=0)
        np.testing.assert_allclose(found, plain.predict(x, verbose=0), atol=1e-3)


@pytest.mark.parametrize("rate", [1e-9, 1e-12, 1e-30])
def test_tiny_learning_rates_move_nothing_and_end_well(rate):
    assert StepScale(rate).within(rate)
    model = encrypted(dense(), optimizer=tf.keras.optimizers.SGD(rate))
    model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)


def test_no_warning_of_retracing_reaches_the_user(monkeypatch):
    found = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda text, *_: found.append(text))
    for _ in range(8):
        kp.EncryptedModel(dense()).reveal_to()
    assert not [text for text in found if "retracing" in str(text)]
