from __future__ import annotations

import json
from pathlib import Path

import pytest

from wcfrelay import errors
from wcfrelay.address import ConnectionString
from wcfrelay.errors import (
    AuthorizationError,
    ConfigError,
    EndpointNotFoundError,
    ExpiredTokenError,
    ForbiddenError,
    InvalidAudienceError,
    InvalidSignatureError,
    ListenerGoneError,
    ListenerTimeoutError,
    MissingTokenError,
    NoListenerError,
    PayloadTooLargeError,
    QuotaExceededError,
    RelayError,
    ServerBusyError,
    ServiceUnreachableError,
)
from wcfrelay.sas import parse_token
from wcfrelay.sender.connection import SenderConnection, connection_from
from wcfrelay.wire.soap import error_answer, fault

TEXT = "Endpoint=sb://gw.example/;SharedAccessKeyName=send;SharedAccessKey=topsecret"
SUFFIX = "TrackingId:4b1b_G0, SystemTracker:sb://gw.example/orders, Timestamp:2030-01-01T00:00:00"
VIA = [("via", "1.1 gw.example")]
SOAP_HEADERS = {
    "1.1": [("Content-Type", "text/xml"), ("SOAPAction", '""')],
    "1.2": [("Content-Type", "application/soap+xml")],
    "json": [("Accept", "*/*")],
}


def sender(text: str = TEXT, path: str = "orders", **options: object) -> SenderConnection:
    return SenderConnection(ConnectionString.parse(text), path, **options)  # type: ignore[arg-type]


# -- where the connection string comes from


def test_an_argument_wins_over_the_environment(tmp_path: Path) -> None:
    environ = {"WCFRELAY_CONNECTION_STRING": "Endpoint=sb://environment/"}
    assert connection_from(None, environ).host == "environment"
    assert connection_from(" Endpoint=sb://argument/\n", environ).host == "argument"
    file = tmp_path / "string"
    file.write_bytes(b"\xef\xbb\xbfEndpoint=sb://file/\n")
    assert connection_from("Endpoint=sb://argument/", environ, file=file).host == "file"


def test_the_text_when_there_is_none() -> None:
    with pytest.raises(ConfigError, match="There is no connection string: give one, or set WCFRELAY_CONNECTION_STRING"):
        connection_from(None, {})
    with pytest.raises(ConfigError, match="Endpoint=sb://<gateway>/;SharedAccessKeyName"):
        connection_from("", {"WCFRELAY_CONNECTION_STRING": " "})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read the connection string .No such file"),
        (b"\n", "the file is empty"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: bytes | None, text: str) -> None:
    file = tmp_path / "string"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"{file}: .*{text}"):
        connection_from(None, {}, file=file)


def test_a_wrong_connection_string_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        connection_from("Endpoint=sb://gw/;SharedAccessKey=topsecret", {})
    assert "topsecret" not in str(caught.value)


# -- the relay


def test_the_path_is_the_argument_or_else_the_entity_path() -> None:
    assert sender(TEXT + ";EntityPath=from/string", "").url == "https://gw.example/from/string"
    assert sender(TEXT + ";EntityPath=from/string", "/Orders/New/").url == "https://gw.example/Orders/New"
    with pytest.raises(ConfigError, match="There is no path of a relay: give one, such as orders, or add EntityPath"):
        sender(TEXT, "")
    with pytest.raises(ConfigError, match="has a \\?"):
        sender(TEXT, "orders?wsdl")


def test_the_timeout_is_the_argument_or_else_the_operation_timeout() -> None:
    assert sender().timeout == 60
    assert sender(TEXT + ";OperationTimeout=00:00:07").timeout == 7
    assert sender(TEXT + ";OperationTimeout=00:00:07", timeout=3).timeout == 3


def test_a_ca_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the CA file"):
        sender(ca_file=tmp_path / "missing.pem")


def test_the_token_is_for_the_path_and_renewed_in_time() -> None:
    now = [1_000_000.0]
    relay = sender(path="orders/new", now=lambda: now[0])
    first = relay.authorization()["ServiceBusAuthorization"]
    assert parse_token(first).segments == ("orders", "new")
    now[0] += 1800
    assert relay.authorization()["ServiceBusAuthorization"] == first
    now[0] += 1000
    second = relay.authorization()["ServiceBusAuthorization"]
    assert parse_token(second).expiry == 1_000_000 + 2800 + 3600
    assert sender("Endpoint=sb://gw.example/").authorization() == {}
    given = sender("Endpoint=sb://gw.example/;SharedAccessSignature=SharedAccessSignature sr=x&sig=y&se=1&skn=z")
    assert given.authorization()["ServiceBusAuthorization"].startswith("SharedAccessSignature sr=x")


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("https://gw.example/orders?wsdl", "https://gw.example/orders?wsdl"),
        ("https://GW.Example:443", "https://gw.example/"),
        ("http://gw.example/orders", "https://gw.example/orders"),
        ("http://gw.example:80/a b?c=d e#f", "https://gw.example/a%20b?c=d%20e"),
        ("https://gw.example/a%20b?x=%3d", "https://gw.example/a%20b?x=%3d"),
        ("https://gw.example:8443/orders", None),
        ("http://gw.example:443/orders", None),
        ("https://gw.example.evil/orders", None),
        ("https://gw.example@evil.example/", None),
        ("https://user:pw@gw.example/", None),
        ("https://evil.example\\@gw.example/", None),
        ("ftp://gw.example/orders", None),
        ("sb://gw.example/orders", None),
        ("//gw.example/orders", None),
        ("https://gw.example:x/", None),
        ("https://[::1/", None),
        ("", None),
    ],
)
def test_what_is_on_the_relays_origin(url: str, own: str | None) -> None:
    assert sender().own(url) == own


@pytest.mark.parametrize(
    ("endpoint", "url", "own"),
    [
        ("sb://gw:8443/", "http://gw:8443/x", "https://gw:8443/x"),
        ("sb://gw:8443/", "http://gw/x", None),
        ("http://gw:8080/", "http://gw:8080/x", "http://gw:8080/x"),
        ("http://gw:8080/", "https://gw:8080/x", None),
        ("http://gw/", "https://gw/x", None),
        ("http://gw:443/", "http://gw/x", None),
        ("http://[::1]:9/", "http://[::1]:9/x", "http://[::1]:9/x"),
    ],
)
def test_origins_of_other_relays(endpoint: str, url: str, own: str | None) -> None:
    assert sender(f"Endpoint={endpoint}").own(url) == own


def test_places_at_the_relay() -> None:
    relay = sender()
    assert relay.at("?singleWsdl") == "https://gw.example/orders?singleWsdl"
    assert relay.at("basic?wsdl") == relay.at("/basic?wsdl") == "https://gw.example/orders/basic?wsdl"
    assert relay.at("https://else.example/x") == "https://else.example/x"


# -- what answers mean


@pytest.mark.parametrize("form", ["1.1", "1.2", "json"])
@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (NoListenerError(), "Start the listener of 'orders', or check the path."),
        (EndpointNotFoundError(), "Start its listener, or check the path 'orders' and that gw.example is its"),
        (MissingTokenError(), "Add SharedAccessKeyName and SharedAccessKey"),
        (InvalidSignatureError(), "Check SharedAccessKeyName"),
        (ExpiredTokenError(), "Set this machine's clock"),
        (InvalidAudienceError(), "own host name in Endpoint"),
        (AuthorizationError("Something else."), "Check the key or signature"),
        (ForbiddenError(), "Use a rule that has the right Send."),
        (QuotaExceededError(), ""),
        (PayloadTooLargeError(), ""),
        (ListenerGoneError(), "Whether the call was executed is not known"),
        (ServiceUnreachableError("The listener could not reach the service behind it. Check that."), "Check that."),
        (ServerBusyError(), "try again later"),
        (ListenerTimeoutError(), "look at the service behind the listener"),
        (RelayError("Something broke."), "Something broke."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, RelayError) else "",
)
def test_an_error_of_the_gateway_is_what_it_was(error: RelayError, advice: str, form: str) -> None:
    status, _, headers, body = error_answer(error, SOAP_HEADERS[form], suffix=SUFFIX)
    found = sender().refusal(status, headers, body)
    assert type(found) is type(error)
    assert found.tracking_id == "4b1b_G0"
    assert advice in found.message
    assert found.message.startswith(error.message.rstrip(". "))
    assert "SystemTracker" not in str(found) and str(found).endswith("TrackingId:4b1b_G0")


def test_no_listener_with_status_502() -> None:
    class Elsewhere(NoListenerError):
        __doc__ = NoListenerError.__doc__
        status = 502
        code = "BadGateway"

    status, _, headers, body = error_answer(Elsewhere(), [])
    assert type(sender().refusal(status, headers, body)) is NoListenerError


@pytest.mark.parametrize("form", ["1.1", "1.2", "json"])
def test_an_answer_of_the_listener_in_the_services_place(form: str) -> None:
    error = ServiceUnreachableError(tracking_id="7_G1")
    status, _, headers, body = error_answer(error, SOAP_HEADERS[form])
    found = sender().refusal(status, headers + VIA, body)
    assert isinstance(found, ServiceUnreachableError) and found.tracking_id == "7_G1"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, fault("1.1", sender=False, reason="mine")[0]),
        (500, fault("1.2", sender=False, reason="mine")[0]),
        (404, b"<html><p>nothing here"),
        (500, json.dumps({"error": {"code": "OutOfStock", "message": "mine"}}).encode()),
        (500, b""),
        (200, b"anything"),
        (202, b""),
        (307, b""),
    ],
)
def test_what_the_service_says_is_not_the_relays(status: int, body: bytes) -> None:
    assert sender().refusal(status, VIA, body) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{",
        b'{"error": 7}',
        b'{"error": {"code": 7, "message": null}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
        b" " * 1_000_000,
        b"\xff\xfe",
    ],
)
def test_an_error_that_explains_nothing(body: bytes) -> None:
    found = sender().refusal(503, [], body)
    assert type(found) is ServerBusyError
    assert found.message == "gw.example answered with status 503 and gave no reason; is it a gateway?"


def test_every_error_with_a_status_is_told_from_its_answer() -> None:
    ours = {"ProtocolError", "GatewayUnreachableError"}  # made on this side only
    for name in set(errors.__all__) - ours:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, RelayError):
            status, _, headers, body = error_answer(kind(), [])
            assert type(sender().refusal(status, headers, body)) is kind, name


def test_reasons_for_no_connection() -> None:
    relay = sender()
    inner = ConnectionRefusedError(111, "Connection refused")
    outer = RuntimeError("wrapped")
    outer.__cause__ = inner
    assert "could not be reached: [Errno 111] Connection refused. Check Endpoint" in str(relay.unreachable(outer))
    untrusted = str(relay.unreachable(ValueError("certificate verify failed: self-signed")))
    assert "ca_file or in WCFRELAY_CA_FILE" in untrusted and "valid for gw.example" in untrusted
    assert "could not be reached: RuntimeError." in str(relay.unreachable(RuntimeError()))
