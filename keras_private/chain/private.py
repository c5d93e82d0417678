"""The head of a chain."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from keras_private.chain.checks import (
    FORMAT,
    checked_bound,
    exposed,
    malformed,
    names_of,
    numbers_of,
    out_of_order,
    parsed,
)
from keras_private.chain.links import (
    AdditiveSharedTensor,
    FixedPrecisionTensor,
    Link,
    PointerTensor,
    ReplicatedSharedTensor,
    pointer_of,
)
from keras_private.chain.operators import Operators
from keras_private.chain.runtime import Form, Pair, Runtime, Stored, backend
from keras_private.errors import AccessError, ConfigurationError, EncodingError, ExposureError

DEFAULT_BOUND = 2.0**10
DEFAULT_FRACTION = 16
_IDS = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")

Kind = TypeVar("Kind", bound=Link)


class PrivateTensor(Operators):
    """The head of a chain: a tensor as its owner knows it.

    `PrivateTensor(x)` holds x. `fix_precision`, `share` and `send` give new chains, at whose end the numbers are
    encoded, split, and with the parties; then `+ - * @ < <= > >=`, indexing, reshape, transpose, sum, mean, relu and
    sigmoid compute on shares, and `reveal` opens a result to its readers.

    Args:
        value: Numbers: an array, or a tensor of TensorFlow or Keras that has a value.
        bound: Public; no element is larger in absolute value. Operations propagate it, and those whose results could
            leave the ring are refused. It must not be computed from the data.
        readers: Names that results may be opened to; by default `name` alone.
        name: On whose behalf this process speaks.

    Raises:
        ConfigurationError: The value has no numbers, or an argument does not fit.
        EncodingError: A number is NaN, or larger than `bound`.
    """

    __slots__ = ("_cluster", "_lease", "_runtime", "bound", "dtype", "name", "owners", "readers", "stored")
    bound: float
    dtype: str
    name: str
    owners: tuple[str, ...]
    readers: tuple[str, ...]
    stored: Stored | None
    _cluster: Any
    _lease: Any
    _runtime: Any

    def __init__(
        self, value: Any, *, bound: float = DEFAULT_BOUND, readers: Sequence[str] | None = None, name: str = "client"
    ) -> None:
        array = numbers_of(value)
        bound = checked_bound(bound)
        if not np.all(np.abs(array.astype(np.float64)) <= bound):
            raise EncodingError(
                "a NaN, or a number larger than the bound",
                expected=f"finite numbers of at most {bound:g} in absolute value",
                remedy="give bound=, which is public, or scale the data",
            )
        array.setflags(write=False)
        super().__init__(array.shape, secret=array)
        self._describe(array.dtype.name, bound, names_of(readers, name), name)

    def _describe(
        self, dtype: str, bound: float, readers: Sequence[str], name: str, owners: Sequence[str] | None = None
    ) -> None:
        self._set(dtype=dtype, bound=bound, readers=tuple(readers), name=name, owners=tuple(owners or (name,)))
        self._set(_cluster=None, _lease=None, _runtime=None, stored=None)

    def _with(self, child: Link | None, secret: Any = None, **changes: Any) -> PrivateTensor:
        """A new head with the same description, over another child."""
        new = PrivateTensor.__new__(PrivateTensor)
        shape = child.shape if child is not None else secret.shape
        Link.__init__(new, shape, () if child is None else (child,), secret)
        for name in ("dtype", "bound", "readers", "name", "owners", "_cluster"):
            new._set(**{name: changes.get(name, getattr(self, name))})
        new._set(_lease=None, _runtime=None, stored=None)
        return new

    def _facts(self) -> list[str]:
        simulated = self._runtime is not None and self._runtime.simulated
        history = self.stored.history if self.stored is not None else ""
        return [
            f"shape {self.shape}",
            f"{self.dtype}",
            f"bound {self.bound:g}",
            f"of {', '.join(self.owners)}",
            f"readers: {', '.join(self.readers) or 'nobody'}",
            *(["value in this process, in the clear"] if self.holds_secret else []),
            *([_IDS.sub(r"\1", history)] if "(" in history else []),
            *(["SIMULATION: all three parties on this machine"] if simulated else []),
        ]

    # Down the chain.

    def fix_precision(self, fraction: int = DEFAULT_FRACTION) -> PrivateTensor:
        """Encodes: numbers become integers in units of 2^-fraction.

        Raises:
            ConfigurationError: The bound does not fit so many bits, or it was encoded before.
        """
        if not self.holds_secret:
            raise out_of_order("it was encoded before", "a new PrivateTensor")
        ring = backend().encode(self._secret, fraction, self.bound, "the value")
        return self._with(FixedPrecisionTensor(self.shape, fraction, ring=ring))

    def share(self, cluster: Any = None) -> PrivateTensor:
        """Splits each integer into three shares, drawn afresh.

        Args:
            cluster: Whose parties will have them; None: three parties embedded in this process, a simulation.
        """
        link = self._tail(FixedPrecisionTensor, "fix_precision() first")
        pairs = backend().replicated(link.ring())
        shares = ReplicatedSharedTensor(self.shape, pairs=pairs)
        return self._with(FixedPrecisionTensor(self.shape, link.fraction, shares), _cluster=cluster)

    def share_additively(self, count: int = 3) -> PrivateTensor:
        """Splits each integer into `count` summands, drawn afresh, one for each holder."""
        link = self._tail(FixedPrecisionTensor, "fix_precision() first")
        shares = AdditiveSharedTensor(backend().additive(link.ring(), count))
        return self._with(FixedPrecisionTensor(self.shape, link.fraction, shares))

    def send(self) -> PrivateTensor:
        """Gives each party its pair; this process keeps pointers.

        Raises:
            TransportError: A party cannot be reached.
        """
        shares = self._tail(ReplicatedSharedTensor, "share() first")
        runtime = backend().runtime(self._cluster, self.name)
        form = Form(self.shape, self.fraction, self.bound)
        return PrivateTensor.of_put(runtime, shares.hand_out(), form, self.readers, self.dtype)

    def hand_out(self) -> list[Any]:
        """The shares, for a transport that brings the i-th to its holder."""
        tail = self._end()
        if not isinstance(tail, (ReplicatedSharedTensor, AdditiveSharedTensor)):
            raise out_of_order("it is not shared", "share() or share_additively() first")
        return list(tail.hand_out())

    def _end(self) -> Link:
        link: Link = self
        while len(link.children) == 1:
            link = link.children[0]
        return link

    def _tail(self, kind: type[Kind], before: str) -> Kind:
        tail = self._end()
        if not isinstance(tail, kind) or not tail.holds_secret:
            raise out_of_order(f"the chain ends with {type(tail).__name__}", before)
        return tail

    @property
    def fraction(self) -> int:
        """Bits after the point.

        Raises:
            ConfigurationError: It is not encoded.
        """
        if not isinstance(self.child, FixedPrecisionTensor):
            raise out_of_order("it is not encoded", "fix_precision() first")
        return self.child.fraction

    @property
    def form(self) -> Form:
        """What is public of it."""
        return Form(self.shape, self.fraction, self.bound)

    @classmethod
    def of_put(
        cls, runtime: Runtime, pairs: Sequence[Pair], form: Form, readers: Sequence[str], dtype: str
    ) -> PrivateTensor:
        """The chain of shares that are given to the parties now."""
        stored = runtime.put(pairs, form, readers)
        return cls.of_stored(runtime, stored, dtype, _Lease(runtime, stored))

    @classmethod
    def of_stored(cls, runtime: Runtime, stored: Stored, dtype: str, lease: Any = None) -> PrivateTensor:
        """The chain of a value that the parties have.

        Args:
            runtime: That reaches them.
            stored: The value.
            dtype: That opened results have.
            lease: Lives as long as links to the value do.
        """
        form = stored.form
        pointers = [
            PointerTensor(party, runtime.location(party), stored.id, form, place)
            for place, party in enumerate(runtime.parties)
        ]
        shares = ReplicatedSharedTensor(form.shape, pointers)
        new = cls.__new__(cls)
        Link.__init__(new, form.shape, (FixedPrecisionTensor(form.shape, form.fraction, shares),))
        new._describe(dtype, form.bound, stored.readers, runtime.name, stored.owners)
        new._set(_runtime=runtime, stored=stored, _lease=lease)
        return new

    @classmethod
    def of_summands(
        cls,
        summands: Sequence[np.ndarray],
        fraction: int,
        bound: float | None = None,
        dtype: str = "float64",
        name: str = "client",
    ) -> PrivateTensor:
        """The chain of a result that has arrived here, for `name`, as one masked summand of each party.

        Args:
            summands: One of each party.
            fraction: Bits after the point.
            bound: No element is larger; by default what the ring holds.
            dtype: That the opened result has.
            name: Whom the parties have sent it to.
        """
        shares = AdditiveSharedTensor(summands)
        new = cls.__new__(cls)
        Link.__init__(new, shares.shape, (FixedPrecisionTensor(shares.shape, fraction, shares),))
        new._describe(dtype, 2.0 ** (63 - fraction) if bound is None else bound, (name,), name)
        return new

    # Up the chain.

    def get(self) -> PrivateTensor:
        """Takes the value back: a chain of a head alone, which holds it in this process.

        Raises:
            AccessError: The parties have it, and `name` is none of its readers.
        """
        if self.holds_secret:
            return self
        if self.stored is not None:
            summands = self._runtime.open(self.stored)
            found = PrivateTensor.of_summands(summands, self.fraction, self.bound, self.dtype)
            readers = names_of((*self.readers, self.name), "")
            return found._with(None, found._opened(), readers=readers, name=self.name, owners=self.owners)
        return self._with(None, self._opened())

    def _opened(self) -> np.ndarray:
        tail = self._end()
        if isinstance(tail, AdditiveSharedTensor):
            ring = tail.ring()
        elif isinstance(tail, ReplicatedSharedTensor):
            # Share 0 of party 0, share 1 of party 1, share 2 of party 2.
            ring = AdditiveSharedTensor([pair[0] for pair in tail.hand_out()]).ring()
        else:
            assert isinstance(tail, FixedPrecisionTensor)
            ring = tail.ring()
        values = backend().decode(ring, self.fraction)
        kind = np.dtype(self.dtype)
        return (np.rint(values) if kind.kind in "iu" else values).astype(kind)

    def reveal(self) -> np.ndarray:
        """The numbers, to one of the readers.

        Raises:
            AccessError: `name` is none of them.
        """
        if self.stored is None and self.name not in self.readers:
            raise AccessError(
                f"{self.name} is none of the value's readers",
                expected=f"one of {list(self.readers)}",
                remedy="name the reader when the value is made",
            )
        return self.get()._secret.copy()

    def release(self, *names: str) -> PrivateTensor:
        """Consents, as one of its owners, that `names` read this very value, and none that it was computed from.

        A result's readers are those of all its operands. To open more, such as who of two millionaires is richer,
        without opening what they own, each owner consents to the result: `history` says how it was computed.

        Raises:
            AccessError: `name` owns nothing that it was computed from.
        """
        runtime, stored = self._held()
        return self._with_stored(runtime.release(stored, names_of(names, "")))

    def look(self) -> PrivateTensor:
        """The same value, with what the parties say of it now: its readers may have become more."""
        runtime, stored = self._held()
        return self._with_stored(runtime.look(stored.id))

    def _with_stored(self, stored: Stored) -> PrivateTensor:
        return PrivateTensor.of_stored(self._runtime, stored, self.dtype, self._lease)

    def drop(self) -> None:
        """Has the parties overwrite the value."""
        runtime, stored = self._held()
        runtime.drop([stored.id])

    @property
    def history(self) -> str:
        """How the parties computed it, from the ids of its sources."""
        return self._held()[1].history

    @property
    def pointers(self) -> tuple[PointerTensor, ...]:
        """One for each party; none before `send`."""
        return tuple(link for link in self.walk() if isinstance(link, PointerTensor))

    def to_json(self) -> str:
        """The pointers and dtype, for another member of the cluster: who has them may compute with the value.

        Raises:
            ConfigurationError: It was not sent.
        """
        self._held()
        found = [each._json() for each in self.pointers]
        return json.dumps({"format": FORMAT, "dtype": self.dtype, "pointers": found})

    @classmethod
    def from_json(cls, text: str, cluster: Any = None, name: str = "client") -> PrivateTensor:
        """The value that another member's `to_json` describes, as the parties say that it is.

        Raises:
            ConfigurationError: The text is not what to_json gives.
            PartiesError: The parties do not have it.
        """
        found = parsed(text)
        try:
            pointers = [pointer_of(each) for each in found["pointers"]]
            ids = {each.id for each in pointers}
            dtype = np.dtype(found["dtype"]).name
        except (KeyError, TypeError) as error:
            raise malformed("no pointers") from error
        if len(pointers) != 3 or len(ids) != 1:
            raise malformed(f"{len(pointers)} pointers with {len(ids)} ids")
        runtime = backend().runtime(cluster, name)
        return cls.of_stored(runtime, runtime.look(ids.pop()), dtype)

    def _held(self) -> tuple[Runtime, Stored]:
        if self.stored is None:
            raise out_of_order("the parties do not have it", "send() first")
        return self._runtime, self.stored

    # Operations: operators.py gives them their names.

    def _compute(
        self, operation: str, others: Sequence[PrivateTensor] = (), dtype: str = "", **options: Any
    ) -> PrivateTensor:
        runtime, stored = self._held()
        inputs = [stored]
        for other in others:
            its, value = other._held()
            if its.place != runtime.place:
                raise ConfigurationError(
                    f"{operation} of values of different parties",
                    expected="values of one cluster",
                    remedy="send both to one cluster",
                )
            inputs.append(value)
        kinds = {self.dtype, *(other.dtype for other in others)}
        result = runtime.compute(operation, options, inputs)
        kind = dtype or ("float32" if kinds == {"float32"} else "float64")
        return PrivateTensor.of_stored(runtime, result, kind, _Lease(runtime, result))

    def _indexed(self, index: Any, given: Any) -> PrivateTensor:
        if self.stored is not None:
            return self._compute("index", (), self.dtype, index=given)
        return self._here(lambda array: array[index])

    def _here(self, function: Callable[[np.ndarray], np.ndarray]) -> PrivateTensor:
        tail = self._end()
        if self.holds_secret:
            return self._with(None, np.asarray(function(self._secret)))
        if isinstance(tail, FixedPrecisionTensor):
            ring = np.asarray(function(tail.ring()))
            return self._with(FixedPrecisionTensor(ring.shape, self.fraction, ring=ring))
        raise out_of_order("shares that were not sent", "send() them, or take the part before share()")

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.stored is None:
            raise exposed("pickled")
        raise ExposureError("a chain to be pickled", expected="its JSON", remedy="use to_json and from_json")


class _Lease:
    """Shared by the chains of one value: when the last of them is gone, the parties drop the value."""

    def __init__(self, runtime: Runtime, stored: Stored) -> None:
        weakref.finalize(self, runtime.forget, stored.id).atexit = False
