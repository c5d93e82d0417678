"""A report as a whole: nothing by omission, joined honestly, saved whole."""

from __future__ import annotations

import dataclasses
import math

import pytest

import keras_private as kp
from keras_private.errors import ConfigurationError, ReportError
from keras_private.report import PrivacyReport, Sight, View
from keras_private.report.content import CLEAR, CLIENT, EXAMPLE, NOISY, NOTHING, SHARES
from tests.report import samples


def test_it_is_public_at_the_root():
    assert kp.PrivacyReport is PrivacyReport


def test_every_adversary_has_an_entry_for_every_thing():
    first = View("host", (Sight("examples", CLEAR), Sight("models", CLEAR)))
    with pytest.raises(ConfigurationError, match=r"client without \['models'\]"):
        PrivacyReport("private fit", "m", (first, View("client", (Sight("examples", CLEAR),))))
    with pytest.raises(ConfigurationError, match="each adversary once"):
        PrivacyReport("private fit", "m", (first, first))
    with pytest.raises(ConfigurationError, match="kind"):
        PrivacyReport("plain fit", "m", ())


def test_who_sees_asks_for_at_least_a_level():
    report = samples.federated_fit()
    assert report.who_sees("one client's update") == ("coordinator and both parties together", "a client's host")
    assert set(report.who_sees("one client's update", SHARES)) - set(report.who_sees("one client's update")) == {
        "coordinator", "party 0", "party 1"
    }  # fmt: skip
    assert "whoever gets the models" in report.who_sees("model of each round", NOISY)
    assert len(report.who_sees("examples", NOTHING)) == len(report.views)
    with pytest.raises(ConfigurationError, match="one of examples, one client's update"):
        report.who_sees("weights")
    with pytest.raises(ConfigurationError, match="nothing, shares"):
        report.who_sees("examples", "a bit")


def test_joined_adds_up_names_simulations_and_what_it_cannot_know():
    report = samples.joined()
    example = next(each for each in report.spendings if each.unit == EXAMPLE)
    assert example.epsilon == pytest.approx(2.99712 + 2 * 7.99961)
    assert math.isinf(next(each for each in report.spendings if each.unit == CLIENT).epsilon)
    assert report.simulated == ("keyboard: both parties, their keys and those of the clients are in this process",)
    assert report.not_covered[0].startswith("what triage (prediction service) had learnt before, unless")
    assert "not among these" in report.not_covered[-1]
    assert [part.kind for part in report.parts] == ["private fit", "federated fit", "prediction service"]


def test_joined_takes_joint_reports_apart():
    one, other = samples.private_fit(), samples.ledger()
    assert PrivacyReport.joined([PrivacyReport.joined([one]), other]) == PrivacyReport.joined([one, other])


def test_a_training_without_noise_and_a_private_one_are_together_without_guarantee():
    report = PrivacyReport.joined([samples.private_fit(), samples.encrypted_model()])
    assert [each.epsilon for each in report.spendings] == [math.inf]


def test_services_alone_learn_nothing_together():
    report = PrivacyReport.joined([samples.prediction_service()] * 2)
    assert not report.learns and report.spendings == ()


@pytest.mark.parametrize("wrong", [[], ["report.json"]])
def test_joined_takes_reports(wrong):
    with pytest.raises(ConfigurationError, match="reports"):
        PrivacyReport.joined(wrong)


def test_a_joint_report_cannot_say_less_than_its_parts():
    report = samples.joined()
    lower = dataclasses.replace(report.spendings[0], epsilon=1.0)
    for wrong in (
        {"spendings": ()},
        {"spendings": (lower, *report.spendings[1:])},
        {"spendings": report.spendings[:1]},
        {"learns": False},
        {"parts": report.parts[:1]},
        {"parts": ()},
        {"parts": (report,)},
        {"kind": "private fit"},
    ):
        with pytest.raises(ConfigurationError, match=r"spendings|parts"):
            dataclasses.replace(report, **wrong)


def test_versions_that_differ_are_all_named():
    old = dataclasses.replace(samples.ledger(), versions={"keras_private": "0.0.9"})
    report = PrivacyReport.joined([old, samples.private_fit()])
    assert report.versions["keras_private"] == "0.0.9 and 0.1.0" and report.versions["python"] == "3.11.7"


@pytest.mark.parametrize("kind", samples.KINDS)
def test_save_chooses_the_form_by_name_and_json_is_loaded_again(kind, tmp_path):
    report = samples.KINDS[kind]()
    for name in ("r.json", "r.HTML", "r.txt"):
        report.save(tmp_path / name)
    assert PrivacyReport.load(tmp_path / "r.json") == report
    assert (tmp_path / "r.HTML").read_text() == report.to_html()
    assert (tmp_path / "r.txt").read_text() == f"{report}\n"
    with pytest.raises(ReportError):
        PrivacyReport.load(tmp_path / "r.txt")


def test_save_refuses_other_names_and_leaves_what_was_there_when_it_fails(tmp_path):
    report, target = samples.private_fit(), tmp_path / "r.json"
    with pytest.raises(ConfigurationError, match=r"\.json, \.html, \.txt"):
        report.save(tmp_path / "r.pdf")
    target.write_text("before")
    (tmp_path / ".r.json.new").mkdir()  # In the way of the new file.
    with pytest.raises(OSError):
        report.save(target)
    assert target.read_text() == "before"


def test_repr_is_one_line():
    assert repr(samples.private_fit()) == (
        "<PrivacyReport: private fit of digits, epsilon 2.998 at delta 1e-05 for one example>"
    )
    assert repr(samples.federated_fit()).endswith("epsilon 8.000 at delta 1e-06 for one client, simulated>")
    assert repr(samples.encrypted_model()) == "<PrivacyReport: encrypted model of credit, no epsilon, simulated>"
    assert repr(samples.prediction_service()).endswith("of triage, nothing is learnt>")
    assert "\n" not in repr(samples.hostile()) and "\x1b" not in repr(samples.hostile())


def test_a_notebook_shows_the_page_without_its_frame():
    shown = samples.private_fit()._repr_html_()
    assert shown in samples.private_fit().to_html()
    assert shown.startswith("<style>") and "<html" not in shown and "<main" not in shown
