"""Looking into a model on shares: its cost, and its error layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_private._backends.keras_graph import layer_calls
from keras_private.encrypted.cost import Cost, cost_of
from keras_private.encrypted.data import DEFAULT_OWNER, Batch
from keras_private.encrypted.parties import parties_named
from keras_private.encrypted.protocol.sharing import reveal
from keras_private.encrypted.steps import specs

if TYPE_CHECKING:
    from keras_private.encrypted.model import EncryptedModel


def cost(model: EncryptedModel, batch_size: int, training: bool) -> Cost:
    servers = parties_named(model.parties).servers
    inputs = tuple((np.zeros((batch_size, *shape[1:])),) for shape in model.input_shapes)
    owners = tuple((DEFAULT_OWNER,) for _ in inputs)
    if not training:
        return cost_of(model.steps.predict(Batch(inputs, None, owners, DEFAULT_OWNER)), servers)
    labels = np.zeros((batch_size, *model.model.output_shape[1:]))
    return cost_of(model.traced_training(Batch(inputs, labels, owners, DEFAULT_OWNER)), servers)


def parity_check(model: EncryptedModel, x: Any, verbose: bool) -> dict[str, float]:
    """Runs all rows of x as one batch."""
    rows = model.read_rows(x)
    batch = rows.blocks[0]
    program, steps = model.program, model.steps
    plain = model.reveal_to()
    calls = layer_calls(plain)
    assert calls is not None
    names = {value: call.layer.name for call in calls.calls for value in call.outputs}
    # A value that the lowering moved behind a pool has another shape than Keras's.
    wanted = {value: tensor for value, tensor in calls.tensors.items() if value not in program.moved}

    def build() -> Any:
        @tf.function(autograph=False)
        def run(parts: Any) -> dict[str, tf.Tensor]:
            session = steps.session()
            inputs = steps.share_inputs(session, parts, batch.owners)
            _, tape = program.forward(inputs, steps.parameters(session), training=False)
            return {str(value): reveal(tape.values[value], DEFAULT_OWNER) for value in wanted}

        return run.get_concrete_function(specs(batch.inputs))

    found = steps.traced("parity", (specs(batch.inputs), batch.owners), build)(batch.inputs_as_tensors())
    expected = tf.keras.Model(plain.inputs, list(wanted.values()))(
        [np.concatenate(parts, -1) if len(parts) > 1 else parts[0] for parts in batch.inputs], training=False
    )
    expected = expected if isinstance(expected, (list, tuple)) else [expected]
    errors: dict[str, float] = {}
    for value, plaintext in zip(wanted, expected):
        error = float(np.max(np.abs(found[str(value)].numpy() - plaintext.numpy()), initial=0.0))
        errors[names[value]] = max(error, errors.get(names[value], 0.0))
    if verbose:
        width = max(len(name) for name in errors)
        for name, error in errors.items():
            print(f"{name:<{width}}  {error:.2e}")
    return errors
