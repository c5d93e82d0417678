"""pads.json, the folders that go to each host, and the commands that make them."""

from __future__ import annotations

import hashlib
import json
import pathlib

import pytest

from keras_private import cli
from keras_private.encrypted.cluster.certificates import Identity, issue
from keras_private.errors import ConfigurationError, TransportError
from keras_private.federated import RemotePadParty, pad_parties
from keras_private.federated.pad_service import config
from keras_private.federated.pad_service.config import PadsConfig, init, read_secret, write_keys

HOSTS, PORTS = ["10.0.0.1", "10.0.0.2"], [7721, 7722]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pads") / "made"
    init(place, HOSTS, PORTS, ["anna", "bert"], min_clients=3)
    return place


def files(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_every_host_gets_its_own_folder(folder):
    party = ["between.key", "ca.crt", "master.key"]
    assert files(folder) == sorted(
        [
            "pads.json",
            *(f"authority/ca.{kind}" for kind in ("crt", "key")),
            *(f"coordinator/{name}" for name in ("ca.crt", "coordinator.crt", "coordinator.key")),
            *(f"party{n}/{name}" for n in (0, 1) for name in (*party, f"party{n}.crt", f"party{n}.key")),
            *(f"clients/{name}.party{n}.key" for name in ("anna", "bert") for n in (0, 1)),
        ]
    )
    for path in folder.rglob("*.key"):
        assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    for name in ("party0", "party1", "coordinator"):
        assert Identity.load(folder / name, name).fingerprint == PadsConfig.load(folder / "pads.json").fingerprint
    masters = [read_secret(folder / f"party{n}" / "master.key") for n in (0, 1)]
    between = {(folder / f"party{n}" / "between.key").read_bytes() for n in (0, 1)}
    assert len({*masters, *between}) == 3
    for n in (0, 1):
        wanted = hashlib.blake2b(b"anna", digest_size=32, key=masters[n], person=f"pad party {n}".encode()).digest()
        assert (folder / "clients" / f"anna.party{n}.key").read_bytes() == wanted


def test_the_coordinators_folder_holds_no_secret_of_a_pad(folder):
    secrets = [
        path.read_bytes() for path in folder.rglob("*.key") if path.parent.name in ("clients", "party0", "party1")
    ]
    secrets = [each for each in secrets if len(each) == 32]
    assert len(secrets) == 8
    content = b"".join(path.read_bytes() for path in [*(folder / "coordinator").iterdir(), folder / "pads.json"])
    assert not any(each in content or each.hex().encode() in content for each in secrets)


def test_the_file_round_trips(folder, tmp_path):
    found = PadsConfig.load(folder / "pads.json")
    assert [(each.host, each.port) for each in found.parties] == list(zip(HOSTS, PORTS)) and found.min_clients == 3
    found.save(tmp_path / "copy.json")
    assert PadsConfig.load(tmp_path / "copy.json") == found
    with pytest.raises(ConfigurationError, match="no party"):
        found.party("coordinator")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hosts": HOSTS[:1]}, "1 hosts"),
        ({"ports": [7721, 0]}, "port of party1"),
        ({"hosts": ["a", "a"], "ports": [1, 1]}, "one address"),
        ({"clients": ["../x"]}, "file's name"),
        ({"min_clients": 1}, "min_clients"),
        ({"days": 0}, "0 days"),
    ],
)
def test_what_cannot_be(tmp_path, change, message):
    with pytest.raises(ConfigurationError, match=message):
        init(tmp_path / "new", **{"hosts": HOSTS, "ports": PORTS, **change})
    assert not (tmp_path / "new").exists()


def test_all_or_nothing(folder, tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(config.PadsConfig, "save", full)
    with pytest.raises(OSError, match="No space"):
        init(tmp_path / "new", HOSTS, PORTS)
    assert list((tmp_path / "new").iterdir()) == []
    before = files(folder)
    with pytest.raises(ConfigurationError, match="holds pad parties"):
        init(folder, HOSTS, PORTS)
    assert files(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("min_clients"),
        lambda found: found.update(more=1),
        lambda found: found.update(format=2),
        lambda found: found.update(fingerprint=None),
        lambda found: found.update(min_clients=True),
        lambda found: found.update(min_clients=1),
        lambda found: found["parties"].pop(),
        lambda found: found["parties"].reverse(),
        lambda found: found["parties"][0].update(port="80"),
        lambda found: found["parties"][0].update(key="x"),
        lambda found: found["parties"].__setitem__(0, "party0"),
    ],
)
def test_a_malformed_file_is_refused(folder, tmp_path, change):
    found = json.loads((folder / "pads.json").read_text())
    change(found)
    (tmp_path / "pads.json").write_text(json.dumps(found))
    with pytest.raises(ConfigurationError, match="pads init"):
        pad_parties(tmp_path / "pads.json", folder / "coordinator")


def test_what_this_process_could_read_is_a_simulation(folder, tmp_path):
    for party in pad_parties(folder / "pads.json"):
        name = party.address.name
        assert party.simulated == (
            f"the master key of {name} can be read by this process, at {folder / name / 'master.key'}",
        )
    apart = tmp_path / "pads.json"
    apart.write_bytes((folder / "pads.json").read_bytes())
    assert [party.simulated for party in pad_parties(apart, folder / "coordinator")] == [(), ()]


def test_a_coordinator_that_cannot_be(folder, tmp_path):
    init(tmp_path / "other", HOSTS, PORTS)
    with pytest.raises(ConfigurationError, match="another authority"):
        pad_parties(folder / "pads.json", tmp_path / "other" / "coordinator")
    with pytest.raises(TransportError, match="cannot be read"):
        pad_parties(folder / "pads.json", folder / "party0")
    issue(folder / "authority", "coordinator", tmp_path / "old", days=-1)
    with pytest.raises(TransportError, match="holds from"):
        pad_parties(folder / "pads.json", tmp_path / "old")
    identity = Identity.load(folder / "coordinator", "coordinator")
    for seconds in (0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(ConfigurationError, match="seconds"):
            RemotePadParty(PadsConfig.load(folder / "pads.json"), "party0", identity, seconds)


def test_keys_of_more_clients_from_one_party_or_both(folder, tmp_path, capsys):
    assert (
        cli.main(["pads", "keys", "--dir", str(folder), "--clients", "dora", "--output", str(tmp_path / "both")]) == 0
    )
    assert files(tmp_path / "both") == ["dora.party0.key", "dora.party1.key"]
    host = tmp_path / "host"
    (host / "party1").mkdir(parents=True)
    (host / "party1" / "master.key").write_bytes((folder / "party1" / "master.key").read_bytes())
    (host / "party1" / "master.key").chmod(0o600)
    assert cli.main(["pads", "keys", "--dir", str(host), "--clients", "dora"]) == 0
    assert files(host / "clients") == ["dora.party1.key"]
    assert (host / "clients" / "dora.party1.key").read_bytes() == (tmp_path / "both" / "dora.party1.key").read_bytes()
    capsys.readouterr()
    for arguments, said in (
        (["--dir", str(folder), "--clients", "../dora"], "file's name"),
        (["--dir", str(tmp_path / "both"), "--clients", "dora"], "holds no"),
    ):
        assert cli.main(["pads", "keys", *arguments]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(("content", "mode", "message"), [(b"k" * 31, 0o600, "no key"), (b"k" * 33, 0o600, "no key"),
                                                          (b"k" * 32, 0o644, "chmod 600")])  # fmt: skip
def test_a_damaged_or_open_key_is_refused(tmp_path, content, mode, message):
    (tmp_path / "party0").mkdir()
    (tmp_path / "party0" / "master.key").write_bytes(content)
    (tmp_path / "party0" / "master.key").chmod(mode)
    with pytest.raises(ConfigurationError, match=message):
        write_keys(tmp_path, ["anna"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    place = tmp_path / "pads"
    arguments = ["pads", "init", "--dir", str(place), "--hosts", *HOSTS, "--clients", "anna", "--min-clients", "4"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(str(place / name) in printed for name in ("party0", "party1", "coordinator", "clients", "authority"))
    assert PadsConfig.load(place / "pads.json").min_clients == 4
    assert pathlib.Path(place / "clients" / "anna.party1.key").exists()
    assert cli.main(arguments) == 2
    assert "holds pad parties" in capsys.readouterr().err
