"""Evaluation of clients where their data is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Optional

import tensorflow as tf

from ..errors import ConfigurationError
from . import local_work, workers
from .aggregators.base import Aggregator, Noise, Payload, Place, Reports, Round, Total, refuse_noise
from .clients import Clients
from .engine import Engine, Setting
from .models import build


class _NoUpdate(Aggregator):
    """There is nothing to aggregate but metrics."""

    def encode(self, update: tf.Tensor, weight: tf.Tensor, place: Place) -> tuple[Payload, Payload]:
        return {"examples": weight}, {}

    def total(self, reports: Reports, round: Round, noise: Optional[Noise] = None) -> Total:
        refuse_noise("An evaluation", noise)
        return Total(reports.summed["examples"], 1.0)

    def description(self) -> dict[str, Any]:
        return {"name": "evaluation", "protects_from": [], "simulated": []}


class Evaluation:
    """Evaluations of one compiled model."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._works: dict[Any, tuple[local_work.LocalWork, Engine]] = {}

    def federated(self, clients: Clients, batch_size: int, per_client: bool, return_dict: bool, hosts: Any) -> Any:
        """As `FederatedModel.evaluate`, for clients.

        Raises:
            ConfigurationError: The clients have no example.
        """
        from .fitting import metric_values

        build(self._model, clients.element_spec)
        work, engine = self._traced(clients, "each" if per_client else "sum")
        with workers.use(hosts) as found:
            reports, counted = engine.run(found, clients.names, Setting(secrets.token_hex(16), 1, 1, batch_size), None)
        if float(reports.summed["examples"]) == 0:
            raise ConfigurationError(
                f"None of the {len(clients)} clients has an example.", expected="examples", remedy="Give other clients."
            )
        if not per_client:
            return self._shown(metric_values(self._model, counted), return_dict)
        own: dict[str, Any] = {}
        sums: Optional[list[Any]] = None
        for name, report in zip(clients.names, reports.each):
            values = [report[f"metric{index}"] for index in range(len(work.metrics))]
            sums = values if sums is None else [a + b for a, b in zip(sums, values)]
            if float(report["examples"]) > 0:
                own[name] = self._shown(metric_values(self._model, values), return_dict)
        return self._shown(metric_values(self._model, sums), return_dict), own

    def _traced(self, clients: Clients, metrics: str) -> tuple[local_work.LocalWork, Engine]:
        """The clients' work, traced once for each form of examples and way to open them."""
        # Whoever compiles the Keras model by itself gives it other metrics.
        compiled = getattr(self._model, "compiled_metrics", None)
        key = (repr(clients.element_spec), clients.opener, metrics, compiled)
        if key not in self._works:
            work = local_work.evaluation(self._model, clients.element_spec)
            self._works[key] = work, Engine(work, _NoUpdate(), clients, metrics)
        work, engine = self._works[key]
        return work, engine.of(clients)

    def _shown(self, found: Mapping[str, float], return_dict: bool) -> Any:
        return dict(found) if return_dict else list(found.values())
