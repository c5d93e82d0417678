"""Who may connect: real handshakes over a loopback connection, right ones and every wrong one."""

from __future__ import annotations

import datetime
import os
import pathlib
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keras_private.encrypted.cluster import certificates, links
from keras_private.encrypted.cluster.certificates import (
    Identity,
    authority,
    client_context,
    issue,
    peer_name,
    server_context,
    server_hostname,
)
from keras_private.encrypted.cluster.config import Address, ClusterConfig
from keras_private.encrypted.cluster.links import dial
from keras_private.encrypted.cluster.wire import REPLY, Wire
from keras_private.errors import ConfigurationError, TransportError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("cluster")
    authority(place / "authority")
    for name in ("server0", "server1", "client"):
        issue(place / "authority", name, place / name)
    return place


def identity(folder, name):
    return Identity.load(folder / name, name)


def handshake(server, client, wanted):
    """(the name that the server saw, that the client saw), or the error of either side."""
    listening = socket.create_server(("127.0.0.1", 0))
    seen = {}

    def accept():
        plain, _ = listening.accept()
        plain.settimeout(10)
        try:
            with server.wrap_socket(plain, server_side=True) as secured:
                seen["server"] = peer_name(secured)
                secured.sendall(b"x")
        except (OSError, TransportError) as error:
            seen["error"] = error

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        plain = socket.create_connection(listening.getsockname(), 10)
        with plain, client.wrap_socket(plain, server_hostname=server_hostname(wanted)) as secured:
            # Under TLS 1.3 a server's refusal is read with the first byte.
            assert secured.recv(1) == b"x"
            assert secured.version() == "TLSv1.3"
            return seen["server"], peer_name(secured)
    finally:
        thread.join()
        listening.close()


def test_both_sides_learn_the_other_name(folder):
    server, client = identity(folder, "server0"), identity(folder, "client")
    assert handshake(server_context(server), client_context(client), "server0") == ("client", "server0")


def test_another_partys_certificate_is_refused(folder):
    server, client = identity(folder, "server1"), identity(folder, "client")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(server_context(server), client_context(client), "server0")


def test_a_client_without_a_certificate_is_refused(folder):
    context = ssl.create_default_context(cafile=str(folder / "client" / "ca.crt"))
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        handshake(server_context(identity(folder, "server0")), context, "server0")


@pytest.mark.parametrize("foreign", ["server0", "client"])
def test_a_name_of_another_authority_is_refused(folder, tmp_path, foreign):
    authority(tmp_path / "authority")
    issue(tmp_path / "authority", foreign, tmp_path / foreign)
    places = {"server0": folder, "client": folder, foreign: tmp_path}
    contexts = (
        server_context(identity(places["server0"], "server0")),
        client_context(identity(places["client"], "client")),
    )
    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        handshake(*contexts, "server0")


def test_an_older_protocol_is_refused(folder):
    context = client_context(identity(folder, "client"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(server_context(identity(folder, "server0")), context, "server0")


def copy(folder, target, name="server0"):
    target.mkdir()
    for path in (folder / name).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / f"{name}.key").chmod(0o600)
    return target


class TestLoading:
    def test_what_was_issued(self, folder):
        found = identity(folder, "server0")
        assert found.name == "server0" and len(found.fingerprint) == 64
        assert found.fingerprint == identity(folder, "client").fingerprint

    def test_an_expired_one(self, folder, tmp_path):
        issue(folder / "authority", "server0", tmp_path / "old", days=-1)
        with pytest.raises(TransportError, match="holds from"):
            Identity.load(tmp_path / "old", "server0")

    def test_a_key_that_others_can_read(self, folder, tmp_path):
        place = copy(folder, tmp_path / "open")
        (place / "server0.key").chmod(0o644)
        with pytest.raises(TransportError, match="chmod 600"):
            Identity.load(place, "server0")

    def test_a_foreign_authority(self, folder, tmp_path):
        place = copy(folder, tmp_path / "foreign")
        authority(tmp_path / "authority")
        (place / "ca.crt").write_bytes((tmp_path / "authority" / "ca.crt").read_bytes())
        with pytest.raises(TransportError, match="not of the authority"):
            Identity.load(place, "server0")

    def test_another_key(self, folder, tmp_path):
        place = copy(folder, tmp_path / "mixed")
        (place / "server0.key").write_bytes((folder / "client" / "client.key").read_bytes())
        with pytest.raises(TransportError, match="does not belong"):
            Identity.load(place, "server0")

    def test_another_name(self, folder, tmp_path):
        place = copy(folder, tmp_path / "renamed")
        for kind in ("crt", "key"):
            (place / f"server0.{kind}").rename(place / f"server2.{kind}")
        with pytest.raises(TransportError, match="server2"):
            Identity.load(place, "server2")

    @pytest.mark.parametrize("missing", ["server0.crt", "server0.key", "ca.crt"])
    def test_a_missing_file(self, folder, tmp_path, missing):
        place = copy(folder, tmp_path / "part")
        (place / missing).unlink()
        with pytest.raises(TransportError, match="cannot be read"):
            Identity.load(place, "server0")

    def test_a_damaged_file(self, folder, tmp_path):
        place = copy(folder, tmp_path / "damaged")
        (place / "server0.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        with pytest.raises(TransportError, match="cannot be read"):
            Identity.load(place, "server0")

    def test_a_key_under_a_password(self, folder, tmp_path):
        place = copy(folder, tmp_path / "locked")
        key = serialization.load_pem_private_key((place / "server0.key").read_bytes(), None)
        kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        (place / "server0.key").write_bytes(key.private_bytes(*kinds, serialization.BestAvailableEncryption(b"secret")))
        with pytest.raises(TransportError, match="cannot be read"):
            Identity.load(place, "server0")

    def test_one_that_has_not_begun(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(certificates, "_EARLIER", datetime.timedelta(hours=-1))
        issue(folder / "authority", "server0", tmp_path / "early")
        with pytest.raises(TransportError, match="holds from"):
            Identity.load(tmp_path / "early", "server0")

    def test_one_that_outlives_its_authority(self, tmp_path):
        authority(tmp_path / "authority", days=2)
        issue(tmp_path / "authority", "server0", tmp_path / "server0", days=90)
        left = Identity.load(tmp_path / "server0", "server0").not_after - datetime.datetime.now(datetime.timezone.utc)
        assert left <= datetime.timedelta(days=2)


def test_an_authority_that_cannot_issue(folder, tmp_path):
    authority(tmp_path / "ended", days=-1)
    with pytest.raises(ConfigurationError, match="ended at"):
        issue(tmp_path / "ended", "client", tmp_path)
    authority(tmp_path / "mixed")
    (tmp_path / "mixed" / "ca.key").write_bytes((folder / "authority" / "ca.key").read_bytes())
    with pytest.raises(ConfigurationError, match="not of its certificate"):
        issue(tmp_path / "mixed", "client", tmp_path)
    with pytest.raises(ConfigurationError, match="holds no authority"):
        issue(tmp_path / "nothing", "client", tmp_path)
    assert not list(tmp_path.glob("client*"))


def test_the_authoritys_key_stays_in_its_folder(folder):
    assert [path for path in folder.rglob("ca.key")] == [folder / "authority" / "ca.key"]
    assert (folder / "authority" / "ca.key").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigurationError, match="holds an authority"):
        authority(folder / "authority")


@pytest.mark.parametrize("name", ["", "Server", "a.b", "a/b", "-a", "a" * 50, 3, "ä", "authority", "ca"])
def test_names_that_cannot_stand_in_a_certificate(folder, tmp_path, name):
    with pytest.raises(ConfigurationError, match="the name"):
        issue(folder / "authority", name, tmp_path)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        authority(tmp_path / "authority")
    assert list(pathlib.Path(tmp_path / "authority").iterdir()) == []


def spoken(server, identity, wanted="server0"):
    """What the product's own `dial` and a first frame give, with what the server's handshake raised, if anything."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    step = 1 if port < 65000 else -1
    addresses = tuple(Address(f"server{each}", "127.0.0.1", port + each * step) for each in range(3))
    config = ClusterConfig(addresses, ("owner",), ("client",), identity.fingerprint)
    refused = []

    def accept():
        plain, _ = listening.accept()
        plain.settimeout(10)
        try:
            with server.wrap_socket(plain, server_side=True) as secured:
                wire = Wire(secured, peer_name(secured))
                wire.receive(lambda header: 0)
                wire.send(REPLY, {"you": wire.peer})
        except (OSError, TransportError) as error:
            refused.append(error)
        finally:
            plain.close()

    thread = threading.Thread(target=accept)
    thread.start()
    deadline = time.monotonic() + 10
    try:
        wire = dial(config, identity, wanted, deadline)
        try:
            return wire.call({"call": "ping"}, deadline=deadline).facts["you"], refused
        finally:
            wire.close()
    except TransportError as error:
        return error, refused
    finally:
        thread.join()
        listening.close()


def unchecked(folder, name, place):
    """An identity that `load` would refuse: what a peer that does not check itself would present."""
    paths = (place / f"{name}.crt", place / f"{name}.key", folder / name / "ca.crt")
    return Identity(name, *paths, "", datetime.datetime.now(datetime.timezone.utc))


class TestOnTheWire:
    """Whoever is refused gets a TransportError from the first call, and the handshake says why."""

    def test_the_right_pair(self, folder):
        server = server_context(identity(folder, "server0"))
        assert spoken(server, identity(folder, "client")) == ("client", [])

    def test_another_party_where_one_is_expected(self, folder):
        error, _ = spoken(server_context(identity(folder, "server1")), identity(folder, "client"))
        assert isinstance(error, TransportError) and "server0 at" in str(error) and "Hostname mismatch" in str(error)

    def test_an_expired_party(self, folder, tmp_path):
        issue(folder / "authority", "server0", tmp_path, days=-1)
        error, _ = spoken(server_context(unchecked(folder, "server0", tmp_path)), identity(folder, "client"))
        assert isinstance(error, TransportError) and "expired" in str(error)

    def test_an_expired_client(self, folder, tmp_path):
        issue(folder / "authority", "client", tmp_path, days=-1)
        server = server_context(identity(folder, "server0"))
        error, refused = spoken(server, unchecked(folder, "client", tmp_path))
        assert isinstance(error, TransportError) and "expired" in str(refused[0])

    def test_a_foreign_party(self, folder, tmp_path):
        authority(tmp_path / "authority")
        issue(tmp_path / "authority", "server0", tmp_path / "server0")
        error, _ = spoken(server_context(identity(tmp_path, "server0")), identity(folder, "client"))
        assert isinstance(error, TransportError) and "CERTIFICATE_VERIFY_FAILED" in str(error)

    def test_a_foreign_client(self, folder, tmp_path):
        authority(tmp_path / "authority")
        issue(tmp_path / "authority", "client", tmp_path)
        # It trusts the party's authority, so that only the party can refuse.
        server = server_context(identity(folder, "server0"))
        error, refused = spoken(server, unchecked(folder, "client", tmp_path))
        assert isinstance(error, TransportError)
        assert isinstance(refused[0], ssl.SSLCertVerificationError)

    def test_no_client_certificate(self, folder, monkeypatch):
        def bare(each):
            return ssl.create_default_context(cafile=str(each.authority))

        monkeypatch.setattr(links, "client_context", bare)
        error, refused = spoken(server_context(identity(folder, "server0")), identity(folder, "client"))
        assert isinstance(error, TransportError)
        assert isinstance(refused[0], ssl.SSLError) and refused[0].reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"

    def test_a_common_name_proves_nothing(self, folder, tmp_path):
        made = tmp_path / "named"
        copy(folder, made, "client")
        key = ec.generate_private_key(ec.SECP256R1())
        signer = serialization.load_pem_private_key((folder / "authority" / "ca.key").read_bytes(), None)
        root = x509.load_pem_x509_certificate((folder / "authority" / "ca.crt").read_bytes())
        now = datetime.datetime.now(datetime.timezone.utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client.keras-private")])
        found = (
            x509.CertificateBuilder(root.subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(1))
            .not_valid_after(now + datetime.timedelta(1))
            .sign(signer, hashes.SHA256())
        )
        (made / "client.crt").write_bytes(found.public_bytes(serialization.Encoding.PEM))
        kinds = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (made / "client.key").write_bytes(key.private_bytes(*kinds))
        with pytest.raises(TransportError, match="is of"):
            Identity.load(made, "client")
        error, refused = spoken(server_context(identity(folder, "server0")), unchecked(folder, "client", made))
        assert isinstance(error, TransportError)
        assert isinstance(refused[0], TransportError) and "a certificate of []" in str(refused[0])
