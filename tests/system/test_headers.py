"""What of a request reaches the service, and what of its answer the sender (hybrid-connections.md §6 to §8)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.system.apps.backend import pattern
from tests.system.processes import Backend, listener
from tests.system.senders import Answer, ask, assert_refused, call, connected, raw, read_answer, token
from wcfrelay.testing import Gateway, relay

pytestmark = pytest.mark.system

_OWN = "Bearer what-the-service-wants"
_SIZES = pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
"""On the control channel, and on a rendezvous."""


@pytest.fixture(scope="module")
def open_gateway(service: Backend) -> Iterator[Gateway]:
    """A gateway with a relay for which senders need no token."""
    config = '[[relays]]\npath = "open"\nrequires_client_authorization = false\n'
    with relay(config) as started, listener(started, "expose", service.url, "open"):
        yield started


def _seen(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    seen: dict[str, Any] = answer.json()
    seen["fields"] = {}
    for name, value in seen["headers"]:
        seen["fields"].setdefault(name.lower(), []).append(value)
    return seen


def _send(
    gateway: Gateway, target: str, headers: dict[str, str], size: int = 10, *, tls: bool = False
) -> dict[str, Any]:
    """What the service has seen of a request with exactly these header fields."""
    with connected(gateway, tls=tls) as connection:
        return _seen(ask(connection, "POST", target, bytes(size), headers))


@_SIZES
@pytest.mark.usefixtures("exposed")
class TestTokens:
    def test_in_service_bus_authorization(self, gateway: Gateway, size: int) -> None:
        headers = {"ServiceBusAuthorization": token(gateway, "svc"), "Authorization": _OWN}
        seen = _send(gateway, "/svc/seen", headers, size)
        assert "servicebusauthorization" not in seen["fields"]
        assert seen["fields"]["authorization"] == [_OWN]

    def test_in_authorization(self, gateway: Gateway, size: int) -> None:
        seen = _send(gateway, "/svc/seen", {"Authorization": token(gateway, "svc")}, size)
        assert "SharedAccessSignature" not in str(seen)
        assert "authorization" not in seen["fields"]

    def test_in_the_query(self, gateway: Gateway, size: int) -> None:
        query = f"a=%41+b&sb-hc-token={quote(token(gateway, 'svc'), safe='')}&sb-hc-id=x&A=%2f&&z"
        seen = _send(gateway, f"/svc/seen?{query}", {"Authorization": _OWN}, size)
        assert seen["target"] == "/svc/seen?a=%41+b&A=%2f&&z"
        assert seen["fields"]["authorization"] == [_OWN]
        assert "SharedAccessSignature" not in str(seen)

    def test_alone_in_the_query(self, gateway: Gateway, size: int) -> None:
        seen = _send(gateway, f"/svc/seen?sb-hc-token={quote(token(gateway, 'svc'), safe='')}", {}, size)
        assert seen["target"] == "/svc/seen"

    def test_the_query_goes_before_the_headers(self, gateway: Gateway, size: int) -> None:
        target = f"/svc/seen?sb-hc-token={quote(token(gateway, 'svc'), safe='')}"
        seen = _send(gateway, target, {"ServiceBusAuthorization": "no token"}, size)
        assert "servicebusauthorization" not in seen["fields"]

    def test_a_wrong_one_is_not_replaced_by_a_good_one_elsewhere(self, gateway: Gateway, size: int) -> None:
        headers = {"ServiceBusAuthorization": "no token", "Authorization": token(gateway, "svc")}
        with connected(gateway) as connection:
            answer = ask(connection, "POST", "/svc/seen", bytes(size), headers)
        assert_refused("plain", answer, 401, "TokenMissingOrInvalid")

    def test_none_is_needed(self, open_gateway: Gateway, size: int) -> None:
        seen = _send(open_gateway, "/open/seen", {"Authorization": _OWN}, size)
        assert seen["fields"]["authorization"] == [_OWN]

    def test_none_is_needed_but_one_is_given(self, open_gateway: Gateway, size: int) -> None:
        headers = {"ServiceBusAuthorization": "whatever", "Authorization": _OWN}
        seen = _send(open_gateway, "/open/seen", headers, size)
        assert seen["fields"]["authorization"] == [_OWN]
        assert "servicebusauthorization" not in seen["fields"]


@_SIZES
@pytest.mark.usefixtures("exposed")
class TestRequest:
    def test_fields_about_the_connection_end_at_the_relay(self, gateway: Gateway, size: int) -> None:
        headers = {
            "ServiceBusAuthorization": token(gateway, "svc"),
            "Connection": "keep-alive, X-Private, TE",
            "X-Private": "between two",
            "Keep-Alive": "timeout=5",
            "Proxy-Connection": "keep-alive",
            "TE": "trailers",
            "Trailer": "X-Later",
            "X-Public": "for all",
        }
        fields = _send(gateway, "/svc/seen", headers, size)["fields"]
        assert not {"x-private", "keep-alive", "proxy-connection", "te", "trailer"} & set(fields)
        assert "X-Private" not in str(fields.get("connection"))
        assert fields["x-public"] == ["for all"]
        assert fields["content-length"] == [str(size)] and "transfer-encoding" not in fields

    @pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
    def test_host_is_mapped(self, gateway: Gateway, service: Backend, size: int, tls: bool) -> None:
        fields = _send(gateway, "/svc/seen", {"ServiceBusAuthorization": token(gateway, "svc")}, size, tls=tls)[
            "fields"
        ]
        assert fields["host"] == [f"127.0.0.1:{service.port}"]
        sent_to = f"localhost:{gateway.https_port}" if tls else f"127.0.0.1:{gateway.http_port}"
        assert fields["x-forwarded-host"] == [sent_to]
        assert fields["x-forwarded-proto"] == ["https" if tls else "http"]

    def test_via_is_extended(self, gateway: Gateway, size: int) -> None:
        headers = {"ServiceBusAuthorization": token(gateway, "svc"), "Via": "1.0 earlier"}
        fields = _send(gateway, "/svc/seen", headers, size)["fields"]
        assert fields["via"] == [f"1.0 earlier, 1.1 127.0.0.1:{gateway.http_port}"]

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
    def test_method_and_target_pass_as_they_are(self, gateway: Gateway, size: int, method: str) -> None:
        target = "/svc/%41%20b/~x;y=1/'(z)/%C3%BC/seen?q=%2B+%20&r=a/b?c"
        with connected(gateway) as connection:
            authorization = {"ServiceBusAuthorization": token(gateway, "svc")}
            seen = _seen(ask(connection, method, target, bytes(size), authorization))
        assert (seen["method"], seen["target"], seen["length"]) == (method, target, size)


@pytest.mark.usefixtures("exposed")
class TestAnswer:
    def test_fields_about_the_connection_end_at_the_relay(self, gateway: Gateway) -> None:
        answer = call(gateway, "/svc/seen")
        assert not {"x-private", "keep-alive"} & {name.lower() for name, _ in answer.headers}
        assert "X-Private" not in (answer.field("Connection") or "")
        assert answer.field("X-Public") == "for all"
        assert answer.field("Content-Length") == str(len(answer.body))
        assert [value for name, value in answer.headers if name == "Set-Cookie"] == ["a=1", "b=2; Path=/"]

    @_SIZES
    def test_via_is_added(self, gateway: Gateway, size: int) -> None:
        for target in (f"/svc/bulk?bytes={size}&framing=length", f"/svc/bulk?bytes={size}&framing=chunked"):
            answer = call(gateway, target)
            assert (len(answer.body), answer.field("Via")) == (size, f"1.1 127.0.0.1:{gateway.http_port}")
            assert len([name for name, _ in answer.headers if name.lower() == "date"]) == 1

    def test_head_has_the_fields_and_no_body(self, gateway: Gateway) -> None:
        with connected(gateway) as connection:
            authorization = {"ServiceBusAuthorization": token(gateway, "svc")}
            answer = ask(connection, "HEAD", "/svc/seen", None, authorization)
            assert (answer.status, answer.body) == (200, b"") and int(answer.field("Content-Length") or 0) > 100
            assert ask(connection, "POST", "/svc/echo", b"next", authorization).body == b"next"

    def test_a_status_of_the_service_is_its_own(self, gateway: Gateway) -> None:
        answer = call(gateway, "/svc/nothing")
        assert (answer.status, answer.body) == (404, b"no such thing here\n")
        assert answer.field("Via")


@pytest.mark.usefixtures("exposed")
class TestOtherSenders:
    """Senders that speak HTTP otherwise than most."""

    @_SIZES
    def test_one_that_asks_before_it_sends(self, gateway: Gateway, size: int) -> None:
        head = (
            f"POST /svc/echo HTTP/1.1\r\nHost: a\r\nServiceBusAuthorization: {token(gateway, 'svc')}\r\n"
            f"Expect: 100-continue\r\nContent-Length: {size}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.http_port), 10) as connection:
            connection.sendall(head.encode())
            with connection.makefile("rb") as stream:
                assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
                assert stream.readline() == b"\r\n"
                connection.sendall(bytes(size))
                assert read_answer(stream).body == bytes(size)

    def test_one_that_asks_and_may_not(self, gateway: Gateway) -> None:
        head = b"POST /svc/echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n"
        with socket.create_connection(("127.0.0.1", gateway.http_port), 10) as connection:
            connection.sendall(head)
            with connection.makefile("rb") as stream:
                answer = read_answer(stream)
        assert (answer.status, answer.field("Connection")) == (401, "close")

    @_SIZES
    def test_one_that_knows_no_chunks(self, gateway: Gateway, size: int) -> None:
        target = f"/svc/bulk?bytes={size}&framing=chunked"
        head = f"GET {target} HTTP/1.0\r\nServiceBusAuthorization: {token(gateway, 'svc')}\r\n\r\n"
        fields, _, body = raw(gateway, head.encode()).partition(b"\r\n\r\n")
        assert fields.startswith(b"HTTP/1.1 200 ") and b"chunked" not in fields
        assert body == b"".join(pattern(size))

    def test_one_that_writes_the_whole_address(self, gateway: Gateway) -> None:
        target = f"{gateway.http_url}/svc/seen?a=b"
        seen = _send(gateway, target, {"ServiceBusAuthorization": token(gateway, "svc")})
        assert seen["target"] == "/svc/seen?a=b"
