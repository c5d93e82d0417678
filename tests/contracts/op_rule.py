"""What every per-example gradient rule must pass. Subclass `OpRuleContract` and give its attributes and `call`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import tensorflow as tf

from keras_private.dp.engine import traced_step
from keras_private.dp.proof.registry import RULES
from keras_private.dp.rules import OP_RULES
from tests.dp.helpers import assert_close, floats, naive_examples, norms_of, specs

BATCH = 5
ALL = np.ones(BATCH, bool)


@dataclass
class Case:
    """One traced use of one variable, and its naive gradients.

    Attributes:
        types: The operations that the engine found to use the variable.
        run: (data, weights, keep) to (weighted sum, squared norms), traced once for every batch size.
        static: The same for a batch size known while tracing.
        expected: Gradient of each example of `data`, float64.
    """

    data: np.ndarray
    types: list[str]
    run: Callable[..., tuple[np.ndarray, tf.Tensor]]
    static: Callable[..., tuple[np.ndarray, tf.Tensor]]
    expected: list[np.ndarray] = field(default_factory=list)


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

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", range(len(self.variable_shapes)), indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, request: pytest.FixtureRequest) -> Case:
        rule = cls()
        variable = tf.Variable(floats(*cls.variable_shapes[request.param], seed=1), name="weight")
        data = floats(BATCH, *cls.data_shapes[request.param], seed=2)

        def loss_of(x: tf.Tensor) -> tf.Tensor:
            output = rule.call(x, variable)
            flat = tf.reshape(output, [tf.shape(x)[0], int(np.prod(output.shape[1:]))])
            return tf.reduce_sum(tf.sin(flat) + 0.3 * tf.square(flat), axis=1)

        types: list[str] = []

        def traced(static: bool) -> Callable[..., tuple[np.ndarray, tf.Tensor]]:
            @tf.function(autograph=False)
            def graph(weights: tf.Tensor, keep: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                step = traced_step(loss_of(x), [variable])
                types[:] = [use.op.type for use in step.plan.uses]
                examples = step.examples(variable)
                return examples.weighted_sum(weights, keep), examples.squared_norms()

            size = BATCH if static else None
            concrete = graph.get_concrete_function(
                tf.TensorSpec([size]), tf.TensorSpec([size], tf.bool), *specs([data], static)
            )

            def run(x: np.ndarray, weights: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, tf.Tensor]:
                total, squared = concrete(tf.constant(weights, tf.float32), tf.constant(keep), tf.constant(x))
                return np.reshape(total, variable.shape), squared

            return run

        expected = [parts[0] for parts in naive_examples(loss_of, [variable], [data])]
        return Case(data, types, traced(False), traced(True), expected)

    def test_registered(self):
        assert self.op_type in OP_RULES
        assert self.op_type in RULES, "the proof has no transfer rule for it"

    def test_the_operation_is_the_one_that_uses_the_variable(self, case):
        assert case.types == [self.op_type]

    def test_each_example_equals_its_own_gradient(self, case):
        found = [case.run(case.data, weights, ALL)[0] for weights in np.eye(BATCH)]
        assert_close(found, case.expected, rtol=1e-5)

    def test_norms_are_of_those_gradients(self, case):
        squared = case.run(case.data, ALL, ALL)[1]
        assert squared.dtype == tf.float64
        np.testing.assert_allclose(np.sqrt(squared), norms_of([[item] for item in case.expected]), rtol=1e-5)

    def test_the_weighted_sum_is_linear_in_the_weights(self, case):
        weights = np.array([0.5, 1.0, 0.0, 0.25, 1.0])
        assert_close([case.run(case.data, weights, ALL)[0]], [np.tensordot(weights, case.expected, 1)], rtol=1e-5)

    def test_a_batch_of_one_and_of_none(self, case):
        found, squared = case.run(case.data[:1], ALL[:1], ALL[:1])
        assert_close([found], case.expected[:1], rtol=1e-5)
        assert squared.shape == [1]
        nothing, squared = case.run(case.data[:0], ALL[:0], ALL[:0])
        np.testing.assert_array_equal(nothing, np.zeros_like(found))
        assert squared.shape == [0]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_kept_reaches_nothing(self, case, bad):
        spoilt, other = case.data.copy(), case.data.copy()
        spoilt[2], other[2] = bad, 7.0
        weights, keep = np.array([0.5, 1.0, 0.0, 0.25, 1.0]), np.array([True, True, False, True, True])
        found = case.run(spoilt, weights, keep)[0]
        assert np.isfinite(found).all() and np.any(found != 0)
        np.testing.assert_array_equal(found, case.run(other, weights, keep)[0])

    def test_static_and_dynamic_batch_agree(self, case):
        for one, other in zip(case.run(case.data, ALL, ALL), case.static(case.data, ALL, ALL)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.max(np.abs(other)))
