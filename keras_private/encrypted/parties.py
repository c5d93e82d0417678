"""Which three parties compute, by name."""

from __future__ import annotations

import dataclasses

from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.session import SERVERS, Session
from keras_private.errors import ConfigurationError, PartiesError

EMBEDDED = "embedded"


@dataclasses.dataclass(frozen=True)
class EmbeddedParties:
    """Three parties inside this process: a simulation, which protects from nobody who can read its memory.

    The operations of each are labelled, and what passes between two of them passes through a named message, as when
    they are apart.
    """

    servers: tuple[str, str, str] = SERVERS
    simulated = True

    def session(self, fixed_point: FixedPoint | None = None) -> Session:
        """Opens a session in the graph that is being traced."""
        return Session(fixed_point, self.servers)


_known: dict[str, EmbeddedParties] = {EMBEDDED: EmbeddedParties()}


def register_parties(name: str, parties: EmbeddedParties) -> None:
    """Makes `parties` known to layers made or loaded with parties=name.

    Raises:
        ConfigurationError: The name is empty or taken.
    """
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"the name {name!r}", expected="a non-empty string", remedy="name the parties")
    if name in _known:
        raise ConfigurationError(
            f"parties named {name!r} are registered already", expected="a new name", remedy="choose another name"
        )
    _known[name] = parties


def parties_named(name: str) -> EmbeddedParties:
    """The parties of that name.

    Raises:
        PartiesError: This process knows none.
    """
    try:
        return _known[name]
    except (KeyError, TypeError):
        raise PartiesError(
            f"no parties named {name!r} are known to this process",
            expected=f"one of {sorted(_known)}",
            remedy="call keras_private.encrypted.register_parties before the layer is made or loaded",
        ) from None
