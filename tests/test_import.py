"""Importing the package: lazy, silent, without side effects, cheap."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

import keras_private
from tests.selection import long_but

HEAVY = ("tensorflow", "keras", "tensorflow_federated", "tf_encrypted", "tensorflow_privacy", "dp_accounting", "jax")
# TensorFlow itself imports jax where it finds it.
OPTIONAL = ("tensorflow_federated", "tf_encrypted", "tensorflow_privacy")


def run(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_import_loads_no_heavy_package() -> None:
    loaded = json.loads(run("import sys, json, keras_private; print(json.dumps(sorted(sys.modules)))").stdout)
    assert "keras_private" in loaded
    assert not set(HEAVY) & set(loaded)


def test_using_every_name_loads_no_optional_package() -> None:
    code = """
import sys, json, keras_private
for name in keras_private.__all__:
    getattr(keras_private, name)
print(json.dumps(sorted(sys.modules)))
"""
    assert not set(OPTIONAL) & set(json.loads(run(code).stdout))


def test_import_prints_nothing() -> None:
    done = run("import keras_private")
    assert (done.stdout, done.stderr) == ("", "")


def test_import_changes_no_global_state() -> None:
    run("""
import logging, os, random, signal, sys, threading, warnings
import tensorflow as tf, numpy as np
from tensorflow import keras
keras.backend.floatx()

def state():
    return {
        "environment": dict(os.environ),
        "meta_path": list(map(repr, sys.meta_path)),
        "warnings": list(warnings.filters),
        "logging": (list(logging.root.handlers), logging.root.level, tf.get_logger().level),
        "threads": threading.active_count(),
        "signals": [signal.getsignal(each) for each in signal.valid_signals()],
        "random": (random.getstate(), str(np.random.get_state())),
        "seed": tf.random.get_global_generator().state.numpy().tolist(),
        "eager": tf.config.functions_run_eagerly(),
        "soft placement": tf.config.get_soft_device_placement(),
        "optimizer": tf.config.optimizer.get_experimental_options(),
        "jit": tf.config.optimizer.get_jit(),
        "floatx": keras.backend.floatx(),
        "policy": keras.mixed_precision.global_policy().name,
        "excepthook": sys.excepthook,
        "children": open(f"/proc/self/task/{os.getpid()}/children").read() if os.path.exists("/proc/self") else "",
    }

before = state()
import keras_private
for name in keras_private.__all__:
    getattr(keras_private, name)
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, changed
""")


PILLARS = {
    "privacy": ["DPOptimizer", "PoissonSampler", "PrivacyBudget", "fix", "make_private", "validate"],
    "shares": ["Client", "Cluster", "EncryptedModel", "PrivateTensor", "encrypt", "layers", "serve"],
    "federation": ["FederatedModel", "SecureAggregation"],
}


def test_every_name_belongs_to_a_pillar() -> None:
    known = [name for names in PILLARS.values() for name in names]
    others = ["PrivacyReport", "__version__", "dp", "encrypted", "errors", "federated"]
    assert sorted([*known, *others]) == sorted(keras_private.__all__)


@pytest.mark.parametrize("pillar", long_but(PILLARS, "shares"))
def test_import_costs_at_most_a_tenth_of_tensorflow(pillar: str) -> None:
    code = f"""
import time
start = time.perf_counter()
import tensorflow as tf
tf.keras.layers
middle = time.perf_counter()
import keras_private
for name in {PILLARS[pillar]}:
    getattr(keras_private, name)
print((time.perf_counter() - middle) / (middle - start))
"""
    run(code)  # Byte code and file caches.
    ratios = [float(run(code).stdout) for _ in range(3)]
    assert statistics.median(ratios) <= 0.10, ratios


@pytest.mark.parametrize("name", keras_private.__all__)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    assert getattr(keras_private, name) is not None
    assert name in dir(keras_private)


def test_names_are_the_ones_of_their_modules() -> None:
    for name, home in keras_private._HOME.items():
        assert getattr(keras_private, name) is getattr(sys.modules[home], name)
    assert set(keras_private._HOME) | set(keras_private._SUBPACKAGES) | {"__version__"} == set(keras_private.__all__)


def test_unknown_name_is_an_attribute_error_that_lists_the_names() -> None:
    with pytest.raises(AttributeError, match=r"'DPOptimiser'.*DPOptimizer"):
        keras_private.DPOptimiser  # noqa: B018
