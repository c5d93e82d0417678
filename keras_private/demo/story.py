"""The whole story on one data set: plain, private, federated + secure + private, and encrypted queries."""

from __future__ import annotations

import json
import platform
import time
import warnings
from pathlib import Path

import tensorflow as tf

from ..errors import ConfigurationError
from ..federated import workers
from ..files import write_whole
from ..report.content import OBSERVERS, RELEASE, Spending
from ..report.document import PrivacyReport
from . import plots
from .acts import encrypted, federated, plain, private
from .data import Images, load
from .outcome import Outcome, table
from .progress import interruptible
from .recipes import network, recipe_for


def run(data: str, folder: Path, allow_open: bool = False) -> int:
    """Plays all acts, prints the table, and writes reports and plots.

    Args:
        data: As `--data`.
        folder: Made if it is missing; files in it of these names are replaced.
        allow_open: Run the clients' work also where its worker cannot keep to itself.

    Returns:
        The exit code.
    """
    # What is missing shall be missed now, and not after minutes.
    plots.drawing()
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with interruptible(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            images = load(data)
            outcomes = _acts(images, folder, allow_open)
        finally:
            # The worker of the clients' work would end with this process only.
            workers.close()
        joined = PrivacyReport.joined([each.report for each in outcomes if each.report is not None])
        _close(outcomes, joined)
        written = _write(outcomes, joined, images.name, folder)
    print(f"\nWritten: {', '.join(map(str, written))}")
    print(f"The whole story took {time.perf_counter() - begun:.0f} s.")
    return 0


def _acts(images: Images, folder: Path, allow_open: bool) -> list[Outcome]:
    recipe = recipe_for(images)
    print(f"Data: {images.name}, {len(images.x_train)} training and {len(images.x_test)} other images.")
    print(f"Network: {network(images, 'any').count_params()} weights, the same in every act.")
    _title(1, "plain Keras", "Nobody is protected from whoever gets this model.")
    outcomes = [plain.play(images, recipe)]
    _title(
        2,
        "differential privacy: kp.make_private(model, epsilon, delta)",
        f"One image more or less: epsilon at most {recipe.epsilon:g} at delta {recipe.delta:g}.",
    )
    outcome, model = private.play(images, recipe)
    outcomes.append(outcome)
    _title(
        3,
        "kp.FederatedModel(model, DPAggregator(SecureAggregation(...)))",
        f"{recipe.clients} clients with skewed labels, {recipe.clients_per_round} expected in each of {recipe.rounds} "
        f"rounds.\nOne client with all its images: epsilon at most {recipe.client_epsilon:g} at delta "
        f"{recipe.client_delta:g}. Sums of updates are opened by two parties.",
    )
    try:
        federated.can_run(allow_open)
    except ConfigurationError as error:
        print(f"Act 3 is left out. {error.problem}\nTo see it: {error.expected}; or the demo's option --allow-open.")
    else:
        outcome, model = federated.play(images, recipe, folder, allow_open)
        outcomes.append(outcome)
    _title(
        4,
        "kp.serve(model, cluster)",
        f"Three parties hold shares of the weights of the model of the {outcome.act!r}; none sees weights or images.",
    )
    outcomes.append(encrypted.play(images, recipe, model))
    return outcomes


def _title(number: int, what: str, says: str) -> None:
    print(f"\nAct {number}: {what}\n{says}", flush=True)


def _close(outcomes: list[Outcome], joined: PrivacyReport) -> None:
    print("\n" + table(outcomes) + "\n")
    for outcome in outcomes:
        for spending in outcome.report.spendings if outcome.report is not None else ():
            print(f"{outcome.act}: {_said(spending)}")
    print("encrypted queries: answers of the model above it; they add nothing to its epsilon.")
    print("plain Keras: for comparison, not kept. It has no epsilon, and is in no report.")
    print("Whoever gets all private models has more than one epsilon says, so release one of them. Added up:")
    for spending in joined.spendings:
        if spending.observer == RELEASE:
            print(f"  {_said(spending)}")
    print("Simulated here, since everything runs on one machine; it protects nobody until it runs apart:")
    for item in joined.simulated:
        print(f"  - {item}")
    print("Accuracy is that on images that nobody trained on; it chose nothing, and no epsilon covers those images.")


def _said(spending: Spending) -> str:
    return (
        f"epsilon {spending.shown} at delta {spending.delta:.3g}, {spending.adjacency}, against "
        f"{OBSERVERS[spending.observer]}"
    )


def _write(outcomes: list[Outcome], joined: PrivacyReport, data: str, folder: Path) -> list[Path]:
    written = [folder / "report.html", folder / "report.json", folder / "results.json"]
    joined.save(written[0])
    joined.save(written[1])
    results = {
        "data": data,
        "acts": [each.facts() for each in outcomes],
        "machine": platform.machine(),
        "tensorflow": tf.__version__,
    }
    write_whole(written[2], (json.dumps(results, indent=2) + "\n").encode(), 0o644)
    written += plots.save(outcomes, folder)
    if any(each.x_is == "round" for each in outcomes):
        written += [folder / federated.ROUNDS, folder / federated.MODEL]
    return written
