"""EncryptedEmbedding."""

from __future__ import annotations

import tensorflow as tf

from keras_private.encrypted.layers.base import OnParties
from keras_private.encrypted.layers.outsourcing import once_differentiable, product
from keras_private.errors import ConfigurationError


@tf.keras.utils.register_keras_serializable(package="keras_private")
class EncryptedEmbedding(OnParties, tf.keras.layers.Embedding):
    """tf.keras.layers.Embedding as a product of one-hot rows with the table, computed by three parties on shares.

    A lookup would show a party which row is read; a product shows it nothing. Each position costs input_dim words of
    upload. Who sees what, guarantees and the argument `parties`: those of EncryptedDense.

    Raises:
        ConfigurationError: Inputs are not integers.
        tf.errors.InvalidArgumentError: When run: an index is outside of [0, input_dim).
        PartiesError: This process knows no parties of that name.
    """

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if not (inputs.dtype.is_integer or inputs.dtype.is_floating):
            raise ConfigurationError(
                f"{self.name} got {inputs.dtype.name}", expected="integer indices", remedy="cast the inputs"
            )
        indices = tf.cast(inputs, tf.int64)
        inside = tf.reduce_all((indices >= 0) & (indices < self.input_dim))
        message = f"keras_private: {self.name}: an index is outside of [0, {self.input_dim})"
        with tf.control_dependencies([tf.debugging.Assert(inside, [message], summarize=1)]):
            rows = tf.one_hot(tf.reshape(indices, [-1]), self.input_dim, dtype=self.compute_dtype)
        found = _rows_of(rows, tf.convert_to_tensor(self.embeddings), self.parties, self.name)
        outputs = tf.reshape(found, tf.concat([tf.shape(inputs), [self.output_dim]], 0))
        outputs.set_shape([*inputs.shape, self.output_dim])
        return outputs


def _rows_of(rows: tf.Tensor, table: tf.Tensor, parties: str, layer: str) -> tf.Tensor:
    """rows @ table, with a gradient to the table alone."""

    @tf.custom_gradient
    def run(values: tf.Tensor) -> tf.Tensor:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            to_table = product("matmul", (("transpose_a", True),), parties, layer)(rows, upstream)
            return once_differentiable(to_table, layer)

        return product("matmul", (), parties, layer)(rows, values), gradient

    return run(table)
