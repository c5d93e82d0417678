"""Privacy reports of models on shares and of prediction services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_private.encrypted.data import DEFAULT_OWNER
from keras_private.encrypted.parties import parties_named
from keras_private.encrypted.steps import MODEL_OWNER
from keras_private.report.content import CLEAR, NOTHING, SHARES, TOTALS, Cost, Protocol, Sight, View
from keras_private.report.document import PrivacyReport
from keras_private.report.facts import loopback, now, series_of, this_machine, versions

if TYPE_CHECKING:
    from keras_private.encrypted.model import EncryptedModel
    from keras_private.encrypted.serving import Service

ABY3 = Protocol(
    "ABY3: replicated shares of three parties in the ring of 64-bit integers",
    (
        "the three parties follow the protocol",
        "no two of them pool what they see",
        "ChaCha20 and SHA-256, keyed by the operating system, look random",
    ),
    "Mohassel and Rindal 2018, sections 3 and 5",
)
MUTUAL_TLS = Protocol(
    "Mutual TLS 1.3 between all processes", ("the key of the cluster's authority is kept safe",), "RFC 8446"
)
_WEIGHTS, _INPUTS, _LABELS, _PREDICTIONS, _TOTALS, _SHAPES = (
    "weights",
    "inputs",
    "labels",
    "predictions",
    "loss and metrics",
    "architecture, shapes, number of rows",
)
_NOT_COVERED = (
    "what predictions and opened totals say of weights and data",
    "parties that deviate from the protocol: results may be wrong, and what they learn is not bounded",
    "times, and sizes of messages",
    "what the weights had learnt before they were shared",
)
_NOT_COVERED_SERVICE = (*_NOT_COVERED, "who asks, when and how often: the parties see it")
_TRAINING = (_WEIGHTS, _INPUTS, _LABELS, _PREDICTIONS, _TOTALS, _SHAPES)
_SERVICE = (_WEIGHTS, _INPUTS, _PREDICTIONS, _SHAPES)


def report_of_model(model: EncryptedModel, batch_size: int, trained: bool, compiled: bool) -> PrivacyReport:
    """Who learns what from an EncryptedModel.

    Args:
        model: The model.
        batch_size: Rows of the steps whose cost is counted.
        trained: Its weights are not those it was made with.
        compiled: It can be asked for the cost of a training step.
    """
    parties = parties_named(model.parties)
    # Training opens one bit of each epoch, whatever else it opens.
    opened = TOTALS if model.reveal or trained else NOTHING
    bit = {_TOTALS: "with one bit after each epoch: whether the weights are within their limits"} if trained else {}
    views = [
        *_of_parties(parties.servers, _TRAINING),
        _view(
            MODEL_OWNER,
            _TRAINING,
            {_WEIGHTS: CLEAR, _TOTALS: opened, _SHAPES: CLEAR},
            notes=bit,
        ),
        _view(
            f"owners of data, such as {DEFAULT_OWNER}",
            _TRAINING,
            {_INPUTS: CLEAR, _LABELS: CLEAR, _PREDICTIONS: CLEAR, _SHAPES: CLEAR},
            notes={_INPUTS: "their own", _LABELS: "their own", _PREDICTIONS: "of their inputs"},
        ),
    ]
    simulated = []
    if parties.simulated:
        views.append(_view("this process, which runs all parties", _TRAINING, dict.fromkeys(_TRAINING, CLEAR)))
        simulated.append("the three parties run in this process, whose memory holds all shares")
    costs = {f"prediction of {batch_size} rows": _counted(model.cost(batch_size, training=False))}
    if compiled:
        costs[f"training step of {batch_size} rows"] = _counted(model.cost(batch_size))
    return PrivacyReport(
        kind="encrypted model",
        model=model.name,
        views=tuple(views),
        learns=trained,
        protocols=(ABY3,),
        simulated=tuple(simulated),
        not_covered=_NOT_COVERED,
        costs=costs,
        series=series_of([model.history]),
        versions=versions(),
        created=now(),
    )


def report_of_service(service: Service) -> PrivacyReport:
    """Who learns what from a published model."""
    cluster = service.cluster
    views = [
        *_of_parties(cluster.parties, _SERVICE),
        _view(f"{service.owner}, who publishes", _SERVICE, {_WEIGHTS: CLEAR, _SHAPES: CLEAR}),
        _view(
            "a client",
            _SERVICE,
            {_INPUTS: CLEAR, _PREDICTIONS: CLEAR, _SHAPES: CLEAR},
            notes={
                _INPUTS: "its own",
                _PREDICTIONS: "of its inputs" + (", as logits" if service.logits else ""),
                _SHAPES: "shapes of inputs and outputs",
            },
        ),
        _view("network", _SERVICE, {}, "TLS holds; sizes and times are seen"),
    ]
    simulated = together([party.host for party in cluster.config.parties])
    if simulated:
        views.append(_view("whoever reads the memory of that machine", _SERVICE, dict.fromkeys(_SERVICE, CLEAR)))
    return PrivacyReport(
        kind="prediction service",
        model=service.model,
        views=tuple(views),
        learns=False,
        protocols=(ABY3, MUTUAL_TLS),
        simulated=simulated,
        not_covered=_NOT_COVERED_SERVICE,
        costs={
            f"request of up to {rows} rows": Cost(bytes=count, says="sent between the parties, payload")
            for rows, count in service.bytes_per_run.items()
        },
        versions=versions(),
        created=now(),
    )


def together(hosts: Sequence[str]) -> tuple[str, ...]:
    """What is simulated where parties share an address, or have one that only this machine answers to."""
    if any(map(loopback, hosts)) or sum(map(this_machine, hosts)) > 1:
        return ("parties run on this machine: whoever reads its memory has all shares",)
    if len(set(hosts)) < len(hosts):
        return ("two parties share a host: whoever reads its memory has all shares",)
    return ()


def _counted(cost: Any) -> Cost:
    return Cost(bytes=cost.bytes, rounds=cost.rounds, says="sent by all, payload; rounds that wait for one another")


def _of_parties(parties: Sequence[str], items: Sequence[str]) -> list[View]:
    shares = {**dict.fromkeys(items, SHARES), _SHAPES: CLEAR}
    apart = "it does not pool what it sees with another party"
    found = [_view(party, items, shares, apart) for party in parties]
    return [*found, _view("two parties together", items, dict.fromkeys(items, CLEAR))]


def _view(
    adversary: str,
    items: Sequence[str],
    seen: Mapping[str, str],
    assumes: str = "",
    notes: Mapping[str, str] | None = None,
) -> View:
    """What is not in `seen` is not seen."""
    sights = (Sight(item, seen.get(item, NOTHING), (notes or {}).get(item, "")) for item in items)
    return View(adversary, tuple(sights), assumes)
