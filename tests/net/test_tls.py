"""Contexts of both kinds against each other in memory, and the life of a development certificate."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from OpenSSL import SSL
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from wcfrelay.errors import ConfigError
from wcfrelay.net.tls import ClientTls, ServerTls, development_certificate

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ["relay.example", "*.relay.example", "127.0.0.1", "::1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return development_certificate(tmp_path_factory.mktemp("tls") / "certificates", NAMES, NOW)


class StdlibSide:
    """One end on :mod:`ssl`, moving bytes by hand."""

    def __init__(self, context: ssl.SSLContext, server_side: bool, name: str | None = None) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, name)

    def step(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take(self) -> bytes:
        return self.outgoing.read()

    def give(self, data: bytes) -> None:
        self.incoming.write(data)

    def protocol(self) -> str | None:
        return self.tls.selected_alpn_protocol()


@implementer(IHandshakeListener)
class Shaken(Protocol):
    done = False
    lost: Exception | None = None

    def handshakeCompleted(self) -> None:
        self.done = True

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason.value


class TwistedSide:
    """One end on Twisted's own TLS protocol over a transport in memory."""

    def __init__(self, creator: Any, is_client: bool) -> None:
        self.shaken = Shaken()
        factory = Factory.forProtocol(lambda: self.shaken)
        self.tls: Any = TLSMemoryBIOFactory(creator, is_client, factory, Clock()).buildProtocol(None)
        self.transport: Any = StringTransport()  # type: ignore[no-untyped-call]
        self.tls.makeConnection(self.transport)  # type: ignore[no-untyped-call]

    def step(self) -> bool:
        if self.shaken.lost is not None:
            raise self.shaken.lost
        return self.shaken.done

    def take(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    def give(self, data: bytes) -> None:
        if data:
            self.tls.dataReceived(data)
        if self.transport.disconnecting and self.shaken.lost is None:
            self.tls.connectionLost(Failure(ConnectionDone()))  # type: ignore[no-untyped-call]

    def protocol(self) -> str | None:
        return self.tls.negotiatedProtocol.decode() if self.tls.negotiatedProtocol else None


def stdlib_server(tls: ServerTls) -> Any:
    return StdlibSide(tls.ssl_context(), True)


def twisted_server(tls: ServerTls) -> Any:
    return TwistedSide(tls.twisted_options(), False)


def stdlib_client(tls: ClientTls, host: str) -> Any:
    context = tls.ssl_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    return StdlibSide(context, False, tls.name_for(host))


def twisted_client(tls: ClientTls, host: str) -> Any:
    return TwistedSide(tls.twisted_options(host), True)


def shake(client: Any, server: Any) -> None:
    for _ in range(10):
        done = client.step()
        server.give(client.take())
        done = server.step() and done
        client.give(server.take())
        if done:
            return
    raise AssertionError("no handshake")


@pytest.mark.parametrize("make_server", [stdlib_server, twisted_server])
@pytest.mark.parametrize("make_client", [stdlib_client, twisted_client])
@pytest.mark.parametrize("host", ["relay.example", "a.relay.example", "127.0.0.1", "::1"])
def test_clients_trust_the_authority(
    made: tuple[Path, Path, Path],
    make_client: Callable[[ClientTls, str], Any],
    make_server: Callable[[ServerTls], Any],
    host: str,
) -> None:
    ca, certificate, key = made
    client, server = make_client(ClientTls(ca), host), make_server(ServerTls(certificate, key))
    shake(client, server)
    if make_client is stdlib_client:
        assert server.protocol() == "http/1.1"


@pytest.mark.parametrize("make_client", [stdlib_client, twisted_client])
@pytest.mark.parametrize(
    ("tls", "host"),
    [
        (ClientTls(), "relay.example"),
        (ClientTls(Path("CA")), "other.example"),
        (ClientTls(Path("CA"), server_name="other.example"), "relay.example"),
    ],
    ids=["system trust", "other host", "other server name"],
)
def test_a_wrong_certificate_is_refused(
    made: tuple[Path, Path, Path], make_client: Callable[[ClientTls, str], Any], tls: ClientTls, host: str
) -> None:
    ca, certificate, key = made
    tls = ClientTls(ca if tls.ca_file else None, tls.verify, tls.server_name)
    with pytest.raises(Exception, match=r"(?i)verif|match"):
        shake(make_client(tls, host), stdlib_server(ServerTls(certificate, key)))


@pytest.mark.parametrize("make_client", [stdlib_client, twisted_client])
@pytest.mark.parametrize("host", ["whoever.example", "127.0.0.9"])
def test_verification_can_be_switched_off(
    made: tuple[Path, Path, Path], make_client: Callable[[ClientTls, str], Any], host: str
) -> None:
    _, certificate, key = made
    shake(make_client(ClientTls(verify=False), host), stdlib_server(ServerTls(certificate, key)))


def test_the_server_name_replaces_the_host(made: tuple[Path, Path, Path]) -> None:
    ca, certificate, key = made
    tls = ClientTls(ca, server_name="relay.example")
    for make_client in (stdlib_client, twisted_client):
        shake(make_client(tls, "10.0.0.1"), stdlib_server(ServerTls(certificate, key)))


@pytest.mark.parametrize("make_server", [stdlib_server, twisted_server])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_1_1_is_refused(made: tuple[Path, Path, Path], make_server: Callable[[ServerTls], Any]) -> None:
    _, certificate, key = made
    context = ClientTls(verify=False).ssl_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, SSL.Error)):
        shake(StdlibSide(context, False, "relay.example"), make_server(ServerTls(certificate, key)))


@pytest.mark.parametrize("make_server", [stdlib_server, twisted_server])
def test_sessions_resume(made: tuple[Path, Path, Path], make_server: Callable[[ServerTls], Any]) -> None:
    ca, certificate, key = made
    server_tls = ServerTls(certificate, key)
    context = ClientTls(ca).ssl_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # the ticket is part of the handshake here
    if make_server is stdlib_server:
        server_context = server_tls.ssl_context()
        make: Callable[[], Any] = lambda: StdlibSide(server_context, True)  # noqa: E731 one line a branch
    else:
        options = server_tls.twisted_options()
        make = lambda: TwistedSide(options, False)  # noqa: E731

    first = StdlibSide(context, False, "relay.example")
    shake(first, make())
    again = StdlibSide(context, False, "relay.example")
    again.tls.session = first.tls.session
    shake(again, make())
    assert again.tls.session_reused


def test_strict_clients_accept_the_certificate(made: tuple[Path, Path, Path]) -> None:
    ca, certificate, key = made
    context = ClientTls(ca).ssl_context()
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default of other stacks, and of CPython from 3.13
    shake(StdlibSide(context, False, "relay.example"), stdlib_server(ServerTls(certificate, key)))


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_files_that_do_not_serve_are_named(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    ca, certificate, key = made
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for make in (ServerTls.ssl_context, ServerTls.twisted_options):
        refused(lambda make=make: make(ServerTls(missing, key)), str(missing), "certificate", "No such file")  # type: ignore[misc]
        refused(lambda make=make: make(ServerTls(certificate, missing)), str(missing), "key", "No such file")  # type: ignore[misc]
        refused(lambda make=make: make(ServerTls(empty, key)), str(empty), "no certificate")  # type: ignore[misc]
        refused(lambda make=make: make(ServerTls(certificate, certificate)), "no key")  # type: ignore[misc]
        refused(lambda make=make: make(ServerTls(ca, key)), str(key), "is not the key", str(ca))  # type: ignore[misc]
    refused(ClientTls(missing).ssl_context, str(missing), "CA file", "No such file")
    refused(ClientTls(empty).ssl_context, str(empty), "no certificate")
    refused(lambda: ClientTls(key).twisted_options("a.example"), str(key), "no certificate")


def test_an_encrypted_key_is_refused_without_asking(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, certificate, key = made
    locked = tmp_path / "locked.pem"
    loaded = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    refused(ServerTls(certificate, locked).ssl_context, str(locked), "passphrase")
    refused(ServerTls(certificate, locked).twisted_options, str(locked), "passphrase")


def test_damaged_files_are_refused(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, certificate, key = made
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(key.read_bytes()[:60] + b"\n-----END PRIVATE KEY-----\n")
    refused(ServerTls(certificate, damaged).ssl_context, str(damaged))


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_development_certificate_is_private_and_reused(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "certificates"
    paths = development_certificate(folder, NAMES, NOW)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["ca-key.pem", "ca.pem", "server-key.pem", "server.pem"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    before = [file.read_bytes() for file in files]
    assert development_certificate(folder, NAMES[:2], NOW + timedelta(days=366)) == paths
    assert [file.read_bytes() for file in files] == before

    ca, certificate = load(paths[0]), load(paths[1])
    assert certificate.not_valid_after_utc == NOW + timedelta(days=397)
    assert ca.not_valid_after_utc == NOW + timedelta(days=3650)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)


def test_the_server_certificate_is_renewed_under_the_same_authority(tmp_path: Path) -> None:
    ca, certificate, key = development_certificate(tmp_path, ["a.example"], NOW)

    def renewed(names: list[str], now: datetime) -> bool:
        authority, old = ca.read_bytes(), certificate.read_bytes()
        development_certificate(tmp_path, names, now)
        assert ca.read_bytes() == authority
        load(certificate).verify_directly_issued_by(load(ca))
        ServerTls(certificate, key).ssl_context()
        return certificate.read_bytes() != old

    assert renewed(["a.example", "10.0.0.1"], NOW), "a name more"
    assert not renewed(["a.example"], NOW), "a name less"
    assert renewed(["a.example"], NOW + timedelta(days=368)), "29 days left"
    key.unlink()
    assert renewed(["a.example"], NOW + timedelta(days=368)), "the key is gone"
    certificate.write_bytes(b"-----BEGIN CERTIFICATE-----")
    assert renewed(["a.example"], NOW + timedelta(days=368)), "the certificate is damaged"
    foreign = development_certificate(tmp_path / "other", ["a.example"], NOW)
    certificate.write_bytes(foreign[1].read_bytes())
    key.write_bytes(foreign[2].read_bytes())
    assert renewed(["a.example"], NOW), "another authority's"
    key.write_bytes(
        rsa.generate_private_key(65537, 2048).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
        )
    )
    assert renewed(["a.example"], NOW), "an encrypted key"


def test_the_authority_is_replaced_when_it_can_no_longer_sign(tmp_path: Path) -> None:
    ca, certificate, _ = development_certificate(tmp_path, ["a.example"], NOW)
    late = NOW + timedelta(days=3600)
    first = ca.read_bytes()
    development_certificate(tmp_path, ["a.example"], late)
    assert ca.read_bytes() == first
    assert load(certificate).not_valid_after_utc == load(ca).not_valid_after_utc
    development_certificate(tmp_path, ["a.example"], NOW + timedelta(days=3621))
    second = ca.read_bytes()
    assert second != first
    (tmp_path / "ca-key.pem").unlink()
    development_certificate(tmp_path, ["a.example"], NOW + timedelta(days=3621))
    assert ca.read_bytes() == second, "a certificate that serves needs no authority's key"
    development_certificate(tmp_path, ["b.example"], NOW + timedelta(days=3621))
    assert ca.read_bytes() != second
    load(certificate).verify_directly_issued_by(load(ca))


def test_what_cannot_be_certified_is_refused(tmp_path: Path) -> None:
    refused(lambda: development_certificate(tmp_path, ["bücher.example"], NOW), "bücher.example", "xn--")
    (tmp_path / "file").write_bytes(b"")
    refused(lambda: development_certificate(tmp_path / "file", ["a.example"], NOW), str(tmp_path / "file"))
    (tmp_path / "ca.pem").mkdir()
    refused(lambda: development_certificate(tmp_path, ["a.example"], NOW), "ca.pem")
