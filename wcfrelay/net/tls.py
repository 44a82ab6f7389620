"""TLS in the two forms that reactors take: ``ssl`` contexts for the loop, pyOpenSSL options for Twisted.

Each call builds a new context. A pyOpenSSL context may not be changed after its first connection, so a
renewed certificate is taken up with new options, never by changing the ones in use.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator
from twisted.internet.ssl import Certificate, optionsForClientTLS, platformTrust, trustRootFromCertificates
from zope.interface import implementer

from wcfrelay.errors import ConfigError

__all__ = ["ClientTls", "ServerTls", "development_certificate"]

# Twisted ships these without annotations.
_platform_trust: Callable[[], Any] = platformTrust
_trust_root: Callable[[list[Any]], Any] = trustRootFromCertificates
_certificate: Callable[[X509], Any] = Certificate

_ALPN = b"http/1.1"
_CA_LIFE = timedelta(days=3650)
_SERVER_LIFE = timedelta(days=397)
_LEFT = timedelta(days=30)
_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The certificate of a listening port: PEM files, the certificate's chain in its file after it.

    TLS 1.2 and up, ALPN http/1.1, session tickets.
    """

    certificate: Path
    key: Path

    def ssl_context(self) -> ssl.SSLContext:
        """A new context with the certificate loaded.

        :raises ConfigError: a file is missing, unreadable, no PEM or encrypted, or the key is of another
            certificate.
        """
        for path, what in ((self.certificate, "certificate"), (self.key, "key")):
            text = _read(path, what)
            marker = b"-----BEGIN CERTIFICATE-----" if what == "certificate" else b"PRIVATE KEY-----"
            if marker not in text:
                raise ConfigError(f"{path}: holds no {what} in PEM form; convert it with openssl")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols([_ALPN.decode()])

        def encrypted() -> NoReturn:
            raise ConfigError(f"{self.key}: the key is encrypted; write it without a passphrase (openssl pkey)")

        try:
            context.load_cert_chain(self.certificate, self.key, password=encrypted)
        except ssl.SSLError as exc:
            if exc.reason == "KEY_VALUES_MISMATCH":
                problem = f"is not the key of the certificate {self.certificate}; name the two that belong together"
            else:
                problem = f"or the certificate {self.certificate} cannot be used: {exc.reason or exc}"
            raise ConfigError(f"{self.key}: {problem}") from None
        return context

    def twisted_options(self) -> IOpenSSLServerConnectionCreator:
        """The same for ``TLSMemoryBIOFactory``.

        :raises ConfigError: as :meth:`ssl_context`.
        """
        self.ssl_context()
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        # OpenSSL resumes a session only under a session id context.
        context.set_session_id(b"wcfrelay")
        context.set_alpn_select_callback(_select)
        context.use_certificate_chain_file(str(self.certificate))
        context.use_privatekey_file(str(self.key))
        return _ServerConnections(context)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How to trust a server.

    ``ca_file`` (PEM) replaces the system's trust store, it does not add to it. ``server_name`` is the name to
    ask for and to check, where it differs from the host that is dialled.

    ``verify=False`` ACCEPTS ANY CERTIFICATE FROM ANYBODY: whoever sits on the way can read and change
    everything, tokens included. For a bench or a debugger only, never for a relay that anything depends on;
    give ``ca_file`` instead.
    """

    ca_file: Path | None = None
    verify: bool = True
    server_name: str | None = None

    def name_for(self, host: str) -> str:
        """The name to ask for (SNI) and to check when ``host`` is dialled."""
        return self.server_name or host

    def ssl_context(self) -> ssl.SSLContext:
        """A new context with the trust loaded.

        :raises ConfigError: ``ca_file`` is missing, unreadable or holds no certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.ca_file is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            pem = [c.public_bytes(Encoding.PEM).decode() for c in _authorities(self.ca_file)]
            context.load_verify_locations(cadata="".join(pem))
        return context

    def twisted_options(self, host: str) -> IOpenSSLClientConnectionCreator:
        """The same for ``wrapClientTLS``, with ``name_for(host)`` built in.

        :raises ConfigError: as :meth:`ssl_context`.
        """
        name = self.name_for(host)
        if not self.verify:
            return _UnverifiedConnections(name)
        trust: Any = _platform_trust()
        if self.ca_file is not None:
            authorities = (X509.from_cryptography(c) for c in _authorities(self.ca_file))
            trust = _trust_root([_certificate(authority) for authority in authorities])
        return optionsForClientTLS(name, trustRoot=trust)


def development_certificate(folder: Path, names: Sequence[str], now: datetime) -> tuple[Path, Path, Path]:
    """A certificate for ``names`` (hosts, IP addresses) from an authority of our own, kept in ``folder``.

    Returns the paths of the authority's certificate (what clients trust), the server's certificate and its
    key. They are made once and reused; the server certificate is renewed when fewer than 30 days are left,
    when it lacks a name, or when the files do not belong together. The authority stays as long as it can sign.
    ``folder`` is made private (0700) and should hold nothing else; ``now`` is aware.

    :raises ConfigError: the folder or a file in it cannot be read or written, or a name cannot stand in a
        certificate.
    """
    ca_path, certificate_path, key_path = paths = (
        folder / "ca.pem",
        folder / "server.pem",
        folder / "server-key.pem",
    )
    ca_key_path = folder / "ca-key.pem"
    subject_names = [_subject_name(name) for name in names]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        ca = _load_certificate(ca_path, now)
        if ca is not None:
            certificate = _load_certificate(certificate_path, now)
            if (
                certificate is not None
                and _load_key(key_path, certificate) is not None
                and _fits(certificate, ca, subject_names)
            ):
                return paths
        ca_key = _load_key(ca_key_path, ca) if ca is not None else None
        if ca is None or ca_key is None:
            ca_key = ec.generate_private_key(ec.SECP256R1())
            ca = _authority(ca_key, now)
            _write(ca_key_path, _pem(ca_key))
            _write(ca_path, ca.public_bytes(Encoding.PEM))
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _server_certificate(key, subject_names, ca, ca_key, now)
        _write(key_path, _pem(key))
        _write(certificate_path, certificate.public_bytes(Encoding.PEM))
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename or folder}: no place for the development certificate ({exc.strerror}); "
            "give the folder to this user, or configure a certificate"
        ) from None
    return paths


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            f"{path}: cannot read the {what} ({exc.strerror}); check the path and this user's permission"
        ) from None


def _authorities(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_read(path, "CA file"))
    except ValueError:
        raise ConfigError(f"{path}: holds no certificate in PEM form; convert it with openssl") from None


def _select(connection: SSL.Connection, offered: list[bytes]) -> bytes | Any:
    return _ALPN if _ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS


@implementer(IOpenSSLServerConnectionCreator)
class _ServerConnections:
    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self._context, None)


@implementer(IOpenSSLClientConnectionCreator)
class _UnverifiedConnections:
    def __init__(self, name: str) -> None:
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._context.set_min_proto_version(SSL.TLS1_2_VERSION)
        self._context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        self._context.set_verify(SSL.VERIFY_NONE)
        self._name = None if _address(name) else name.encode("idna")

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        if self._name is not None:
            connection.set_tlsext_host_name(self._name)
        return connection


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _subject_name(name: str) -> x509.GeneralName:
    address = _address(name)
    if address is not None:
        return x509.IPAddress(address)
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(f'"{name}": write the host name in its ASCII form (xn--…)') from None


def _load_certificate(path: Path, now: datetime) -> x509.Certificate | None:
    """None where it is absent, damaged or nearly expired."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    lasts = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - _LEFT
    return certificate if lasts else None


def _load_key(path: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey | None:
    """None where it is absent, damaged or another certificate's."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key():
        return key
    return None


def _fits(certificate: x509.Certificate, ca: x509.Certificate, names: Sequence[x509.GeneralName]) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
        present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return set(names) <= set(present)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes) -> None:
    """Atomically: a reader sees the old file or the whole new one. Mode 0600."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # The serial number in the name keeps two development authorities in one trust store apart.
    serial = x509.random_serial_number()
    name = _name(f"wcfrelay development CA {serial:x}"[:64])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder(name, name, key.public_key(), serial, now - _SKEW, now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    ca_identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    serial = x509.random_serial_number()
    end = min(now + _SERVER_LIFE, ca.not_valid_after_utc)
    name = _name("wcfrelay development")
    return (
        x509.CertificateBuilder(ca.subject, name, key.public_key(), serial, now - _SKEW, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
