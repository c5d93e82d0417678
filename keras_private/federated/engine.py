"""Rounds: who takes part, what is sent, and what comes back."""

from __future__ import annotations

import copy
import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from .._backends import tff_learning
from .aggregators.base import Aggregator, Place, Reports
from .clients import Clients
from .local_work import LocalWork
from .workers import Workers


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the server tells every client of a round.

    Attributes:
        session: Of the call of `fit`; 32 hexadecimal digits.
        number: Of the round, from 1.
        local_epochs: Times that a client goes over its examples.
        batch_size: Examples of a local step.
    """

    session: str
    number: int
    local_epochs: int
    batch_size: int


class Engine:
    """Runs one kind of work at clients.

    Args:
        work: What a client does.
        aggregator: What it reports.
        clients: All clients; those of a round are named in each call.
        metrics: "sum" over clients, "each" client's own, or "none".
    """

    def __init__(self, work: LocalWork, aggregator: Aggregator, clients: Clients, metrics: str) -> None:
        self._work, self._clients = work, clients
        self._keys = _keys(clients)
        dimension = work.dimension

        def encode(update: Any, examples: Any, client: Any, session: Any, number: Any) -> Any:
            update = tf.ensure_shape(update, [dimension])
            weight = examples if aggregator.weighted else tf.cast(examples > 0, tf.float32)
            return aggregator.encode(update, weight, Place(client, session, number))

        self._computation = tff_learning.round_computation(
            work.function, list(work.sent), list(work.reset), clients.element_spec, encode, clients.opener, metrics
        )

    @property
    def sent_bytes(self) -> int:
        """Of the values of variables that a client gets in a round."""
        return sum(variable.shape.num_elements() * variable.dtype.size for variable in self._work.sent)

    def of(self, clients: Clients) -> Engine:
        """The same computation for other clients of the same form, opened in the same way."""
        found = copy.copy(self)
        found._clients, found._keys = clients, _keys(clients)
        return found

    def run(
        self,
        hosts: Workers,
        names: Sequence[str],
        setting: Setting,
        seed: Optional[np.random.Generator],
        begins: Optional[Callable[[Sequence[str]], None]] = None,
    ) -> Any:
        """The work of these clients.

        Args:
            hosts: Where it runs.
            names: Of the clients; at least one.
            setting: Of the round.
            seed: Source of the orders of examples; None: the operating system's generator.
            begins: Called with the names of some of them before each attempt at their work.

        Returns:
            Reports, and the sums of the metrics' variables or None.

        Raises:
            WorkerError: The work of some client could not be done; nothing of the others counts.
        """
        sent = {
            "values": [variable.numpy() for variable in self._work.sent],
            "local_epochs": np.int32(setting.local_epochs),
            "batch_size": np.int32(setting.batch_size),
            "session": setting.session,
            "round": np.int64(setting.number),
        }
        orders = [_order(seed) for _ in names]
        told = None if begins is None else (lambda positions: begins([names[position] for position in positions]))
        done = hosts.spread(self._computation, sent, _Values(self._client, names, orders), told)
        each: list[Mapping[str, np.ndarray]] = [{} for _ in names]
        for share, result in done:
            for position, item in zip(share, result.get("each", [])):
                each[position] = dict(item)
        results = [result for _, result in done]
        summed = {name: _sum([result["summed"][name] for result in results]) for name in results[0]["summed"]}
        counted = None
        if "metrics" in results[0]:
            counted = [_sum(values) for values in zip(*(result["metrics"] for result in results))]
        return Reports(summed, tuple(each)), counted

    def nothing(self) -> Reports:
        """What a round without clients reports."""
        return Reports(tff_learning.zeros(self._computation), ())

    def _client(self, name: str, order: np.ndarray) -> dict[str, Any]:
        if self._keys:
            return {"name": name, "seed": order, "key": self._keys[name]}
        return {"name": name, "seed": order, "data": tf.nest.flatten(self._clients.whole(name))}


class _Values(Sequence[Any]):
    """The clients' values, made when they are asked for: no more examples are held than are on their way."""

    def __init__(self, make: Callable[..., Any], names: Sequence[str], orders: Sequence[np.ndarray]) -> None:
        self._make, self._names, self._orders = make, names, orders

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._make(self._names[index], self._orders[index])


def _order(seed: Optional[np.random.Generator]) -> np.ndarray:
    draw = secrets.randbits(62) if seed is None else int(seed.integers(0, 2**62))
    return np.array([draw >> 31, draw & 0x7FFFFFFF], np.int32)


def _keys(clients: Clients) -> Mapping[str, str]:
    """What opens each client where the work runs; empty if the examples are sent."""
    return dict(zip(clients.names, clients.keys_and_opener()[0])) if clients.stays_put else {}


def _sum(parts: Sequence[Any]) -> np.ndarray:
    """Sum over workers; integers wrap, as they do within a worker."""
    with np.errstate(over="ignore"):
        total = np.array(parts[0])
        for part in parts[1:]:
            total = total + np.asarray(part)
    return total
