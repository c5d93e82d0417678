"""What an act of the story came to, and all of them as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from ..report.document import PrivacyReport
from ..report.text import size


@dataclass(frozen=True)
class Outcome:
    """Of one act.

    Attributes:
        act: Its name in table and plots.
        accuracy: On images that nobody trained on.
        epsilon: What the table says of it.
        seconds: Of the whole act, by the clock.
        sent: Bytes between processes, as `sent_by` says; None: everything was in one process.
        sent_by: Who sent them to whom.
        x_is: What its series are over: "epoch" or "round".
        accuracies, epsilons: After each of these; empty if there are none.
        report: Who learnt what; None for plain Keras.
    """

    act: str
    accuracy: float
    epsilon: str
    seconds: float
    sent: Optional[int] = None
    sent_by: str = ""
    x_is: str = "epoch"
    accuracies: tuple[float, ...] = ()
    epsilons: tuple[float, ...] = ()
    report: Optional[PrivacyReport] = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "act": self.act,
            "accuracy": self.accuracy,
            "epsilon": self.epsilon,
            "seconds": self.seconds,
            "bytes": self.sent,
            "bytes_are": self.sent_by,
            "over": self.x_is,
            "accuracies": self.accuracies,
            "epsilons": self.epsilons,
        }


def table(outcomes: Sequence[Outcome]) -> str:
    """A row for each act."""
    rows = [("act", "accuracy", "epsilon", "seconds", "bytes")]
    for each in outcomes:
        sent = "-" if each.sent is None else f"{size(each.sent)} {each.sent_by}"
        rows.append((each.act, f"{each.accuracy:.1%}", each.epsilon, f"{each.seconds:.0f}", sent))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]

    def line(row: Sequence[str]) -> str:
        act, accuracy, epsilon, seconds, sent = row
        return "  ".join(
            (act.ljust(widths[0]), accuracy.rjust(widths[1]), epsilon.ljust(widths[2]), seconds.rjust(widths[3]), sent)
        ).rstrip()

    return "\n".join([line(rows[0]), "-" * max(map(len, map(line, rows))), *map(line, rows[1:])])
