"""One round as a computation of TensorFlow Federated."""

from __future__ import annotations

import atexit
import threading
import warnings
from collections import OrderedDict
from typing import Any, Callable, Optional

import numpy as np
import tensorflow as tf

from . import require
from .graph_import import MovableFunction, place

Encode = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tuple[Any, Any]]


_importing = threading.Lock()
_imported: Optional[Any] = None


def package() -> Any:
    """TensorFlow Federated, imported without the warnings of what it imports.

    Filters of warnings are those of the whole process, and threads that set and restore them at once would lose
    somebody's warnings: so that is done once, for the import.
    """
    global _imported
    with _importing:
        if _imported is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _imported = require("tensorflow_federated")
            atexit.register(_drop_default_context)
        return _imported


def _drop_default_context() -> None:
    """Frees TensorFlow Federated's default context while its finalizer works.

    Later in the interpreter's end that finalizer sometimes finds its module torn down, and prints a traceback.
    """
    from tensorflow_federated.python.core.impl.context_stack import runtime_error_context

    package().framework.set_default_context(runtime_error_context.create_runtime_error_context())


def round_computation(
    function: MovableFunction,
    sent: list[tf.Variable],
    reset: list[tuple[tf.Variable, np.ndarray]],
    element_spec: Any,
    encode: Encode,
    opener: Optional[Callable[..., tf.data.Dataset]],
    metrics: str,
) -> Any:
    """The computation of one round.

    Args:
        function: The work of a client: (x, y flattened, local_epochs, batch_size, seed) -> (update, examples, metrics).
        sent: Variables whose values the server sends.
        reset: Other variables of the function, and what they start from.
        element_spec: Pair (x, y) of tf.TensorSpec of one example.
        encode: (update, examples, client, session, round) -> (what is summed, what is not).
        opener: From a client's key to its examples, where the work runs; None if they are sent.
        metrics: "sum" them over clients, give them for "each" client, or "none".

    Returns:
        A computation (server value, client values) -> mapping with `summed`, and `metrics` and `each` if there are
        any; `each` is a list over clients.
    """
    tff = package()
    tensor = tff.types.TensorType
    server = OrderedDict(
        values=[tensor(variable.dtype.as_numpy_dtype, variable.shape.as_list()) for variable in sent],
        local_epochs=tensor(np.int32, []),
        batch_size=tensor(np.int32, []),
        session=tensor(np.str_, []),
        round=tensor(np.int64, []),
    )
    flat = tf.nest.flatten(element_spec)
    client: OrderedDict[str, Any] = OrderedDict(name=tensor(np.str_, []), seed=tensor(np.int32, [2]))
    if opener is None:
        client["data"] = [
            tensor(np.str_ if spec.dtype == tf.string else spec.dtype.as_numpy_dtype, [None, *spec.shape])
            for spec in flat
        ]
    else:
        client["key"] = tensor(np.str_, [])
    server_type, client_type = tff.to_type(server), tff.to_type(client)

    @tff.tensorflow.computation(server_type, client_type)
    def work(sent_value: Any, own: Any) -> Any:
        if opener is None:
            data = list(own["data"])
        else:
            data = _whole(opener(own["key"]), flat)
        start = {id(variable): value for variable, value in zip(sent, list(sent_value["values"]))}
        start.update({id(variable): tf.constant(value, variable.dtype) for variable, value in reset})
        arguments = [*data, sent_value["local_epochs"], sent_value["batch_size"], own["seed"]]
        update, examples, counted = place(function, arguments, start)
        summed, each = encode(update, examples, own["name"], sent_value["session"], sent_value["round"])
        result: OrderedDict[str, Any] = OrderedDict(summed=OrderedDict(summed))
        if metrics == "each":
            each = {**each, **{f"metric{index}": value for index, value in enumerate(counted)}, "examples": examples}
        if each:
            result["each"] = OrderedDict(each)
        if metrics == "sum" and counted:
            result["metrics"] = list(counted)
        return result

    @tff.federated_computation(tff.FederatedType(server_type, tff.SERVER), tff.FederatedType(client_type, tff.CLIENTS))
    def one_round(sent_value: Any, clients: Any) -> Any:
        done = tff.federated_map(work, (tff.federated_broadcast(sent_value), clients))
        result = OrderedDict()
        for name in ("summed", "metrics"):
            if hasattr(done, name):
                result[name] = tff.federated_sum(getattr(done, name))
        if hasattr(done, "each"):
            result["each"] = done.each
        return result

    return one_round


def zeros(computation: Any) -> dict[str, np.ndarray]:
    """What `summed` is when no client takes part."""
    summed = computation.type_signature.result["summed"].member
    return {name: np.zeros(summed[name].shape, summed[name].dtype) for name in dir(summed)}


def _whole(dataset: tf.data.Dataset, flat: list[tf.TensorSpec]) -> list[tf.Tensor]:
    """All examples of a client, flattened; of length 0 if there are none."""
    nothing = [tf.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype) for spec in flat]
    rows = dataset.map(lambda *example: tuple(tf.nest.flatten(example)))
    # An element even where there is no example: all at once, else nothing.
    all_rows = rows.batch(2**31).concatenate(tf.data.Dataset.from_tensors(tuple(nothing)))
    return list(all_rows.take(1).get_single_element())
