"""Optimizers on shares: every step is Keras's, for gradients of every size; state, refusals, and what is opened."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_private._backends.graph_edges import cross_edges
from keras_private.encrypted import EncryptedModel
from keras_private.encrypted.adaptive import LARGEST_GRADIENT, Adam
from keras_private.encrypted.optimizers import StepScale, update_rule
from keras_private.encrypted.protocol.sharing import reveal, share
from keras_private.encrypted.session import SERVERS, Session
from keras_private.encrypted.variables import SharedVariable
from keras_private.errors import ConfigurationError, EncodingError
from tests.selection import long_but

K = tf.keras.layers
KO = tf.keras.optimizers
ROWS = 4
RATE = 0.01


def numbers(*shape, seed=0):
    return np.clip(np.random.default_rng(seed).normal(0, 1, shape), -3, 3).astype(np.float32)


def small():
    tf.keras.utils.set_random_seed(4)
    return tf.keras.Sequential([K.Input((5,)), K.Dense(4, "relu"), K.Dense(3, "softmax")])


def on_shares(optimizer, gradients, bound=10.0):
    """Weights after each step, from zero, of batch-mean gradients [steps, n]; two parameters of unlike shapes."""
    rule = update_rule(optimizer).of_rows(ROWS)
    half = gradients.shape[1] // 2
    shapes = {"a": (half, 1), "b": (gradients.shape[1] - half,)}
    weights = {name: SharedVariable(name, shape, 16) for name, shape in shapes.items()}
    slots = {name: rule.slots(name, shape) for name, shape in shapes.items()}
    scale = StepScale(rule.factor(RATE, ROWS))

    @tf.function(autograph=False)
    def run(gradient, whole):
        session = Session()
        found = {}
        for name, part in (("a", gradient[:half, None]), ("b", gradient[half:])):
            # As products leave them: 32 bits after the point.
            ring = tf.cast(tf.round(part * (ROWS * 2.0**32)), tf.int64)
            found[name] = share(session, ring, "owner", name, fraction=32)
        rule.update(weights, slots, found, dict.fromkeys(found, bound * ROWS), scale, whole)

    @tf.function(autograph=False)
    def opened():
        session = Session()
        return [tf.reshape(reveal(variable.read(session), "owner"), [-1]) for variable in weights.values()]

    after = []
    for step, gradient in enumerate(gradients):
        public = rule.public(scale.whole(rule.factor(RATE, ROWS)), step + 1)
        run(tf.constant(gradient, tf.float64), tf.constant(public, tf.int64))
        after.append(np.concatenate([part.numpy() for part in opened()]))
    return np.array(after)


def in_keras(optimizer, gradients):
    variable = tf.Variable(np.zeros(gradients.shape[1]))
    optimizer.learning_rate = RATE
    after = []
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float64), variable)])
        after.append(variable.numpy())
    return np.array(after)


def drawn(sizes, steps=6, seed=1):
    """Gradients [steps, n] of the sizes, which shrink: so that a largest mean square counts."""
    draw = np.random.default_rng(seed)
    signs = draw.uniform(0.5, 1.0, (steps, len(sizes))) * draw.choice([-1, 1], (steps, len(sizes)))
    return signs * np.asarray(sizes) * 0.6 ** np.arange(steps)[:, None]


OPTIMIZERS = {
    "sgd": lambda: KO.SGD(),
    "momentum": lambda: KO.SGD(momentum=0.9),
    "nesterov": lambda: KO.SGD(momentum=0.9, nesterov=True),
    "adam": lambda: KO.Adam(),
    "adam, short memory": lambda: KO.Adam(beta_1=0.5, beta_2=0.8),
    "amsgrad": lambda: KO.Adam(amsgrad=True),
    "amsgrad, short memory": lambda: KO.Adam(beta_1=0.5, beta_2=0.5, amsgrad=True),
}


@pytest.mark.parametrize("name", long_but(OPTIMIZERS, "sgd", "nesterov", "adam"))
def test_every_step_is_that_of_keras(name):
    gradients = drawn(np.geomspace(0.01, 8.0, 12))
    found, expected = on_shares(OPTIMIZERS[name](), gradients), in_keras(OPTIMIZERS[name](), gradients)
    # Weights have a unit of 2^-16 a step, and the rate counts to 0.2 %.
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=4e-3)


def test_these_steps_tell_the_optimizers_apart():
    gradients = drawn(np.geomspace(0.01, 8.0, 12))
    ends = [in_keras(make(), gradients)[-1] for make in OPTIMIZERS.values()]
    # With a memory of 1,000 steps the mean square, before its correction, only grows: Adam and AMSGrad are one.
    same = {(3, 5)}
    for i, one in enumerate(ends):
        for j in range(i):
            assert (np.max(np.abs(one - ends[j])) > 4e-3) == ((j, i) not in same)


def test_adam_takes_steps_for_small_gradients_and_none_for_zero():
    gradients = drawn([1e-4, 3e-4, 1e-3, 0.0], steps=3) / 0.6 ** np.arange(3)[:, None]
    found, expected = on_shares(KO.Adam(), gradients), in_keras(KO.Adam(), gradients)
    np.testing.assert_allclose(found[:, 1:3], expected[:, 1:3], rtol=0.05, atol=3e-4)
    # Of 1e-4, epsilon = 2^-16 takes up to a tenth.
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=0.4, atol=1e-3)
    np.testing.assert_array_equal(found[:, 3], 0.0)


def test_adam_over_many_steps_neither_drifts_nor_leaves_the_ring():
    gradients = np.random.default_rng(3).normal(0, 1, (120, 6)) * np.array([1e-3, 0.01, 0.1, 1, 3, 4])
    gradients = np.clip(gradients, -14, 14)
    found, expected = on_shares(KO.Adam(), gradients), in_keras(KO.Adam(), gradients)
    np.testing.assert_allclose(found, expected, atol=1.5e-2)


def test_a_gradient_beyond_the_largest_counts_as_the_largest():
    gradients = np.array([[100.0, -1000.0, 14.0, 1.0], [1.0, 2.0, 14.0, -1.0]])
    clipped = np.clip(gradients, -LARGEST_GRADIENT, LARGEST_GRADIENT)
    found, expected = on_shares(KO.Adam(), gradients, bound=1000.0), in_keras(KO.Adam(), clipped)
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=4e-3)


def test_the_public_word_holds_every_number_of_every_step():
    for rule in (Adam(0.9, 0.999, 1e-7, True), Adam(0.0, 0.0, 0.0, False), Adam(0.99, 0.9999, 1e-5, True)):
        for step in (1, 2, 10, 1000, 10**6):
            word, moments = rule.public(1024, step), rule.moments(step)
            assert 0 <= word < 2**63
            numbers_read = [word >> start & 2**bits - 1 for start, bits in ((0, 11), (11, 16), (27, 19), (46, 17))]
            assert numbers_read == [1024, moments.first, moments.second, moments.decay]


def fitted(optimizer, **fit):
    encrypted = EncryptedModel(small(), input_range=(-3.0, 3.0))
    encrypted.compile(optimizer, "sparse_categorical_crossentropy")
    encrypted.history = encrypted.fit(numbers(12, 5), np.arange(12) % 3, batch_size=8, shuffle=False, verbose=0, **fit)
    return encrypted


@pytest.mark.long
def test_a_schedule_is_followed_step_by_step():
    """Halved at each step: at the first rate throughout, the loss would end elsewhere."""

    def optimizer():
        return KO.SGD(KO.schedules.ExponentialDecay(0.5, 1, 0.5))

    encrypted, plain, still = fitted(optimizer(), epochs=3), small(), small()
    losses = []
    for model, chosen in ((plain, optimizer()), (still, KO.SGD(0.5))):
        model.compile(chosen, "sparse_categorical_crossentropy")
        data = numbers(12, 5), np.arange(12) % 3
        losses.append(model.fit(*data, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(encrypted.history.history["loss"], losses[0], atol=1e-3)
    assert abs(losses[0][-1] - losses[1][-1]) > 1e-2


@pytest.mark.slow
def test_adam_trains_as_in_keras_with_a_schedule_and_a_ragged_batch(tmp_path):
    def optimizer():
        return KO.Adam(KO.schedules.ExponentialDecay(0.02, 2, 0.9), amsgrad=True)

    encrypted, plain = fitted(optimizer(), epochs=3), small()
    plain.compile(optimizer(), "sparse_categorical_crossentropy")
    expected = plain.fit(numbers(12, 5), np.arange(12) % 3, batch_size=8, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(encrypted.history.history["loss"], expected.history["loss"], atol=1e-3)
    for one, other in zip(encrypted.reveal_to().get_weights(), plain.get_weights()):
        assert np.median(np.abs(one - other)) < 5e-4 and np.max(np.abs(one - other)) < 2e-2
    # Saved, loaded and gone on with: averages and the number of steps are part of what is saved.
    encrypted.save(tmp_path / "model")
    loaded = EncryptedModel.load(tmp_path / "model")
    assert int(loaded.optimizer.iterations) == 6
    for model in (encrypted, loaded):
        model.fit(numbers(12, 5), np.arange(12) % 3, batch_size=8, shuffle=False, verbose=0)
    for one, other in zip(encrypted.reveal_to().get_weights(), loaded.reveal_to().get_weights()):
        assert np.median(np.abs(one - other)) < 5e-4 and np.max(np.abs(one - other)) < 2e-2


def test_a_step_of_adam_opens_nothing():
    encrypted = EncryptedModel(small(), input_range=(-3.0, 3.0))
    encrypted.compile(KO.Adam(amsgrad=True), "sparse_categorical_crossentropy")
    graph = encrypted.traced_training(encrypted._read(numbers(4, 5), np.arange(4) % 3, True).blocks[0])
    assert {edge.target for edge in cross_edges(graph)} == set(SERVERS)
    assert graph.outputs == []


@pytest.mark.long
def test_an_epoch_that_is_undone_takes_its_steps_back():
    encrypted = EncryptedModel(small(), input_range=(-3.0, 3.0), weight_growth=1.0)
    encrypted.compile(KO.Adam(5.0), "sparse_categorical_crossentropy")
    with pytest.raises(EncodingError, match="grown past"):
        encrypted.fit(numbers(12, 5), np.arange(12) % 3, batch_size=12, epochs=2, verbose=0)
    assert int(encrypted.optimizer.iterations) == 0


@pytest.mark.parametrize(
    "optimizer, says",
    [
        (lambda: KO.Adam(epsilon=1e-3), "epsilon"),
        (lambda: KO.Adam(beta_1=0.999), "beta_1"),
        (lambda: KO.Adam(beta_2=0.99999), "beta_2"),
        (lambda: KO.Adam(clipnorm=1.0), "clipnorm"),
        (lambda: KO.Adam(global_clipnorm=1.0), "global_clipnorm"),
        (lambda: KO.Adam(clipvalue=1.0), "clipvalue"),
        (lambda: KO.Adam(weight_decay=0.1), "weight_decay"),
        (lambda: KO.Adam(use_ema=True), "use_ema"),
        (lambda: KO.AdamW(), "AdamW"),
        (lambda: KO.SGD(weight_decay=0.1), "weight_decay"),
        (lambda: KO.legacy.Adam(), "Adam has no rule"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(optimizer, says):
    with pytest.raises(ConfigurationError, match=says):
        EncryptedModel(small()).compile(optimizer(), "sparse_categorical_crossentropy")


def test_an_adam_whose_averages_are_elsewhere_is_refused():
    used = KO.Adam()
    used.iterations.assign(3)
    with pytest.raises(ConfigurationError, match="taken 3 steps"):
        EncryptedModel(small()).compile(used, "sparse_categorical_crossentropy")
