"""Publishing a Keras model to three parties, who answer queries on shares of its weights."""

from __future__ import annotations

import secrets
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_private._backends.keras_graph import plain_of
from keras_private.encrypted.cluster.cluster import Cluster, at_all, require_cluster
from keras_private.encrypted.cluster.descriptions import BATCHES, Description, check_batches, trace
from keras_private.encrypted.cluster.wire import Wire
from keras_private.encrypted.encryption import PrivateTensor
from keras_private.encrypted.fixed_point import FixedPoint
from keras_private.encrypted.kernels import choose
from keras_private.encrypted.lowering import lower
from keras_private.encrypted.model import DEFAULT_RANGE, EncryptedModel
from keras_private.encrypted.ranges import declared_ranges
from keras_private.encrypted.reporting import report_of_service
from keras_private.errors import ConfigurationError, PartiesError, TransportError
from keras_private.random import secure_source
from keras_private.report.document import PrivacyReport

PUBLISH_SECONDS = 600.0


class Service:
    """A published model. It is served until `stop`, the end of a `with` block, or the end of this process.

    Guarantees, each locked by tests/encrypted/cluster:
      * Each party gets one pair of shares of each weight, drawn afresh for this publication.
      * The programs of all parties were compared by digest with those that this process traced, before any share left
        it.
      * When this process ends, however it does, the parties overwrite their shares.

    Attributes:
        model: The name that clients ask for.
        publication: Key of this publication.
        digests: For each party and number of rows, the SHA-256 of its program.
        bytes_per_run: For each number of rows what the parties send each other in one run.
    """

    def __init__(
        self,
        model: Any,
        cluster: Cluster,
        *,
        name: str | None = None,
        batch_sizes: Sequence[int] = BATCHES,
        input_range: Any = DEFAULT_RANGE,
        fixed_point: FixedPoint | None = None,
        owner: str = "owner",
        logits: bool = False,
    ) -> None:
        check_batches(tuple(batch_sizes))
        self.cluster, self.owner = cluster, owner
        self.model = name or str(getattr(model, "name", ""))
        self._keras = plain_of(model.reveal_to() if isinstance(model, EncryptedModel) else model)
        self._fixed_point = fixed_point or FixedPoint()
        self._batches = tuple(batch_sizes)
        program = lower(self._keras)
        self._values = {key: parameter.value for key, parameter in program.parameters.items()}
        self._input_ranges = declared_ranges(input_range, len(program.inputs))
        program.check_ranges(self._fixed_point, self._input_ranges, self._values)
        native = choose().name == "native" and secure_source().name == "native"
        self._description = Description(
            self._keras.to_json(), self._fixed_point.fraction, self._fixed_point.integer, self._batches, native, logits
        )
        self.digests: dict[str, dict[str, str]] = {}
        self.bytes_per_run: dict[int, int] = {}
        self.publication = ""
        self._wires: dict[str, Wire] = {}
        self.publish()

    def publish(self) -> None:
        """Publishes the model; again, with fresh shares, when it was published before.

        Raises:
            PrivacyError: A party refused, cannot be reached, or runs another version. Nothing is served then.
        """
        self.stop()
        deadline = time.monotonic() + PUBLISH_SECONDS
        self.publication = secrets.token_hex(16)
        facts = {"publication": self.publication, "model": self.model, "input_ranges": self._input_ranges}
        parties = self.cluster.parties
        try:
            for party in parties:
                self._wires[party] = self.cluster.dial(self.owner, party, min(deadline, time.monotonic() + 10.0))
            expected = threading.Thread(target=self._trace)
            expected.start()
            prepare = {"call": "prepare", "description": self._description.facts(), **facts}
            replies = at_all(parties, lambda party: self._wires[party].call(prepare, deadline=deadline).facts)
            expected.join()
            self._compare(dict(zip(parties, replies)))
            shares = [self._private(value).share(self.cluster).hand_out() for value in self._values.values()]
            # The first party gathers requests: it comes last.
            for place, party in reversed(list(enumerate(parties))):
                arrays = [share for each in shares for share in each[place]]
                weights = {"call": "weights", "publication": self.publication}
                self._wires[party].call(weights, arrays, deadline=deadline)
        except BaseException:
            self.stop()
            raise

    def _private(self, weights: np.ndarray) -> PrivateTensor:
        private = PrivateTensor(weights, bound=self._fixed_point.input_bound, name=self.owner)
        return private.fix_precision(self._fixed_point.fraction)

    def _trace(self) -> None:
        try:
            graphs = trace(self._description).graphs
            self._expected: Any = {
                party: {str(rows): graphs[rows][party].digest() for rows in graphs} for party in self.cluster.parties
            }
        except Exception as error:  # Raised where the comparison is made.
            self._expected = error

    def _compare(self, replies: dict[str, dict[str, Any]]) -> None:
        if isinstance(self._expected, Exception):
            raise self._expected
        for party, reply in replies.items():
            if reply["digests"] != self._expected[party]:
                raise PartiesError(
                    f"{party} would run another program than this process traced",
                    expected=f"programs with the digests {self._expected[party]}",
                    remedy="install the same versions of keras_private and TensorFlow at the owner and all parties",
                )
        self.digests = self._expected
        self.bytes_per_run = {
            rows: sum(int(reply["bytes_sent"][str(rows)]) for reply in replies.values()) for rows in self._batches
        }

    def program(self, party: str, batch_size: int) -> str:
        """What one party runs, as text.

        Raises:
            TransportError: The party is gone.
        """
        facts = {"call": "program", "publication": self.publication, "rows": batch_size}
        return str(self._wires[party].call(facts, deadline=time.monotonic() + 60.0).facts["text"])

    @property
    def logits(self) -> bool:
        """Whether clients get what enters the model's last softmax or sigmoid."""
        return self._description.logits

    def privacy_report(self) -> PrivacyReport:
        """Who learns what from this service, and under which assumptions."""
        return report_of_service(self)

    @property
    def serving(self) -> bool:
        """Whether all three parties answer and have the model."""
        try:
            found = self.cluster.status()
        except TransportError:
            return False
        return all(any(each["publication"] == self.publication for each in one["models"]) for one in found.values())

    @property
    def answered(self) -> int:
        """Requests that were computed for this publication.

        Raises:
            TransportError: A party does not answer.
        """
        status = self.cluster.status()[self.cluster.parties[0]]
        return sum(int(each["requests"]) for each in status["models"] if each["publication"] == self.publication)

    def wait(self, num_requests: int | None = None) -> None:
        """Until so many requests are answered, or the model is withdrawn or lost.

        Raises:
            TransportError: A party is gone.
        """
        while self._wires and (num_requests is None or self.answered < num_requests):
            if not self.serving:
                if not self._wires:
                    return
                raise TransportError(
                    "a party is gone, or has forgotten the model", expected="three parties", remedy="publish again"
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """Withdraws the model; the parties overwrite their shares."""
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            wire.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()


def serve(
    model: Any,
    cluster: Cluster,
    input_shape: Sequence[int | None] | None = None,
    batch_sizes: Sequence[int] = BATCHES,
    *,
    name: str | None = None,
    input_range: Any = DEFAULT_RANGE,
    fixed_point: FixedPoint | None = None,
    owner: str = "owner",
    logits: bool = False,
) -> Service:
    """Publishes a model to the parties of a cluster: `with kp.serve(model, cluster): kp.Client(cluster).predict(x)`.

    | who                        | weights | inputs | predictions | architecture, number of rows |
    |----------------------------|---------|--------|-------------|------------------------------|
    | owner (this process)       | yes     | no     | no          | yes                          |
    | client                     | no      | yes    | yes         | shapes only                  |
    | each party                 | no      | no     | no          | yes                          |
    | two parties that collude   | yes     | yes    | yes         | yes                          |
    | network                    | no      | no     | no          | no; sizes and times of frames |

    Many predictions can be used to rebuild a model: the protocol hides weights, not the function that they compute.

    Args:
        model: A built functional or Sequential Keras model, or an EncryptedModel, whose weights are opened to its owner
            here and shared anew.
        cluster: Three running parties.
        input_shape: Checked against the model's, batch axis first or left out.
        batch_sizes: Numbers of rows that programs are made for; requests are gathered up to the largest.
        name: That clients ask for; by default the model's.
        input_range: That inputs must lie in; clients refuse others.
        fixed_point: Encoding.
        owner: Name in this process's certificate.
        logits: Give clients what enters the model's last softmax or sigmoid, which they apply themselves: the parties'
            work shrinks to a fraction. Clients then learn the logits, not only their softmax.

    Raises:
        UnsupportedLayerError: A layer or argument has no rule.
        OverflowPreflightError: A layer's results could leave the ring.
        ConfigurationError: An argument does not fit, or the name is taken.
        TransportError: A party cannot be reached.
        PartiesError: A party runs another version.
    """
    require_cluster(cluster)
    if input_shape is not None:
        shapes = [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or model.model.inputs]
        given = tuple(input_shape)
        if len(shapes) != 1 or given not in (shapes[0], shapes[0][1:]):
            raise ConfigurationError(
                f"input_shape={given}", expected=f"the model's: {shapes}", remedy="leave input_shape out"
            )
    if cluster.simulated:
        warnings.warn(
            "The three parties run on this machine, as this user: they protect from nobody who can read their memory.",
            stacklevel=2,
        )
    return Service(
        model,
        cluster,
        name=name,
        batch_sizes=batch_sizes,
        input_range=input_range,
        fixed_point=fixed_point,
        owner=owner,
        logits=logits,
    )
