"""What travels: the source distribution, its wheel, and an installation that works far from the sources."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

import keras_private
from keras_private import native

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOP = ("keras_private", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")

SMOKE = """
import sys
import numpy as np
import keras_private as kp
import tensorflow as tf
from keras_private import native
from keras_private.random import secure_source

assert kp.__file__.startswith(sys.prefix), kp.__file__
assert native.status().available, native.status().reason
assert secure_source().name == "native"

x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
y = (x.sum(1) > 0).astype("int32")
model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])
private = kp.make_private(model, epsilon=2.0, delta=1e-4)
private.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
history = private.fit(x, y, batch_size=50, epochs=1, verbose=0).history
assert 0 < history["epsilon"][-1] <= 2.0

plain = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)])
shared = kp.EncryptedModel(plain, input_range=(-5, 5)).predict(x[:3], verbose=0)
np.testing.assert_allclose(shared, plain.predict(x[:3], verbose=0), atol=1e-3)

clients = kp.federated.partition.iid(x, y, clients=4, seed=0)
fed = kp.FederatedModel(tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2)]))
fed.compile(client_optimizer="sgd", loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
assert len(fed.fit(clients, epochs=1, clients_per_round=2, batch_size=10, verbose=0).history["loss"]) == 1
print("works")
"""


def run(command: list[str], where: pathlib.Path) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The source distribution, unpacked."""
    tree = tmp_path_factory.mktemp("tree")
    for name in TOP:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    run([sys.executable, "setup.py", "--quiet", "sdist", "--formats", "gztar"], tree)
    (packed,) = (tree / "dist").iterdir()
    target = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(packed) as archive:
        archive.extractall(target, filter="data")
    (found,) = target.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(sources: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Built from the source distribution."""
    if native.status().available:
        # Built from the same sources, so that the build keeps it: compiling takes a minute. A slow test compiles.
        platform = f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder = sources / "build" / platform / "keras_private" / "native"
        folder.mkdir(parents=True)
        for ending in ("so", "json"):
            shutil.copy(ROOT / "keras_private" / "native" / f"_keras_private_ops.{ending}", folder)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*command, "--wheel-dir", str(target), str(sources)], sources)
    (found,) = target.iterdir()
    return found


def test_the_source_distribution_has_every_source_and_nothing_built(sources: pathlib.Path) -> None:
    package = ROOT / "keras_private"
    wanted = {
        path.relative_to(ROOT)
        for path in package.rglob("*")
        if path.suffix in (".py", ".cc", ".h", ".txt", ".typed") and "__pycache__" not in path.parts
    }
    packed = {path.relative_to(sources) for path in sources.rglob("*") if path.is_file()}
    assert wanted | {pathlib.Path("LICENSE"), pathlib.Path("README.md")} <= packed
    assert not [path for path in packed if path.suffix in (".so", ".pyc") or path.name == "_keras_private_ops.json"]


def test_the_wheel_says_what_it_is(wheel: pathlib.Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (each for each in packed.namelist() if each.endswith(".dist-info/METADATA"))
        metadata = packed.read(name).decode()
        commands = packed.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert f"Version: {keras_private.__version__}" in metadata and "License: Apache-2.0" in metadata
    assert "Requires-Python: <3.12,>=3.9" in metadata and "keras-private = keras_private.cli:main" in commands


@pytest.mark.skipif(not native.status().available, reason="the native operations are not built here")
def test_an_installation_works_far_from_the_sources(wheel: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run([sys.executable, "-m", "venv", str(tmp_path / "venv")], tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    (site,) = (tmp_path / "venv" / "lib").glob("python3.*/site-packages")
    run([python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", str(wheel)], tmp_path)
    # TensorFlow and its kin, two gigabytes, are those of this environment; of this package it has its own.
    (site / "those_of_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "elsewhere").mkdir()
    assert run([python, "-W", "ignore", "-c", SMOKE], tmp_path / "elsewhere").splitlines()[-1] == "works"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    command = str(tmp_path / "venv" / "bin" / "keras-private")
    assert run([command, "--version"], tmp_path).strip() == f"keras-private {keras_private.__version__}"
    assert run([command, "doctor"], tmp_path).rstrip().endswith("works")
