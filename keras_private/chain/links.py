"""The links of a chain below its head."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from keras_private.chain.checks import FORMAT, exposed, malformed, parsed
from keras_private.chain.runtime import Form, Pair, backend
from keras_private.errors import ConfigurationError, ExposureError

_ID = re.compile(r"[0-9a-f]{32}\Z")


class Link:
    """One link of a chain.

    Guarantees, each locked by tests/contracts/links.py:
      * A link never changes. Two links are equal if they are the same.
      * Walking down by `children` and up by `parent` visits the same links.
      * Its text and HTML show shapes, dtypes, scale, parties and readers, and never a number that is secret.
      * A link that holds a secret is not pickled or copied, and gives no array: ExposureError.
    """

    __slots__ = ("__weakref__", "_children", "_parent", "_secret", "_shape")
    _shape: tuple[int, ...]
    _children: tuple[Link, ...]
    _parent: Link | None
    _secret: Any

    def __init__(self, shape: Sequence[int], children: Sequence[Link] = (), secret: Any = None) -> None:
        self._set(_shape=tuple(int(each) for each in shape), _children=tuple(children), _parent=None, _secret=secret)
        for child in self._children:
            if child._parent is not None:
                raise ConfigurationError(
                    "a link of another chain", expected="a link without parent", remedy="make a new chain"
                )
            object.__setattr__(child, "_parent", self)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that the chain stands for."""
        return self._shape

    @property
    def children(self) -> tuple[Link, ...]:
        """The links right under this one: none, one, or a pointer for each party."""
        return self._children

    @property
    def child(self) -> Any:
        """The link under this one, None at the end, or a tuple where there are several."""
        return self._children[0] if len(self._children) == 1 else self._children or None

    @property
    def parent(self) -> Link | None:
        """The link above; None at the head."""
        return self._parent

    @property
    def head(self) -> Link:
        """The first link."""
        link = self
        while link._parent is not None:
            link = link._parent
        return link

    @property
    def holds_secret(self) -> bool:
        """Whether this very link has numbers that are not public."""
        return self._secret is not None

    def walk(self) -> Iterator[Link]:
        """This link and all under it, from above."""
        yield self
        for child in self._children:
            yield from child.walk()

    def _facts(self) -> list[str]:
        """What is public of this link alone, for its text."""
        raise NotImplementedError

    def _title(self) -> str:
        return f"{type(self).__name__} {', '.join(self._facts())}"

    def __str__(self) -> str:
        lines = [self._title()]
        for place, child in enumerate(self._children):
            last = place == len(self._children) - 1
            first, *rest = str(child).splitlines()
            lines.append(("└─ " if last else "├─ ") + first)
            lines += [("   " if last else "│  ") + line for line in rest]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The chain as nested boxes, for notebooks."""
        facts = "".join(f"<li>{html.escape(fact)}</li>" for fact in self._facts())
        inside = "".join(child._repr_html_() for child in self._children)
        style = "border:1px solid #888;border-radius:4px;margin:4px;padding:4px 8px;display:inline-block"
        title = html.escape(type(self).__name__)
        return f'<div style="{style}"><b>{title}</b><ul style="margin:0">{facts}</ul>{inside}</div>'

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise ConfigurationError(f"an assignment to {name} of a link", expected="none", remedy="make a new chain")

    def __delattr__(self, name: str) -> NoReturn:
        raise ConfigurationError(f"the removal of {name} of a link", expected="none", remedy="make a new chain")

    def __copy__(self) -> Link:
        if self.holds_secret:
            raise exposed("copied")
        return self

    def __deepcopy__(self, memo: Any) -> Link:
        if any(link.holds_secret for link in self.head.walk()):
            raise exposed("copied")
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise exposed("pickled")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise exposed("turned into an array")


class PointerTensor(Link):
    """Where one party keeps its part of a value. It holds nothing secret.

    Args:
        party: Its name.
        location: Where it is, for a reader.
        value_id: 128 bits, as hexadecimal digits.
        form: Of the value.
        place: Of the party among three: it has shares `place` and `place + 1`.
    """

    __slots__ = ("form", "id", "location", "party", "place")
    party: str
    location: str
    id: str
    form: Form
    place: int

    def __init__(self, party: str, location: str, value_id: str, form: Form, place: int) -> None:
        if not isinstance(value_id, str) or not _ID.match(value_id):
            raise ConfigurationError(
                f"the id {value_id!r}", expected="32 hexadecimal digits", remedy="use what send made"
            )
        super().__init__(form.shape)
        self._set(party=party, location=location, id=value_id, form=form, place=place)

    def _facts(self) -> list[str]:
        return [
            f"{self.party} at {self.location}",
            f"holds x{self.place} and x{(self.place + 1) % 3}",
            f"id {self.id[:8]}",
        ]

    def to_json(self) -> str:
        """Everything of the pointer; nothing of the value but its form."""
        return json.dumps(self._json())

    def _json(self) -> dict[str, Any]:
        facts = {"party": self.party, "location": self.location, "id": self.id, "place": self.place}
        return {"format": FORMAT, **facts, **self.form.facts()}

    @staticmethod
    def from_json(text: str) -> PointerTensor:
        """
        Raises:
            ConfigurationError: It is not what `to_json` gives.
        """
        return pointer_of(parsed(text))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return PointerTensor.from_json, (self.to_json(),)


class AdditiveSharedTensor(Link):
    """x = x_0 + ... + x_(n-1) modulo 2^64, one summand for each holder: what an opened result arrives as.

    Args:
        summands: int64, all of them; with one missing, the others say nothing of x.
    """

    __slots__ = ()

    def __init__(self, summands: Sequence[np.ndarray]) -> None:
        found = [np.asarray(each) for each in summands]
        if len(found) < 2 or any(each.dtype != np.int64 or each.shape != found[0].shape for each in found):
            raise ConfigurationError(
                f"{len(found)} summands", expected="at least two int64 arrays of one shape", remedy="give all of them"
            )
        super().__init__(found[0].shape, secret=found)

    def _facts(self) -> list[str]:
        return [f"{len(self._secret)} summands modulo 2^64", "all of them in this process"]

    def hand_out(self) -> list[np.ndarray]:
        """The summands, each to be given to its holder."""
        return list(self._secret)

    def ring(self) -> np.ndarray:
        """Their sum."""
        return backend().joined(self._secret)


class ReplicatedSharedTensor(Link):
    """x = x_0 + x_1 + x_2 modulo 2^64; party i has (x_i, x_{i+1}) (Mohassel and Rindal 2018, section 3.2.2).

    Args:
        shape: Of the value.
        pointers: To the parties; none while all shares are still in this process.
        pairs: Those shares.
    """

    __slots__ = ()

    def __init__(
        self, shape: Sequence[int], pointers: Sequence[PointerTensor] = (), pairs: Sequence[Pair] | None = None
    ) -> None:
        if (pairs is None) == (not pointers) or len(pointers or pairs or ()) != 3:
            raise ConfigurationError("shares", expected="three pairs, or three pointers", remedy="use share and send")
        super().__init__(shape, pointers, None if pairs is None else [tuple(pair) for pair in pairs])

    def _facts(self) -> list[str]:
        where = "all of them in this process, not sent" if self.holds_secret else "each with its holders"
        return ["x = x0 + x1 + x2 modulo 2^64", f"three pairs, {where}"]

    def hand_out(self) -> list[Pair]:
        """The pairs, the i-th to be given to party i and to nobody else.

        Raises:
            ExposureError: They were sent.
        """
        if self._secret is None:
            raise ExposureError("shares that were sent", expected="shares of this process", remedy="get() opens them")
        return list(self._secret)


class FixedPrecisionTensor(Link):
    """Real numbers as integers in units of 2^-fraction, modulo 2^64.

    Args:
        shape: Of the value.
        fraction: Bits after the point.
        child: The shares.
        ring: int64, where the numbers are in this process.
    """

    __slots__ = ("fraction",)
    fraction: int

    def __init__(
        self, shape: Sequence[int], fraction: int, child: Link | None = None, ring: np.ndarray | None = None
    ) -> None:
        super().__init__(shape, () if child is None else (child,), ring)
        self._set(fraction=fraction)

    def _facts(self) -> list[str]:
        fraction = self.fraction
        here = ["ring elements in this process"] if self.holds_secret else []
        return ["int64", f"scale 2^-{fraction} ({fraction} bits after the point)" if fraction else "integers", *here]

    def ring(self) -> np.ndarray:
        """The ring elements.

        Raises:
            ExposureError: They are shared.
        """
        if self._secret is None:
            raise ExposureError("numbers that are shared", expected="numbers of this process", remedy="get() them")
        return self._secret


def pointer_of(facts: Any) -> PointerTensor:
    form = Form.of_facts(facts)
    try:
        party, location, place = facts["party"], facts["location"], facts["place"]
        valid = isinstance(party, str) and isinstance(location, str) and place in (0, 1, 2)
        value_id = facts["id"]
    except KeyError as error:
        raise malformed(f"without {error}") from error
    if not valid:
        raise malformed("with fields of other types")
    return PointerTensor(party, location, value_id, form, place)
