"""The build: re-used when nothing changed, clear when something is missing, importable on its own."""

from __future__ import annotations

import ast
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import tensorflow as tf

from keras_private.native import build

FOLDER = pathlib.Path(build.__file__).parent


def test_only_the_standard_library_is_imported_at_module_level() -> None:
    names = set()
    for node in ast.parse((FOLDER / "build.py").read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names and names <= set(sys.stdlib_module_names)


def test_an_unchanged_library_is_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both times the real build; only what TensorFlow and the compiler say is ours."""
    monkeypatch.setattr(build, "_tensorflow_flags", lambda: {"compile": [], "link": []})
    compiled: list[pathlib.Path] = []

    def compiler(command: str, flags: dict[str, list[str]], scratch: pathlib.Path) -> pathlib.Path:
        compiled.append(scratch / "made")
        compiled[-1].write_bytes(b"library")
        return compiled[-1]

    monkeypatch.setattr(build, "_compile", compiler)
    library = build.build_library(tmp_path)
    assert len(compiled) == 1 and library == tmp_path / build.LIBRARY_NAME
    before = [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(tmp_path.iterdir())]
    assert [name for name, _, _ in before] == sorted([build.LIBRARY_NAME, build.STAMP_NAME])
    monkeypatch.setattr(build.subprocess, "run", lambda *a, **k: pytest.fail("something was run"))
    assert build.build_library(tmp_path) == library and len(compiled) == 1
    assert [(path.name, path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(tmp_path.iterdir())] == before


def test_a_library_whose_sources_changed_is_not_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through the sources themselves: one byte more in one of them, and the compiler runs again."""
    sources = tmp_path / "src"
    shutil.copytree(build.SOURCE_DIR, sources)
    monkeypatch.setattr(build, "SOURCE_DIR", sources)
    monkeypatch.setattr(build, "_tensorflow_flags", lambda: {"compile": [], "link": []})
    runs: list[int] = []

    def compiler(command: str, flags: dict[str, list[str]], scratch: pathlib.Path) -> pathlib.Path:
        runs.append(1)
        (scratch / "made").write_bytes(b"library")
        return scratch / "made"

    monkeypatch.setattr(build, "_compile", compiler)
    target = tmp_path / "target"
    for expected in (1, 1):
        build.build_library(target)
        assert len(runs) == expected
    one = sorted(sources.glob("*.cc"))[0]
    one.write_bytes(one.read_bytes() + b"\n")
    build.build_library(target)
    assert len(runs) == 2


def test_the_stamp_says_what_the_library_was_built_from() -> None:
    stamp = json.loads((build.build_library().parent / build.STAMP_NAME).read_text())
    assert stamp["tensorflow"] == tf.__version__ and stamp["sources_sha256"] == build.source_digest()
    assert stamp["compiler"] and stamp["cxx11_abi"] == tf.sysconfig.CXX11_ABI_FLAG


@pytest.mark.parametrize("changed", ["tensorflow", "sources_sha256", "machine"])
def test_a_stale_library_is_rebuilt(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    stamp = json.loads((build.build_library().parent / build.STAMP_NAME).read_text())
    (tmp_path / build.LIBRARY_NAME).write_bytes(b"old")
    (tmp_path / build.STAMP_NAME).write_text(json.dumps({**stamp, changed: "other"}))
    made = tmp_path / "made"
    made.write_bytes(b"new")
    monkeypatch.setattr(build, "_compile", lambda compiler, flags, scratch: made)
    monkeypatch.setattr(build, "_tensorflow_flags", lambda: {"compile": ["-D_GLIBCXX_USE_CXX11_ABI=1"], "link": []})
    assert build.build_library(tmp_path).read_bytes() == b"new"
    assert json.loads((tmp_path / build.STAMP_NAME).read_text())[changed] == stamp[changed]
    assert sorted(path.name for path in tmp_path.iterdir()) == [build.STAMP_NAME, build.LIBRARY_NAME]


def test_no_compiler_is_a_clear_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.BuildError, match=r"apt-get install g[+][+] libssl-dev"):
        build.build_library(tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_openssl_headers_is_a_clear_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'fatal error: openssl/evp.h: No such file or directory' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "_tensorflow_flags", lambda: {"compile": [], "link": []})
    with pytest.raises(build.BuildError, match=r"openssl/evp.h was not found; install with: apt-get"):
        build.build_library(tmp_path / "target")


def test_no_tensorflow_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TENSORFLOW_PACKAGES", ("no-such-package-here",))
    with pytest.raises(build.BuildError, match="pip install tensorflow"):
        build.tensorflow_version()


@pytest.mark.slow
def test_the_sources_compile_and_load_elsewhere(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, str(FOLDER / "build.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert pathlib.Path(done.stdout.strip()) == tmp_path / build.LIBRARY_NAME
    path = str(tmp_path / build.LIBRARY_NAME)
    code = f"import tensorflow as tf; tf.load_op_library({path!r}).keras_private_status()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
