"""The plain mean: the coordinator reads every update."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import tensorflow as tf

from ...dp.mechanisms import GaussianMechanism
from .base import Aggregator, Noise, Payload, Place, Reports, Round, Total, finite_or_nothing


class Mean(Aggregator):
    """The mean of the clients' updates, in the clear.

    Args:
        weighted: Weigh each client by the number of its examples; False: all alike.

    Guarantees:
        - A client whose update or weight is not finite, or that has no examples, counts for nothing; how many were
          left out for that is in the logs.

    Not guaranteed:
        - Any protection from the coordinator: it runs the workers and can read every update.
    """

    def __init__(self, weighted: bool = True) -> None:
        self.weighted = bool(weighted)

    def encode(self, update: tf.Tensor, weight: tf.Tensor, place: Place) -> tuple[Payload, Payload]:
        update, weight, counts = finite_or_nothing(update, weight)
        return {"update": update * weight, "weight": weight, "clients": counts}, {}

    def total(self, reports: Reports, round: Round, noise: Optional[Noise] = None) -> Total:
        update = np.asarray(reports.summed["update"], np.float64)
        if noise is not None:
            mechanism = GaussianMechanism(noise.l2_norm_clip, noise.noise_multiplier, update.size)
            update = mechanism.release([tf.constant(update, tf.float32)], 1.0)[0].numpy().astype(np.float64)
        clients = int(reports.summed["clients"])
        return Total(update, float(reports.summed["weight"]), clients, {"left_out": len(round.clients) - clients})

    def description(self) -> dict[str, Any]:
        return {"name": "Mean", "weighted": self.weighted, "protects_from": [], "simulated": []}
