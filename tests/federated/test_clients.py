"""Clients: every way to make them, one form for all, folders whole or absent, files opened by stock operations."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.python.framework import op_def_registry

from keras_private import _backends
from keras_private.errors import ClientDataError, ConfigurationError
from keras_private.federated.clients import Clients, as_clients

X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.arange(6) % 3
FILES = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = st.sampled_from("bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float32 float64 float16".split())


def two() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {"b": (X, Y), "a": (X[:2] + 1, Y[:2])}


def read(dataset: tf.data.Dataset) -> list:
    return list(dataset.as_numpy_iterator())


def assert_same_examples(one: tf.data.Dataset, other: tf.data.Dataset) -> None:
    assert one.element_spec == other.element_spec
    first, second = read(one), read(other)
    assert len(first) == len(second)
    for a, b in zip(first, second):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def savez(folder, **clients) -> str:
    folder.mkdir(exist_ok=True)
    for name, members in clients.items():
        np.savez(folder / f"{name}.npz", **members)
    return str(folder)


@contextlib.contextmanager
def file_limit(limit: int):
    """Files of this process cannot grow beyond it: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- one mapping, made in many ways


def test_arrays_become_an_ordered_mapping():
    clients = Clients.from_arrays(two())
    assert clients.names == ("b", "a") == tuple(clients)
    assert len(clients) == 2
    assert clients.sizes == {"b": 6, "a": 2}
    assert clients.element_spec == (tf.TensorSpec([2], tf.float32), tf.TensorSpec([], tf.int64))
    assert not clients.stays_put
    assert "a" in clients and "c" not in clients
    assert [pair[1] for pair in read(clients.dataset("b"))] == Y.tolist()
    assert repr(clients) == "<Clients: 2 clients, 8 examples, (float32[2], int64[])>"


def test_floats_text_and_several_inputs():
    data = {"a": ([np.ones((3, 2), np.float64), np.array(["ä", "b", ""])], {"out": np.ones((3, 1), bool)})}
    clients = Clients.from_arrays(data)
    x, y = clients.element_spec
    assert x == (tf.TensorSpec([2], tf.float32), tf.TensorSpec([], tf.string))
    assert y == {"out": tf.TensorSpec([1], tf.bool)}
    assert [pair[0][1].decode() for pair in read(clients["a"])] == ["ä", "b", ""]


def test_a_model_fits_on_a_clients_batches():
    clients = Clients.from_arrays(two())
    model = tf.keras.Sequential([tf.keras.layers.Dense(3, input_shape=(2,))])
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(clients["b"].batch(2), verbose=0)
    assert np.isfinite(history.history["loss"][0])


def test_clients_cannot_change():
    clients = Clients.from_arrays(two())
    clients.sizes["b"] = 0
    assert clients.sizes["b"] == 6
    with pytest.raises(TypeError):
        clients["c"] = clients["a"]  # type: ignore[index]
    with pytest.raises(TypeError):
        clients._sources["c"] = None
    with pytest.raises(AttributeError):
        clients.names = ()  # type: ignore[misc]
    data = two()
    before = Clients.from_arrays(data)
    data["c"] = data.pop("b")
    assert before.names == ("b", "a")


def test_subset_keeps_its_own_order():
    clients = Clients.from_arrays({**two(), "c": (X, Y)})
    chosen = clients.subset(["c", "b"])
    assert chosen.names == ("c", "b")
    assert chosen.element_spec == clients.element_spec
    assert_same_examples(chosen["b"], clients["b"])
    for names in (["nobody"], ["a", "a"], [], [3]):
        with pytest.raises(ConfigurationError):
            clients.subset(names)


def test_datasets():
    known = tf.data.Dataset.from_tensor_slices((X, Y))
    clients = Clients.from_datasets({"a": known, "b": known.filter(lambda x, y: y > 0)})
    assert clients.sizes == {"a": 6, "b": None}
    assert len(read(clients["b"])) == 4
    assert "sizes unknown" in repr(clients)


def test_client_data():
    federated = _backends.require("tensorflow_federated")
    made = federated.simulation.datasets.TestClientData({"a": {"x": X, "y": Y}, "b": {"x": X[:1], "y": Y[:1]}})
    clients = as_clients(made)
    assert clients.names == ("a", "b")
    assert clients.element_spec == (tf.TensorSpec([2], tf.float32), tf.TensorSpec([], tf.int64))
    assert_same_examples(clients["b"], Clients.from_arrays({"b": (X[:1], Y[:1])})["b"])
    other = federated.simulation.datasets.TestClientData({"a": {"pixels": X, "label": Y}})
    with pytest.raises(ClientDataError, match="how to make the pair"):
        as_clients(other)
    mapped = Clients.from_client_data(other, lambda each: (each["pixels"], each["label"]))
    assert_same_examples(mapped["a"], clients["a"])


def test_as_clients_takes_each_kind(tmp_path):
    clients = Clients.from_arrays(two())
    assert as_clients(clients) is clients
    assert_same_examples(as_clients(two())["b"], clients["b"])
    assert_same_examples(as_clients(dict(clients))["b"], clients["b"])
    clients.write_directory(tmp_path / "made")
    assert_same_examples(as_clients(tmp_path / "made")["b"], clients["b"])
    assert_same_examples(as_clients(str(tmp_path / "made"))["b"], clients["b"])
    for nothing in (3, None, [X], (X, Y)):
        with pytest.raises(ConfigurationError):
            as_clients(nothing)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({}, ConfigurationError, "no clients"),
        ([("a", (X, Y)), ("a", (X, Y))], ConfigurationError, "comes twice"),
        ({1: (X, Y)}, ConfigurationError, "name"),
        ({"": (X, Y)}, ConfigurationError, "name"),
        ({"a": X}, ClientDataError, "pair"),
        ({"a": (X, Y, Y)}, ClientDataError, "pair"),
        ({"a": (X, Y[:3])}, ClientDataError, "3 and 6 examples"),
        ({"a": (X, 3)}, ClientDataError, "single value"),
        ({"a": ({}, {})}, ClientDataError, "no examples"),
        ({"a": (X.astype(complex), Y)}, ClientDataError, "complex128"),
        ({"a": (X.astype("datetime64[s]"), Y)}, ClientDataError, "datetime64"),
        ({"a": (np.array([X, None, 3, 4, 5, 6], object), Y)}, ClientDataError, "object array"),
        ({"a": ([[1], [2, 3]], Y[:2])}, ClientDataError, "rectangular"),
        ({"a": (X, Y), "b": (X[:, :1], Y)}, ClientDataError, r"'b' has examples \(float32\[1\], int64\[\]\)"),
        ({"a": (X, Y), "b": (X, Y.astype(np.int32))}, ClientDataError, "int32"),
        ({"a": (X, Y), "b": ({"x": X}, Y)}, ClientDataError, "as client 'a' has"),
    ],
)
def test_bad_arrays_are_refused(data, error, words):
    with pytest.raises(error, match=words) as caught:
        Clients.from_arrays(data)
    assert caught.value.expected
    assert caught.value.remedy


DAMAGE = (tf.errors.DataLossError, tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError)
PAIRS = tf.data.Dataset.from_tensor_slices((X, Y))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (X, "ndarray"),
        (PAIRS.repeat(), "never ends"),
        (PAIRS.batch(2), "unbatch"),
        (PAIRS.map(lambda x, y: x), "pair"),
        (PAIRS.map(lambda x, y: (x, y, y)), "pair"),
        (PAIRS.map(lambda x, y: {"x": x, "y": y}), "pair"),
        (PAIRS.map(lambda x, y: (tf.RaggedTensor.from_row_lengths(x, [2]), y)), "dense"),
    ],
)
def test_bad_datasets_are_refused(dataset, words):
    with pytest.raises(ClientDataError, match=words):
        Clients.from_datasets({"a": dataset})
    with pytest.raises(ConfigurationError):
        Clients.from_datasets({})


def test_clients_in_this_process_have_no_keys():
    with pytest.raises(ConfigurationError, match="write_directory"):
        Clients.from_arrays(two()).keys_and_opener()


# --- folders


@settings(FILES, max_examples=15)
@given(st.data())
def test_a_folder_gives_back_what_was_written(tmp_path_factory, data):
    """Against the arrays themselves: any dtype, shape and number of examples, empty clients included."""
    dtypes = [data.draw(DTYPES), data.draw(DTYPES)]
    shapes = [data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)) for _ in dtypes]
    written = {}
    for name in data.draw(st.lists(st.sampled_from(["a", "b c", "ö", "x.y"]), min_size=1, max_size=3, unique=True)):
        count = data.draw(st.integers(0, 4))
        written[name] = tuple(data.draw(hnp.arrays(kind, (count, *shape))) for kind, shape in zip(dtypes, shapes))
    clients = Clients.from_arrays(written)
    path = tmp_path_factory.mktemp("folder") / "clients"
    clients.write_directory(path)
    back = Clients.from_directory(path)
    assert back.stays_put
    assert back.names == clients.names
    assert back.sizes == clients.sizes
    assert back.element_spec == clients.element_spec
    for name in clients:
        assert_same_examples(back[name], clients[name])


@settings(FILES, max_examples=10)
@given(st.data(), st.booleans(), st.booleans())
def test_npz_files_give_what_numpy_reads(tmp_path_factory, data, swapped, plain_zip):
    dtypes = [data.draw(DTYPES), data.draw(DTYPES)]
    shapes = [data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)) for _ in dtypes]
    count = data.draw(st.integers(0, 5))
    x, y = (data.draw(hnp.arrays(kind, (count, *shape))) for kind, shape in zip(dtypes, shapes))
    folder = tmp_path_factory.mktemp("folder")
    savez(folder, a={"y": y, "x": x} if swapped else {"x": x, "y": y})
    if plain_zip:
        repacked(folder / "a.npz")
    back = Clients.from_directory(folder)
    assert back.sizes == {"a": count}
    with np.load(folder / "a.npz") as numpy:
        assert_same_examples(back["a"], Clients.from_arrays({"a": (numpy["x"], numpy["y"])})["a"])


def repacked(path) -> None:
    """The same members without Zip64 fields, as other writers of zip archives store them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_text_and_nested_examples_survive_a_folder(tmp_path):
    clients = Clients.from_arrays(
        {"a": ({"t": np.array([["ä", ""], ["b", "\0c"]]), "n": (X[:2], X[:2])}, (Y[:2], X[:2].astype(np.uint32)))}
    )
    clients.write_directory(tmp_path / "made")
    assert_same_examples(Clients.from_directory(tmp_path / "made")["a"], clients["a"])


def test_more_examples_than_are_parsed_together_keep_their_order(tmp_path):
    Clients.from_arrays({"a": (np.arange(1000), np.arange(1000))}).write_directory(tmp_path / "made")
    assert [pair[0] for pair in read(Clients.from_directory(tmp_path / "made")["a"])] == list(range(1000))


def test_sizes_are_counted_and_only_the_owner_can_read(tmp_path):
    Clients.from_datasets({"a": PAIRS.filter(lambda x, y: y > 0)}).write_directory(tmp_path / "made")
    assert Clients.from_directory(tmp_path / "made").sizes == {"a": 4}
    assert stat.S_IMODE(os.stat(tmp_path / "made").st_mode) == 0o700


NAMES = ["../a", "/etc/a", "a/b", "..", ".", ".hidden", "a\\b", "a\0b", "a\nb", "gs:x", "n" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(ClientDataError, match="name"):
        Clients.from_arrays({name: (X, Y)}).write_directory(tmp_path / "made")
    assert os.listdir(tmp_path) == []
    Clients.from_arrays(two()).write_directory(tmp_path / "made")
    manifest = tmp_path / "made" / "clients.json"
    content = json.loads(manifest.read_text())
    content["clients"][0]["name"] = name
    manifest.write_text(json.dumps(content))
    with pytest.raises(ClientDataError, match="name"):
        Clients.from_directory(tmp_path / "made")
    with pytest.raises(ClientDataError, match="name"):
        Clients.from_directory("/elsewhere", manifest=manifest)


@FILES
@given(st.text(max_size=20))
def test_any_name_stays_in_the_folder_or_is_refused(tmp_path_factory, name):
    parent = tmp_path_factory.mktemp("folder")
    try:
        Clients.from_arrays({name: (X, Y)}).write_directory(parent / "made")
    except (ClientDataError, ConfigurationError):
        assert os.listdir(parent) == []
    else:
        assert os.listdir(parent) == ["made"]
        assert set(os.listdir(parent / "made")) == {f"{name}.tfrecord", "clients.json"}
        keys, _ = Clients.from_directory(parent / "made").keys_and_opener()
        assert os.path.dirname(os.path.realpath(keys[0])) == os.path.realpath(parent / "made")


@pytest.mark.parametrize("limit", [0, 100, 70_000, 200_000, 401_000])
def test_a_full_disk_leaves_nothing(tmp_path, limit):
    """Limits below, in and above the writers' buffers; the records of client "a" have about 420,000 bytes."""
    clients = Clients.from_arrays(
        {name: (np.zeros((count, 100), np.float32), np.zeros(count)) for name, count in (("small", 0), ("a", 1000))}
    )
    with file_limit(limit), pytest.raises(OSError):
        clients.write_directory(tmp_path / "made")
    assert os.listdir(tmp_path) == []
    clients.write_directory(tmp_path / "made")
    assert len(read(Clients.from_directory(tmp_path / "made")["a"])) == 1000


def test_a_client_that_fails_while_it_is_read_leaves_nothing(tmp_path):
    broken = PAIRS.map(lambda x, y: (tf.debugging.check_numerics(x / tf.cast(2 - y, tf.float32), "broken"), y))
    (tmp_path / "made").mkdir()
    with pytest.raises(tf.errors.InvalidArgumentError, match="broken"):
        Clients.from_datasets({"a": PAIRS, "b": broken}).write_directory(tmp_path / "made")
    assert os.listdir(tmp_path) == ["made"]
    assert os.listdir(tmp_path / "made") == []


KILLED = """
import os, signal, sys
import numpy as np
from keras_private.federated import folders
from keras_private.federated.clients import Clients
folders.Manifest.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Clients.from_arrays({"a": (np.ones((3, 2)), np.ones(3))}).write_directory(sys.argv[1])
"""


def test_a_killed_writer_leaves_only_a_hidden_folder(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "made")], timeout=120)
    assert done.returncode == -9
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".made.")
    Clients.from_arrays(two()).write_directory(tmp_path / "made")


def test_nothing_is_replaced(tmp_path):
    clients = Clients.from_arrays(two())
    (tmp_path / "empty").mkdir()
    clients.write_directory(tmp_path / "empty")
    before = sorted(os.listdir(tmp_path / "empty"))
    (tmp_path / "file").write_text("mine")
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    for path in ("empty", "file", "link", "missing/made"):
        with pytest.raises(ConfigurationError):
            clients.write_directory(tmp_path / path)
    assert sorted(os.listdir(tmp_path / "empty")) == before
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link"]


def test_examples_without_a_fixed_shape_are_refused_before_anything_is_written(tmp_path):
    def ragged():
        yield np.ones(2), 1

    dataset = tf.data.Dataset.from_generator(
        ragged, output_signature=(tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int64))
    )
    with pytest.raises(ClientDataError, match="fixed shape"):
        Clients.from_datasets({"a": dataset}).write_directory(tmp_path / "made")
    with pytest.raises(ClientDataError, match="key that is no text"):
        Clients.from_arrays({"a": ({1: X}, Y)}).write_directory(tmp_path / "made")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "",
        lambda content: "[1, 2",
        lambda content: "[" * 100_000,
        lambda content: content.replace("clients/1", "clients/2"),
        lambda content: content.replace('"b"', '"a"'),
        lambda content: content.replace('"b"', "3"),
        lambda content: content.replace('"b"', '"zz"'),
        lambda content: content.replace("6", "-6"),
        lambda content: content.replace("6", "true"),
        lambda content: content.replace("float32", "float31"),
        lambda content: content.replace("float32", "variant"),
        lambda content: content.replace("2\n", "null\n"),
        lambda content: content.replace('"tuple"', '"list"'),
        lambda content: content.replace('"schema"', '"element"'),
        lambda content: json.dumps({**json.loads(content), "clients": []}),
    ],
)
def test_a_manifest_that_is_not_as_written_is_refused(tmp_path, change):
    Clients.from_arrays(two()).write_directory(tmp_path / "made")
    manifest = tmp_path / "made" / "clients.json"
    changed = change(manifest.read_text())
    assert changed != manifest.read_text()
    manifest.write_text(changed)
    with pytest.raises(ClientDataError):
        Clients.from_directory(tmp_path / "made")


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(ClientDataError, match="no folder"):
        Clients.from_directory(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="no clients"):
        Clients.from_directory(tmp_path)
    (tmp_path / "a.tfrecord").write_bytes(b"")
    with pytest.raises(ClientDataError, match=r"no clients\.json"):
        Clients.from_directory(tmp_path)


def test_a_manifest_elsewhere_needs_no_files_here(tmp_path):
    Clients.from_arrays(two()).write_directory(tmp_path / "made")
    clients = Clients.from_directory("/on/the/worker", manifest=tmp_path / "made" / "clients.json")
    assert clients.sizes == {"b": 6, "a": 2}
    keys, _ = clients.subset(["a"]).keys_and_opener()
    assert keys == ["/on/the/worker/a.tfrecord"]


def test_damaged_records_raise(tmp_path):
    Clients.from_arrays(two()).write_directory(tmp_path / "made")
    file = tmp_path / "made" / "b.tfrecord"
    content = file.read_bytes()
    clients = Clients.from_directory(tmp_path / "made")
    record = (len(content) - 24) // 6
    flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
    # Whole records gone or doubled, and cuts that TensorFlow's reader takes for the end of the file.
    cuts = [0, 5, 24, 24 + record, len(content) - record, len(content) - record + 5, len(content) - 1]
    doubled = content + content[-record:]
    for damaged in [content[:cut] for cut in cuts] + [flipped, doubled, content[24:], b"nonsense" * 9]:
        file.write_bytes(damaged)
        with pytest.raises(DAMAGE):
            read(clients["b"])
    other = Clients.from_arrays({"b": (np.ones((6, 3)), Y)})
    other.write_directory(tmp_path / "other")
    file.write_bytes((tmp_path / "other" / "b.tfrecord").read_bytes())
    with pytest.raises(DAMAGE):
        read(clients["b"])


# --- .npz files, in the graph


@pytest.mark.parametrize(
    "members",
    [
        {"x": X},
        {"x": X, "z": Y},
        {"x": X, "y": Y, "z": Y},
        {"x": X, "y": Y[:4]},
        {"x": X, "y": np.array(list("abcdef"))},
        {"x": np.array([{}] * 6), "y": Y},
        {"x": X.astype(">f4"), "y": Y},
        {"x": np.asfortranarray(X), "y": Y},
        {"x": X.astype(complex), "y": Y},
        {"x": X, "y": np.float32(1)},
    ],
)
def test_npz_files_that_workers_cannot_read_are_refused(tmp_path, members):
    with pytest.raises(ClientDataError, match="write_directory"):
        Clients.from_directory(savez(tmp_path / "made", a=members))


def test_compressed_damaged_and_unlike_npz_files_are_refused(tmp_path):
    folder = savez(tmp_path / "made", a={"x": X, "y": Y}, b={"x": X[:, :1], "y": Y})
    with pytest.raises(ClientDataError, match=r"as a\.npz does"):
        Clients.from_directory(folder)
    np.savez_compressed(tmp_path / "made" / "b.npz", x=X, y=Y)
    with pytest.raises(ClientDataError, match="compressed"):
        Clients.from_directory(folder)
    (tmp_path / "made" / "b.npz").write_bytes(b"nonsense")
    with pytest.raises(ClientDataError, match=r"no \.npz file"):
        Clients.from_directory(folder)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Clients of one good file, and the file: what is put there later is only seen by the opener."""
    folder = tmp_path_factory.mktemp("npz")
    savez(folder, a={"x": X, "y": Y})
    clients = Clients.from_directory(folder)
    return clients, folder / "a.npz", (folder / "a.npz").read_bytes()


def test_the_opener_sees_a_file_that_grew(opened):
    clients, file, _ = opened
    np.savez(file, x=np.repeat(X, 2, 0), y=np.repeat(Y, 2))
    assert len(read(clients["a"])) == 12


@pytest.mark.parametrize(
    "members",
    [
        {"x": X.astype(np.float64), "y": Y},
        {"x": X.astype(np.int32), "y": Y},
        {"x": X[:, :1], "y": Y},
        {"x": X[:, :, None], "y": Y},
        {"x": np.asfortranarray(X), "y": Y},
        {"x": X.astype(">f4"), "y": Y},
        {"x": X, "y": Y[:4]},
        {"x": X},
        {"y": Y},
        {"x": X, "z": Y},
        {"x": X, "y": Y, "z": Y},
        {"x": X, "long": Y},
    ],
)
def test_the_opener_refuses_other_contents(opened, members):
    clients, file, _ = opened
    np.savez(file, **members)
    with pytest.raises(tf.errors.InvalidArgumentError):
        read(clients["a"])


def test_the_opener_refuses_compressed_streamed_and_repeated_members(opened):
    clients, file, content = opened
    np.savez_compressed(file, x=X, y=Y)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no compression"):
        read(clients["a"])
    file.write_bytes(content.replace(b"y.npy", b"x.npy"))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"one x\.npy"):
        read(clients["a"])
    flagged = bytearray(content)
    flagged[6] |= 8
    file.write_bytes(flagged)
    with pytest.raises(tf.errors.InvalidArgumentError, match="data descriptor"):
        read(clients["a"])


def test_every_truncation_is_refused(opened):
    clients, file, content = opened
    end = content.index(b"PK\x01\x02") + 4
    for length in [*range(0, end, 7), end - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(tf.errors.InvalidArgumentError):
            read(clients["a"])


@FILES
@given(st.data())
def test_altered_headers_give_an_error_or_the_same_form(opened, data):
    """No change of one byte makes the opener crash, or give rows of another shape."""
    clients, file, content = opened
    place = data.draw(st.integers(0, len(content) - 1))
    altered = bytearray(content)
    altered[place] = data.draw(st.integers(0, 255))
    file.write_bytes(altered)
    try:
        found = read(clients["a"])
    except tf.errors.InvalidArgumentError:
        return
    assert all(x.shape == (2,) and y.shape == () for x, y in found)
    assert len(found) == 6


def test_huge_sizes_in_a_header_are_refused(opened):
    clients, file, content = opened
    zip64 = content.index(struct.pack("<HH", 1, 16)) + 4
    for size in (2**63 - 1, 2**63, 2**64 - 1, 2**40, 0):
        altered = bytearray(content)
        altered[zip64 : zip64 + 16] = struct.pack("<QQ", size, size)
        file.write_bytes(altered)
        with pytest.raises(tf.errors.InvalidArgumentError):
            read(clients["a"])


# --- where the work runs


def openers(tmp_path) -> dict[str, Clients]:
    Clients.from_arrays(two()).write_directory(tmp_path / "records")
    arrays = savez(tmp_path / "arrays", **{name: {"x": x, "y": y} for name, (x, y) in two().items()})
    return {"records": Clients.from_directory(tmp_path / "records"), "arrays": Clients.from_directory(arrays)}


@pytest.mark.parametrize("kind", ["records", "arrays"])
def test_openers_are_stock_operations_of_a_key(tmp_path, kind):
    clients = openers(tmp_path)[kind]
    keys, opener = clients.keys_and_opener()
    assert [os.path.isabs(key) and os.path.isfile(key) for key in keys] == [True, True]
    assert opener(tf.constant(keys[0])).element_spec == clients.element_spec
    graph = opener.get_concrete_function().graph.as_graph_def()
    used = {
        node.op for body in [graph, *graph.library.function] for node in getattr(body, "node_def", None) or body.node
    }
    names = {function.signature.name for function in graph.library.function}
    python = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "GeneratorDataset"}
    assert not used & python
    assert all(op in names or op_def_registry.get(op) is not None for op in used)
    assert not any(op.startswith("KerasPrivate") for op in used)
    # No data and no path is written into the graph.
    assert str(tmp_path) not in str(graph)


@pytest.fixture(scope="module")
def worker():
    """A worker process of this test, and the context that runs computations in it."""
    federated = _backends.require("tensorflow_federated")
    import grpc

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary = os.path.join(os.path.dirname(federated.__file__), "data", "worker_binary")
    process = subprocess.Popen([binary, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(60)
            stub = federated.framework.RemoteExecutorGrpcStub(channel)

            def stack(cardinalities):
                executor = federated.framework.RemoteExecutor(stub)
                executor.set_cardinalities(cardinalities)
                return executor

            factory = federated.framework.ResourceManagingExecutorFactory(stack)
            context = federated.framework.SyncExecutionContext(
                factory, federated.backends.native.desugar_and_transform_to_native
            )
            yield process.pid, context
    finally:
        process.kill()
        process.wait()


def bytes_read(pid: int) -> int:
    with open(f"/proc/{pid}/io") as counters:
        return int(next(line for line in counters if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize("kind", ["records", "arrays"])
def test_a_worker_opens_each_clients_file(tmp_path, worker, kind):
    """The key travels to the worker; the file is read there, anew in each run, and damage is found there."""
    federated, (pid, context) = _backends.require("tensorflow_federated"), worker
    big = np.ones((4000, 2, 64), np.float32)
    data = {"b": (big, np.arange(4000)), "a": (big[:2] + 1, np.arange(2))}

    def put(data) -> Clients:
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        if kind == "arrays":
            return Clients.from_directory(
                savez(tmp_path / "made", **{n: {"x": x, "y": y} for n, (x, y) in data.items()})
            )
        Clients.from_arrays(data).write_directory(tmp_path / "made")
        return Clients.from_directory(tmp_path / "made")

    keys, opener = put(data).subset(["b", "a"]).keys_and_opener()

    @federated.tensorflow.computation(np.str_)
    def total(key):
        return opener(key).batch(100).reduce(0.0, lambda state, batch: state + tf.reduce_sum(batch[0]))

    @federated.federated_computation(federated.FederatedType(np.str_, federated.CLIENTS))
    def totals(keys):
        return federated.federated_map(total, keys)

    with federated.framework.get_context_stack().install(context):
        before = bytes_read(pid)
        assert [float(each) for each in totals(keys)] == [big.sum(), 2 * 2 * 64 * 2]
        assert bytes_read(pid) - before >= big.nbytes
        put({**data, "b": (big[:1], np.arange(1))})
        assert [float(each) for each in totals(keys)] == [2 * 64, 2 * 2 * 64 * 2]
        file = os.path.join(tmp_path, "made", os.path.basename(keys[0]))
        os.truncate(file, 100)
        with pytest.raises(Exception, match=r"single element|truncated|cardinality|complete file|two members"):
            totals(keys)
