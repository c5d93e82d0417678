"""Bytes and rounds of a traced function, counted on its graph: what decides its time over a network."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_private._backends.graph_edges import cross_edges, rounds


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run, payload alone.

    Attributes:
        bytes: Sent in all, owners' uploads and opened results included.
        rounds: Longest chain of messages among the three servers, each waiting for the one before.
        messages: Number of messages.
        by_layer: Bytes by layer; "gradient_" before a name is its backward pass.
        by_link: Bytes by (sender, receiver).
    """

    bytes: int
    rounds: int
    messages: int
    by_layer: dict[str, int]
    by_link: dict[tuple[str, str], int]

    def seconds(self, round_trip: float, bits_per_second: float) -> float:
        """Estimate of the time on the wire: half a round trip for each round, and the busiest link's bytes.

        Args:
            round_trip: In seconds.
            bits_per_second: Of each directed link.
        """
        busiest = max(self.by_link.values(), default=0)
        return self.rounds * round_trip / 2 + 8 * busiest / bits_per_second

    def __str__(self) -> str:
        width = max([len(name) for name in self.by_layer] + [8])
        lines = [f"{name:<{width}} {count / 1e6:>10.3f} MB" for name, count in self.by_layer.items()]
        lines.append(
            f"{'in all':<{width}} {self.bytes / 1e6:>10.3f} MB in {self.messages} messages, {self.rounds} rounds"
        )
        for what, trip, speed in (("1 Gbit/s, 1 ms", 1e-3, 1e9), ("100 Mbit/s, 50 ms", 50e-3, 1e8)):
            lines.append(f"{'on the wire':<{width}} {self.seconds(trip, speed):>10.3f} s at {what} round trip")
        return "\n".join(lines)


def cost_of(concrete: Any, servers: tuple[str, str, str]) -> Cost:
    """Counts the messages of a traced function.

    Raises:
        ConfigurationError: An operation belongs to no party, or reads another's tensor without a message.
        ValueError: The size of a message is not known while tracing.
    """
    edges = cross_edges(concrete)
    by_layer: dict[str, int] = {}
    by_link: dict[tuple[str, str], int] = {}
    for edge in edges:
        count = edge.bytes
        if count is None:
            raise ValueError(f"the size of {edge.name} is not known while tracing")
        scope = edge.name.split("/")[0] if "/" in edge.name else "other"
        scope = scope.rsplit("_", 1)[0] if scope.rsplit("_", 1)[0] in ("share", "reveal") else scope
        by_layer[scope] = by_layer.get(scope, 0) + count
        link = edge.source, edge.target
        by_link[link] = by_link.get(link, 0) + count
    return Cost(sum(by_layer.values()), rounds(concrete, servers), len(edges), by_layer, by_link)
