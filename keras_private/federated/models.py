"""Keras models: built for the clients' examples, and copied."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from ..dp.model import PrivateTraining
from ..dp.validation import refuse_layers_on_parties, require_keras_model
from ..errors import ClientDataError, ConfigurationError, UnsupportedModelError
from .examples import blank


def check_trainable_at_clients(model: Any) -> None:
    """Refuses what clients cannot train, or would train otherwise than it says.

    Raises:
        ConfigurationError: It is no Keras model, or one of make_private.
        UnsupportedModelError: Some layers compute at three parties.
    """
    require_keras_model(model, "a federated model", "a client trains a plain Keras model on its own examples")
    if isinstance(model, PrivateTraining):
        raise ConfigurationError(
            f"{model.name!r} is a model of make_private, whose private fit draws its own batches and charges its own "
            "budget: clients' steps are neither.",
            expected="the Keras model that make_private was given; it has the same weights",
            remedy="FederatedModel(model) with DPAggregator, or with compile(client_optimizer=DPOptimizer(...)).",
        )
    refuse_layers_on_parties(model, "Clients' work runs where the examples are, which no party takes part in.")


def build(model: Any, element_spec: Any) -> None:
    """Builds the model for examples of this form, and checks that it takes them.

    Raises:
        ClientDataError: It does not.
    """
    try:
        model(blank(element_spec[0]), training=False)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        raise ClientDataError(
            f"The model does not take an example of the clients: {error}",
            expected=f"examples that {model.name!r} takes; those of the clients are {element_spec[0]}",
            remedy="Change the model's input shape, or the clients' data.",
        ) from error


def copy_of(model: Any) -> Any:
    """A model of the same architecture and weights.

    Raises:
        UnsupportedModelError: Its class cannot make one.
    """
    try:
        copy = tf.keras.models.clone_model(model)
    except (ValueError, NotImplementedError, TypeError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied: {error}",
            expected="a Sequential or functional model, or a class with get_config",
            remedy="Write get_config, and from_config if the constructor takes other arguments.",
        ) from error
    if not copy.built:
        copy.build(model.input_shape)
    copy.set_weights(model.get_weights())
    return copy
