"""cluster.json and the folders that go to each host."""

from __future__ import annotations

import json

import pytest

from keras_private import cli
from keras_private.encrypted.cluster import config
from keras_private.encrypted.cluster.certificates import Identity
from keras_private.encrypted.cluster.config import Address, ClusterConfig, add_client, init
from keras_private.errors import ConfigurationError

HOSTS, PORTS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"], [7701, 7702, 7703]
NAMES = ("server0", "server1", "server2", "owner", "client")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("cluster")
    init(place, HOSTS, PORTS)
    return place


def test_every_member_gets_its_own_folder(folder):
    for name in NAMES:
        assert sorted(path.name for path in (folder / name).iterdir()) == ["ca.crt", f"{name}.crt", f"{name}.key"]
        assert Identity.load(folder / name, name).fingerprint == ClusterConfig.load(folder / "cluster.json").fingerprint
    assert sorted(path.name for path in folder.iterdir()) == sorted([*NAMES, "authority", "cluster.json"])


def test_the_file_round_trips(folder, tmp_path):
    found = ClusterConfig.load(folder / "cluster.json")
    assert [(each.host, each.port) for each in found.parties] == list(zip(HOSTS, PORTS))
    found.save(tmp_path / "copy.json")
    assert ClusterConfig.load(tmp_path / "copy.json") == found
    assert found.party("server1") == Address("server1", "10.0.0.2", 7702)
    with pytest.raises(ConfigurationError, match="no party"):
        found.party("owner")


def test_a_second_cluster_in_one_folder_is_refused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(ConfigurationError, match="holds a cluster"):
        init(folder, HOSTS, PORTS)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_all_or_nothing(tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(config.ClusterConfig, "save", full)
    with pytest.raises(OSError, match="No space"):
        init(tmp_path / "new", HOSTS, PORTS)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hosts": HOSTS[:2]}, "2 hosts"),
        ({"ports": [7701, 7702, 0]}, "port of server2"),
        ({"ports": [7701, 7702, 70000]}, "port of server2"),
        ({"ports": [7701, 7702, "7703"]}, "port of server2"),
        ({"hosts": ["a", "a", "b"], "ports": [1, 1, 1]}, "one address"),
        ({"clients": ("owner",)}, "two roles"),
        ({"clients": ("server1",)}, "two roles"),
        ({"owners": ("../x",)}, "the name"),
        ({"clients": ("authority",)}, "the name"),
        ({"days": 0}, "0 days"),
        ({"days": float("nan")}, "nan days"),
        ({"days": 1e9}, "days"),
    ],
)
def test_what_cannot_be_a_cluster(tmp_path, change, message):
    with pytest.raises(ConfigurationError, match=message):
        init(tmp_path / "new", **{"hosts": HOSTS, "ports": PORTS, **change})
    assert not (tmp_path / "new").exists()


def altered(folder, tmp_path, change):
    found = json.loads((folder / "cluster.json").read_text())
    change(found)
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(found))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("owners"),
        lambda found: found.update(more=1),
        lambda found: found.update(format=2),
        lambda found: found.update(clients="client"),
        lambda found: found.update(fingerprint=None),
        lambda found: found["parties"].pop(),
        lambda found: found["parties"].reverse(),
        lambda found: found["parties"][0].update(port="80"),
        lambda found: found["parties"][0].update(port=True),
        lambda found: found["parties"][0].update(host=""),
        lambda found: found["parties"][0].update(key="x"),
        lambda found: found["parties"].__setitem__(0, "server0"),
    ],
)
def test_a_malformed_file_is_refused(folder, tmp_path, change):
    with pytest.raises(ConfigurationError, match="cluster init"):
        ClusterConfig.load(altered(folder, tmp_path, change))


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"format": 1}'])
def test_no_cluster_file(tmp_path, content):
    path = tmp_path / "cluster.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="cluster init"):
        ClusterConfig.load(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ClusterConfig.load(tmp_path / "missing.json")


def test_a_client_that_comes_later(tmp_path):
    init(tmp_path, HOSTS, PORTS)
    before = ClusterConfig.load(tmp_path / "cluster.json")
    found = add_client(tmp_path, "late", days=5)
    assert found.clients == ("client", "late") and found == ClusterConfig.load(tmp_path / "cluster.json")
    assert (found.parties, found.owners, found.fingerprint) == (before.parties, before.owners, before.fingerprint)
    assert Identity.load(tmp_path / "late", "late").fingerprint == found.fingerprint
    assert sorted(path.name for path in (tmp_path / "late").iterdir()) == ["ca.crt", "late.crt", "late.key"]


@pytest.mark.parametrize("name", ["client", "owner", "server0", "authority", "ca", "../x", ""])
def test_a_name_that_cannot_be_added(tmp_path, name):
    init(tmp_path, HOSTS, PORTS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigurationError, match="name"):
        add_client(tmp_path, name)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_adding_is_all_or_nothing(tmp_path, monkeypatch):
    init(tmp_path, HOSTS, PORTS)
    before = {path.name for path in tmp_path.iterdir()}, (tmp_path / "cluster.json").read_bytes()

    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(config.ClusterConfig, "save", full)
    with pytest.raises(OSError, match="No space"):
        add_client(tmp_path, "late")
    assert before == ({path.name for path in tmp_path.iterdir()}, (tmp_path / "cluster.json").read_bytes())


def test_an_authority_of_another_cluster_adds_nobody(tmp_path):
    init(tmp_path / "one", HOSTS, PORTS)
    init(tmp_path / "other", HOSTS, PORTS)
    (tmp_path / "other" / "cluster.json").replace(tmp_path / "one" / "cluster.json")
    with pytest.raises(ConfigurationError, match="is not that of"):
        add_client(tmp_path / "one", "late")
    assert not (tmp_path / "one" / "late").exists()


def test_the_command(tmp_path, capsys):
    place = tmp_path / "cluster"
    command = ["cluster", "init", str(place), "--hosts", *HOSTS, "--clients", "alice", "bob", "--days", "3"]
    assert cli.main(command) == 0
    assert str(place / "alice") in capsys.readouterr().out
    found = ClusterConfig.load(place / "cluster.json")
    assert found.clients == ("alice", "bob") and [each.host for each in found.parties] == HOSTS
    assert Identity.load(place / "bob", "bob").fingerprint == found.fingerprint
    assert cli.main(command) == 2
    assert "holds a cluster" in capsys.readouterr().err
