"""What every per-example gradient rule must pass. Subclass `OpRuleContract` and give op_type, shapes and `call`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_private.dp.proof.registry import RULES
from keras_private.dp.rules import OP_RULES
from tests.dp.helpers import assert_close, floats, naive_examples, norms_of, private, proven, specs

BATCH = 5


class OpRuleContract:
    """Inherit as `class TestX(OpRuleContract)`.

    Attributes:
        op_type: The operation under test; it must be what consumes the variable.
        variable_shapes: Shapes of the variable to try, one for each of `data_shapes`.
        data_shapes: Shapes of one example.
    """

    op_type: str
    variable_shapes: tuple[tuple[int, ...], ...]
    data_shapes: tuple[tuple[int, ...], ...]

    def call(self, data: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
        raise NotImplementedError

    @pytest.fixture
    def case(self, place: int) -> tuple[Callable[..., tf.Tensor], tf.Variable, np.ndarray]:
        variable = tf.Variable(floats(*self.variable_shapes[place], seed=1), name="weight")

        def loss_of(x: tf.Tensor) -> tf.Tensor:
            output = self.call(x, variable)
            flat = tf.reshape(output, [tf.shape(x)[0], int(np.prod(output.shape[1:]))])
            return tf.reduce_sum(tf.sin(flat) + 0.3 * tf.square(flat), axis=1)

        return loss_of, variable, floats(BATCH, *self.data_shapes[place], seed=2)

    def run(self, case: Any, use: Callable[..., Any], data: np.ndarray) -> Any:
        loss_of, variable, _ = case
        return proven(loss_of, [variable], specs([data]), lambda step: use(step, variable))(tf.constant(data))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "place" in metafunc.fixturenames:
            metafunc.parametrize("place", range(len(self.variable_shapes)))

    def test_registered(self):
        assert self.op_type in OP_RULES
        assert self.op_type in RULES, "the proof has no transfer rule for it"

    def test_the_operation_is_the_one_that_uses_the_variable(self, case):
        types = []
        self.run(case, lambda step, _: types.extend(use.op.type for use in step.plan.uses) or [], case[2])
        assert types == [self.op_type]

    def test_each_example_equals_its_own_gradient(self, case):
        loss_of, variable, data = case
        expected = naive_examples(loss_of, [variable], [data])

        def one_by_one(step: Any, variable: tf.Variable) -> list[tf.Tensor]:
            examples = step.examples(variable)
            keep = tf.ones([BATCH], bool)
            return [
                tf.reshape(examples.weighted_sum(tf.one_hot(index, BATCH), keep), variable.shape)
                for index in range(BATCH)
            ]

        found = self.run(case, one_by_one, data)
        assert_close(found, [parts[0] for parts in expected], rtol=1e-5)

    def test_norms_are_of_those_gradients_and_never_too_small(self, case):
        loss_of, variable, data = case
        expected = norms_of(naive_examples(loss_of, [variable], [data]))
        squared = self.run(case, lambda step, weight: step.examples(weight).squared_norms(), data)
        assert squared.dtype == tf.float64
        np.testing.assert_allclose(np.sqrt(squared), expected, rtol=1e-5)

    def test_a_batch_of_one_and_none(self, case):
        loss_of, variable, data = case
        for count in (1, 0):
            found = self.run(
                case,
                lambda step, weight: step.examples(weight).weighted_sum(
                    tf.ones_like(step.examples(weight).squared_norms(), tf.float32),
                    tf.ones_like(step.examples(weight).squared_norms(), tf.bool),
                ),
                data[:count],
            )
            expected = naive_examples(loss_of, [variable], [data[:1]])[0][0]
            if count:
                assert_close([tf.reshape(found, variable.shape)], [expected])
            else:
                np.testing.assert_array_equal(found, np.zeros(found.shape))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_kept_reaches_nothing(self, case, bad):
        loss_of, variable, data = case
        spoilt, other = data.copy(), data.copy()
        spoilt[2], other[2] = bad, 7.0

        def without_two(step: Any, variable: tf.Variable) -> tf.Tensor:
            keep = tf.constant([True, True, False, True, True])
            return step.examples(variable).weighted_sum(tf.constant([0.5, 1.0, 0.0, 0.25, 1.0]), keep)

        found = self.run(case, without_two, spoilt)
        assert np.isfinite(found).all() and np.any(found != 0)
        np.testing.assert_array_equal(found, self.run(case, without_two, other))

    def test_static_and_dynamic_batch_agree(self, case):
        loss_of, variable, data = case
        dynamic = private(loss_of, [variable], [data], clip=0.5)
        fixed = private(loss_of, [variable], [data], clip=0.5, static=True)
        assert_close(fixed, dynamic, rtol=1e-6)
