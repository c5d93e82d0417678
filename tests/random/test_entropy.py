"""The portable source's keys: fresh from the kernel at each run, or an error; importing starts nothing."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import uuid

import numpy as np
import pytest
import tensorflow as tf

from keras_private.errors import RandomnessError
from keras_private.random import PortableSource, entropy

GOOD = [str(uuid.UUID(int=(0x0123456789AB4CDE8123456789ABCDEF + i), version=4)) for i in range(3)]


def key_from(tmp_path: pathlib.Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> tf.Tensor:
    # Three different files stand for three reads of the kernel's one.
    paths = [tmp_path / str(i) for i in range(len(lines))]
    for path, line in zip(paths, lines):
        path.write_text(line + "\n")
    real = tf.data.TextLineDataset
    monkeypatch.setattr(tf.data, "TextLineDataset", lambda names, **k: real([str(p) for p in paths], **k))
    return entropy.kernel_key("unused")


def test_the_key_is_the_wholly_random_bytes_in_order(tmp_path, monkeypatch) -> None:
    expected = b""
    for line in GOOD:
        data = uuid.UUID(line).bytes
        expected += data[:6] + data[7:8] + data[9:]
    key = key_from(tmp_path, GOOD, monkeypatch).numpy()
    assert key.astype("<u4").tobytes() == expected[:32]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "not a uuid",
        GOOD[0][:-1],
        GOOD[0] + "0",
        GOOD[0].upper(),
        GOOD[0][:14] + "1" + GOOD[0][15:],
        GOOD[0].replace("-", "_"),
        GOOD[0][:-1] + "g",
        GOOD[1],
    ],
)
@pytest.mark.parametrize("stripped", [False, True])
def test_a_bad_or_repeated_read_is_an_error_even_without_assertions(
    tmp_path, monkeypatch, bad: str, stripped: bool
) -> None:
    if stripped:
        monkeypatch.setattr(tf.debugging, "Assert", lambda *a, **k: None)
    with pytest.raises(tf.errors.OpError):
        key_from(tmp_path, [bad, *GOOD[1:]], monkeypatch)


def test_an_unreadable_source_is_an_error_when_run(tmp_path) -> None:
    source = PortableSource()
    source._path = str(tmp_path / "absent")
    for draw in (
        lambda: source.uniform_full([2], tf.int8),
        lambda: source.gaussian([2]),
        lambda: source.uniform([2], 0, 3),
    ):
        with pytest.raises(tf.errors.NotFoundError):
            draw()
        with pytest.raises(tf.errors.NotFoundError):
            tf.function(draw)()


def test_without_proc_the_keys_come_from_os_urandom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy, "UUID_PATH", "/nonexistent/uuid")
    with pytest.raises(RandomnessError, match=r"(?s)uuid.*What to do"):
        PortableSource(stock_ops_only=True)
    source = PortableSource()
    draw = tf.function(lambda: (source.uniform_full([4], tf.int64), source.uniform_full([4], tf.int64)))
    drawn = [value.numpy().tobytes() for _ in range(2) for value in draw()]
    assert len(set(drawn)) == 4

    def refuse(count: int) -> bytes:
        raise OSError("no generator")

    monkeypatch.setattr("os.urandom", refuse)
    with pytest.raises(tf.errors.OpError):
        draw()


def test_keys_are_fresh_in_one_graph_and_look_uniform() -> None:
    path = entropy.UUID_PATH

    @tf.function
    def keys() -> tf.Tensor:
        return tf.stack([entropy.kernel_key(path), entropy.kernel_key(path)])

    drawn = np.concatenate([keys().numpy() for _ in range(100)])
    assert len({row.tobytes() for row in drawn}) == 200
    ones = np.unpackbits(drawn.view(np.uint8), axis=1).sum(axis=0)
    # Each of the 256 bits is a fair coin over 200 keys: a stuck or version bit would be far outside.
    assert ones.min() > 50 and ones.max() < 150


def test_a_stock_graph_has_no_python_function() -> None:
    source = PortableSource(stock_ops_only=True)
    graph = tf.function(lambda: source.gaussian_cells([4])).get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    kinds = {node.op for node in nodes}
    assert "TextLineDataset" in kinds
    assert not {kind for kind in kinds if "PyFunc" in kind or kind.startswith("KerasPrivate")}


def test_import_loads_no_library_and_draws_nothing() -> None:
    code = (
        "import os, sys; os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n"
        "import tensorflow as tf; before = set(sys.modules)\n"
        "import keras_private.random, keras_private.native as n\n"
        "from tensorflow.python.eager import context\n"
        "assert not n._loaded and keras_private.random._chosen is None\n"
        "assert '_keras_private_ops' not in open('/proc/self/maps').read()\n"
        "assert context.context()._context_handle is None\n"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=root,
        env={**__import__("os").environ, "PYTHONPATH": "."},
    )
