"""What every report says of where and when it was made."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from .._backends import installed
from .content import Series


def versions() -> dict[str, str]:
    """This package, the interpreter, and the packages underneath that are installed."""
    found = {"keras_private": sys.modules["keras_private"].__version__, "python": platform.python_version()}
    found.update({each.name: each.version for each in installed() if each.version is not None})
    return found


def now() -> str:
    """Date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def loopback(host: str) -> bool:
    """Whether a host is, seen from each machine, that machine itself."""
    address = _address(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    name = _name(host)
    return name in ("", "ip6-localhost", "ip6-loopback") or "localhost" in (name.split(".")[0], name.split(".")[-1])


def this_machine(host: str) -> bool:
    """Whether a host is this one, as far as its name or address tells; nobody is asked for what a name stands for."""
    address = _address(host)
    if loopback(host) or address is None:
        return loopback(host) or _name(host) == socket.gethostname().lower()
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # Only an address of this machine can be bound here.
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as tried:
        tried.bind((str(address), 0))
        return True
    return False


def _name(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _address(host: str) -> Any:
    """As an object of ipaddress; None for a name."""
    try:
        address = ipaddress.ip_address(_name(host))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def series_of(histories: Sequence[Any], x_is: str = "epoch") -> tuple[Series, ...]:
    """Figures of several fits in a row, each a Keras History or None; numbered as the fits were.

    What a later fit did again, with the same numbers, stands there once, as it was last. A figure of which it is not
    known to which epochs it belongs is left out.
    """
    found: dict[str, dict[float, float]] = {}
    for history in histories:
        figures: Mapping[str, Sequence[Any]] = getattr(history, "history", None) or {}
        for name, values in figures.items():
            numbers = _numbers(list(getattr(history, "epoch", None) or range(len(values))), len(values))
            for x, y in zip(numbers or (), values):
                found.setdefault(name, {})[float(x) + 1] = float(y)
    return tuple(Series(name, tuple(sorted(points)), tuple(points[x] for x in sorted(points)), x_is)
                 for name, points in found.items())  # fmt: skip


def _numbers(epochs: Sequence[int], count: int) -> Optional[Sequence[int]]:
    """The epochs of so many figures. Keras validates after those that a frequency divides, counted from one."""
    for frequency in range(1, len(epochs) + 1):
        some = [epoch for epoch in epochs if (epoch + 1) % frequency == 0]
        if len(some) == count:
            return some
    return None
