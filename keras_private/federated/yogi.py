"""The Yogi optimizer (Zaheer et al. 2018, Algorithm 2), which Keras lacks and FedOpt uses."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


@tf.keras.utils.register_keras_serializable("keras_private")
class Yogi(tf.keras.optimizers.Optimizer):
    """Adam whose second moment changes by an amount that does not depend on how large it is.

    Args:
        learning_rate: A number or a schedule.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: Added to the root of the second moment.
        initial_accumulator_value: Both moments begin with it.
        **kwargs: Of the Keras optimizer.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-3,
        initial_accumulator_value: float = 1e-6,
        name: str = "Yogi",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self.initial_accumulator_value = initial_accumulator_value

    def build(self, var_list: Any) -> None:
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._first: list[tf.Variable] = []
        self._second: list[tf.Variable] = []
        for variable in var_list:
            for slots, name in ((self._first, "first"), (self._second, "second")):
                value = tf.fill(variable.shape, tf.cast(self.initial_accumulator_value, variable.dtype))
                slots.append(self.add_variable_from_reference(variable, name, initial_value=value))
        self._built = True

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        kind = variable.dtype
        rate, step = tf.cast(self.learning_rate, kind), tf.cast(self.iterations + 1, kind)
        beta_1, beta_2 = tf.cast(self.beta_1, kind), tf.cast(self.beta_2, kind)
        index = self._index_dict[self._var_key(variable)]
        first, second = self._first[index], self._second[index]
        gradient = tf.convert_to_tensor(gradient)
        square = tf.square(gradient)
        first.assign(beta_1 * first + (1 - beta_1) * gradient)
        second.assign(second - (1 - beta_2) * square * tf.sign(second - square))
        scaled = rate * tf.sqrt(1 - tf.pow(beta_2, step)) / (1 - tf.pow(beta_1, step))
        variable.assign_sub(scaled * first / (tf.sqrt(second) + tf.cast(self.epsilon, kind)))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "initial_accumulator_value": self.initial_accumulator_value,
        }
