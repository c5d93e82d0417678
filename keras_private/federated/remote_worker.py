"""A worker on another host, as its coordinator sees it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Union

from ..errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class RemoteWorker:
    """A worker that `keras-private worker` runs on another host.

    Guarantees:
        - The link is TLS 1.3 with certificates of one authority on both sides; nothing is sent to who cannot prove
          `name`.

    Not guaranteed:
        - That a coordinator who is admitted leaves the worker's host alone: it sends graphs, and a graph can read
          every file that the worker's user can read.

    Attributes:
        name: That the worker must prove.
        address: "host:port".
        certificates: Folder with this side's certificate and key and the authority's certificate.
        coordinator: This side's name.
    """

    name: str
    address: str
    certificates: Union[str, os.PathLike[str]]
    coordinator: str = "owner"

    def link(self) -> Any:
        """An open link; `target` is where gRPC finds the worker.

        Raises:
            ConfigurationError: The address is none.
            TransportError: The worker is not there, or a certificate is not good.
        """
        from ..encrypted.cluster.certificates import Identity
        from .tunnels import LinkToWorker

        host, port = split(self.address)
        return LinkToWorker(self.name, host, port, Identity.load(self.certificates, self.coordinator))


def split(address: Any) -> tuple[str, int]:
    """Host and port of an address.

    Raises:
        ConfigurationError: It is none.
    """
    host, separator, port = str(address).rpartition(":")
    if not isinstance(address, str) or not separator or not port.isdigit():
        raise ConfigurationError(
            f"The worker's address {address!r}", expected="'host:port'", remedy="Give such an address."
        )
    return host.strip("[]"), int(port)
