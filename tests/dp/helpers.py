"""The naive reference of a private step, and short ways to trace one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from keras_private.dp.engine import TracedStep, traced_step
from keras_private.dp.optimizer import DPOptimizer
from keras_private.dp.proof import Fact, StepProof

Loss = Callable[..., tf.Tensor]


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def labels(count: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, count)


def specs(data: Sequence[np.ndarray], static: bool = False) -> list[tf.TensorSpec]:
    return [tf.TensorSpec([len(item) if static else None, *item.shape[1:]], item.dtype) for item in data]


def dp(clip: float = 1.0, divisor: float = 4.0, noise: float = 0.0, inner: Any = None, **options: Any) -> DPOptimizer:
    """A DPOptimizer whose update is minus its gradient."""
    inner = inner or tf.keras.optimizers.SGD(1.0)
    return DPOptimizer(inner, l2_norm_clip=clip, noise_multiplier=noise, expected_batch_size=divisor, **options)


# The reference: one example at a time, clipped whole, in float64.


def naive_examples(
    loss_of: Loss, variables: Sequence[tf.Variable], data: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """For each example its gradients, float64, from an eager tape over a batch of one."""
    result = []
    for index in range(len(data[0])):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(loss_of(*(tf.constant(item[index : index + 1]) for item in data)))
        found = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        result.append([np.asarray(tf.convert_to_tensor(item), np.float64) for item in found])
    return result


def norms_of(examples: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    return np.array([np.sqrt(sum(np.sum(part**2) for part in example)) for example in examples])


def clipped_mean(examples: Sequence[Sequence[np.ndarray]], clip: float, divisor: float) -> list[np.ndarray]:
    scales = np.minimum(1.0, clip / np.maximum(norms_of(examples), 1e-300))
    return [
        sum(scale * example[place] for scale, example in zip(scales, examples)) / divisor
        for place in range(len(examples[0]))
    ]


def middle_clip(examples: Sequence[Sequence[np.ndarray]]) -> float:
    """A clip norm that some examples exceed and others do not; a batch of one is clipped."""
    norms = np.sort(norms_of(examples))
    clip = norms[0] / 2 if len(norms) == 1 else (norms[0] + norms[-1]) / 2
    assert clip > 0 and (len(norms) == 1 or norms[0] < clip < norms[-1]), norms
    return float(clip)


def naive(
    loss_of: Loss, variables: Sequence[tf.Variable], data: Sequence[np.ndarray], clip: float, divisor: float
) -> list[np.ndarray]:
    return clipped_mean(naive_examples(loss_of, variables, data), clip, divisor)


# The traced step.


def private(
    loss_of: Loss,
    variables: Sequence[tf.Variable],
    data: Sequence[np.ndarray],
    clip: float = 1.0,
    divisor: float = 4.0,
    static: bool = False,
) -> list[Optional[np.ndarray]]:
    """Gradients that DPOptimizer.compute_gradients makes without noise."""
    return stepper(loss_of, variables, data, clip, divisor, static)(*data)


def stepper(
    loss_of: Loss,
    variables: Sequence[tf.Variable],
    data: Sequence[np.ndarray],
    clip: float = 1.0,
    divisor: float = 4.0,
    static: bool = False,
    noise: float = 0.0,
) -> Callable[..., list[Optional[np.ndarray]]]:
    """A traced step to call on several batches shaped like `data`."""
    optimizer = dp(clip, divisor, noise)
    missing: list[bool] = []

    @tf.function(input_signature=specs(data, static), autograph=False)
    def step(*tensors: tf.Tensor) -> list[tf.Tensor]:
        pairs = optimizer.compute_gradients(loss_of(*tensors), variables)
        missing[:] = [gradient is None for gradient, _ in pairs]
        return [gradient for gradient, _ in pairs if gradient is not None]

    def run(*batch: Any) -> list[Optional[np.ndarray]]:
        found = iter(step(*(tf.constant(item) for item in batch)))
        return [None if absent else next(found).numpy() for absent in missing_or(step, missing)]

    def missing_or(function: Any, known: list[bool]) -> list[bool]:
        if not known:
            function.get_concrete_function()
        return known

    return run


def rowwise(
    loss_of: Loss,
    variables: Sequence[tf.Variable],
    data: Sequence[np.ndarray],
    static: bool = False,
) -> Callable[..., list[np.ndarray]]:
    """Runs a proven step and returns input and output gradient of every covered operation, by example."""

    @tf.function(input_signature=specs(data, static), autograph=False)
    def rows(*tensors: tf.Tensor) -> list[tf.Tensor]:
        return traced_step(loss_of(*tensors), variables).rows()

    return lambda *batch: [item.numpy() for item in rows(*(tf.constant(item) for item in batch))]


def proven(
    loss_of: Loss, variables: Sequence[tf.Variable], shapes: Sequence[tf.TensorSpec], use: Callable[..., Any]
) -> tf.types.experimental.ConcreteFunction:
    """The graph of use(traced step) for data of these shapes."""

    @tf.function(input_signature=list(shapes), autograph=False)
    def trace(*tensors: tf.Tensor) -> Any:
        step: TracedStep = traced_step(loss_of(*tensors), variables)
        return use(step)

    return trace.get_concrete_function()


def fact_of(function: Callable[..., tf.Tensor], *shapes: Any, dtype: tf.DType = tf.float32) -> Fact:
    """What the proof says of the result of `function`, for data of these shapes (None: the batch)."""
    found: list[Fact] = []

    @tf.function(
        input_signature=[item if isinstance(item, tf.TensorSpec) else tf.TensorSpec(item, dtype) for item in shapes],
        autograph=False,
    )
    def trace(*tensors: tf.Tensor) -> tf.Tensor:
        result = function(*tensors)
        found.append(StepProof(result.graph).fact(result))
        return result

    trace.get_concrete_function()
    return found[-1]


# Through an ordinary fit.


def compiled_loss(model: tf.keras.Model) -> Loss:
    """The compiled loss of a batch: x, y and perhaps sample weights."""

    def loss_of(x: Any, y: Any, *sample_weight: Any) -> tf.Tensor:
        return model.compute_loss(x, y, model(x, training=True), *sample_weight)

    return loss_of


def change_by(fit: Callable[[], Any], variables: Sequence[tf.Variable]) -> list[np.ndarray]:
    """What a fit with SGD at learning rate 1 subtracts from the weights."""
    before = [variable.numpy().astype(np.float64) for variable in variables]
    fit()
    return [old - variable.numpy() for old, variable in zip(before, variables)]


def assert_close(found: Sequence[Any], expected: Sequence[Any], rtol: float = 1e-4) -> None:
    """Equal to float32 rounding, measured against the largest entry of all."""
    assert len(found) == len(expected)
    size = max(float(np.max(np.abs(item), initial=0.0)) for item in expected)
    assert size > 0, "a reference that is zero shows nothing"
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * size)
