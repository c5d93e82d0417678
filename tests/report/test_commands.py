"""keras-private report: prints, joins and converts saved reports, without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from keras_private import cli
from keras_private.report import PrivacyReport
from tests.report import samples


@pytest.fixture
def saved(tmp_path):
    paths = {}
    for kind, make in samples.KINDS.items():
        paths[kind] = str(tmp_path / f"{kind.replace(' ', '_')}.json")
        make().save(paths[kind])
    return paths


def run(*arguments):
    return cli.main(["report", *arguments])


@pytest.mark.parametrize("options", [(), ("--text",)])
def test_text_is_printed(saved, capsys, options):
    assert run(saved["private fit"], *options) == 0
    assert capsys.readouterr().out == f"{samples.private_fit()}\n"


def test_several_are_joined_as_the_library_joins_them(saved, capsys, tmp_path):
    files = [saved[kind] for kind in ("private fit", "federated fit", "prediction service")]
    assert run(*files, "--json", str(tmp_path / "all.json")) == 0
    assert PrivacyReport.load(tmp_path / "all.json") == samples.joined()
    assert run(*files) == 0
    assert f"{samples.joined()}" in capsys.readouterr().out


def test_page_and_json_are_written_whole(saved, capsys, tmp_path):
    page, copy = tmp_path / "page", tmp_path / "copy.json"
    assert run(saved["joint"], "--html", str(page)) == 0
    assert run(saved["joint"], "--json", str(copy)) == 0
    assert page.read_text() == samples.joined().to_html() and copy.read_text() == samples.joined().to_json()
    assert capsys.readouterr().out.split() == ["Wrote", str(page), "Wrote", str(copy)]
    assert {path.name for path in tmp_path.iterdir()} >= {"page", "copy.json"}
    assert not list(tmp_path.glob(".*"))


def test_a_report_may_be_written_over_itself(saved):
    assert run(saved["ledger"], "--json", saved["ledger"]) == 0
    assert PrivacyReport.load(saved["ledger"]) == samples.ledger()


def failed(capsys, *arguments):
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("keras-private report: ")
    return said.err


def test_errors_name_the_file_and_end_with_two(saved, capsys, tmp_path):
    missing = str(tmp_path / "missing.json")
    assert missing in failed(capsys, saved["ledger"], missing)
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    said = failed(capsys, saved["ledger"], str(bad))
    assert f"{bad}: The privacy report cannot be read: JSON of another schema." in said and "What to do" in said
    bad.write_text(json.dumps({**json.loads(samples.ledger().to_json()), "schema_version": 2}))
    assert "version 2 of the schema" in failed(capsys, str(bad))
    assert str(tmp_path) in failed(capsys, str(tmp_path))


def test_a_file_that_cannot_be_written_leaves_what_was_there(saved, capsys, tmp_path):
    failed(capsys, saved["ledger"], "--html", str(tmp_path / "no folder" / "page.html"))
    target = tmp_path / "page.html"
    target.write_text("before")
    failed(capsys, saved["ledger"], str(tmp_path / "missing.json"), "--html", str(target))
    assert target.read_text() == "before"
    (tmp_path / "folder").mkdir()
    failed(capsys, saved["ledger"], "--json", str(tmp_path / "folder"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("arguments", [(), ("x", "--text", "--html", "y"), ("x", "--html", "y", "--json", "z")])
def test_arguments_that_contradict_each_other_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


def test_it_imports_no_tensorflow(saved, tmp_path):
    """Nor numpy: reading a report needs this package's own files alone."""
    code = (
        "import sys; from keras_private import cli\n"
        "assert cli.main(sys.argv[1:]) == 0\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'tensorflow', 'keras', 'numpy'}))"
    )
    arguments = ["report", saved["joint"], saved["ledger"], "--html", str(tmp_path / "page.html")]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout.split("\n")[1] == "[]"
