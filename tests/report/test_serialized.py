"""JSON: what was written is read back, what is not such a file is refused, and the schema says what it is."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_private.errors import PrivacyError, ReportError
from keras_private.report import Cost, PrivacyReport, Protocol, Series, Sight, View
from keras_private.report.content import LEVELS, OBSERVERS, UNITS
from keras_private.report.document import KINDS
from keras_private.report.serialized import digest_of
from tests.report import samples

VALIDATOR = jsonschema.Draft202012Validator(PrivacyReport.json_schema())

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
few_texts = st.lists(texts, max_size=2).map(tuple)
figures = st.floats(allow_nan=True, allow_infinity=True)
counts = st.none() | st.integers(0, 10**18)
costs = st.builds(Cost, st.none() | st.floats(0, 1e300), counts, counts, texts)


@st.composite
def series(draw):
    x = sorted(draw(st.sets(st.floats(-1e9, 1e9), max_size=4)))
    return Series(draw(texts), tuple(x), tuple(draw(figures) for _ in x), draw(texts))


@st.composite
def reports(draw):
    items = draw(st.lists(texts, max_size=3, unique=True))
    adversaries = draw(st.lists(texts, max_size=3, unique=True))
    levels = st.sampled_from(list(LEVELS))
    return PrivacyReport(
        kind=draw(st.sampled_from([kind for kind in KINDS if kind != "joint"])),
        model=draw(texts),
        views=tuple(
            View(name, tuple(Sight(item, draw(levels), draw(texts)) for item in items), draw(texts))
            for name in adversaries
        ),
        spendings=tuple(
            samples.spending(
                draw(st.sampled_from(UNITS)),
                draw(st.sampled_from(list(OBSERVERS))),
                draw(st.floats(0, allow_nan=False)),
                delta=draw(st.floats(0, 1, exclude_max=True)),
                samplers=draw(few_texts),
                mechanism=draw(st.dictionaries(texts, texts | st.integers() | st.floats(-1e300, 1e300), max_size=2)),
            )
            for _ in range(draw(st.integers(0, 3)))
        ),
        learns=draw(st.booleans()),
        protocols=tuple(draw(st.lists(st.builds(Protocol, texts, few_texts, texts), max_size=2))),
        simulated=draw(few_texts),
        not_covered=draw(few_texts),
        costs=draw(st.dictionaries(texts, costs, max_size=2)),
        series=tuple(draw(st.lists(series(), max_size=2))),
        versions=draw(st.dictionaries(texts, texts, max_size=2)),
        created=draw(texts),
    )


any_report = st.one_of(
    reports(), st.lists(reports(), min_size=1, max_size=3).map(PrivacyReport.joined), st.just(samples.hostile())
)

# A report takes a while to draw, more so where other tests run beside this one.
patient = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)


def written(report):
    return json.loads(report.to_json())


def sealed(content):
    """As a forger would write it: with the digest of what it now is."""
    body = {name: value for name, value in content.items() if name not in ("schema", "schema_version", "digest")}
    return json.dumps({**content, "digest": digest_of(body)})


def refused(text, match):
    with pytest.raises(ReportError, match=match) as raised:
        PrivacyReport.from_json(text)
    assert raised.value.expected and raised.value.remedy


# The round trip.


@patient
@given(any_report)
def test_a_report_that_is_written_read_and_written_again_is_the_same(report):
    text = report.to_json()
    read = PrivacyReport.from_json(text)
    assert read == report and read.to_json() == text
    assert PrivacyReport.from_json(text.encode("utf-8")) == report


@patient
@given(any_report)
def test_what_is_written_is_valid_by_the_schema(report):
    VALIDATOR.validate(written(report))


@patient
@given(any_report)
def test_white_space_order_and_escapes_mean_nothing(report):
    assert PrivacyReport.from_json(json.dumps(written(report), sort_keys=True)) == report


def test_the_head_comes_first_and_infinity_is_a_word():
    text = samples.federated_fit().to_json()
    assert list(json.loads(text))[:4] == ["schema", "schema_version", "digest", "kind"]
    assert json.loads(text)["spendings"][2]["epsilon"] == "infinite" and "Infinity" not in text


def test_losses_that_are_no_numbers_can_be_kept():
    report = dataclasses.replace(
        samples.ledger(), series=(Series("loss", (1.0, 2.0, 3.0), (math.nan, math.inf, -math.inf)),)
    )
    assert written(report)["series"][0]["y"] == ["undefined", "infinite", "-infinite"]
    assert PrivacyReport.from_json(report.to_json()) == report


# Foreign, newer, cut short, altered.


NO_REPORTS = ["", "{", "null", "[]", '"text"', b"\xff\xfe", b"\x80", "[" * 10**5, '{"a": 1, "a": 1}', "NaN", "1e999"]


@pytest.mark.parametrize("text", NO_REPORTS)
def test_what_is_no_report_is_refused(text):
    refused(text, "no JSON|another schema")


def test_another_schema_is_refused():
    refused(json.dumps({**written(samples.ledger()), "schema": "somebody.else"}), "another schema")


@pytest.mark.parametrize("version", [2, 0, None, "1", True, 1.0])
def test_another_version_is_refused(version):
    refused(json.dumps({**written(samples.ledger()), "schema_version": version}), "version .* of the schema")


@given(st.data())
def test_a_file_that_is_cut_short_is_refused(data):
    text = samples.ledger().to_json().rstrip("\n")
    refused(text[: data.draw(st.integers(0, len(text) - 1))], "no JSON|another schema")


@pytest.mark.parametrize("kind", samples.KINDS)
def test_an_epsilon_that_was_altered_is_refused(kind):
    text = samples.KINDS[kind]().to_json()
    assert PrivacyReport.from_json(text)
    refused(text.replace('"learns": true', '"learns": false') if "true" in text else text.replace(
        '"learns": false', '"learns": true'), "altered|spendings")  # fmt: skip
    if "2.99712" in text:
        refused(text.replace("2.99712", "0.99712"), "altered|spendings")


def test_a_digest_that_is_missing_or_another_is_refused():
    content = written(samples.ledger())
    for digest in (None, "", "0" * 64):
        refused(json.dumps({**content, "digest": digest}), "altered")
    content.pop("digest")
    refused(json.dumps(content), "altered")


def places(value, path=()):
    """Every place within JSON, with its value."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def put(content, path, value):
    changed = copy.deepcopy(content)
    at = changed
    for key in path[:-1]:
        at = at[key]
    if value is KeyError:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return changed


FORGED = written(samples.joined())
PLACES = [path for path, _ in places(FORGED) if path]


VALUES = [KeyError, None, True, -1, 1.5, "x", "infinite", [], {}, [[]], "\ud800"]


@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_a_forged_file_is_a_report_of_the_schema_or_is_refused(path, value):
    forged = put(FORGED, path, value)
    try:
        text = sealed(forged)
        report = PrivacyReport.from_json(text)
    except PrivacyError as error:
        assert isinstance(error, ReportError)
        return
    assert VALIDATOR.is_valid(json.loads(text))
    assert isinstance(str(report), str) and report.to_html().encode("utf-8") and repr(report)


@pytest.mark.parametrize("path", [path for path in PLACES if isinstance(path[-1], str)][:40])
def test_a_field_that_is_left_out_is_refused_by_reader_and_schema(path):
    if path[-1] in ("schema", "schema_version", "digest") or "mechanism" in path[:-1] or path[-2:-1] == ("versions",):
        return
    forged = put(FORGED, path, KeyError)
    refused(sealed(forged), "not an object with|another schema|version")
    assert not VALIDATOR.is_valid(forged)


def test_a_field_too_many_is_refused_by_reader_and_schema():
    forged = {**written(samples.ledger()), "seal": "trust me"}
    refused(sealed(forged), "not an object with")
    assert not VALIDATOR.is_valid(forged)


@pytest.mark.parametrize(
    "path, value",
    [
        (("kind",), "plain fit"),
        (("spendings", 0, "unit"), "household"),
        (("spendings", 0, "observer"), "nobody"),
        (("spendings", 0, "epsilon"), -1),
        (("spendings", 0, "epsilon"), None),
        (("spendings", 0, "delta"), "small"),
        (("spendings", 0, "steps"), 1.5),
        (("spendings", 0, "samplers"), "poisson"),
        (("learns",), 1),
        (("versions",), []),
        (("versions", "python"), 3.11),
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(path, value):
    forged = put(written(samples.ledger()), path, value)
    assert not VALIDATOR.is_valid(forged)
    refused(sealed(forged), "report|unit|observer|epsilon|kind")


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(PrivacyReport.json_schema())
    json.dumps(PrivacyReport.json_schema())


def test_a_view_that_leaves_something_out_is_refused():
    forged = written(samples.private_fit())
    del forged["views"][1]["sights"][0]
    refused(sealed(forged), "an entry for every thing|without")


def test_a_joint_ledger_that_lies_is_refused_whatever_its_digest():
    forged = written(samples.joined())
    forged["spendings"][0]["epsilon"] = 0.5
    refused(sealed(forged), "spendings")
