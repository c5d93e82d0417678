"""Without noise, one step is the naive per-example clip-and-sum over the expected batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_private._backends.graph import inlined_functions
from keras_private.dp.clipping import Formed, OuterProducts, Sequences, combine
from keras_private.dp.rules import Factored, Instantiated
from keras_private.errors import PrivacyError
from tests.contracts.op_rule import OpRuleContract
from tests.dp.helpers import (
    assert_close,
    change_by,
    clipped_mean,
    compiled_loss,
    dp,
    floats,
    labels,
    middle_clip,
    naive,
    naive_examples,
    norms_of,
    private,
    proven,
    specs,
)

layers = tf.keras.layers
FEW = settings(max_examples=15)
SPARSE = tf.keras.losses.SparseCategoricalCrossentropy
COUNT, CLASSES = 6, 3


# Models: name -> (builder, shape of one example).


def functional() -> tf.keras.Model:
    """Two branches, Concatenate, Add around a residual block."""
    inputs = tf.keras.Input((7,))
    left, right = layers.Dense(5, "relu")(inputs), layers.Dense(4, "tanh")(inputs)
    joined = layers.Concatenate()([left, right])
    block = layers.Add()([joined, layers.Dense(9, "selu")(joined)])
    return tf.keras.Model(inputs, layers.Dense(CLASSES)(layers.Multiply()([block, joined])))


def convolutional() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.MaxPool2D(2, 1),
            layers.Conv2D(5, (2, 3), dilation_rate=2, padding="same", activation="elu"),
            layers.AveragePooling2D(),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


class Subclassed(tf.keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [layers.Dense(6), layers.Dense(6)]
        self.head = layers.Dense(CLASSES)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        for layer in self.hidden:
            x = tf.nn.swish(layer(x))
        return self.head(tf.concat([x, tf.square(x)], axis=-1))


def shared_dense() -> tf.keras.Model:
    inputs = tf.keras.Input((5,))
    twice = layers.Dense(5, "tanh")
    return tf.keras.Model(inputs, layers.Dense(CLASSES)(twice(twice(inputs))))


def shared_over_time_and_not() -> tf.keras.Model:
    """One Dense on [batch, 4] and on [batch, 3, 4]."""
    inputs = tf.keras.Input((3, 4))
    shared = layers.Dense(4, "tanh")
    pooled = layers.GlobalAveragePooling1D()(shared(inputs))
    return tf.keras.Model(inputs, layers.Dense(CLASSES)(shared(pooled)))


def shared_conv() -> tf.keras.Model:
    inputs = tf.keras.Input((5, 6, 2))
    twice = layers.Conv2D(2, 3, padding="same", activation="tanh")
    return tf.keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(twice(twice(inputs)))))


class Custom(layers.Layer):
    """x @ w on any rank, entrywise scale and offset, one of them on the left."""

    def build(self, shape: tf.TensorShape) -> None:
        size = int(shape[-1])
        self.w = self.add_weight(name="w", shape=(size, 4))
        self.back = self.add_weight(name="back", shape=(size, 4))
        self.scale = self.add_weight(name="scale", shape=(size,), initializer="ones")
        self.offset = self.add_weight(name="offset", shape=(1, 1) if len(shape) == 2 else (1, size))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        hidden = tf.nn.gelu(tf.matmul(self.scale * x - self.offset, self.w))
        return x + tf.matmul(hidden, self.back, transpose_b=True)


def custom_rank_2() -> tf.keras.Model:
    return tf.keras.Sequential([Custom(), layers.Dense(CLASSES)])


def custom_rank_3() -> tf.keras.Model:
    return tf.keras.Sequential([Custom(), layers.GlobalMaxPooling1D(), layers.Dense(CLASSES)])


def group_normalized() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            layers.Conv2D(4, 3),
            layers.GroupNormalization(2),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def layer_normalized() -> tf.keras.Model:
    return tf.keras.Sequential(
        [layers.Dense(6), layers.LayerNormalization(), layers.LeakyReLU(), layers.Dense(CLASSES)]
    )


def layer_normalized_over_time() -> tf.keras.Model:
    return tf.keras.Sequential(
        [layers.LayerNormalization(), layers.Dense(5, "sigmoid"), layers.Flatten(), layers.Dense(CLASSES)]
    )


def dropped_out() -> tf.keras.Model:
    return tf.keras.Sequential([layers.Dense(6, "softplus"), layers.Dropout(0.0), layers.Dense(CLASSES)])


def over_time_gram() -> tf.keras.Model:
    return tf.keras.Sequential([layers.Dense(12, "relu"), layers.GlobalAveragePooling1D(), layers.Dense(CLASSES)])


def over_time_formed() -> tf.keras.Model:
    return tf.keras.Sequential(
        [layers.Dense(2, "relu"), layers.Permute((2, 1)), layers.Flatten(), layers.Dense(CLASSES)]
    )


def batch_moved_and_back() -> tf.keras.Model:
    """Transposed shapes: the batch leaves axis 0 and returns before the next weight."""
    inputs = tf.keras.Input((3, 4))
    hidden = layers.Dense(4)(inputs)
    away = tf.transpose(hidden, [2, 0, 1])
    mixed_within = tf.cumsum(tf.nn.relu(away), axis=0) + tf.reverse(away, [2])
    return tf.keras.Model(inputs, layers.Dense(CLASSES)(layers.Flatten()(tf.transpose(mixed_within, [1, 0, 2]))))


MODELS: dict[str, tuple[Callable[[], tf.keras.Model], tuple[int, ...]]] = {
    "functional": (functional, (7,)),
    "convolutional": (convolutional, (8, 9, 2)),
    "subclassed": (Subclassed, (5,)),
    "shared dense": (shared_dense, (5,)),
    "shared over time and not": (shared_over_time_and_not, (3, 4)),
    "shared conv": (shared_conv, (5, 6, 2)),
    "custom on rank 2": (custom_rank_2, (5,)),
    "custom on rank 3": (custom_rank_3, (3, 5)),
    "group normalization": (group_normalized, (5, 5, 2)),
    "layer normalization": (layer_normalized, (5,)),
    "layer normalization over time": (layer_normalized_over_time, (3, 5)),
    "dropout 0": (dropped_out, (5,)),
    "over time, Gram": (over_time_gram, (3, 10)),
    "over time, formed": (over_time_formed, (9, 3)),
    "batch moved and back": (batch_moved_and_back, (3, 4)),
}


def one_batch(data: list[Any], static: bool) -> tf.data.Dataset:
    """All rows as one batch, whose size tracing knows or does not know."""
    parts = tuple(tuple(part) if isinstance(part, list) else part for part in data)
    count = len(tf.nest.flatten(parts)[0])
    return tf.data.Dataset.from_tensor_slices(parts).batch(count, drop_remainder=static)


def check_fit(
    model: tf.keras.Model,
    loss: Any,
    x: np.ndarray,
    y: Any,
    weights: Any = None,
    divisor: float = 4.0,
    static: bool = False,
) -> None:
    """One fit of one batch against the naive reference, at a clip norm that splits the examples."""
    model.compile(loss=loss)
    data = [x, y] if weights is None else [x, y, weights]
    model(x[:1])
    variables = model.trainable_variables
    examples = naive_examples(compiled_loss(model), variables, data)
    clip = middle_clip(examples)
    model.compile(dp(clip, divisor), loss=loss)
    found = change_by(
        lambda: model.fit(one_batch(data, static), verbose=0),
        variables,
    )
    assert_close(found, clipped_mean(examples, clip, divisor))


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    tf.keras.utils.set_random_seed(1)
    build, shape = MODELS[name]
    check_fit(build(), SPARSE(True), floats(COUNT, *shape), labels(COUNT, CLASSES))


@pytest.mark.parametrize("name", ["convolutional", "group normalization", "over time, formed"])
def test_models_with_a_batch_size_known_while_tracing(name):
    tf.keras.utils.set_random_seed(1)
    build, shape = MODELS[name]
    check_fit(build(), SPARSE(True), floats(COUNT, *shape), labels(COUNT, CLASSES), static=True)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_and_sample_weights(reduction, weighted):
    weights = np.array([1.0, 0.0, 2.5, 0.3, 1.0, 4.0], np.float32) if weighted else None
    check_fit(functional(), SPARSE(True, reduction=reduction), floats(COUNT, 7), labels(COUNT, CLASSES), weights)


def test_mean_with_sample_weights():
    weights = np.array([1.0, 0.0, 2.5, 0.3, 1.0, 4.0], np.float32)
    check_fit(functional(), SPARSE(True), floats(COUNT, 7), labels(COUNT, CLASSES), weights)


def test_a_mean_over_time_keeps_its_share_of_time():
    """[batch, time] losses and weights: the realised batch cancels, the number of positions does not."""
    model = tf.keras.Sequential([layers.Dense(4, "relu"), layers.Dense(1)])
    weights = np.abs(floats(COUNT, 3, seed=5))
    check_fit(model, "mse", floats(COUNT, 3, 5), floats(COUNT, 3, 1), weights)


def test_class_weights():
    model, x, y = functional(), floats(COUNT, 7), labels(COUNT, CLASSES)
    weights = {0: 0.5, 1: 3.0, 2: 1.0}
    model.compile(loss=SPARSE(True))
    per_example = np.array([weights[label] for label in y], np.float32)
    examples = naive_examples(compiled_loss(model), model.trainable_variables, [x, y, per_example])
    clip = middle_clip(examples)
    model.compile(dp(clip), loss=SPARSE(True))
    found = change_by(
        lambda: model.fit(x, y, class_weight=weights, batch_size=COUNT, verbose=0), model.trainable_variables
    )
    assert_close(found, clipped_mean(examples, clip, 4.0))


def test_two_outputs_with_loss_weights():
    inputs = tf.keras.Input((5,))
    hidden = layers.Dense(6, "relu")(inputs)
    model = tf.keras.Model(inputs, [layers.Dense(CLASSES)(hidden), layers.Dense(2)(hidden)])
    losses, weights = [SPARSE(True), "mse"], [1.0, 0.25]
    x, y, z = floats(COUNT, 5), labels(COUNT, CLASSES), floats(COUNT, 2, seed=3)

    def loss_of(x, y, z):
        model.compile(loss=losses, loss_weights=weights)
        return model.compute_loss(x, [y, z], model(x, training=True))

    examples = naive_examples(loss_of, model.trainable_variables, [x, y, z])
    clip = middle_clip(examples)
    model.compile(dp(clip), loss=losses, loss_weights=weights)
    found = change_by(lambda: model.fit(x, [y, z], batch_size=COUNT, verbose=0), model.trainable_variables)
    assert_close(found, clipped_mean(examples, clip, 4.0))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_regularizers_are_added_unclipped_and_undivided(reduction):
    regularizer = tf.keras.regularizers.L1L2(0.3, 0.7)
    model = tf.keras.Sequential([layers.Dense(5, "relu", kernel_regularizer=regularizer), layers.Dense(CLASSES)])
    x, y = floats(COUNT, 4), labels(COUNT, CLASSES)
    model(x)
    loss = SPARSE(True, reduction=reduction)
    clip = middle_clip(naive_examples(lambda x, y: loss(y, model(x)), model.trainable_variables, [x, y]))
    expected = naive(lambda x, y: loss(y, model(x)), model.trainable_variables, [x, y], clip, 4.0)
    kernel = model.layers[0].kernel
    with tf.GradientTape() as tape:
        penalty = regularizer(kernel)
    expected[0] = expected[0] + tape.gradient(penalty, kernel).numpy()
    model.compile(dp(clip), loss=loss)
    found = change_by(lambda: model.fit(x, y, batch_size=COUNT, verbose=0), model.trainable_variables)
    assert_close(found, expected)


@pytest.mark.parametrize(
    "regularizer",
    [
        tf.keras.regularizers.L1(0.2),
        tf.keras.regularizers.L2(0.2),
    ],
)
def test_activity_regularizer_and_row_add_loss(regularizer):
    """Keras divides an activity regularizer by the realised batch, as it does a mean loss: both cancel."""

    class Penalized(layers.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_mean(tf.reduce_sum(tf.square(x), axis=1)))
            return x

    model = tf.keras.Sequential([layers.Dense(5, activity_regularizer=regularizer), Penalized(), layers.Dense(CLASSES)])
    check_fit(model, SPARSE(True), floats(COUNT, 4), labels(COUNT, CLASSES))


def test_a_frozen_layer_stands_still():
    model = functional()
    model.layers[1].trainable = False
    frozen = [variable.numpy() for variable in model.layers[1].variables]
    check_fit(model, SPARSE(True), floats(COUNT, 7), labels(COUNT, CLASSES))
    for old, variable in zip(frozen, model.layers[1].variables):
        np.testing.assert_array_equal(old, variable.numpy())


# Batches.


def test_a_batch_of_one():
    check_fit(functional(), SPARSE(True), floats(1, 7), labels(1, CLASSES))


def linear_model() -> tf.keras.Model:
    """Its gradient moves little in one step, but each step of a fit is checked against its own weights."""
    return tf.keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(CLASSES)])


def follow(x: np.ndarray, y: np.ndarray, batches: list[slice], apply: Callable[..., None], model: Any) -> None:
    """The naive steps, one after the other, on `model`."""
    loss = SPARSE(True)
    for batch in batches:
        mean = naive(lambda x, y: loss(y, model(x)), model.trainable_variables, [x[batch], y[batch]], 0.4, 4.0)
        apply(zip([tf.constant(item, tf.float32) for item in mean], model.trainable_variables))


def twins(x: np.ndarray) -> tuple[tf.keras.Model, tf.keras.Model]:
    tf.keras.utils.set_random_seed(3)
    one, other = linear_model(), linear_model()
    one(x[:1]), other(x[:1])
    other.set_weights(one.get_weights())
    return one, other


@pytest.mark.parametrize("static, steps_per_execution", [(False, 1), (False, 3), (True, 1), (True, 3)])
def test_several_steps_and_a_ragged_last_batch(static, steps_per_execution):
    """With a static batch size the ragged rest is dropped, as tf.data does."""
    x, y = floats(11, 5, seed=7), labels(11, CLASSES, seed=8)
    private_model, plain = twins(x)
    private_model.compile(dp(0.4), loss=SPARSE(True), steps_per_execution=steps_per_execution)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4, drop_remainder=static)
    private_model.fit(dataset, verbose=0)
    batches = [slice(0, 4), slice(4, 8), *([] if static else [slice(8, 11)])]
    follow(x, y, batches, tf.keras.optimizers.SGD(1.0).apply_gradients, plain)
    assert_close(private_model.get_weights(), plain.get_weights(), rtol=1e-5)
    assert int(private_model.optimizer.steps_done) == len(batches)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: tf.keras.optimizers.SGD(0.5, momentum=0.9, nesterov=True),
        lambda: tf.keras.optimizers.Adam(0.1, amsgrad=True),
        lambda: tf.keras.optimizers.AdamW(0.1, weight_decay=0.2),
    ],
)
def test_the_inner_optimizer_sees_the_private_gradient(inner):
    x, y = floats(12, 5, seed=7), labels(12, CLASSES, seed=8)
    private_model, plain = twins(x)
    private_model.compile(dp(0.4, inner=inner()), loss=SPARSE(True))
    private_model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    follow(x, y, [slice(0, 4), slice(4, 8), slice(8, 12)], inner().apply_gradients, plain)
    assert_close(private_model.get_weights(), plain.get_weights(), rtol=1e-3)


def test_a_traced_loop_of_ones_own():
    x, y = floats(COUNT, 5), labels(COUNT, CLASSES)
    model, plain = twins(x)
    optimizer, loss = dp(0.4), SPARSE(True)

    @tf.function
    def step(x, y):
        optimizer.minimize(loss(y, model(x)), model.trainable_variables)

    step(tf.constant(x), tf.constant(y))
    follow(x, y, [slice(None)], tf.keras.optimizers.SGD(1.0).apply_gradients, plain)
    assert_close(model.get_weights(), plain.get_weights(), rtol=1e-5)


def test_a_tf_function_inside_the_model_traced_inline():
    """As make_private traces it; test_refusals.py has the plain train step, which refuses it."""

    class Hidden(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layers.Dense(5, "tanh")

        def build(self, shape: Any) -> None:
            self.inner.build(shape)

        @tf.function
        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.inner(x)

    model, data = tf.keras.Sequential([Hidden(), layers.Dense(CLASSES)]), [floats(COUNT, 5), labels(COUNT, CLASSES)]
    model(data[0])

    def loss_of(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with inlined_functions():
            return SPARSE(True)(y, model(x, training=True))

    examples = naive_examples(lambda x, y: SPARSE(True)(y, model(x)), model.trainable_variables, data)
    clip = middle_clip(examples)
    assert_close(private(loss_of, model.trainable_variables, data, clip), clipped_mean(examples, clip, 4.0))


@pytest.mark.xfail(strict=True, reason="take_apart walks through a sum that broadcasts as if it did not")
def test_a_tail_that_broadcasts_keeps_its_factor_or_is_refused():
    """Sums per class [2], plus a sum of all []: the second counts twice in the total."""
    kernel, data = tf.Variable(floats(5, 2)), [floats(COUNT, 5)]

    def loss_of(x: tf.Tensor) -> tf.Tensor:
        output = tf.matmul(x, kernel)
        return tf.reduce_sum(tf.reduce_sum(tf.square(output), axis=0) + tf.reduce_sum(output))

    try:
        found = private(loss_of, [kernel], data, clip=1e6)
    except PrivacyError:
        return
    assert_close(found, naive(loss_of, [kernel], data, 1e6, 4.0))


def test_the_divisor_is_the_expected_batch_size_not_the_realised_one():
    model, data = linear_model(), [floats(COUNT, 5), labels(COUNT, CLASSES)]
    model(data[0])
    loss_of = lambda x, y: SPARSE(True)(y, model(x))  # noqa: E731
    one = private(loss_of, model.trainable_variables, data, 0.4, divisor=1.0)
    other = private(loss_of, model.trainable_variables, data, 0.4, divisor=160.0)
    assert_close([160.0 * item for item in other], one, rtol=1e-6)


def test_a_variable_that_the_loss_does_not_use_gets_no_gradient():
    used, unused = tf.Variable(floats(3, 2)), tf.Variable(floats(3, 2))
    found = private(lambda x: tf.reduce_sum(tf.matmul(x, used), 1), [used, unused], [floats(4, 3)])
    assert found[0] is not None and found[1] is None


def test_all_variables_of_an_example_are_clipped_as_one_vector():
    """Clipping each variable by itself would give another, larger sum."""
    model, data = linear_model(), [floats(1, 5), labels(1, CLASSES)]
    model(data[0])
    loss_of = lambda x, y: SPARSE(True)(y, model(x))  # noqa: E731
    size = norms_of(naive_examples(loss_of, model.trainable_variables, data))[0]
    found = private(loss_of, model.trainable_variables, data, clip=size / 3, divisor=1.0)
    np.testing.assert_allclose(norms_of([found])[0], size / 3, rtol=1e-5)


# The op rules, each by the contract.


class TestMatMul(OpRuleContract):
    op_type = "MatMul"
    variable_shapes = ((4, 3), (4, 3), (5, 7), (4, 3))
    data_shapes = ((4,), (2, 4), (6, 5), (2, 3, 4))

    def call(self, data, variable):
        return tf.tensordot(data, variable, 1) if data.shape.rank > 2 else tf.matmul(data, variable)


class TestMatMulTransposed(OpRuleContract):
    op_type = "MatMul"
    variable_shapes = ((3, 4),)
    data_shapes = ((4,),)

    def call(self, data, variable):
        return tf.matmul(data, variable, transpose_b=True)


class TestBatchMatMul(OpRuleContract):
    op_type = "BatchMatMulV2"
    variable_shapes = ((4, 3), (9, 8))
    data_shapes = ((5, 4), (2, 9))

    def call(self, data, variable):
        return tf.raw_ops.BatchMatMulV2(x=data, y=variable)


class TestBatchMatMulTransposed(OpRuleContract):
    op_type = "BatchMatMulV2"
    variable_shapes = ((3, 4),)
    data_shapes = ((2, 5, 4),)

    def call(self, data, variable):
        return tf.raw_ops.BatchMatMulV2(x=data, y=variable, adj_y=True)


class TestBiasAdd(OpRuleContract):
    op_type = "BiasAdd"
    variable_shapes = ((4,), (4,), (3,))
    data_shapes = ((4,), (2, 4), (2, 5, 3))

    def call(self, data, variable):
        return tf.nn.bias_add(data, variable)


class TestConv2D(OpRuleContract):
    op_type = "Conv2D"
    variable_shapes = ((3, 2, 2, 4), (2, 2, 2, 3), (3, 3, 1, 9))
    data_shapes = ((6, 5, 2), (3, 3, 2), (4, 4, 1))

    def call(self, data, variable):
        return tf.nn.conv2d(data, variable, [1, 2, 1, 1], "SAME")


class TestConv2DExplicit(OpRuleContract):
    op_type = "Conv2D"
    variable_shapes = ((3, 2, 2, 4),)
    data_shapes = ((6, 5, 2),)

    def call(self, data, variable):
        return tf.nn.conv2d(data, variable, 1, [[0, 0], [1, 0], [2, 3], [0, 0]])


class Elementwise(OpRuleContract):
    variable_shapes = ((4,), (1, 4), (4,), (3, 1), (), (1, 3, 4))
    data_shapes = ((4,), (4,), (3, 4), (3, 4), (3,), (3, 4))


class TestMul(Elementwise):
    op_type = "Mul"

    def call(self, data, variable):
        return data * variable


class TestMulOnTheLeft(Elementwise):
    op_type = "Mul"
    variable_shapes, data_shapes = Elementwise.variable_shapes[2:4], Elementwise.data_shapes[2:4]

    def call(self, data, variable):
        return variable * data


class TestMulSpreadsTheData(OpRuleContract):
    op_type = "Mul"
    variable_shapes = ((4,), (3, 4))
    data_shapes = ((1,), (1, 1))

    def call(self, data, variable):
        return data * variable


class TestAdd(Elementwise):
    op_type = "AddV2"
    variable_shapes, data_shapes = Elementwise.variable_shapes[1:4], Elementwise.data_shapes[1:4]

    def call(self, data, variable):
        return variable + data


class TestSub(Elementwise):
    op_type = "Sub"
    variable_shapes, data_shapes = Elementwise.variable_shapes[1:4], Elementwise.data_shapes[1:4]

    def call(self, data, variable):
        return data - variable


class TestSubFromVariable(Elementwise):
    op_type = "Sub"
    variable_shapes, data_shapes = Elementwise.variable_shapes[1:4], Elementwise.data_shapes[1:4]

    def call(self, data, variable):
        return variable - data


# Drawn shapes.


@FEW
@given(
    batch=st.integers(1, 4),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid"]),
    channels=st.integers(1, 3),
    filters=st.integers(1, 4),
)
def test_conv2d_over_drawn_shapes(batch, size, kernel, stride, dilation, padding, channels, filters):
    layer = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        dilation_rate=dilation if stride == 1 else 1,
        padding=padding,
        activation="tanh",
        bias_initializer="normal",
    )
    data = [floats(batch, *size, channels)]
    layer(data[0])

    def loss_of(x):
        return tf.reduce_sum(tf.reduce_mean(tf.square(layer(x) - 0.3), axis=[1, 2]), axis=-1)

    examples = naive_examples(loss_of, layer.trainable_variables, data)
    clip = float(np.median(norms_of(examples))) * 0.9 + 1e-6
    found = private(loss_of, layer.trainable_variables, data, clip, 3.0)
    assert_close(found, clipped_mean(examples, clip, 3.0))


@FEW
@given(
    batch=st.integers(1, 4),
    time=st.lists(st.integers(1, 6), min_size=0, max_size=2),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    dynamic_time=st.booleans(),
)
def test_dense_over_drawn_times(batch, time, inputs, outputs, dynamic_time):
    layer = layers.Dense(outputs, "tanh", bias_initializer="normal")
    data = [floats(batch, *time, inputs)]
    layer(data[0])
    places = list(range(1, 1 + len(time)))

    def loss_of(x):
        squares = tf.square(layer(x) - 0.3)
        return tf.reduce_sum(tf.reduce_mean(squares, axis=places) if places else squares, axis=-1)

    examples = naive_examples(loss_of, layer.trainable_variables, data)
    clip = float(np.median(norms_of(examples))) * 0.9 + 1e-6
    signature = [tf.TensorSpec([None, *([None] * len(time) if dynamic_time else time), inputs])]
    optimizer = dp(clip, 3.0)
    step = tf.function(
        lambda x: [gradient for gradient, _ in optimizer.compute_gradients(loss_of(x), layer.trainable_variables)],
        input_signature=signature,
    )
    assert_close(step(data[0]), clipped_mean(examples, clip, 3.0))


# Which form the clipping takes.


FORMS = [(1, 5, 4, OuterProducts), (3, 10, 12, Sequences), (9, 3, 2, Formed), (2, 4, 4, Sequences), (3, 4, 4, Formed)]


def form_of(call: Callable[..., tf.Tensor], time: int, inputs: int, outputs: int) -> type:
    kernel, data = tf.Variable(floats(inputs, outputs)), floats(2, time, inputs)
    found = []

    def use(step):
        found.append(step.examples(kernel))
        return found[0].squared_norms()

    proven(lambda x: tf.reduce_sum(tf.square(call(x, kernel)), [1, 2]), [kernel], specs([data]), use)
    return type(found[0])


@pytest.mark.parametrize("time, inputs, outputs, expected", FORMS)
def test_the_cheaper_exact_form_is_chosen(time, inputs, outputs, expected):
    """Gram when T (d + p) <= d p, one outer product at T = 1, else the gradients themselves."""
    product = lambda x, kernel: tf.raw_ops.BatchMatMulV2(x=x, y=kernel)  # noqa: E731
    assert form_of(product, time, inputs, outputs) is expected


@pytest.mark.parametrize(
    "time, inputs, outputs, expected",
    [
        item
        if item[-1] is Formed
        else pytest.param(
            *item, marks=pytest.mark.xfail(strict=True, reason="tensordot's Reshape hides the width from the rule")
        )
        for item in FORMS
    ],
)
def test_the_cheaper_exact_form_is_chosen_for_a_dense_layer(time, inputs, outputs, expected):
    """Dense on [batch, time, d] is a tensordot: its MatMul sees [batch * time, d]."""
    assert form_of(lambda x, kernel: tf.tensordot(x, kernel, 1), time, inputs, outputs) is expected


def random_contributions(times: list[int], inputs: int, outputs: int) -> list[Factored]:
    return [
        Factored(
            tf.constant(floats(3, time, inputs, seed=time)),
            tf.constant(floats(3, time, outputs, seed=9 + time)),
        )
        for time in times
    ]


@pytest.mark.parametrize("times", [[1], [2], [7], [1, 1], [2, 1, 3], [4, 4]])
@pytest.mark.parametrize("with_a_formed_one", [False, True])
def test_several_uses_of_one_variable_add_up(times, with_a_formed_one):
    inputs, outputs = 6, 5
    uses = random_contributions(times, inputs, outputs)
    dense = sum(
        np.einsum("btd,btp->bdp", use.left.numpy().astype(np.float64), use.right.numpy().astype(np.float64))
        for use in uses
    )
    if with_a_formed_one:
        extra = floats(3, inputs, outputs, seed=77)
        uses, dense = [*uses, Instantiated(tf.constant(extra))], dense + extra
    combined = combine(uses, tf.TensorShape([inputs, outputs]))
    np.testing.assert_allclose(combined.squared_norms(), np.sum(dense**2, axis=(1, 2)), rtol=1e-5)
    weights = np.array([0.3, 1.0, 0.0], np.float32)
    found = combined.weighted_sum(tf.constant(weights), tf.constant([True, True, True]))
    assert_close([tf.reshape(found, [inputs, outputs])], [np.tensordot(weights.astype(np.float64), dense, 1)])
