"""The text of a report: simulations first, every epsilon with all that it means, and no name that can forge a line."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_private.report import Spending
from keras_private.report.text import WIDTH, guarantee, printable, size
from tests.report import samples

PRIVATE_FIT = """\
Privacy report: private fit of digits (training with noise, in one place)
Made 2026-01-02T03:04:05+00:00

Differential privacy
  - epsilon 2.998 at delta 1e-05 for one example, against whoever gets the models (add or remove one example;
    200 steps, poisson sampling, pld)
  - mechanism, for one example: noise multiplier 1.134, sampling probability 0.1, L2 norm clip 0.5, noisy
    coordinates 2410

Who sees what
  host that trains
      clear    examples, one example's gradient
      totals   training metrics
      noisy    model after each step
  whoever gets the model (if History is not handed on)
      noisy    model after each step
      nothing  examples, one example's gradient, training metrics
  whoever gets History or logs
      totals   training metrics
      nothing  examples, one example's gradient, model after each step
  whoever reads the ledger
      nothing  examples, one example's gradient, model after each step, training metrics
  nothing: gets nothing of it
  noisy: gets it with noise; epsilon says what that tells
  totals: gets exact sums or functions over several examples or clients
  clear: reads it

Not covered
  - loss and metrics on training data in History, progress bar and logs, and choices made by them
  - whoever controls the machine or the process that trains

Protocols
  - DP-SGD: each example's gradient clipped, Gaussian noise added to the sum, if the host that trains is
    trusted; the number of examples is public (Abadi et al. 2016, section 3.1)

Cost
  phase  time    bytes  rounds  counted
  fit    12.2 s  -      -       by the clock, in this process

Versions
  keras_private 0.1.0, python 3.11.7, tensorflow 2.14.1, tensorflow-federated 0.87.0"""


def test_a_private_fit():
    assert str(samples.private_fit()) == PRIVATE_FIT


@pytest.mark.parametrize("kind", ["federated fit", "encrypted model", "joint"])
def test_what_is_simulated_comes_before_anything_that_is_protected(kind):
    text = str(samples.KINDS[kind]()).lower()
    assert text.index("simulated") < text.index("differential privacy") < text.index("epsilon")


def test_an_epsilon_stands_with_all_that_it_means():
    infinite = samples.federated_fit().spendings[2]
    assert guarantee(infinite) == (
        "epsilon infinite at delta 1e-06 for one client, against the coordinator, and the parties if there are any "
        "(zero out one client; 20 rounds, unknown sampling, pld)"
    )
    assert "no sampling, no accountant" in guarantee(Spending("example", "release", 0.0, 0.0, "zero out one example"))


def test_without_an_epsilon_it_says_so():
    assert "Epsilon is infinite" in str(samples.encrypted_model())
    assert "Nothing is learnt here" in str(samples.prediction_service())


def test_a_joint_report_holds_those_of_its_parts_and_names_versions_once():
    text = str(samples.joined())
    for part in samples.joined().parts:
        assert f"Privacy report: {part.kind} of {part.model}" in text
    assert text.count("\nVersions") == 1


def test_notes_are_numbered():
    text = str(samples.federated_fit())
    assert "examples [1]" in text and "[1] of its own clients" in text


def test_no_name_can_break_a_line_or_steer_a_terminal():
    text = str(samples.hostile())
    assert not any(each in text for each in "\x1b\x00\u202e")
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.startswith("epsilon 0.1") for line in text.split("\n"))
    assert r"\x1b[31m" in text


@given(st.text())
def test_printable_is_one_line_and_leaves_plain_text_alone(text):
    shown = printable(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    assert not text.isprintable() or shown == text


@pytest.mark.parametrize("kind", samples.KINDS)
def test_lines_are_not_longer_than_a_terminal_but_for_tables(kind):
    report = samples.KINDS[kind]()
    plain = dataclasses.replace(report, costs={}, parts=()) if kind != "joint" else report.parts[0]
    assert max(map(len, str(plain).split("\n"))) <= WIDTH


@pytest.mark.parametrize(
    "count, shown", [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_457_600_000, "2.5 GB"), (3 * 10**15, "3000.0 TB")]
)
def test_sizes(count, shown):
    assert size(count) == shown


def test_nothing_that_is_infinite_looks_finite():
    report = dataclasses.replace(samples.ledger(), spendings=(samples.spending(epsilon=math.inf),))
    assert "epsilon infinite" in str(report) and "epsilon infinite" in repr(report)
