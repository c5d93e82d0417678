"""Certificates of a cluster: an authority of its own, and for each role a name that its holder can prove."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import pathlib
import re
import ssl
import stat
from typing import TYPE_CHECKING, Any

from keras_private.errors import ConfigurationError, TransportError
from keras_private.files import write_whole
from keras_private.lazy import LazyModule

if TYPE_CHECKING:
    from cryptography import exceptions, x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import oid
else:
    # A fifth of this package's import time, and only clusters need it.
    exceptions, x509 = LazyModule("cryptography.exceptions"), LazyModule("cryptography.x509")
    hashes = LazyModule("cryptography.hazmat.primitives.hashes")
    serialization = LazyModule("cryptography.hazmat.primitives.serialization")
    ec = LazyModule("cryptography.hazmat.primitives.asymmetric.ec")
    oid = LazyModule("cryptography.x509.oid")

DOMAIN = ".keras-private"
DAYS = 90
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?\Z")
_RESERVED = ("authority", "ca")
"""Their folders or files are the authority's."""
_EARLIER = datetime.timedelta(minutes=5)
"""Clocks of hosts differ: a certificate holds from a little before it was made."""


def check_name(name: Any) -> str:
    """
    Raises:
        ConfigurationError: It cannot stand in a certificate.
    """
    if not isinstance(name, str) or not _NAME.match(name) or name in _RESERVED:
        raise ConfigurationError(
            f"the name {name!r}",
            expected=f"small letters, digits and hyphens, at most 42, and none of {list(_RESERVED)}",
            remedy="choose another name",
        )
    return name


def authority(folder: pathlib.Path, days: float = DAYS) -> None:
    """Makes an authority: ca.crt and ca.key in `folder`. Whoever has the key can be anyone in the cluster.

    Raises:
        ConfigurationError: The folder holds one already.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "ca.key").exists():
        raise ConfigurationError(f"{folder} holds an authority", expected="a new folder", remedy="choose another one")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid.NameOID.COMMON_NAME, "keras-private authority")])
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_whole(folder / "ca.key", _key_bytes(key), 0o600)
    write_whole(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def issue(authority_folder: pathlib.Path, name: str, folder: pathlib.Path, days: float = DAYS) -> None:
    """Writes <name>.crt, <name>.key, readable by this user alone, and ca.crt to `folder`.

    Raises:
        ConfigurationError: The name cannot be used, or there is no authority in its folder, or its time is over.
    """
    check_name(name)
    try:
        signer = serialization.load_pem_private_key((authority_folder / "ca.key").read_bytes(), None)
        root = (authority_folder / "ca.crt").read_bytes()
        issuer = x509.load_pem_x509_certificate(root)
    except (OSError, ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{authority_folder} holds no authority: {error}", expected="ca.key and ca.crt", remedy="run cluster init"
        ) from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != issuer.public_key():
        raise ConfigurationError(
            f"the key in {authority_folder} is not of its certificate", expected="one authority", remedy="restore both"
        )
    if _times(issuer)[1] <= datetime.datetime.now(datetime.timezone.utc):
        raise ConfigurationError(
            f"the authority in {authority_folder} ended at {_times(issuer)[1]}",
            expected="one in its time",
            remedy="make the cluster anew: keras-private cluster init",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [oid.ExtendedKeyUsageOID.SERVER_AUTH, oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(x509.Name([]), issuer.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name + DOMAIN)]), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .sign(signer, hashes.SHA256())
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(folder / f"{name}.key", _key_bytes(key), 0o600)
    write_whole(folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    write_whole(folder / "ca.crt", root, 0o644)


def fingerprint(authority_certificate: pathlib.Path) -> str:
    """SHA-256 of an authority's certificate, as hexadecimal digits."""
    found = x509.load_pem_x509_certificate(authority_certificate.read_bytes())
    return hashlib.sha256(found.public_bytes(serialization.Encoding.DER)).hexdigest()


@dataclasses.dataclass(frozen=True)
class Identity:
    """A name and the means to prove it.

    Attributes:
        name: Of a party, an owner or a client.
        certificate: Its file.
        key: Of the private key; read by this process alone.
        authority: Of the authority's certificate.
        fingerprint: SHA-256 of that certificate.
        not_after: When the certificate ends, or its authority, whichever is first.
    """

    name: str
    certificate: pathlib.Path
    key: pathlib.Path
    authority: pathlib.Path
    fingerprint: str
    not_after: datetime.datetime

    @staticmethod
    def load(folder: Any, name: str) -> Identity:
        """Reads and checks what `issue` wrote.

        Raises:
            TransportError: A file is missing or malformed, the key is readable by others or belongs to another
                certificate, the certificate is of another authority or name, has ended or not begun.
        """
        place = pathlib.Path(folder)
        certificate, key, root = place / f"{name}.crt", place / f"{name}.key", place / "ca.crt"
        try:
            if stat.S_IMODE(key.stat().st_mode) & 0o077:
                raise _unusable(
                    f"{key} can be read by others", "a key that its user alone can read", f"chmod 600 {key}"
                )
            found = x509.load_pem_x509_certificate(certificate.read_bytes())
            issuer = x509.load_pem_x509_certificate(root.read_bytes())
            private = serialization.load_pem_private_key(key.read_bytes(), None)
        except (OSError, ValueError, TypeError, exceptions.UnsupportedAlgorithm) as error:
            if isinstance(error, TransportError):
                raise
            raise _unusable(
                f"the certificate of {name!r} cannot be read: {error}", "three files", "issue it"
            ) from error
        try:
            found.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, exceptions.InvalidSignature) as error:
            raise _unusable(
                f"{certificate} is not of the authority {root}", "its signature", "issue it anew"
            ) from error
        if private.public_key() != found.public_key():
            raise _unusable(f"{key} does not belong to {certificate}", "the key of the certificate", "issue it anew")
        if _names(found) != [name + DOMAIN]:
            raise _unusable(f"{certificate} is of {_names(found)}", f"the name {name}{DOMAIN}", "issue it anew")
        (begins, ends), (opens, closes) = _times(found), _times(issuer)
        begins, ends = max(begins, opens), min(ends, closes)
        now = datetime.datetime.now(datetime.timezone.utc)
        if not begins <= now <= ends:
            raise _unusable(
                f"{certificate} holds from {begins} to {ends}", f"a time that includes {now}", "issue it anew"
            )
        return Identity(name, certificate, key, root, fingerprint(root), ends)


def server_context(identity: Identity) -> ssl.SSLContext:
    """For accepting: TLS 1.3, and a certificate of the same authority from whoever connects."""
    context: Any = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # Connections are used in one direction at a time: a ticket would lie in the way of the first answer.
    context.num_tickets = 0
    return _prepared(context, identity)


def client_context(identity: Identity) -> ssl.SSLContext:
    """For connecting: TLS 1.3, and a certificate of the same authority with the name given to wrap_socket."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    return _prepared(context, identity)


def _prepared(context: ssl.SSLContext, identity: Identity) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.certificate, identity.key)
    context.load_verify_locations(identity.authority)
    return context


def server_hostname(name: str) -> str:
    """What wrap_socket has to be given to connect to the holder of a name."""
    return name + DOMAIN


def peer_name(connection: ssl.SSLSocket) -> str:
    """The name that the other side has proved.

    Raises:
        TransportError: Its certificate has none, or several.
    """
    proved: Any = connection.getpeercert() or {}
    found = [value for kind, value in proved.get("subjectAltName", ()) if kind == "DNS"]
    if len(found) != 1 or not found[0].endswith(DOMAIN):
        raise _unusable(f"a certificate of {found}", f"one name that ends with {DOMAIN}", "issue it with cluster init")
    return str(found[0][: -len(DOMAIN)])


def _builder(subject: x509.Name, issuer: x509.Name, key: Any, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER + min(datetime.timedelta(0), datetime.timedelta(days=days)))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return list(found.get_values_for_type(x509.DNSName))


def _times(certificate: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())


def _unusable(problem: str, expected: str, remedy: str) -> TransportError:
    return TransportError(problem, expected=expected, remedy=remedy)
