"""What of an EncryptedModel is written beside its shares, and how it is made again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_private.encrypted import saving
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.errors import ShareFileError

if TYPE_CHECKING:
    from keras_private.encrypted.model import EncryptedModel


def save(model: EncryptedModel, folder: Any, overwrite: bool) -> None:
    compiled = None
    if model.optimizer is not None:
        loss = model.loss if isinstance(model.loss, str) else tf.keras.losses.serialize(model.loss)
        compiled = {
            "optimizer": tf.keras.optimizers.serialize(model.optimizer),
            "iterations": int(model.optimizer.iterations),
            "loss": loss,
            "metrics": model.metric_names,
            "reveal": list(model.reveal),
        }
    facts = {
        "architecture": model.model.to_json(),
        "fixed_point": _encoding(model),
        "input_ranges": [list(pair) for pair in model.input_ranges],
        "weight_growth": model.weight_growth,
        "parties": model.parties,
        "compiled": compiled,
    }
    saving.write(folder, model.shared_variables(), model.model.get_weights(), facts, overwrite)


def check_same(model: EncryptedModel, folder: Any) -> None:
    """
    Raises:
        ShareFileError: What was saved is of another architecture, encoding, declared range or first weights.
    """
    facts = saving.read_manifest(folder)
    here, there = json.loads(model.model.to_json()), json.loads(facts["architecture"])
    same = here["config"] == there["config"] and facts["fixed_point"] == _encoding(model)
    same = same and facts["input_ranges"] == [list(pair) for pair in model.input_ranges]
    owned, own = saving.read_owned(folder), model.model.get_weights()
    same = same and len(owned) == len(own) and all(np.array_equal(a, b) for a, b in zip(owned, own))
    if not same:
        raise ShareFileError(
            f"{folder} holds shares of another model",
            expected="the same architecture, encoding, input_range and first weights, for which overflow was checked",
            remedy="use EncryptedModel.load(folder), which makes the model that was saved",
        )


def _encoding(model: EncryptedModel) -> dict[str, int]:
    return {"fraction": model.fixed_point.fraction, "integer": model.fixed_point.integer}


def load(folder: Any, parties: str | None) -> EncryptedModel:
    from keras_private.encrypted.model import EncryptedModel

    facts = saving.read_manifest(folder)
    plain = tf.keras.models.model_from_json(facts["architecture"])
    plain.set_weights(saving.read_owned(folder))
    model = EncryptedModel(
        plain,
        input_range=[tuple(pair) for pair in facts["input_ranges"]],
        fixed_point=FixedPoint(**facts["fixed_point"]),
        parties=parties or facts["parties"],
        weight_growth=facts["weight_growth"],
    )
    compiled = facts["compiled"]
    if compiled is not None:
        optimizer = tf.keras.optimizers.deserialize(compiled["optimizer"])
        loss = compiled["loss"]
        model.compile(
            optimizer,
            loss if isinstance(loss, str) else tf.keras.losses.deserialize(loss),
            compiled["metrics"],
            reveal=compiled["reveal"],
        )
        optimizer.iterations.assign(compiled["iterations"])
    model.load_weights(folder)
    return model
