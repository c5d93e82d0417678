"""Example-level differential privacy at clients: what leaves a client is already private.

A client with n examples goes over them in batches, each example in one batch of each local epoch. A step clips each
example's gradient, adds noise to their sum, and divides by a public number. What leaves the client, its update, is a
function of the noisy steps, of n and of the weights it was sent.

Accounting. Two data sets that differ in one example, which in one of them contributes nothing (zero-out), differ in one
step of each local epoch: all other steps are the same function of what was released before and of other examples. So a
local epoch is one Gaussian mechanism for each example (parallel composition), without amplification, since the
coordinator may know the order; epochs and rounds compose. Of the noise sampler's error only the draws of that one step
count: the other steps have the same law, ideal or not, on both data sets.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from .. import native
from .._backends import keras_state
from .._backends.graph import declare_rows, inlined_functions
from ..dp.accounting import UNKNOWN, ZERO_OUT, Charge
from ..dp.engine import coordinates_of, private_gradients
from ..dp.mechanisms import GaussianMechanism
from ..errors import ConfigurationError, UnsupportedModelError
from .algorithms import Algorithm, FedAvg, FedProx


@dataclass(frozen=True)
class LocalPrivacy:
    """How each step of a client is made private.

    Attributes:
        l2_norm_clip: Bound on the L2 norm of one example's gradient.
        noise_multiplier: Standard deviation of the noise divided by the sensitivity.
        expected_batch_size: What the noisy sum is divided by.
    """

    l2_norm_clip: float
    noise_multiplier: float
    expected_batch_size: float

    @staticmethod
    def of(optimizer: Any) -> LocalPrivacy:
        """That of a DPOptimizer."""
        return LocalPrivacy(optimizer.l2_norm_clip, optimizer.noise_multiplier, optimizer.expected_batch_size)

    def check(self, model: Any, algorithm: Algorithm, batch_size: int) -> None:
        """Refuses what would not be private.

        Raises:
            ConfigurationError: The batch size is not the divisor.
            UnsupportedModelError: The algorithm sends more than noisy steps, or the model changes by itself.
        """
        if batch_size != self.expected_batch_size:
            raise ConfigurationError(
                f"fit takes batches of {batch_size}, the DPOptimizer divides by {self.expected_batch_size:g}.",
                expected="one batch size",
                remedy=f"DPOptimizer(..., expected_batch_size={batch_size})",
            )
        if not isinstance(algorithm, (FedAvg, FedProx)):
            raise UnsupportedModelError(
                f"{algorithm.name} sends gradients that no noise was added to.",
                expected="the algorithm 'fedavg' or 'fedprox' with a DPOptimizer at clients",
                remedy="compile(..., algorithm='fedavg')",
            )
        if keras_state.overrides_train_step(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} has a train_step of its own, which would not run privately.",
                expected="Keras's train_step with a DPOptimizer at clients",
                remedy="Put the loss into compile or add_loss.",
            )
        moving = keras_state.moving_state(model)
        if moving:
            raise UnsupportedModelError(
                f"Layers change {moving[0].name!r} by themselves in training, without noise.",
                expected="a model without moving averages under a DPOptimizer at clients",
                remedy="Use keras_private.fix(model), which puts GroupNormalization in place of BatchNormalization.",
            )

    def gradients(self, model: Any, trained: Sequence[tf.Variable], element_spec: Any) -> Callable[..., Any]:
        """(x, y) of a batch -> noisy gradients of `trained`, in stock operations.

        Raises:
            UnsupportedModelError: The step cannot be proven private; says where and why. When it is traced.
        """
        mechanism = GaussianMechanism(self.l2_norm_clip, self.noise_multiplier, coordinates_of(trained))

        def batch(spec: tf.TensorSpec) -> tf.TensorSpec:
            return tf.TensorSpec(tf.TensorShape([None]).concatenate(spec.shape), spec.dtype)

        # A graph of its own for the proof. Whoever calls it takes rows out of the examples, each once an epoch.
        @tf.function(input_signature=list(tf.nest.map_structure(batch, element_spec)), autograph=False)
        def noisy(x: Any, y: Any) -> Any:
            x, y = tf.nest.map_structure(declare_rows, (x, y))
            with inlined_functions():
                loss = model.compute_loss(x, y, model(x, training=True), None)
            found = private_gradients(loss, trained, mechanism, self.expected_batch_size)
            return [tf.zeros_like(v) if g is None else g for g, v in zip(found, trained)]

        def run(x: Any, y: Any) -> Any:
            with native.stock_operations():
                return noisy(x, y)

        return run


class LocalMeter:
    """Counts the local epochs whose results were asked for, for each client.

    Guarantees:
        - An epoch is counted before it may run, again for each attempt, and with the least noise of all.
        - `variables`, restored from a checkpoint, hold what that training had counted and what its next round could
          have added.

    Not guaranteed: what a coordinator learns that runs a client's graph again on its own account.

    Attributes:
        charge: Called before more epochs may run than any client had before, with how many more; may refuse them.
    """

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._before = self._most = self._coordinates = 0
        self._noise = math.inf
        self._lock = threading.Lock()
        self.charge: Callable[[int], None] = lambda epochs: None
        with tf.init_scope():
            self._saved = tf.Variable([0.0, np.inf, 0.0], trainable=False, dtype=tf.float64, name="local_privacy")

    @property
    def variables(self) -> list[tf.Variable]:
        """To be saved and restored with the weights."""
        return [self._saved]

    def restored(self) -> None:
        """The variables were restored: any client may have been in all that they count."""
        epochs, noise, coordinates = self._saved.numpy()
        self._before = max(self.epochs, int(epochs))
        self._noise, self._coordinates = min(self._noise, float(noise)), max(self._coordinates, int(coordinates))
        self._epochs.clear()

    def begin(self, privacy: LocalPrivacy, coordinates: int, most: int) -> None:
        """The beginning of a fit.

        Args:
            privacy: Of its steps.
            coordinates: That get noise in a step.
            most: Local epochs of one client in a round, all attempts counted.
        """
        self._noise = min(self._noise, privacy.noise_multiplier)
        self._coordinates, self._most = max(self._coordinates, coordinates), most
        self._save()

    def count(self, names: Sequence[str], epochs: int) -> None:
        """So many local epochs of these clients are about to run."""
        with self._lock:
            counts = {name: self._epochs.get(name, 0) + epochs for name in names}
            more = self._before + max(counts.values(), default=0) - self.epochs
            if more > 0:
                self.charge(more)
            self._epochs.update(counts)
            self._save()

    @property
    def epochs(self) -> int:
        """The most of any client."""
        return self._before + max(self._epochs.values(), default=0)

    @property
    def least_noise(self) -> float:
        """Noise multiplier, the least of all fits; 0 before the first."""
        return self._noise if math.isfinite(self._noise) else 0.0

    @property
    def noise_coordinates(self) -> int:
        """The most that got noise in a step of any fit."""
        return self._coordinates

    def charges(self) -> tuple[Charge, ...]:
        """What was spent for each example of the client with the most epochs."""
        if not self.epochs:
            return ()
        return (Charge(self._noise, self.epochs, None, UNKNOWN, ZERO_OUT, self._coordinates),)

    def _save(self) -> None:
        self._saved.assign([self.epochs + self._most, self._noise, self._coordinates])


def most_attempts(hosts: Any) -> int:
    """How often one client's work may be asked for in a round."""
    from .workers import ATTEMPTS

    return max(ATTEMPTS, len(hosts))
