"""keras-private: what doctor prints, and what it returns."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from typing import Any

import pytest

import keras_private
from keras_private import _backends, cli
from keras_private.errors import BackendError, ConfigurationError


def hide(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    """Makes packages look absent (None) or installed at another version."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        found = versions[name] if name in versions else real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"keras-private {keras_private.__version__}"


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "doctor" in capsys.readouterr().err


def test_doctor_as_a_process_is_quiet_and_succeeds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keras_private", "doctor"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    for name in ("tensorflow", "tensorflow-privacy", "tensorflow-federated", "tf-encrypted", "numpy"):
        assert name in done.stdout
    assert done.stdout.rstrip().endswith("works")


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["dp_works"] is True
    assert found["random_source"] in ("native", "portable")
    assert found["native"]["available"] == (found["random_source"] == "native")
    versions = {each["name"]: each["version"] for each in found["packages"]}
    assert versions["tensorflow"] == importlib.metadata.version("tensorflow")


def test_missing_optional_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, {"tensorflow-federated": None, "tensorflow-privacy": "0.8.0"})
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "missing  tensorflow-federated" in printed
    assert f'-m pip install --no-deps -r "{_backends.FEDERATED_REQUIREMENTS}"' in printed
    assert "differs  tensorflow-privacy    0.8.0" in printed
    assert '-m pip install "tensorflow-privacy==0.9.0"' in printed


def test_missing_needed_package_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, {"dp-accounting": None})
    assert cli.main(["doctor"]) == 1
    assert "cannot work: dp-accounting ==0.4.3 is needed, nothing is installed" in capsys.readouterr().out


def test_no_secure_source_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise RuntimeError("no entropy")

    monkeypatch.setattr("keras_private.random.secure_source", broken)
    assert cli.main(["doctor"]) == 1
    assert "cannot work: RuntimeError: no entropy" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["tensorflow_federated", "tensorflow_privacy", "tf_encrypted", "dp_accounting"])
def test_require_missing(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    hide(monkeypatch, {module.replace("_", "-"): None})
    with pytest.raises(BackendError) as raised:
        _backends.require(module)
    requirement = next(each for each in _backends.REQUIREMENTS if each.module == module)
    assert raised.value.problem == f"{requirement.name} is not installed"
    assert raised.value.remedy == requirement.remedy
    assert isinstance(raised.value, ImportError)


def test_require_wrong_version(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, {"tf-encrypted": "0.8.0"})
    with pytest.raises(BackendError) as raised:
        _backends.require("tf_encrypted")
    assert raised.value.problem == "tf-encrypted 0.8.0 is installed"
    assert raised.value.expected == "tf-encrypted ==0.9.1, for encrypted training and serving"
    assert raised.value.remedy.endswith('-m pip install "tf-encrypted==0.9.1"')


def test_require_broken_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(BackendError, match="cannot be imported"):
        _backends.require("dp_accounting")


def test_require_unknown_name() -> None:
    with pytest.raises(ConfigurationError, match="'torch' is no backend"):
        _backends.require("torch")


@pytest.mark.parametrize(
    ("version", "fits"),
    [("1.24.4", False), ("1.25", True), ("1.25.0", True), ("1.26.4", True), ("2", False), ("2.0.1", False)],
)
def test_range_of_versions(version: str, fits: bool) -> None:
    assert next(each for each in _backends.REQUIREMENTS if each.name == "numpy").fits(version) is fits
