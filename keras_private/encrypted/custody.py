"""What one party keeps for the tensor chain: its own pair of shares of each value, and who may do what with it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_private.chain import Form, Pair, Stored
from keras_private.encrypted.operations import OPEN, Call
from keras_private.errors import AccessError, ConfigurationError, PartiesError

LIFETIME = 3600.0
LIMIT = 1 << 30
_LONGEST_HISTORY = 4096
_MOST_VALUES = 1 << 16


@dataclasses.dataclass
class Holding:
    """One value at one party.

    Attributes:
        stored: What may be told to whoever knows the value's id.
        pair: This party's shares.
        keeper: For whom it is kept: it is dropped with them.
        expires: On time.monotonic().
        consents: For each name that is no reader yet, the owners who have consented.
        uses: Runs that are reading the pair now.
        dropped: Whether to overwrite the pair when the last of them ends.
    """

    stored: Stored
    pair: Pair
    keeper: Any
    expires: float
    consents: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    uses: int = 0
    dropped: bool = False


class Shelf:
    """The values of one party.

    Guarantees, each locked by tests/encrypted/test_custody.py:
      * A result's owners are all owners of its operands, its readers those that all its operands have.
      * A value is opened to its readers only. Others become readers when every owner has consented to that value.
      * Shares are overwritten when they are dropped: by their keeper, with it, or when their time is over.
      * More than `limit` bytes are refused.

    Args:
        limit: Bytes of shares.
        lifetime: Seconds that a value is kept.
    """

    def __init__(self, limit: int = LIMIT, lifetime: float = LIFETIME) -> None:
        self.limit, self.lifetime = limit, lifetime
        self._holdings: dict[str, Holding] = {}
        self._bytes = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._holdings)

    @property
    def room(self) -> int:
        """Bytes of shares that it still takes."""
        return max(self.limit - self._bytes, 0)

    def check_room(self, form: Form) -> None:
        """
        Raises:
            ConfigurationError: A value of this form is too large.
        """
        if 16 * form.size > self.room or len(self._holdings) >= _MOST_VALUES:
            raise ConfigurationError(
                f"a value of {16 * form.size} bytes of shares where {self.room} of {self.limit} are free",
                expected=f"values that fit, at most {_MOST_VALUES} of them",
                remedy="drop values that are no longer needed",
            )

    def keep(self, stored: Stored, pair: Sequence[np.ndarray], keeper: Any) -> None:
        """Takes a pair of shares.

        Raises:
            ConfigurationError: There is no room, or the id is taken.
        """
        # Copies that nobody else has, so that they can be overwritten.
        first, second = (np.array(share, np.int64) for share in pair)
        with self._lock:
            self.sweep()
            self.check_room(stored.form)
            if stored.id in self._holdings:
                raise ConfigurationError("an id that is taken", expected="a new one", remedy="draw 128 bits")
            self._holdings[stored.id] = Holding(stored, (first, second), keeper, time.monotonic() + self.lifetime)
            self._bytes += first.nbytes + second.nbytes

    def look(self, value_id: str) -> Stored:
        """
        Raises:
            PartiesError: There is no such value.
        """
        return self._find(value_id).stored

    def _find(self, value_id: str) -> Holding:
        with self._lock:
            found = self._holdings.get(value_id)
            if found is None or found.expires < time.monotonic():
                raise PartiesError(
                    "a value that this party does not have",
                    expected="one that was sent, and not dropped since",
                    remedy="send it again; values are dropped with the connection of who sent them, or in time",
                )
            return found

    def planned(
        self, name: str, options: dict[str, Any], inputs: Sequence[str], result: str, caller: str
    ) -> tuple[Call, Stored]:
        """What a call computes, and what its result will be.

        Raises:
            PartiesError: An input is not here.
            AccessError: A value is to be opened to somebody who is none of its readers.
            PrivacyError: The operation is refused.
        """
        values = [self.look(each) for each in inputs]
        call = Call.of(name, options, [each.form for each in values])
        form = call.result()
        if name == OPEN:
            self.check_reader(values[0], caller)
            return call, dataclasses.replace(values[0], id=result)
        self.check_room(form)
        owners = sorted({owner for each in values for owner in each.owners})
        readers = [reader for reader in values[0].readers if all(reader in each.readers for each in values)]
        parts = [each.history for each in values] + ([call.options] if options else [])
        history = f"{name}({', '.join(parts)})"
        if len(history) > _LONGEST_HISTORY:
            history = f"{name}(too long, sha256 {hashlib.sha256(history.encode()).hexdigest()})"
        return call, Stored(result, form, tuple(owners), tuple(readers), history)

    @staticmethod
    def check_reader(stored: Stored, caller: str) -> None:
        """
        Raises:
            AccessError: The caller is none of the readers.
        """
        if caller not in stored.readers:
            raise AccessError(
                f"{caller} is none of the value's readers",
                expected=f"one of {list(stored.readers)}" if stored.readers else "nobody",
                remedy="have each owner name the reader, or consent with release()",
            )

    def release(self, value_id: str, caller: str, names: Sequence[str]) -> Stored:
        """An owner consents that `names` read a value.

        Raises:
            AccessError: The caller is none of its owners.
        """
        with self._lock:
            holding = self._find(value_id)
            stored = holding.stored
            if caller not in stored.owners:
                raise AccessError(
                    f"{caller} owns nothing that the value was computed from",
                    expected=f"one of {list(stored.owners)}",
                    remedy="ask them to release it",
                )
            for name in names:
                holding.consents.setdefault(name, set()).add(caller)
                if holding.consents[name] >= set(stored.owners) and name not in stored.readers:
                    stored = dataclasses.replace(stored, readers=(*stored.readers, name))
            holding.stored = stored
            return stored

    @contextlib.contextmanager
    def using(self, ids: Sequence[str]) -> Iterator[list[Pair]]:
        """The pairs of values, which are not overwritten meanwhile."""
        with self._lock:
            holdings = [self._find(each) for each in ids]
            for each in holdings:
                each.uses += 1
        try:
            yield [each.pair for each in holdings]
        finally:
            with self._lock:
                for each in holdings:
                    each.uses -= 1
                    if each.dropped and not each.uses:
                        _overwrite(each)

    def drop(self, ids: Sequence[str], keeper: Any) -> None:
        """Forgets values that are kept for `keeper`; others are left alone."""
        with self._lock:
            for each in ids:
                if each in self._holdings and self._holdings[each].keeper == keeper:
                    self._remove(each)

    def leave(self, keeper: Any) -> None:
        """Forgets everything that is kept for `keeper`."""
        with self._lock:
            for each in [each for each, holding in self._holdings.items() if holding.keeper == keeper]:
                self._remove(each)

    def sweep(self) -> None:
        """Forgets values whose time is over."""
        with self._lock:
            now = time.monotonic()
            for each in [each for each, holding in self._holdings.items() if holding.expires < now]:
                self._remove(each)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            for each in list(self._holdings):
                self._remove(each)

    def _remove(self, value_id: str) -> None:
        holding = self._holdings.pop(value_id)
        self._bytes -= sum(share.nbytes for share in holding.pair)
        holding.dropped = True
        if not holding.uses:
            _overwrite(holding)


def _overwrite(holding: Holding) -> None:
    for share in holding.pair:
        share.fill(0)


def source_history(owner: str, value_id: str) -> str:
    """Of a value that was not computed."""
    return f"{owner}:{value_id}"
