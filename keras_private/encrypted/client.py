"""Asking three parties for predictions on inputs that none of them sees."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from keras_private.encrypted.cluster.cluster import Cluster, at_all, require_cluster
from keras_private.encrypted.cluster.sharing import one_hot
from keras_private.encrypted.cluster.wire import Wire, arrays_of
from keras_private.encrypted.encryption import PrivateTensor
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.errors import ConfigurationError, EncodingError, PartiesError, PrivacyError


class Client:
    """Asks for predictions.

    Guarantees, each locked by tests/encrypted/cluster:
      * Inputs leave this process as shares only: each party gets two uniform numbers for each number.
      * Shares are drawn afresh for each request.
      * Values that are NaN, infinite, or outside of the model's declared range are refused before anything is shared.
      * A result is whole or an error: there is no partial one.

    Args:
        cluster: The parties.
        name: In this client's certificate.
        model: Name of the model; needed when several are published.
        seconds: The longest that a request may take.
    """

    def __init__(self, cluster: Cluster, name: str = "client", model: str | None = None, seconds: float = 60.0) -> None:
        require_cluster(cluster)
        self.cluster, self.name, self.seconds = cluster, name, seconds
        self._wanted = model
        self._idle: dict[str, list[Wire]] = {party: [] for party in cluster.parties}
        self._lock = threading.Lock()
        self._model: dict[str, Any] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.identity = cluster.identity(name)

    def predict(self, x: Any, batch_size: int | None = None, seconds: float | None = None) -> Any:
        """Predictions, as Keras's predict gives them.

        Args:
            x: Array of rows, or a list of arrays for several inputs.
            batch_size: Rows of a request; by default the most that the model takes.
            seconds: In place of the client's.

        Returns:
            float64 array, or a list of them for several outputs.

        Raises:
            EncodingError: A value is NaN or out of range.
            ConfigurationError: A shape or dtype does not fit.
            PartiesError: No such model is published.
            TransportError: A party is gone, or did not answer in time. Asking again is safe.
        """
        deadline = time.monotonic() + (self.seconds if seconds is None else seconds)
        facts = self.describe(deadline)
        arrays = self._checked(x, facts)
        rows = len(arrays[0])
        most = max(facts["batches"])
        size = most if batch_size is None else batch_size
        if type(size) is not int or not 1 <= size <= most:
            raise ConfigurationError(
                f"batch_size={batch_size!r}", expected=f"an int from 1 to {most}", remedy="leave it out"
            )
        found = []
        for start in range(0, rows, size):
            found.append(self._ask(facts, [array[start : start + size] for array in arrays], deadline))
        outputs = [np.concatenate(parts) for parts in zip(*found)]
        return outputs[0] if len(outputs) == 1 else outputs

    def predict_async(self, x: Any, batch_size: int | None = None, seconds: float | None = None) -> Future[Any]:
        """The same, as a future."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(8, thread_name_prefix="query")
        return self._pool.submit(self.predict, x, batch_size, seconds)

    def describe(self, deadline: float | None = None) -> dict[str, Any]:
        """What the parties say of the model: shapes, range, numbers of rows. All three must say the same.

        Raises:
            PartiesError: They do not, or no such model is published.
        """
        with self._lock:
            if self._model is not None:
                return self._model
        deadline = deadline or time.monotonic() + self.seconds
        wanted = self._wanted if self._wanted is not None else self._only(deadline)
        found = at_all(
            self.cluster.parties, lambda party: self._call(party, {"call": "models", "model": wanted}, [], deadline)[0]
        )
        if any(each != found[0] for each in found[1:]):
            raise PartiesError(
                f"the parties describe model {wanted!r} differently",
                expected="one publication at all three",
                remedy="have its owner publish it again",
            )
        with self._lock:
            self._model = found[0]
        return found[0]

    def _only(self, deadline: float) -> str:
        facts, _ = self._call(self.cluster.parties[0], {"call": "ping"}, [], deadline)
        names = [each["model"] for each in facts["models"]]
        if len(names) != 1:
            raise PartiesError(
                f"the published models are {names}" if names else "no model is published",
                expected="one model, or its name",
                remedy="give model= to Client" if names else "publish one with kp.serve",
            )
        return str(names[0])

    def _ask(self, facts: dict[str, Any], arrays: list[PrivateTensor], deadline: float) -> list[np.ndarray]:
        rows = len(arrays[0])
        shares = [array.share(self.cluster).hand_out() for array in arrays]
        key = secrets.token_hex(16)
        call = {
            "call": "predict",
            "request": key,
            "model": facts["model"],
            "publication": facts["publication"],
            "rows": rows,
            "seconds": min(max(deadline - time.monotonic(), 1e-3), 600.0),
        }

        def ask(party: str) -> list[np.ndarray]:
            place = self.cluster.parties.index(party)
            pairs = [half for each in shares for half in each[place]]
            _, payload = self._call(party, call, pairs, deadline)
            return arrays_of(payload, [("int64", (rows, *shape)) for shape, _ in facts["outputs"]], party)

        try:
            replies = at_all(self.cluster.parties, ask)
        except PrivacyError:
            with self._lock:
                # It may have been published anew.
                self._model = None
            raise
        found = []
        for place, (_, fraction) in enumerate(facts["outputs"]):
            result = PrivateTensor.of_summands([reply[place] for reply in replies], fraction, name=self.name)
            found.append(_after(facts["last"], result.reveal()))
        return found

    def _call(
        self, party: str, facts: dict[str, Any], arrays: list[np.ndarray], deadline: float
    ) -> tuple[dict[str, Any], memoryview]:
        with self._lock:
            wire = self._idle[party].pop() if self._idle[party] else None
        if wire is None or not wire.usable:
            wire = self.cluster.dial(self.name, party, deadline)
        try:
            frame = wire.call(facts, arrays, deadline)
        finally:
            if wire.usable:
                with self._lock:
                    self._idle[party].append(wire)
            else:
                wire.close()
        return frame.facts, frame.payload

    def _checked(self, x: Any, facts: dict[str, Any]) -> list[PrivateTensor]:
        """The inputs, encoded."""
        given = list(x) if isinstance(x, (list, tuple)) and len(facts["inputs"]) > 1 else [x]
        if len(given) != len(facts["inputs"]):
            raise ConfigurationError(
                f"{len(given)} inputs",
                expected=f"{len(facts['inputs'])}, one for each of the model's",
                remedy="check x",
            )
        found: list[PrivateTensor] = []
        fixed_point = FixedPoint(facts["fraction"], facts["integer"])
        for place, (each, (shape, depth, _), (low, high)) in enumerate(
            zip(given, facts["inputs"], facts["input_ranges"])
        ):
            name = f"input {place}" if len(given) > 1 else "x"
            array = np.asarray(each)
            if array.dtype.kind not in "fiub":
                raise ConfigurationError(f"{name} has the dtype {array.dtype}", expected="numbers", remedy="convert it")
            if array.shape[1:] != tuple(shape) or array.ndim == 0 or not len(array):
                raise ConfigurationError(
                    f"{name} has the shape {array.shape}",
                    expected=f"at least one row: (rows, {', '.join(map(str, shape))})",
                    remedy="reshape it",
                )
            if depth:
                if not np.array_equal(array, np.floor(array)) or array.min() < 0 or array.max() >= depth:
                    raise EncodingError(
                        f"{name} holds what is no index",
                        expected=f"integers from 0 to {depth - 1}",
                        remedy="check them",
                    )
                found.append(PrivateTensor(one_hot(array, depth), bound=1, name=self.name).fix_precision(0))
                continue
            least, greatest = float(np.min(array)), float(np.max(array))
            # A NaN makes both comparisons false.
            if not (least >= low and greatest <= high):
                raise EncodingError(
                    f"{name} holds NaN or values in [{least:.6g}, {greatest:.6g}]",
                    expected=f"finite numbers in the model's declared range [{low:.6g}, {high:.6g}]",
                    remedy="scale or clean the data",
                )
            bound = min(max(abs(low), abs(high), fixed_point.unit), fixed_point.input_bound)
            found.append(PrivateTensor(array, bound=bound, name=self.name).fix_precision(fixed_point.fraction))
        if len({len(each) for each in found}) != 1:
            raise ConfigurationError(
                f"numbers of rows: {[len(each) for each in found]}", expected="the same of all inputs", remedy="check x"
            )
        return found

    def close(self) -> None:
        """Ends the connections."""
        with self._lock:
            wires = [wire for each in self._idle.values() for wire in each]
            self._idle = {party: [] for party in self.cluster.parties}
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
        for wire in wires:
            wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _after(last: str, values: np.ndarray) -> np.ndarray:
    """The function that the owner has left to the client."""
    if last == "softmax":
        powers = np.exp(values - values.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)
    return 1 / (1 + np.exp(-values)) if last == "sigmoid" else values
