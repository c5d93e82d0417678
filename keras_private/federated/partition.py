"""Partitions of one data set over clients: to simulate federations, and to look at them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

from ..errors import BackendError, ClientDataError, ConfigurationError
from . import examples
from .clients import Clients, as_clients

ATTEMPTS = 1000
READ_TOGETHER = 1024


def iid(x: Any, y: Any, clients: Union[int, Sequence[str]], seed: Optional[int] = None) -> Clients:
    """Examples dealt out at random, in equal numbers.

    Guarantees:
        - Each example goes to exactly one client; sizes differ by at most one.
        - The same seed gives the same partition.

    Args:
        x: An array [examples, ...], or dicts, lists and tuples of them.
        y: Targets of the same form.
        clients: How many, or their names.
        seed: Of the random order, for repetition; it protects nothing. None: a new order each time.

    Raises:
        ConfigurationError: `clients` or `seed` is out of range; fewer examples than clients.
        ClientDataError: x or y is no data to train on.
    """
    pair, count = _pair(x, y)
    names = _names(clients, count)
    order = _generator(seed).permutation(count)
    return _dealt(pair, dict(zip(names, np.array_split(order, len(names)))))


def dirichlet(
    x: Any,
    y: Any,
    clients: Union[int, Sequence[str]],
    alpha: float,
    seed: Optional[int] = None,
    min_size: int = 1,
    labels: Any = None,
) -> Clients:
    """Examples dealt out with skewed labels.

    Of each label, the clients get shares drawn from a symmetric Dirichlet law, independently of the other labels
    (Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning of Neural Networks", section 4; Li et al. 2022,
    "Federated Learning on Non-IID Data Silos", section IV). A small `alpha` gives each label to few clients, a large
    one approaches `iid`.

    Guarantees:
        - Each example goes to exactly one client.
        - Of a label with n examples and drawn shares p, the number of client k differs from n p_k by at most one.
        - No client has fewer than `min_size` examples: shares are drawn anew until it holds, so that the law is the
          Dirichlet law under that condition; `min_size=0` gives the law itself, and perhaps empty clients.

    Args:
        x: An array [examples, ...], or dicts, lists and tuples of them.
        y: Targets of the same form.
        clients: How many, or their names.
        alpha: Concentration of the Dirichlet law, above 0.
        seed: Of the draws, for repetition; it protects nothing. None: new draws each time.
        min_size: The smallest number of examples of a client.
        labels: [examples], what is skewed. By default y itself: integers, truth values, text, or one-hot rows.

    Raises:
        ConfigurationError: An argument is out of range, or 1000 draws gave each time a client below `min_size`.
        ClientDataError: x or y is no data to train on; y gives no labels.
    """
    pair, count = _pair(x, y)
    if not isinstance(min_size, int) or isinstance(min_size, bool) or min_size < 0:
        raise _out_of_range("min_size", min_size, "a whole number from 0")
    names = _names(clients, count, min_size)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float, np.number)) or not 1e-6 <= alpha <= 1e6:
        raise _out_of_range("alpha", alpha, "a number from 0.000001 to 1,000,000; 0.1 to 1 is usual")
    keys = _label_of_each(pair[1] if labels is None else examples.arrays("labels", labels), count)
    generator = _generator(seed)
    groups = [np.flatnonzero(keys == key) for key in np.unique(keys)]
    for _ in range(ATTEMPTS):
        shares = generator.dirichlet(np.full(len(names), float(alpha)), len(groups))
        cuts = [_cuts(len(group), share) for group, share in zip(groups, shares)]
        sizes = sum(np.diff(cut, prepend=0, append=len(group)) for cut, group in zip(cuts, groups))
        if np.min(sizes) >= min_size:
            break
    else:
        raise ConfigurationError(
            f"{ATTEMPTS} draws with alpha={alpha} gave each time a client with fewer than {min_size} examples.",
            expected=f"shares of {count} examples that leave {len(names)} clients at least {min_size} each",
            remedy="Raise alpha, or lower min_size or the number of clients.",
        )
    parts: list[list[np.ndarray]] = [[] for _ in names]
    for group, cut in zip(groups, cuts):
        for part, piece in zip(parts, np.split(generator.permutation(group), cut)):
            part.append(piece)
    return _dealt(pair, {name: generator.permutation(np.concatenate(part)) for name, part in zip(names, parts)})


def by_column(x: Any, y: Any, column: Any) -> Clients:
    """One client for each value of a column, such as a user, a hospital or a writer.

    Guarantees:
        - Each example goes to exactly one client, and keeps its place among the examples of its client.
        - Clients come in the order of the sorted values; each is named by its value.

    Args:
        x: An array [examples, ...], or dicts, lists and tuples of them.
        y: Targets of the same form.
        column: [examples] of text or whole numbers.

    Raises:
        ClientDataError: x or y is no data to train on, or the column is not of that form.
    """
    pair, count = _pair(x, y)
    keys = examples.arrays("column", column)
    if keys.ndim != 1 or len(keys) != count or keys.dtype.kind not in "iubO":
        raise ClientDataError(
            f"column has shape {list(keys.shape)} and dtype {keys.dtype}.",
            expected=f"{count} values of text or whole numbers, one for each example",
            remedy="Give the column that says whose an example is; round or bin floats.",
        )
    values, places = np.unique(keys, return_inverse=True)
    order, ends = np.argsort(places, kind="stable"), np.cumsum(np.bincount(places))
    names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    if "" in names:
        raise ClientDataError(
            "column has empty text.", expected="a name for each example", remedy="Drop these examples, or name them."
        )
    return _dealt(pair, dict(zip(names, np.split(order, ends[:-1]))))


def label_counts(clients: Any) -> tuple[list[Any], np.ndarray]:
    """How often each client has each label.

    Args:
        clients: What `as_clients` takes. All its examples are read.

    Returns:
        The sorted labels, and whole numbers [clients, labels] in the order of `clients.names`.

    Raises:
        ClientDataError: y is neither a label nor a one-hot row.
    """
    clients = as_clients(clients)
    counted = []
    for name in clients.names:
        batches = [batch[1] for batch in clients[name].batch(READ_TOGETHER).as_numpy_iterator()]
        keys = _label_of_each(np.concatenate(batches)) if batches and isinstance(batches[0], np.ndarray) else None
        if batches and keys is None:
            raise _no_labels("several arrays")
        counted.append(np.unique(keys, return_counts=True) if keys is not None else ((), ()))
    labels = sorted({label for found, _ in counted for label in found})
    table = np.zeros((len(clients), len(labels)), np.int64)
    for row, (found, counts) in zip(table, counted):
        row[[labels.index(label) for label in found]] = counts
    plain = [label.decode() if isinstance(label, bytes) else label.item() for label in labels]
    return plain, table


def plot(clients: Any) -> Any:
    """The numbers of examples by label, a bar for each client.

    Args:
        clients: What `as_clients` takes. All its examples are read.

    Returns:
        A matplotlib.figure.Figure, tied to no window; notebooks show it, `.savefig(path)` writes it.

    Raises:
        ClientDataError: y is neither a label nor a one-hot row.
        BackendError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError(
            "matplotlib is not installed.", expected="matplotlib, for plots", remedy="Run `pip install matplotlib`."
        ) from error
    clients = as_clients(clients)
    labels, table = label_counts(clients)
    figure = Figure(figsize=(8, min(40.0, 1.5 + 0.25 * len(clients))), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"](np.linspace(0, 1, max(len(labels), 1)))
    starts = np.cumsum(table, 1) - table
    for index, label in enumerate(labels):
        axes.barh(clients.names, table[:, index], left=starts[:, index], color=colors[index], label=str(label))
    axes.invert_yaxis()
    axes.set(xlabel="examples", ylabel="client")
    if 0 < len(labels) <= 20:
        axes.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _pair(x: Any, y: Any) -> tuple[tuple[Any, Any], int]:
    pair = (examples.arrays("x", x), examples.arrays("y", y))
    count = examples.length("The data set", pair)
    if not count:
        raise ClientDataError("There are no examples.", expected="at least one", remedy="Give the data to deal out.")
    return pair, count


def _dealt(pair: tuple[Any, Any], parts: dict[str, np.ndarray]) -> Clients:
    return Clients.from_arrays({name: examples.rows(pair, index) for name, index in parts.items()})


def _names(clients: Union[int, Sequence[str]], count: int, min_size: int = 1) -> list[str]:
    if isinstance(clients, (int, np.integer)) and not isinstance(clients, bool):
        # A number beyond that of the examples is refused below; it needs no names.
        number = min(operator.index(clients), count + 1)
        names = [f"client_{index:0{len(str(number - 1))}}" for index in range(number)]
    elif isinstance(clients, (list, tuple)):
        names = list(clients)
    else:
        names = []
    if not names or len(set(names)) != len(names):
        raise _out_of_range("clients", clients, "a whole number from 1, or a list of different names")
    if min_size * len(names) > count:
        raise ConfigurationError(
            f"{count} examples are too few for so many clients.",
            expected=f"at least {min_size} for each client",
            remedy="Take fewer clients.",
        )
    return names


def _generator(seed: Optional[int]) -> np.random.Generator:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0):
        raise _out_of_range("seed", seed, "a whole number from 0, or None")
    return np.random.default_rng(seed)


def _cuts(count: int, shares: np.ndarray) -> np.ndarray:
    """Where a label's examples are cut: each client's number is within one of its share."""
    ends = np.cumsum(shares)[:-1]
    return np.minimum(np.floor(ends * count + 0.5).astype(np.int64), count)


def _label_of_each(y: Any, count: Optional[int] = None) -> np.ndarray:
    """[examples] of labels, of whole numbers, truth values, text, or one-hot rows."""
    if not isinstance(y, np.ndarray):
        raise _no_labels("several arrays")
    if count is not None and len(y) != count:
        raise _no_labels(f"{len(y)} rows for {count} examples")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.dtype.kind in "biuf" and (np.sort(y, 1)[:, :-1] == 0).all() and (y.max(1) == 1).all():
        return y.argmax(1)
    whole = y.dtype.kind in "biuOS" or (y.dtype.kind == "f" and bool((y == np.floor(y)).all()))
    if y.ndim != 1 or not whole:
        raise _no_labels(f"of shape {list(y.shape)} and dtype {y.dtype}")
    return y.astype(np.int64) if y.dtype.kind in "bf" else y


def _no_labels(problem: str) -> ClientDataError:
    return ClientDataError(
        f"The labels are {problem}.",
        expected="one whole number, truth value, text or one-hot row for each example",
        remedy="For other targets give labels=, one label for each example, to dirichlet.",
    )


def _out_of_range(name: str, value: Any, expected: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r} came.", expected=expected, remedy=f"Correct {name}.")
