"""What passes between parties in a traced graph, read from the labels of its operations."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_private._backends.labels import party_of
from keras_private.errors import ConfigurationError

_SEND = "send_"
_FREE = ("Placeholder", "Const", "NoOp")


@dataclasses.dataclass(frozen=True)
class Edge:
    """One message: a tensor that goes from one party to another in each run."""

    source: str
    target: str
    name: str
    dtype: Any
    shape: Any

    @property
    def bytes(self) -> int | None:
        """None where a size is not known while tracing."""
        count = self.shape.num_elements()
        return None if count is None else count * self.dtype.size


def cross_edges(concrete: Any) -> list[Edge]:
    """Every message of a traced function, in the order of the graph.

    Raises:
        ConfigurationError: An operation reads another party's tensor other than through a message, or an operation that
            is neither a constant nor an input has no party.
    """
    edges = []
    for operation in concrete.graph.get_operations():
        party = party_of(operation)
        if party is None:
            _check_free(operation)
            continue
        for tensor in operation.inputs:
            source = party_of(tensor.op)
            if source is None or source == party:
                continue
            if operation.type != "Identity" or not _leaf(operation).startswith(_SEND):
                raise ConfigurationError(
                    f"{operation.name} of {party} reads {tensor.name} of {source}",
                    expected="a message between them",
                    remedy="use Session.send",
                )
            edges.append(Edge(source, party, operation.name, tensor.dtype, tensor.shape))
    return edges


def rounds(concrete: Any, among: tuple[str, ...]) -> int:
    """The longest chain of messages between the given parties, each waiting for the one before."""
    depth: dict[str, int] = {}
    for operation in concrete.graph.get_operations():
        before = [depth.get(each.op.name, 0) for each in operation.inputs]
        before += [depth.get(each.name, 0) for each in operation.control_inputs]
        own = max(before, default=0)
        party = party_of(operation)
        for tensor in operation.inputs:
            source = party_of(tensor.op)
            if party in among and source in among and source != party:
                own += 1
        depth[operation.name] = own
    return max(depth.values(), default=0)


def _leaf(operation: Any) -> str:
    return operation.name.rsplit("/", 1)[-1]


def _check_free(operation: Any) -> None:
    if operation.type in _FREE or not operation.inputs:
        return
    parties = {party_of(tensor.op) for tensor in operation.inputs}
    if operation.type == "Identity" and len(parties) == 1:
        # What a traced function returns is an Identity of it.
        return
    raise ConfigurationError(
        f"{operation.name} ({operation.type}) belongs to no party", expected="a label", remedy="create it in Session.at"
    )
