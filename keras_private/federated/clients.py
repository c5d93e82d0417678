"""Clients: names, and where the examples of each one are."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Callable, Optional, Union

import tensorflow as tf

from .._backends import tff_clients
from ..errors import ClientDataError, ConfigurationError
from . import examples, folders

KINDS = "Clients, a dict name -> (x, y), a dict name -> tf.data.Dataset, a TFF ClientData, or the path of a folder"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one client's examples are.

    Attributes:
        open: Gives the examples as pairs (x, y), unbatched.
        size: Number of examples, or None if it is not known without reading them.
        key: What the opener of `Clients.keys_and_opener` takes; None if the data lives in this process.
        arrays: The examples as nested arrays, if that is what they are.
    """

    open: Callable[[], tf.data.Dataset]
    size: Optional[int] = None
    key: Optional[str] = None
    arrays: Any = None


class Clients(Mapping[str, tf.data.Dataset]):
    """An immutable, ordered mapping from a client's name to its examples.

    Made by `from_arrays`, `from_datasets`, `from_client_data`, `from_directory`, or `as_clients` for any of these.

    Guarantees:
        - Names are different and keep the order in which they were given.
        - All clients have one element specification; a client with another one is refused, by name.
        - Data is neither read nor copied before a client is opened; `dataset` opens one client and no other.
        - Of a folder, no example enters this process unless `dataset` is called here: workers open the files.

    Attributes:
        names: Names of the clients.
        sizes: Name -> number of examples, None where it is unknown.
        element_spec: Pair (x, y) of tf.TensorSpec of one example; dicts and tuples of them for several inputs.
        stays_put: The data is opened by path where the work runs, and not sent there.
    """

    def __init__(
        self, sources: Mapping[str, Source], element_spec: Any, opener: Optional[Callable[..., Any]] = None
    ) -> None:
        if not sources:
            raise ConfigurationError(
                "There are no clients.", expected="at least one client", remedy="Give the data of one or more clients."
            )
        self._sources = MappingProxyType(dict(sources))
        self._element_spec = element_spec
        self._opener = opener

    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("Clients is final; give the data to one of its from_... methods.")

    @classmethod
    def from_arrays(cls, data: Union[Mapping[str, Any], Iterable[tuple[str, Any]]]) -> Clients:
        """Clients whose examples are arrays in this process.

        Args:
            data: Name -> (x, y), or pairs of name and (x, y). x and y: array [examples, ...] of numbers, truth
                values or text, or dicts, lists and tuples of them. Floats become Keras's floatx, as in `model.fit`.
                Arrays are not copied: do not change them while the clients are in use.

        Raises:
            ConfigurationError: No clients, or a name that is no text or comes twice.
            ClientDataError: No pair, unequal lengths, a dtype that cannot be trained on, or a form unlike that of
                the other clients.
        """
        sources, specs = {}, {}
        for name, value in examples.named(data):
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ClientDataError(
                    f"Client {name!r} has a {type(value).__name__} instead of its x and y.",
                    expected="a pair (x, y) of arrays",
                    remedy="Give {name: (x, y), ...}.",
                )
            pair = (
                examples.arrays(f"x of client {name!r}", value[0]),
                examples.arrays(f"y of client {name!r}", value[1]),
            )
            size = examples.length(f"Client {name!r}", pair)
            sources[name] = Source(functools.partial(tf.data.Dataset.from_tensor_slices, pair), size, arrays=pair)
            specs[name] = examples.spec_of_arrays(pair)
        return cls(sources, examples.common(specs))

    @classmethod
    def from_datasets(cls, data: Union[Mapping[str, Any], Iterable[tuple[str, Any]]]) -> Clients:
        """Clients whose examples are tf.data pipelines in this process.

        Args:
            data: Name -> tf.data.Dataset of single examples (x, y), or pairs of name and data set.

        Raises:
            ConfigurationError: No clients, or a name that is no text or comes twice.
            ClientDataError: No data set, an endless one, elements that are no pairs or are batches, or a
                specification unlike that of the other clients.
        """
        sources, specs = {}, {}
        for name, dataset in examples.named(data):
            if not isinstance(dataset, tf.data.Dataset):
                raise ClientDataError(
                    f"Client {name!r} has a {type(dataset).__name__}.",
                    expected="a tf.data.Dataset of pairs (x, y)",
                    remedy="Use Clients.from_arrays for arrays.",
                )
            size = int(dataset.cardinality())
            if size == tf.data.INFINITE_CARDINALITY:
                raise ClientDataError(
                    f"The data set of client {name!r} never ends.",
                    expected="each example once; rounds repeat them",
                    remedy="Leave out .repeat().",
                )
            specs[name] = examples.checked_pair(f"the data set of client {name!r}", dataset.element_spec)
            sources[name] = Source(functools.partial(_given, dataset), size if size >= 0 else None)
        return cls(sources, examples.common(specs))

    @classmethod
    def from_client_data(cls, data: Any, example: Optional[Callable[[Any], tuple[Any, Any]]] = None) -> Clients:
        """Clients of a `tff.simulation.datasets.ClientData`.

        Args:
            data: The ClientData.
            example: Makes the pair (x, y) from one element, by TensorFlow operations. Not needed for elements that
                are pairs, or dicts of the two keys "x" and "y".

        Raises:
            ConfigurationError: Not a ClientData, or one without clients.
            ClientDataError: The elements are no pairs (x, y) of single examples.
        """
        if not tff_clients.is_client_data(data):
            raise ConfigurationError(
                f"A {type(data).__name__} came.",
                expected="a tff.simulation.datasets.ClientData",
                remedy="Use Clients.from_arrays or Clients.from_datasets for other data.",
            )
        names = tff_clients.names(data)
        examples.named([(name, None) for name in names])
        make = example or examples.pair_maker(tff_clients.element_spec(data))
        spec = examples.checked_pair("the ClientData", tff_clients.mapped_spec(data, make))
        return cls({name: Source(functools.partial(tff_clients.dataset, data, name, make)) for name in names}, spec)

    @classmethod
    def from_directory(cls, path: Union[str, os.PathLike[str]], manifest: Any = None) -> Clients:
        """Clients whose examples are files, opened where the work runs and nowhere else.

        The folder holds either `<name>.tfrecord` files with their `clients.json`, as `write_directory` makes them,
        or one `<name>.npz` for each client, made by `np.savez(file, x=x, y=y)`. Keras's floatx is what floats of an
        .npz file become. An .npz file must be uncompressed, in row-major order and little-endian, since workers read
        it by TensorFlow's own operations; its checksums are not looked at, those of TFRecord files are.

        Args:
            path: The folder, under the name that it has wherever the work runs.
            manifest: A `clients.json` elsewhere on this machine; then `path` need not exist here, and sizes are
                those of the time when the manifest was written.

        Raises:
            ClientDataError: The folder, a file or the manifest is missing, damaged, of a form that workers cannot
                read, or unlike the others; or a name would lead out of the folder.
            ConfigurationError: There are no clients.
        """
        folder = folders.read(path, manifest)
        opener = folder.opener()
        sources = {
            name: Source(functools.partial(opener, tf.constant(key)), folder.sizes[name], key)
            for name, key in folder.keys.items()
        }
        return cls(sources, folder.element_spec, opener)

    def write_directory(self, path: Union[str, os.PathLike[str]]) -> None:
        """Writes a folder for `from_directory`: `<name>.tfrecord` for each client, and `clients.json`.

        Guarantees:
            - The folder appears complete, or not at all: it is written beside its place under another name, flushed
              to disk, and renamed. A process killed meanwhile leaves at most a hidden `.<folder>.*` beside it.
            - Nothing existing is replaced, but an empty folder.
            - Only the user who writes can read it (mode 0700).

        Raises:
            ClientDataError: A name cannot be a file name, or the shape of an example is not fixed.
            ConfigurationError: Something is at `path` already, or its parent is missing.
            OSError: The disk is full, or the folder cannot be written.
        """
        folders.write(path, {name: self[name] for name in self.names}, self.element_spec)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    @property
    def sizes(self) -> dict[str, Optional[int]]:
        return {name: source.size for name, source in self._sources.items()}

    @property
    def element_spec(self) -> Any:
        return self._element_spec

    @property
    def stays_put(self) -> bool:
        return self._opener is not None

    @property
    def opener(self) -> Optional[Callable[..., Any]]:
        """What opens a key where the work runs; None if the data lives in this process."""
        return self._opener

    def dataset(self, name: str) -> tf.data.Dataset:
        """The examples (x, y) of one client, unbatched.

        Raises:
            ConfigurationError: No such client.
        """
        return self._source(name).open()

    def whole(self, name: str) -> Any:
        """All examples of one client: a pair (x, y) of nested arrays [examples, ...].

        Raises:
            ConfigurationError: No such client.
            ClientDataError: Its examples have different shapes.
        """
        source = self._source(name)
        return source.arrays if source.arrays is not None else examples.whole(name, source.open())

    def subset(self, names: Iterable[str]) -> Clients:
        """The clients of these names, in the order of `names`.

        Raises:
            ConfigurationError: An unknown name, one that comes twice, or none.
        """
        if isinstance(names, str):
            names = [names]
        chosen = examples.named([(name, self._source(name)) for name in names])
        return Clients(dict(chosen), self._element_spec, self._opener)

    def keys_and_opener(self) -> tuple[list[str], Callable[..., Any]]:
        """One key for each name, and what opens a key where the work runs.

        Returns:
            Keys in the order of `names`, and a tf.function from a key (a string scalar) to a tf.data.Dataset of
            examples (x, y), made of stock TensorFlow operations only.

        Raises:
            ConfigurationError: The data lives in this process.
        """
        if self._opener is None:
            raise ConfigurationError(
                "These clients' data lives in this process.",
                expected="clients of a folder that the workers can read",
                remedy="Call write_directory(path), and use Clients.from_directory(path).",
            )
        return [str(source.key) for source in self._sources.values()], self._opener

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            shown = ", ".join(map(repr, self.names[:5])) + (", ..." if len(self) > 5 else "")
            raise ConfigurationError(
                f"There is no client {name!r}.",
                expected=f"one of the {len(self)} clients {shown}",
                remedy="Correct it.",
            )
        return self._sources[name]

    def __getitem__(self, name: str) -> tf.data.Dataset:
        return self.dataset(name)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    # Two mappings of data sets cannot be compared without reading both.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        known = [size for size in self.sizes.values() if size is not None]
        total = f"{sum(known)} examples" if len(known) == len(self) else "sizes unknown"
        place = ", opened where the work runs" if self.stays_put else ""
        return f"<Clients: {len(self)} clients, {total}, {examples.describe(self._element_spec)}{place}>"


def as_clients(data: Any) -> Clients:
    """Clients from anything that one of the `Clients.from_...` methods takes.

    Args:
        data: Clients, a dict name -> (x, y), a dict name -> tf.data.Dataset, a TFF ClientData, or a folder's path.

    Raises:
        ConfigurationError: Something else, or no clients.
        ClientDataError: As the method for this kind of data.
    """
    if isinstance(data, Clients):
        return data
    if isinstance(data, (str, os.PathLike)):
        return Clients.from_directory(data)
    if tff_clients.is_client_data(data):
        return Clients.from_client_data(data)
    if isinstance(data, Mapping):
        if any(isinstance(value, tf.data.Dataset) for value in data.values()):
            return Clients.from_datasets(data)
        return Clients.from_arrays(data)
    raise ConfigurationError(
        f"A {type(data).__name__} is no description of clients.",
        expected=KINDS,
        remedy="Name each client: {'ward-1': (x1, y1), 'ward-2': (x2, y2)}.",
    )


def _given(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset
