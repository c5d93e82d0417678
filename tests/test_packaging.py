"""The install: lock, versions that agree everywhere, imports of the five packages, and the package's own borders."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import pytest

from keras_private import _backends

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "keras_private"
MODULES = sorted(PACKAGE.rglob("*.py"))
LOCK = (ROOT / "requirements.lock").read_text()
FEDERATED = _backends.FEDERATED_REQUIREMENTS.read_text()

PRIVATE_MODULES = re.compile(r"^(tensorflow\.python|tensorflow\.core|tensorflow\.compiler|keras\.src)(\.|$)")
OPTIONAL_MODULES = re.compile(r"^(tensorflow_privacy|tensorflow_federated|tf_encrypted)(\.|$)")
PRIVATE_ATTRIBUTES = {"__internal__", "_api", "src"}


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("text", [LOCK, FEDERATED], ids=["lock", "federated"])
def test_every_locked_package_is_pinned_and_hashed(text: str) -> None:
    blocks = re.split(r"\n(?=[^ #\n])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).strip())
    for block in blocks:
        assert re.match(r"[a-z0-9.-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+$", block), block[:200]


@pytest.mark.parametrize("text", [LOCK, FEDERATED], ids=["lock", "federated"])
def test_no_address_in_the_lock(text: str) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|(?<![\w*])/\w+/", text)


def test_federated_list_is_part_of_the_lock() -> None:
    assert pins(FEDERATED).items() <= pins(LOCK).items()
    assert "tensorflow-federated" in pins(FEDERATED)


def test_lock_and_doctor_want_the_same_versions() -> None:
    for each in _backends.REQUIREMENTS:
        assert each.fits(pins(LOCK)[each.name]), each


def test_plain_install_wants_what_doctor_wants() -> None:
    declared = importlib.metadata.requires("keras_private") or []
    declared = [line for line in declared if "extra ==" not in line]
    for each in _backends.REQUIREMENTS:
        if each.module == "tensorflow_federated":
            continue
        line = next(line for line in declared if re.match(rf"{each.name}[<>=]", line))
        assert set(line[len(each.name) :].split(",")) == set(each.wanted.split(",")), (line, each.wanted)


def test_build_compiles_against_the_tensorflow_it_runs_with() -> None:
    wanted = next(each.wanted for each in _backends.REQUIREMENTS if each.name == "tensorflow")
    requires = re.search(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert requires is not None
    assert f"tensorflow{wanted}" in ast.literal_eval(requires.group(1))


FIVE = ["tensorflow", "tensorflow_privacy", "tensorflow_federated", "tf_encrypted", "numpy"]


@pytest.mark.parametrize("module", FIVE)
@pytest.mark.long
def test_the_five_packages_import(module: str) -> None:
    # Each in a process of its own; output to nowhere, since a started worker would keep a pipe open.
    code = f"from keras_private import _backends; _backends.require({module!r})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=240, check=False)
    assert done.returncode == 0, f"run to see why: {sys.executable} -c {code!r}"


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of what a build reads, without anything built before."""
    tree = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    built = shutil.ignore_patterns("*.so", "_keras_private_ops.json", "__pycache__", ".build-*")
    shutil.copytree(PACKAGE, tree / "keras_private", ignore=built)
    return tree


def build_wheel(tree: pathlib.Path, target: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "KERAS_PRIVATE_REQUIRE_NATIVE")}
    return subprocess.run(
        [*command, str(target), str(tree)], env={**kept, **environment}, capture_output=True, text=True, check=False
    )


def test_without_a_compiler_the_wheel_has_no_library_and_says_so(
    source_tree: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    done = build_wheel(source_tree, tmp_path, PATH=str(tmp_path))
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "installed WITHOUT its native operations: no C++ compiler (g++) was found" in printed
    (wheel,) = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("-any.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in packed if name.endswith((".so", ".json"))]
    # What `python -m keras_private.native.build` and the federated remedy need after the install.
    sources = {f"keras_private/native/src/{path.name}" for path in (PACKAGE / "native" / "src").glob("*.[ch]*")}
    modules = {str(path.relative_to(ROOT)) for path in MODULES}
    assert sources | modules | {"keras_private/py.typed", "keras_private/requirements-federated.txt"} <= packed


def test_without_a_compiler_a_build_that_requires_the_library_fails(
    source_tree: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    done = build_wheel(source_tree, tmp_path, PATH=str(tmp_path), KERAS_PRIVATE_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "the native operations were not built: no C++ compiler (g++) was found; install with" in (
        done.stdout + done.stderr
    )


@pytest.mark.slow
def test_with_a_compiler_the_wheel_has_the_library_and_its_stamp(
    source_tree: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    done = build_wheel(source_tree, tmp_path, KERAS_PRIVATE_REQUIRE_NATIVE="1")
    assert done.returncode == 0, done.stdout + done.stderr
    packed = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert {f"keras_private/native/_keras_private_ops.{ending}" for ending in ("so", "json")} <= packed


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("python", "PYTHON=/nowhere/python is not a Python 3.11"),
        ("compiler", "sudo apt-get install -y g++ libssl-dev"),
    ],
)
def test_missing_system_packages_are_named(what: str, message: str, tmp_path: pathlib.Path) -> None:
    # An empty PATH hides apt and sudo, so nothing can be installed.
    environment = {"PATH": str(tmp_path), "PYTHON": "/nowhere/python", "CXX": "no-such-compiler"}
    command = ["/bin/bash", str(ROOT / "requirements" / "system.sh"), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stdout == ""


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def private_uses(source: str) -> list[str]:
    """Uses of private parts of TensorFlow and Keras, and imports of packages that may be missing."""
    tree = ast.parse(source)
    found = [
        f"line {line}: imports {name}"
        for line, name in imports(tree)
        if PRIVATE_MODULES.match(name) or OPTIONAL_MODULES.match(name)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in PRIVATE_ATTRIBUTES | {"python"}:
            continue
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value  # type: ignore[assignment]
        if isinstance(root, ast.Name) and root.id in ("tf", "tensorflow", "keras"):
            found.append(f"line {node.lineno}: uses {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.parent != PACKAGE / "_backends"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_only_backends_reaches_private_parts(path: pathlib.Path) -> None:
    assert private_uses(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from tensorflow.python.ops import while_v2",
        "from tensorflow.python import eager",
        "import tensorflow.python.framework.ops as ops",
        "from tensorflow import python",
        "from keras.src import backend",
        "import tensorflow as tf\ntf.__internal__.tf2.enabled()",
        "import keras\nkeras.src.backend",
        "def f():\n    import tf_encrypted as tfe",
        "import importlib\nimportlib.import_module('tensorflow_federated')",
    ],
)
def test_the_scan_finds_private_uses(source: str) -> None:
    assert private_uses(source)


def test_the_scan_allows_public_uses() -> None:
    source = "import tensorflow as tf\nfrom tensorflow import keras\ntf.keras.layers.Dense(1)\nx.src.python"
    assert not private_uses(source)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_parses_on_python_3_9_and_postpones_annotations(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    if any(isinstance(node, (ast.FunctionDef, ast.AnnAssign)) for node in ast.walk(tree)):
        assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
