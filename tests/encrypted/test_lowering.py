"""From Keras's graph to a program: drawn architectures against Keras, bounds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.lowering import lower
from keras_private.encrypted.protocol.sharing import share
from keras_private.encrypted.session import Session
from keras_private.errors import OverflowPreflightError, UnsupportedLayerError
from tests.encrypted.programs import OWNER, assert_parity, in_keras, on_shares
from tests.encrypted.rules.grid import assert_equal, inputs_on_grid, put_on_grid

K = tf.keras.layers
IMAGE = (6, 6, 2)


def residual(x):
    return K.Add()([x, K.Conv2D(x.shape[-1], 3, padding="same", activation="relu")(x)])


def branches(x):
    return K.Concatenate()([K.Conv2D(1, 1, activation="relu")(x), K.DepthwiseConv2D(3, padding="same")(x)])


def shared(x):
    layer = K.Conv2D(x.shape[-1], 1, activation="relu")
    return K.Maximum()([layer(layer(x)), x])


def nested(x):
    inside = tf.keras.Input(x.shape[1:])
    block = tf.keras.Model(inside, K.ReLU(max_value=4.0)(K.Conv2D(2, 2, padding="same")(inside)))
    return block(x)


def operators(x):
    return 0.5 * (x - K.Conv2D(x.shape[-1], 1)(x)) + x


def pooled(x):
    return K.MaxPooling2D(2, padding="same")(K.Conv2D(2, 2, activation="relu")(x)) if x.shape[1] > 2 else residual(x)


def averaged(x):
    return K.AveragePooling2D(2)(K.LeakyReLU(0.5)(x)) if x.shape[1] > 1 else branches(x)


BLOCKS = [residual, branches, shared, nested, operators, pooled, averaged]
ENDS = {
    "flat": lambda x: K.Dense(2)(K.Flatten()(x)),
    "largest": lambda x: K.Dense(2)(K.GlobalMaxPooling2D()(x)),
    "two": lambda x: [K.Dense(2)(K.Flatten()(x)), x],
}


def architecture(blocks, end):
    inputs = tf.keras.Input(IMAGE)
    value = inputs
    for block in blocks:
        value = block(value)
    return tf.keras.Model(inputs, ENDS[end](value))


# Shrinking would trace graphs for minutes.
FEW = settings(deadline=None, max_examples=8, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@pytest.mark.long
@FEW
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3), st.sampled_from(["flat", "two"]), st.integers(0, 99))
def test_drawn_architectures_are_exact_on_a_grid(blocks, end, seed):
    model = put_on_grid(architecture(blocks, end), seed)
    assert_equal(model, [inputs_on_grid(seed, 2, *IMAGE)], seed)


@settings(FEW, max_examples=6)
@given(
    st.lists(st.sampled_from(["tanh", "sigmoid", "linear", "softmax"]), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 99),
)
@pytest.mark.slow
def test_drawn_smooth_architectures(activations, gated, seed):
    tf.keras.utils.set_random_seed(seed)
    inputs = tf.keras.Input((5,))
    value = inputs
    for activation in activations:
        value = K.Dense(5, activation=activation)(value)
    if gated:
        value = K.Average()([K.Multiply()([value, inputs]), K.Subtract()([value, inputs])])
    model = tf.keras.Model(inputs, K.Dense(3, activation="softmax")(value))
    assert_parity(model, [np.random.default_rng(seed).normal(0, 1, (4, 5)).astype(np.float32)], 2e-3, seed)


@settings(FEW, max_examples=15)
@given(
    st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4), st.sampled_from(["flat", "largest"]), st.integers(0, 99)
)
def test_bounds_contain_what_plaintext_gives(blocks, end, seed):
    model = put_on_grid(architecture(blocks, end), seed)
    program = lower(model)
    values = {name: parameter.value for name, parameter in program.parameters.items()}
    images = 2 * np.sign(np.random.default_rng(seed).normal(0, 1, (20, *IMAGE))).astype(np.float32)
    fixed_point = FixedPoint(fraction=8)

    predicting = program.check_ranges(fixed_point, [(-2.0, 2.0)], values)
    magnitudes = {name: np.abs(value) for name, value in values.items()}
    training = program.check_ranges(fixed_point, [(-2.0, 2.0)], magnitudes, lambda _: 2.0, batch=20)
    reached = np.max(np.abs(model(images)))
    for preflight in (predicting, training):
        outputs = [bound for layer, what, bound, _ in preflight.found if what == "the output"]
        assert reached <= outputs[-1] * (1 + 1e-5)

    seeds = [2 * np.sign(np.random.default_rng(1).normal(0, 1, [20, *model.output_shape[1:]]))]
    _, gradients = in_keras(model, [images], seeds)
    for name, gradient in gradients.items():
        assert np.max(np.abs(gradient)) <= training.gradients[name] * (1 + 1e-5)


def test_what_could_leave_the_ring_is_named():
    model = tf.keras.Sequential([K.Dense(4, input_shape=(3,)), K.Dense(4, name="wide"), K.Dense(1)])
    model.get_layer("wide").kernel.assign(tf.fill([4, 4], 1e8))
    program = lower(model)
    values = {name: parameter.value for name, parameter in program.parameters.items()}
    with pytest.raises(OverflowPreflightError, match="'wide'") as caught:
        program.check_ranges(FixedPoint(), [(-10.0, 10.0)], values)
    assert "input_range" in str(caught.value)
    program.check_ranges(FixedPoint(fraction=10), [(-1.0, 1.0)], values)


@pytest.mark.parametrize(
    "last, what",
    [(K.LeakyReLU(0.1), "activation"), (K.Activation("tanh"), "gradient"), (K.Dropout(0.9), "scaled")],
)
def test_products_within_layers_without_weights_are_bounded_too(last, what):
    program = lower(tf.keras.Sequential([K.Dense(1, use_bias=False, input_shape=(1,)), last]))
    values = {name: np.ones_like(parameter.value) for name, parameter in program.parameters.items()}
    limit = FixedPoint().product_bound
    program.check_ranges(FixedPoint(), [(-1.0, 1.0)], values, lambda _: limit / 64)
    with pytest.raises(OverflowPreflightError, match=what):
        program.check_ranges(FixedPoint(integer=31), [(-limit / 2, limit / 2)], values, lambda _: 3 * limit)


def graph_of(model, training=True):
    """Names of all operations of a training step on shares."""
    program = lower(model)

    @tf.function(autograph=False)
    def run(values, weights, seed):
        session = Session()
        parameters = {name: share(session, each, OWNER, name) for name, each in zip(program.parameters, weights)}
        _, tape = program.forward([share(session, values, OWNER, "input")], parameters, training)
        return {
            name: each.pairs[0][0]
            for name, each in program.backward(tape, [share(session, seed, OWNER, "seed")]).items()
        }

    weights = [parameter.value for parameter in program.parameters.values()]
    found = run.get_concrete_function(
        tf.TensorSpec([2, *model.input_shape[1:]], tf.float64),
        [tf.TensorSpec(each.shape, tf.float64) for each in weights],
        tf.TensorSpec([2, *model.output_shape[1:]], tf.float64),
    )
    return [operation.name for operation in found.graph.get_operations()], found.structured_outputs


def test_nobody_computes_gradients_that_nobody_needs():
    layers = [K.Conv2D(2, 2, name="first", input_shape=(4, 4, 1)), K.Conv2D(2, 2, name="second"), K.Flatten()]
    model = tf.keras.Sequential([*layers, K.Dense(2, name="last")])
    names, gradients = graph_of(model)
    assert any(name.startswith("gradient_second/conv2d_input") for name in names)
    assert not any(name.startswith("gradient_first/conv2d_input") for name in names)
    assert {name.split("/")[0] for name in gradients} == {"first", "second", "last"}

    for name in ("first", "second"):
        model.get_layer(name).trainable = False
    names, gradients = graph_of(model)
    assert not any(name.startswith(("gradient_first", "gradient_second")) for name in names)
    assert {name.split("/")[0] for name in gradients} == {"last"}


def test_a_frozen_layer_passes_gradients_on():
    model = tf.keras.Sequential([K.Dense(3, input_shape=(3,)), K.Dense(3, trainable=False), K.Dense(2)])
    put_on_grid(model, 4)
    assert_equal(model, [inputs_on_grid(1, 4, 3)])


def test_relu_and_pool_change_places_where_nobody_sees_it():
    inputs = tf.keras.Input(IMAGE)
    value = K.Conv2D(2, 3, activation="relu", name="c")(inputs)
    pool = K.MaxPooling2D(2, name="p")(value)
    assert [node.name for node in lower(tf.keras.Model(inputs, pool)).nodes] == ["c", "p", "c_activation"]
    assert [node.name for node in lower(tf.keras.Model(inputs, [pool, value])).nodes] == ["c", "c_activation", "p"]
    other = K.Flatten(name="f")(value)
    names = [node.name for node in lower(tf.keras.Model(inputs, [pool, other])).nodes]
    assert names.index("c_activation") < names.index("p")


@pytest.mark.parametrize(
    "layers, last",
    [
        ([K.Dense(3, activation="softmax")], "softmax"),
        ([K.Dense(3), K.Softmax()], "softmax"),
        ([K.Dense(1, activation="sigmoid")], "sigmoid"),
        ([K.Dense(3)], ""),
        ([K.Dense(4, activation="softmax"), K.Reshape((2, 2))], ""),
    ],
)
def test_the_last_function_is_known_and_can_be_left_out(layers, last):
    model = tf.keras.Sequential([tf.keras.Input((2,)), *layers])
    program = lower(model)
    assert program.last == last
    if last:
        logits = tf.keras.Sequential([tf.keras.Input((2,)), K.Dense(model.output_shape[-1])])
        logits.set_weights(model.get_weights())

        @tf.function(autograph=False)
        def run(values, weights):
            session = Session()
            parameters = {name: share(session, each, OWNER, name) for name, each in zip(program.parameters, weights)}
            (output,), tape = program.forward(
                [share(session, values, OWNER, "x")], parameters, training=True, to_logits=True
            )
            return [sum_of(output), *(sum_of(each) for each in program.backward(tape, [output]).values())]

        x = inputs_on_grid(0, 4, 2).astype(np.float64)
        found, *gradients = run(x, [parameter.value for parameter in program.parameters.values()])
        np.testing.assert_allclose(found.numpy() / 2.0**16, logits(x), atol=1e-3)
        assert len(gradients) == 2


def sum_of(value):
    return tf.add_n([value.pairs[party][0] for party in range(3)])


def test_operators_between_tensors_are_layers():
    inputs = tf.keras.Input((4,))
    hidden = K.Dense(4)(inputs)
    value = tf.nn.relu(0.5 * (hidden + inputs) - inputs * hidden + (1 - hidden) * 2.0 - 1)
    value = tf.concat([tf.maximum(value, inputs), -hidden / 4], -1)
    model = put_on_grid(tf.keras.Model(inputs, value), 2)
    assert_equal(model, [inputs_on_grid(0, 3, 4)])


def test_rescaling():
    layers = [K.Rescaling(1 / 255.0, offset=-0.5), K.Dense(2), K.Rescaling(-1.7), K.Dense(2)]
    model = tf.keras.Sequential([tf.keras.Input((4,)), *layers])
    assert_parity(model, [np.random.default_rng(0).integers(0, 256, (5, 4)).astype(np.float32)], 1e-3)


def test_what_a_call_says_of_training_is_kept():
    block = tf.keras.Sequential([K.Dense(50, use_bias=False, input_shape=(50,)), K.Dropout(0.5)])
    inputs = tf.keras.Input((50,))
    assert_parity(tf.keras.Model(inputs, K.Dense(2)(block(inputs, training=False))), [np.ones((2, 50), np.float32)])
    dropping = tf.keras.Model(inputs, K.Dense(2)(block(inputs)))
    x = np.ones((2, 50), np.float32)
    (dropped,), _ = on_shares(dropping, [x], None)
    assert np.max(np.abs(dropped - dropping(x))) > 1e-2


class Doubling(tf.keras.Model):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training, mask)


def _model(make, shape=(4,)):
    inputs = tf.keras.Input(shape)
    return tf.keras.Model(inputs, make(inputs))


def _doubling(x):
    inside = tf.keras.Input((4,))
    return Doubling(inside, K.Dense(2)(inside), name="doubling")(x)


def _with_loss():
    model = _model(K.Dense(2))
    model.layers[-1].add_loss(lambda: 1.0)
    return model


def _same_name():
    blocks = [tf.keras.Sequential([K.Dense(4, name="twice", input_shape=(4,))]) for _ in range(2)]
    return _model(lambda x: blocks[1](blocks[0](x)))


REFUSED = {
    "subclass": (lambda: Doubling(*(lambda m: (m.inputs, m.outputs))(_model(K.Dense(2)))), "no graph"),
    "subclass inside": (lambda: _model(_doubling), "'doubling'"),
    "not built": (lambda: tf.keras.Sequential([K.Dense(2)]), "no graph"),
    "training": (lambda: _model(lambda x: K.Dropout(0.5, name="drop")(x, training=True)), "'drop'.*training=True"),
    "added loss": (_with_loss, "losses of its own"),
    "same name": (_same_name, "'twice'"),
    "unknown length": (lambda: _model(K.Dense(2, name="open"), (None, 4)), "'open'.*unknown length"),
    "table of results": (lambda: _model(lambda x: K.Embedding(3, 2, name="table")(K.ReLU()(x))), "'table'"),
    "table and more": (lambda: _model(lambda x: [K.Embedding(3, 2)(x), K.Dense(2)(x)]), "Embedding"),
    "broadcast": (lambda: _model(lambda x: K.Add(name="sum")([x, K.Dense(1)(x)])), "'sum'"),
    "broadcasting operator": (lambda: _model(lambda x: x + K.Dense(1)(x)), "__operators__.add"),
    "operator on constants": (lambda: _model(lambda x: x * tf.range(4.0)), "multiply"),
    "operator without a layer": (lambda: _model(lambda x: tf.exp(x)), "math.exp"),
    "joined along the batch": (lambda: _model(lambda x: tf.concat([x, x], 0)), "concat"),
    "slice": (lambda: _model(lambda x: x[:, :2]), "getitem"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lowered_is_refused_by_name(name):
    make, says = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=says) as caught:
        lower(make())
    assert caught.value.expected and caught.value.remedy
