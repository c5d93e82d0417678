"""A stand-in for DPOptimizer that honours its budget contract and traces in a fraction of the time."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from keras_private.dp.ledger import Ledger


class CountingSGD(tf.keras.optimizers.SGD):
    """Plain SGD that counts steps behind the gate. No privacy: tests of the bookkeeping only."""

    is_dp_optimizer = True

    def __init__(self, noise_multiplier=2.0, expected_batch_size=8.0, l2_norm_clip=1.0, learning_rate=0.01):
        super().__init__(learning_rate)
        self.noise_multiplier, self.l2_norm_clip = noise_multiplier, l2_norm_clip
        self.expected_batch_size = expected_batch_size
        with tf.init_scope():
            self.steps_done = tf.Variable(0, trainable=False, dtype=tf.int64)
            self.identity_bits = tf.Variable(np.frombuffer(os.urandom(16), np.int64), trainable=False)
            # In a list inside a function: nothing that a checkpoint would find.
            authorized = tf.Variable(np.iinfo(np.int64).max, trainable=False, dtype=tf.int64)
        self._authorized = lambda: authorized
        self._closed = False
        self._built_for: list[int] = []
        memory = Ledger.open(None)
        self._memory = lambda: memory

    @property
    def ledger(self) -> Ledger:
        return self._memory()

    @property
    def identity(self) -> str:
        return self.identity_bits.numpy().tobytes().hex()

    @property
    def noise_coordinates(self) -> int:
        return self._built_for[0] if self._built_for else 0

    def build(self, var_list):
        self._built_for = [sum(int(variable.shape.num_elements()) for variable in var_list)]
        super().build(var_list)

    def gate(self) -> None:
        if not self._closed:
            self._closed = True
            self._authorized().assign(self.steps_done)

    def authorize(self, total_steps: int) -> None:
        self._authorized().assign(total_steps)

    @property
    def authorized(self) -> int:
        return int(self._authorized())

    def apply_gradients(self, grads_and_vars, *args, **kwargs):
        allowed = tf.debugging.Assert(self.steps_done < self._authorized(), ["not authorized", self.steps_done])
        with tf.control_dependencies([allowed]), tf.control_dependencies([self.steps_done.assign_add(1)]):
            pairs = [(tf.identity(gradient), variable) for gradient, variable in grads_and_vars]
            return super().apply_gradients(pairs, *args, **kwargs)

    def restore(self, steps_done: int, identity_of: CountingSGD | None = None) -> None:
        """What loading a checkpoint does to an optimizer."""
        self.steps_done.assign(steps_done)
        if identity_of is not None:
            self.identity_bits.assign(identity_of.identity_bits)


class Bookkept:
    """The part of an optimizer that a ledger reads."""

    def __init__(
        self, identity="a" * 32, steps_done=0, noise_multiplier=1.5, expected_batch_size=8.0, noise_coordinates=5
    ):
        self.identity, self.steps_done, self.noise_multiplier = identity, steps_done, noise_multiplier
        self.expected_batch_size, self.noise_coordinates = expected_batch_size, noise_coordinates
