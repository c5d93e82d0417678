"""The work of one client, traced from the compiled Keras model and movable to where the data is."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional

import tensorflow as tf

from .._backends import keras_state
from .._backends.graph_import import MovableFunction, movable
from ..errors import UnsupportedModelError
from .algorithms import Algorithm, FedAvg, FedProx, FedSGD, MimeLite
from .examples import blank
from .local_privacy import LocalPrivacy


@dataclasses.dataclass(frozen=True)
class LocalWork:
    """A client's work as a graph that any worker can run.

    Arguments of the graph: the client's examples (x and y, flattened, each [examples, ...]), then `local_epochs`
    (int32), `batch_size` (int32), `seed` (int32 [2], order of the examples). Results: the update float32 [d], the
    number of examples float32, and the metrics' variables after the work.

    Attributes:
        function: The graph.
        sent: Variables whose values travel from the coordinator in each round.
        reset: Other variables and what they start from.
        trained: Those that gradients change.
        averaged: Those that layers change by themselves in training; their changes follow in the update.
        metrics: Variables of the metrics, in the order of the results.
        extra: Coordinates of the update that follow for the algorithm.
    """

    function: MovableFunction
    sent: tuple[tf.Variable, ...]
    reset: tuple[tuple[tf.Variable, Any], ...]
    trained: tuple[tf.Variable, ...]
    averaged: tuple[tf.Variable, ...]
    metrics: tuple[tf.Variable, ...]
    extra: int

    @property
    def dimension(self) -> int:
        """Length d of an update."""
        return sum(int(variable.shape.num_elements()) for variable in self.trained + self.averaged) + self.extra


def training(
    model: Any, element_spec: Any, algorithm: Algorithm, shuffle: bool, privacy: Optional[LocalPrivacy] = None
) -> LocalWork:
    """The work of a client in a round of training.

    Args:
        model: A Keras model, built and compiled with the client optimizer.
        element_spec: Pair (x, y) of tf.TensorSpec of one example.
        algorithm: What the client does.
        shuffle: New order of the examples in each local epoch.
        privacy: Makes each step private for each example; none is if None.

    Raises:
        UnsupportedModelError: The model cannot be moved to a worker, or has a training step of its own that the
            algorithm cannot use.
    """
    own_step = keras_state.overrides_train_step(model)
    if own_step and not isinstance(algorithm, FedAvg):
        raise UnsupportedModelError(
            f"{type(model).__name__} has a train_step of its own, and {algorithm.name} needs the gradients.",
            expected="a model with Keras's train_step, or the algorithm 'fedavg'",
            remedy="compile(..., algorithm='fedavg').",
        )
    trained, averaged = tuple(model.trainable_variables), tuple(keras_state.moving_state(model))
    optimizer = model.optimizer
    if not own_step:
        optimizer.build(trained)
    _build_metrics(model, element_spec)
    counted = tuple(variable for metric in model.metrics for variable in metric.variables)
    state = tuple(optimizer.variables) if isinstance(algorithm, MimeLite) else ()
    noisy = None if privacy is None else privacy.gradients(model, trained, element_spec)
    gradient_only = isinstance(algorithm, (FedSGD, MimeLite))

    def gradients(x: Any, y: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            loss = model.compute_loss(x, y, predicted, None)
        found = tape.gradient(loss, trained)
        found = [tf.zeros_like(v) if g is None else tf.convert_to_tensor(g) for g, v in zip(found, trained)]
        return found, predicted

    def step(x: Any, y: Any, begun: Any, state_begun: Any) -> None:
        if own_step:
            model.train_step((x, y))
            return
        found, predicted = gradients(x, y) if noisy is None else (noisy(x, y), None)
        if isinstance(algorithm, FedProx):
            mu = algorithm.proximal_strength
            found = [g + tf.cast(mu, g.dtype) * (v - w) for g, v, w in zip(found, trained, begun)]
        optimizer.apply_gradients(zip(found, trained))
        for variable, value in zip(state, state_begun):
            variable.assign(value)
        if noisy is None:
            model.compute_metrics(x, y, predicted, None)

    def work(x: Any, y: Any, local_epochs: Any, batch_size: Any, seed: Any) -> Any:
        examples = tf.shape(tf.nest.flatten(x)[0])[0]
        begun = [variable.read_value() for variable in trained]
        averages_begun = [variable.read_value() for variable in averaged]
        state_begun = [variable.read_value() for variable in state]
        totals = [tf.zeros_like(value) for value in begun] if gradient_only else []
        if gradient_only:
            for first in tf.range(0, examples, batch_size):
                index = tf.range(first, tf.minimum(first + batch_size, examples))
                bx, by = _rows(x, index), _rows(y, index)
                found, predicted = gradients(bx, by)
                share = tf.cast(tf.minimum(batch_size, examples - first), tf.float32)
                totals = [t + g * tf.cast(share, g.dtype) for t, g in zip(totals, found)]
                if isinstance(algorithm, FedSGD):
                    model.compute_metrics(bx, by, predicted, None)
            count = tf.cast(tf.maximum(examples, 1), tf.float32)
            totals = [t / tf.cast(count, t.dtype) for t in totals]
        if not isinstance(algorithm, FedSGD):
            for epoch in tf.range(local_epochs):
                order = tf.range(examples)
                if shuffle:
                    order = tf.random.experimental.stateless_shuffle(order, seed + tf.stack([0, epoch]))
                for first in tf.range(0, examples, batch_size):
                    index = order[first : first + batch_size]
                    step(_rows(x, index), _rows(y, index), begun, state_begun)
        if isinstance(algorithm, FedSGD):
            changes = [-total for total in totals]
        else:
            changes = [variable.read_value() - value for variable, value in zip(trained, begun)]
        changes += [variable.read_value() - value for variable, value in zip(averaged, averages_begun)]
        if isinstance(algorithm, MimeLite):
            changes += totals
        update = tf.concat([tf.reshape(tf.cast(change, tf.float32), [-1]) for change in changes], axis=0)
        return update, tf.cast(examples, tf.float32), [variable.read_value() for variable in counted]

    function = _traced(work, element_spec)
    size = sum(int(variable.shape.num_elements()) for variable in trained)
    return _assembled(
        function, model, trained, averaged, counted, state, size if isinstance(algorithm, MimeLite) else 0
    )


def evaluation(model: Any, element_spec: Any) -> LocalWork:
    """The work of a client in an evaluation: the metrics over its examples; the update is empty.

    Raises:
        UnsupportedModelError: The model cannot be moved to a worker.
    """
    _build_metrics(model, element_spec)
    counted = tuple(variable for metric in model.metrics for variable in metric.variables)

    def work(x: Any, y: Any, local_epochs: Any, batch_size: Any, seed: Any) -> Any:
        examples = tf.shape(tf.nest.flatten(x)[0])[0]
        for first in tf.range(0, examples, batch_size):
            index = tf.range(first, tf.minimum(first + batch_size, examples))
            model.test_step((_rows(x, index), _rows(y, index)))
        return tf.zeros([0]), tf.cast(examples, tf.float32), [variable.read_value() for variable in counted]

    return _assembled(_traced(work, element_spec), model, (), (), counted, (), 0)


def _traced(work: Any, element_spec: Any) -> MovableFunction:
    def batch(spec: tf.TensorSpec) -> tf.TensorSpec:
        return tf.TensorSpec(tf.TensorShape([None]).concatenate(spec.shape), spec.dtype)

    x, y = tf.nest.map_structure(batch, element_spec)
    scalar = tf.TensorSpec([], tf.int32)
    concrete = tf.function(work).get_concrete_function(x, y, scalar, scalar, tf.TensorSpec([2], tf.int32))
    return movable(concrete)


def _assembled(
    function: MovableFunction, model: Any, trained: Any, averaged: Any, counted: Any, state: Any, extra: int
) -> LocalWork:
    weights = list(model.variables)
    optimizer = getattr(model, "optimizer", None)
    rate = getattr(optimizer, "_learning_rate", None)
    sent, reset = [], []
    for variable, _ in function.variables:
        travels = variable is rate or any(variable is one for one in [*weights, *state])
        if travels and not any(variable is one for one in counted):
            sent.append(variable)
        else:
            # Metrics and the optimizer's own state begin anew in each round.
            reset.append((variable, variable.numpy()))
    return LocalWork(function, tuple(sent), tuple(reset), tuple(trained), tuple(averaged), tuple(counted), extra)


def _build_metrics(model: Any, element_spec: Any) -> None:
    """Makes the variables of the compiled metrics, which Keras only does when it sees a batch."""
    model.test_step(blank(element_spec))
    model.reset_metrics()


def _rows(data: Any, index: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda each: tf.gather(each, index), data)
