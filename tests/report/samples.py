"""Reports of each kind, with content as the pillars make it; and one whose every name is hostile."""

from __future__ import annotations

import dataclasses
import math
import string

from keras_private.report import Cost, PrivacyReport, Protocol, Series, Sight, Spending, View
from keras_private.report.content import (
    CLEAR,
    CLIENT,
    COHORT,
    COORDINATOR,
    EXAMPLE,
    NOISY,
    NOTHING,
    RELEASE,
    SHARES,
    TOTALS,
)

VERSIONS = {"keras_private": "0.1.0", "python": "3.11.7", "tensorflow": "2.14.1", "tensorflow-federated": "0.87.0"}
CREATED = "2026-01-02T03:04:05+00:00"
EPOCHS = tuple(float(epoch) for epoch in range(1, 21))

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>\x1b[31m\u202ekcab\nepsilon 0.1\x00"
"""Would run, load, colour, turn around and forge a line, if it could."""


def view(adversary: str, items: tuple[str, ...], levels: tuple[str, ...], assumes: str = "", note: str = "") -> View:
    sights = tuple(Sight(item, level, note if at == 0 else "") for at, (item, level) in enumerate(zip(items, levels)))
    return View(adversary, sights, assumes)


def spending(unit: str = EXAMPLE, observer: str = RELEASE, epsilon: float = 2.99712, **others: object) -> Spending:
    sampled = observer == RELEASE
    facts = {
        "delta": 1e-5,
        "adjacency": f"{'add or remove' if sampled else 'zero out'} one {unit}",
        "samplers": ("poisson" if sampled else "unknown",),
        "accountant": "pld",
        "steps": 200,
    }
    return Spending(unit, observer, epsilon, **{**facts, **others})  # type: ignore[arg-type]


def rising(top: float, name: str, x_is: str = "epoch") -> Series:
    return Series(name, EPOCHS, tuple(top * math.sqrt(epoch / EPOCHS[-1]) for epoch in EPOCHS), x_is)


def falling(name: str, x_is: str = "epoch") -> Series:
    return Series(name, EPOCHS, tuple(2.3 / epoch**0.5 for epoch in EPOCHS), x_is)


def private_fit() -> PrivacyReport:
    items = ("examples", "one example's gradient", "model after each step", "training metrics")
    return PrivacyReport(
        kind="private fit",
        model="digits",
        views=(
            view("host that trains", items, (CLEAR, CLEAR, NOISY, TOTALS)),
            view("whoever gets the model", items, (NOTHING, NOTHING, NOISY, NOTHING), "History is not handed on"),
            view("whoever gets History or logs", items, (NOTHING, NOTHING, NOTHING, TOTALS)),
            view("whoever reads the ledger", items, (NOTHING,) * 4),
        ),
        spendings=(
            spending(
                mechanism={
                    "noise multiplier": "1.134",
                    "sampling probability": "0.1",
                    "L2 norm clip": 0.5,
                    "noisy coordinates": 2410,
                }
            ),
        ),
        protocols=(
            Protocol(
                "DP-SGD: each example's gradient clipped, Gaussian noise added to the sum",
                ("the host that trains is trusted", "the number of examples is public"),
                "Abadi et al. 2016, section 3.1",
            ),
        ),
        not_covered=(
            "loss and metrics on training data in History, progress bar and logs, and choices made by them",
            "whoever controls the machine or the process that trains",
        ),
        costs={"fit": Cost(seconds=12.25, says="by the clock, in this process")},
        series=(rising(2.99712, "epsilon"), rising(0.91, "accuracy"), rising(0.87, "val_accuracy"), falling("loss")),
        versions=VERSIONS,
        created=CREATED,
    )


def federated_fit() -> PrivacyReport:
    items = (
        "examples",
        "one client's update",
        "who took part",
        "mean update of a round",
        "model of each round",
        "figures of training",
    )
    own = "of its own clients"
    apart = "it does not pool what it sees with both others"
    party = (NOTHING, SHARES, CLEAR, NOTHING, NOTHING, NOTHING)
    facts = {"noise multiplier": "0.8 and 1.1", "L2 norm clip": "1", "sums by": "SecureAggregation"}
    rounds = {"delta": 1e-6, "steps": 20, "steps_are": "rounds", "mechanism": facts}
    return PrivacyReport(
        kind="federated fit",
        model="keyboard",
        views=(
            view("coordinator", items, (NOTHING, SHARES, CLEAR, NOISY, NOISY, NOTHING), "it sends its own graphs only"),
            view("party 0", items, party, apart),
            view("party 1", items, party, apart),
            view("coordinator and both parties together", items, (NOTHING, CLEAR, CLEAR, TOTALS, TOTALS, NOTHING)),
            view("a client's host", items, (CLEAR, CLEAR, CLEAR, NOISY, NOISY, CLEAR), note=own),
            view("whoever gets the models", items, (NOTHING, NOTHING, NOTHING, NOISY, NOISY, NOTHING)),
            view("network", items, (NOTHING,) * 6, "TLS holds; sizes and times are seen"),
        ),
        spendings=(
            spending(CLIENT, RELEASE, 7.99961, **rounds),
            spending(CLIENT, COHORT, 24.5, **rounds),
            spending(CLIENT, COORDINATOR, math.inf, **rounds),
        ),
        protocols=(
            Protocol(
                "Masked sums: each client adds two pads, each party takes off the sum of its own",
                ("of the coordinator and the two parties, no three pool what they see",),
                "masks as in Bonawitz et al. 2017, section 4.0",
            ),
        ),
        simulated=("both parties, their keys and those of the clients are in this process",),
        not_covered=("what a client's host does with its own data",),
        costs={
            "fit": Cost(84.5, 2_457_600_000, 20, "weights to clients and their updates, without examples and framing"),
            "evaluation": Cost(),
        },
        series=(rising(7.99961, "epsilon", "round"), rising(0.83, "val_accuracy", "round"), falling("loss", "round")),
        versions=VERSIONS,
        created=CREATED,
    )


def encrypted_model() -> PrivacyReport:
    items = ("weights", "inputs", "labels", "predictions", "loss and metrics", "architecture, shapes, number of rows")
    party = (SHARES,) * 5 + (CLEAR,)
    apart = "it does not pool what it sees with another party"
    return PrivacyReport(
        kind="encrypted model",
        model="credit",
        views=(
            *(view(f"server{at}", items, party, apart) for at in range(3)),
            view("two parties together", items, (CLEAR,) * 6),
            view("model_owner", items, (CLEAR, NOTHING, NOTHING, NOTHING, TOTALS, CLEAR)),
            view("owners of data, such as data_owner", items, (NOTHING, CLEAR, CLEAR, CLEAR, NOTHING, CLEAR)),
            view("this process, which runs all parties", items, (CLEAR,) * 6),
        ),
        protocols=(
            Protocol(
                "ABY3: replicated shares of three parties in the ring of 64-bit integers",
                ("the three parties follow the protocol", "no two of them pool what they see"),
                "Mohassel and Rindal 2018, sections 3 and 5",
            ),
        ),
        simulated=("the three parties run in this process, whose memory holds all shares",),
        not_covered=("what predictions and opened totals say of weights and data",),
        costs={"training step of 128 rows": Cost(bytes=31_000_000, rounds=144, says="sent by all, payload")},
        series=(falling("loss"), rising(0.84, "accuracy")),
        versions=VERSIONS,
        created=CREATED,
    )


def prediction_service() -> PrivacyReport:
    items = ("weights", "inputs", "predictions", "architecture, shapes, number of rows")
    return PrivacyReport(
        kind="prediction service",
        model="triage",
        views=(
            view("server0", items, (SHARES, SHARES, SHARES, CLEAR)),
            view("owner, who publishes", items, (CLEAR, NOTHING, NOTHING, CLEAR)),
            view("a client", items, (NOTHING, CLEAR, CLEAR, CLEAR)),
            view("network", items, (NOTHING,) * 4, "TLS holds; sizes and times are seen"),
        ),
        learns=False,
        costs={"request of up to 128 rows": Cost(bytes=7_700_000, says="sent between the parties, payload")},
        versions=VERSIONS,
        created=CREATED,
    )


def ledger() -> PrivacyReport:
    return PrivacyReport(
        kind="ledger",
        model="spent.ledger",
        views=(),
        spendings=(spending(epsilon=1.25),),
        not_covered=("steps that ran without a PrivacyBudget that used this ledger",),
        versions=VERSIONS,
        created=CREATED,
    )


def joined() -> PrivacyReport:
    return PrivacyReport.joined([private_fit(), federated_fit(), prediction_service()])


KINDS = {
    "private fit": private_fit,
    "federated fit": federated_fit,
    "encrypted model": encrypted_model,
    "prediction service": prediction_service,
    "ledger": ledger,
    "joint": joined,
}


def hostile() -> PrivacyReport:
    """Every text that a report may hold, set to HOSTILE and a letter of its own."""
    letters = iter(string.ascii_letters)

    def text() -> str:
        return HOSTILE + next(letters)

    items = (text(), text())
    return PrivacyReport(
        kind="private fit",
        model=text(),
        views=(View(text(), tuple(Sight(item, CLEAR, text()) for item in items), text()),),
        spendings=(
            spending(samplers=(text(),), accountant=text(), steps_are=text(), mechanism={text(): text(), text(): 1.5}),
        ),
        protocols=(Protocol(text(), (text(),), text()),),
        simulated=(text(),),
        not_covered=(text(),),
        costs={text(): Cost(1.0, 2, 3, text())},
        series=tuple(
            dataclasses.replace(rising(1.0, name + text()), x_is=text()) for name in ("epsilon", "accuracy", "loss")
        ),
        versions={text(): text()},
        created=text(),
    )
