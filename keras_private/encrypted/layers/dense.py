"""EncryptedDense."""

from __future__ import annotations

import tensorflow as tf

from keras_private.encrypted.layers.base import OnParties
from keras_private.encrypted.layers.outsourcing import once_differentiable, product


@tf.keras.utils.register_keras_serializable(package="keras_private")
class EncryptedDense(OnParties, tf.keras.layers.Dense):
    """tf.keras.layers.Dense whose matrix products, forward and backward, are computed by three parties on shares.

    | who                         | input | kernel | output and gradients | shapes |
    |-----------------------------|-------|--------|----------------------|--------|
    | the process running Keras   | yes   | yes    | yes                  | yes    |
    | each party                  | no    | no     | no                   | yes    |
    | two parties that collude    | yes   | yes    | yes                  | yes    |

    Guarantees, locked by tests/encrypted/layers:
      * A party receives uniform words only: shares and masked summands.
      * Results are those of Dense within the rounding of float32: factors count with about 26 bits.
      * Factors that are NaN or infinite are refused when run, never encoded.

    With parties="embedded", the default, the three run in this process: a simulation that protects from nobody.

    Args:
        units: And every other argument: as in tf.keras.layers.Dense.
        parties: Name of the parties (keras_private.encrypted.register_parties).

    Raises:
        PartiesError: This process knows no parties of that name; also when a saved model is loaded.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        inputs = tf.cast(inputs, self.compute_dtype)
        flat = inputs if inputs.shape.rank == 2 else tf.reshape(inputs, [-1, inputs.shape[-1]])
        outputs = outsourced_matmul(flat, tf.convert_to_tensor(self.kernel), self.parties, self.name)
        if inputs.shape.rank != 2:
            outputs = tf.reshape(outputs, tf.concat([tf.shape(inputs)[:-1], [self.units]], 0))
            outputs.set_shape([*inputs.shape[:-1], self.units])
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)


def outsourced_matmul(left: tf.Tensor, right: tf.Tensor, parties: str, layer: str) -> tf.Tensor:
    """left @ right with the gradient of tf.matmul, products by the parties."""

    @tf.custom_gradient
    def run(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            to_x = product("matmul", (("transpose_b", True),), parties, layer)(upstream, w)
            to_w = product("matmul", (("transpose_a", True),), parties, layer)(x, upstream)
            return once_differentiable(to_x, layer), once_differentiable(to_w, layer)

        return product("matmul", (), parties, layer)(x, w), gradient

    return run(left, right)
