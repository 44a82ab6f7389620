"""Opening handshakes: in memory under any split, and over real sockets against websockets' own server."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from websockets.client import ClientProtocol
from websockets.datastructures import Headers as Fields
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from wcfrelay.errors import (
    AuthorizationError,
    BadRequestError,
    EndpointNotFoundError,
    ForbiddenError,
    GatewayUnreachableError,
    InvalidSignatureError,
    ListenerTimeoutError,
    NoListenerError,
    ProtocolError,
    QuotaExceededError,
    RelayError,
    ServerBusyError,
)
from wcfrelay.net.handshake import connect_websocket, is_websocket_upgrade, server_handshake
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ClientTls, ServerTls, development_certificate
from wcfrelay.net.websocket import BINARY, TEXT, WebSocket

URL = "ws://relay.example:8080/$hc/a%2Fb/?x=%24&sb-hc-token=SECRET"
GOOD = [
    ("Host", "relay.example"),
    ("Upgrade", "websocket"),
    ("Connection", "keep-alive, Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
]


def changed(name: str, *values: str) -> list[tuple[str, str]]:
    return [pair for pair in GOOD if pair[0] != name] + [(name, value) for value in values]


# -- the server's side


def test_the_example_of_the_rfc() -> None:
    offered = [*GOOD, ("Sec-WebSocket-Protocol", "chat, superchat")]
    assert server_handshake(offered, "/chat", "chat", [("Via", "1.1 relay")]) == [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("Sec-WebSocket-Protocol", "chat"),
        ("Via", "1.1 relay"),
    ]


def test_extensions_are_not_accepted_and_a_subprotocol_need_not_be() -> None:
    offered = [*GOOD, ("Sec-WebSocket-Extensions", "permessage-deflate"), ("Sec-WebSocket-Protocol", "chat")]
    assert [name for name, _ in server_handshake(offered, "/", None)] == [
        "Upgrade",
        "Connection",
        "Sec-WebSocket-Accept",
    ]


@pytest.mark.parametrize(
    ("headers", "subprotocol", "words"),
    [
        (changed("Upgrade"), None, "Upgrade"),
        (changed("Upgrade", "h2c"), None, "Upgrade"),
        (changed("Connection", "close"), None, "Connection"),
        (changed("Sec-WebSocket-Key"), None, "Sec-WebSocket-Key"),
        (changed("Sec-WebSocket-Key", "short"), None, "Sec-WebSocket-Key"),
        (changed("Sec-WebSocket-Key", *["dGhlIHNhbXBsZSBub25jZQ=="] * 2), None, "multiple"),
        (changed("Sec-WebSocket-Version"), None, "Sec-WebSocket-Version"),
        (changed("Sec-WebSocket-Version", "8"), None, "Sec-WebSocket-Version"),
        (GOOD, "wsrelayedconnection", "missing subprotocol"),
        ([*GOOD, ("Sec-WebSocket-Protocol", "chat")], "wsrelayedconnection", "expected one of wsrelayedconnection"),
        ([*GOOD, ("Sec-WebSocket-Protocol", "a b")], None, "Sec-WebSocket-Protocol"),
        (changed("Sec-WebSocket-Key", "x" * 9000), None, "Sec-WebSocket-Key"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    headers: list[tuple[str, str]], subprotocol: str | None, words: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        server_handshake(headers, "/?sb-hc-token=SECRET", subprotocol)
    assert words in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_websockets_accepts_our_answer() -> None:
    client = ClientProtocol(parse_uri("ws://relay.example/x"), subprotocols=[Subprotocol("a"), Subprotocol("b")])
    request = client.connect()
    answer = server_handshake(list(request.headers.raw_items()), request.path, "b")
    client.process_response(Response(101, "Switching Protocols", Fields(answer)))
    assert client.subprotocol == "b"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (GOOD, True),
        ([("upgrade", "h2c, WebSocket"), ("connection", "upgrade")], True),
        ([("Upgrade", "websocket"), ("Connection", "close"), ("Connection", "UPGRADE")], True),
        ([("Upgrade", "websocket")], False),
        ([("Upgrade", "websocket"), ("Connection", "keep-alive")], False),
        ([("Upgrade", "h2c"), ("Connection", "Upgrade")], False),
        ([("X-Upgrade", "websocket"), ("Connection", "Upgrade")], False),
        ([], False),
    ],
)
def test_what_asks_for_a_websocket(headers: list[tuple[str, str]], expected: bool) -> None:
    assert is_websocket_upgrade(headers) is expected


# -- the client's side, in memory


class MemoryTransport:
    def __init__(self) -> None:
        self.written = b""
        self.aborted = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol


class MemoryNetwork:
    def __init__(self, clock: Clock, transport: MemoryTransport) -> None:
        self.seconds = clock.seconds
        self.transport = transport
        self.dialled: tuple[Any, ...] = ()

    def call_soon(self, call: Callable[[], None]) -> None:
        call()

    async def connect(self, make: Callable[[], Any], host: str, port: int, tls: Any, timeout: float) -> Any:
        self.dialled = (host, port, tls, timeout)
        core = self.transport.protocol = make()
        core.connection_made(self.transport)
        return core


class App:
    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes, bool]] = []
        self.ends: list[int] = []
        self.over: Deferred[int] = Deferred()

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        self.frames.append((opcode, data, fin))

    def closed(self, code: int, reason: str) -> None:
        self.ends.append(code)
        self.over.callback(code)

    def pause_sending(self) -> None: ...

    def resume_sending(self) -> None: ...


class Dial:
    """A handshake under way in memory."""

    def __init__(self, url: str = URL, make_app: Callable[[WebSocket], Any] | None = None, **options: Any) -> None:
        self.clock = Clock()
        self.transport = MemoryTransport()
        self.network = MemoryNetwork(self.clock, self.transport)
        self.app = App()
        self.results: list[Any] = []
        self.waiting = Deferred.fromCoroutine(
            connect_websocket(
                cast(Any, self.network),
                Timers(self.clock),
                url,
                make_app=make_app or (lambda _: self.app),
                **options,
            )
        )
        self.waiting.addBoth(self.results.append)

    def feed(self, data: bytes, size: int = 1 << 20) -> None:
        for pos in range(0, len(data), size):
            self.transport.protocol.data_received(data[pos : pos + size])

    def accept(self, extra: Iterable[tuple[str, str]] = (), subprotocol: str | None = None) -> bytes:
        """The 101 of websockets' server to what was written."""
        server = ServerProtocol(subprotocols=[Subprotocol(subprotocol)] if subprotocol else None)
        server.receive_data(self.transport.written)
        (request,) = server.events_received()
        assert isinstance(request, Request)
        response = server.accept(request)
        assert response.status_code == 101
        for name, value in extra:
            response.headers[name] = value
        return response.serialize()

    @property
    def error(self) -> BaseException:
        (failure,) = self.results
        assert isinstance(failure, Failure) and self.transport.aborted
        assert isinstance(failure.value, BaseException)
        return failure.value

    def assert_idle(self) -> None:
        """No deadline is left, only the one run of the timers that finds that out."""
        self.clock.advance(60)
        assert self.clock.getDelayedCalls() == []


def test_the_request_is_exactly_as_given() -> None:
    dial = Dial(
        headers=[("ServiceBusAuthorization", "SharedAccessSignature sr=x"), ("X-B", "ü")], subprotocols=["a", "b"]
    )
    assert dial.network.dialled == ("relay.example", 8080, None, 30.0)
    head, _, rest = dial.transport.written.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    assert line == "GET /$hc/a%2Fb/?x=%24&sb-hc-token=SECRET HTTP/1.1"
    assert "Host: relay.example:8080" in fields
    assert "ServiceBusAuthorization: SharedAccessSignature sr=x" in fields
    assert "X-B: ü" in fields
    assert "Sec-WebSocket-Protocol: a, b" in fields
    assert not any("Extensions" in field or "Origin" in field for field in fields)
    assert rest == b""
    dial.waiting.cancel()


@pytest.mark.parametrize(
    ("url", "dialled", "host", "target"),
    [
        ("ws://h", ("h", 80, None), "h", "/"),
        ("HTTP://h?", ("h", 80, None), "h", "/?"),
        ("ws://h:80/p?#fragment", ("h", 80, None), "h", "/p?"),
        ("wss://h:443/a?b=c?d", ("h", 443, ClientTls()), "h", "/a?b=c?d"),
        ("https://h:8443//x/../y", ("h", 8443, ClientTls()), "h:8443", "//x/../y"),
        ("ws://[::1]:81/", ("::1", 81, None), "[::1]:81", "/"),
    ],
)
def test_urls(url: str, dialled: tuple[Any, ...], host: str, target: str) -> None:
    dial = Dial(url)
    assert dial.network.dialled[:3] == dialled
    written = dial.transport.written.decode()
    assert written.startswith(f"GET {target} HTTP/1.1\r\n")
    assert f"\r\nHost: {host}\r\n" in written
    dial.waiting.cancel()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/",
        "h/path",
        "ws://",
        "ws:///p",
        "ws://h:x/",
        "ws://h:99999/",
        "ws://[::1/",
        "ws://u:SECRET@h/",
        "ws://h/ö",
        "ws://h/a b",
        "ws://h/\r\nX: y",
        "",
    ],
)
def test_urls_that_cannot_be_dialled(url: str) -> None:
    (failure,) = Dial(url).results
    assert isinstance(failure.value, BadRequestError)
    assert "SECRET" not in str(failure.value)


@pytest.mark.parametrize(
    "pair", [("X", "a\r\nY: SECRET"), ("X", "SECRET\0"), ("X", "SECRET€"), ("X: y", "SECRET"), ("", "")]
)
def test_headers_that_cannot_be_sent(pair: tuple[str, str]) -> None:
    (failure,) = Dial(headers=[pair]).results
    assert isinstance(failure.value, BadRequestError)
    assert "SECRET" not in str(failure.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.lists(st.integers(0, 200), max_size=5))
def test_frames_glued_to_the_101_are_not_lost(size: int, payloads: list[int]) -> None:
    dial = Dial(subprotocols=["a", "b"])
    frames = b"".join(bytes((0x82, 126)) + n.to_bytes(2, "big") + bytes(n) for n in payloads)
    dial.feed(dial.accept([("X-Set", "1"), ("X-Set", "2")], subprotocol="b") + frames, size)
    (opened,) = dial.results
    assert isinstance(opened, WebSocket)
    assert dial.transport.protocol is opened
    assert opened.subprotocol == "b"
    assert [value for name, value in opened.response_headers if name == "X-Set"] == ["1", "2"]
    assert dial.app.frames == [(BINARY, bytes(n), True) for n in payloads]
    opened.abort()
    dial.assert_idle()


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def with_body(status: str, body: bytes) -> bytes:
    return answer(status, "Content-Type: application/json", f"Content-Length: {len(body)}", body=body)


SUFFIX = " TrackingId:4f1c_G57, SystemTracker:sb://ns/path, Timestamp:2026-01-02T03:04:05"
NOBODY = "There are no listeners connected for the endpoint."


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (
            answer("404 Endpoint does not exist." + SUFFIX, "Content-Length: 0"),
            EndpointNotFoundError,
            "Endpoint does not exist. TrackingId:4f1c_G57",
        ),
        (answer(f"404 {NOBODY}{SUFFIX}", "Content-Length: 0"), NoListenerError, f"{NOBODY} TrackingId:4f1c_G57"),
        (
            with_body(
                "404 Not Found",
                b'{"error":{"code":"EndpointNotFound","message":"%s%s"}}' % (NOBODY.encode(), SUFFIX.encode()),
            ),
            NoListenerError,
            f"{NOBODY} TrackingId:4f1c_G57",
        ),
        (
            answer("401 InvalidSignature: The token has an invalid signature.", "TrackingId: abc", "Content-Length: 0"),
            InvalidSignatureError,
            "InvalidSignature: The token has an invalid signature. TrackingId:abc",
        ),
        (with_body("401 Unauthorized", b"<html>"), AuthorizationError, "Unauthorized"),
        (with_body("401 Unauthorized", b'{"error":1}'), AuthorizationError, "Unauthorized"),
        (with_body("401 Unauthorized", b"[" * 16000), AuthorizationError, "Unauthorized"),
        (
            with_body("403 Forbidden", b'{"error":{"code":"Forbidden","message":"No Send."}}'),
            ForbiddenError,
            "No Send.",
        ),
        (with_body("403 Forbidden", b'{"error":{"code":"QuotaExceeded","message":"25"}}'), QuotaExceededError, "25"),
        (
            answer(
                "504 x",
                "Transfer-Encoding: chunked",
                body=b'19\r\n{"error":{"message":"late\r\n4\r\n"}}\n\r\n0\r\n\r\n',
            ),
            ListenerTimeoutError,
            "late",
        ),
        (with_body("503 Busy", b" " * 20000), ServerBusyError, "Busy"),
        (answer("503 Busy", "Content-Length: 9999999", body=b"x"), ServerBusyError, "Busy"),
        (answer("503 Busy", *["X: y"] * 200, "Content-Length: 0"), ServerBusyError, "Busy"),
        (b"HTTP/1.0 503 Busy\r\nContent-Length: 0\r\n\r\n", ServerBusyError, "Busy"),
        (b"HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n", ServerBusyError, ServerBusyError().message),
        (answer("302 Found", "Location: /elsewhere", "Content-Length: 0"), RelayError, "Found"),
    ],
)
def test_refusals(data: bytes, kind: type[RelayError], text: str) -> None:
    for size in (1, 1 << 20):
        dial = Dial()
        dial.feed(data, size)
        assert type(dial.error) is kind
        assert str(dial.error) == text
        assert getattr(dial.error, "handshake_status", None) == int(data[9:12])
        dial.assert_idle()


@pytest.mark.parametrize("ending", ["eof", "lost", "deadline"])
def test_a_refusal_whose_body_does_not_end(ending: str) -> None:
    whole = answer("403 Forbidden", body=b'{"error":{"message":"No Send right."}}')
    cut = answer("403 Forbidden", "Content-Length: 100", body=b"{")
    for data, text in ((whole, "Forbidden" if ending == "deadline" else "No Send right."), (cut, "Forbidden")):
        dial = Dial(timeout=5)
        dial.feed(data)
        assert dial.results == []
        if ending == "eof":
            dial.transport.protocol.eof_received()
        elif ending == "lost":
            dial.transport.protocol.connection_lost(None)
        else:
            dial.clock.pump([0.1] * 53)
        assert type(dial.error) is ForbiddenError
        assert str(dial.error) == text


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good.replace(b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x"),
        lambda good: good.replace(b"Upgrade: websocket\r\n", b""),
        lambda good: good.replace(b"Connection: Upgrade", b"Connection: close"),
        lambda good: good.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: never-offered\r\n\r\n"),
        lambda good: good.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        lambda good: good.replace(b"\r\n\r\n", b"\r\nno colon\r\n\r\n"),
        lambda good: good.replace(b"\r\n\r\n", b"\r\n" + b"X: %s\r\n" % bytes(8000).replace(b"\0", b"x") * 5 + b"\r\n"),
        lambda good: b"x" * 40_000,
        lambda good: b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)
def test_answers_that_are_no_handshake(damage: Callable[[bytes], bytes]) -> None:
    dial = Dial()
    dial.feed(damage(dial.accept()), 1000)
    assert type(dial.error) is ProtocolError
    assert "SECRET" not in str(dial.error)


def test_a_handshake_that_does_not_come_in_time() -> None:
    dial = Dial(timeout=5)
    dial.feed(b"HTTP/1.1 101 Switching")
    dial.clock.pump([0.1] * 48)
    assert dial.results == []
    dial.clock.pump([0.1] * 5)
    assert type(dial.error) is GatewayUnreachableError
    assert "relay.example:8080 within 5 s" in str(dial.error)


def test_a_connection_closed_during_the_handshake() -> None:
    for end in ("eof_received", "connection_lost"):
        dial = Dial()
        dial.feed(b"HTTP/1.1 101 Switching")
        getattr(dial.transport.protocol, end)(*[None] * (end == "connection_lost"))
        assert type(dial.error) is GatewayUnreachableError
        dial.feed(b" Protocols\r\n\r\n")


def test_cancelling_drops_the_connection() -> None:
    dial = Dial()
    dial.waiting.cancel()
    assert isinstance(dial.error, CancelledError)
    dial.assert_idle()


def test_an_application_that_cannot_be_made() -> None:
    def make_app(socket: WebSocket) -> Any:
        raise KeyError("no such relay")

    dial = Dial(make_app=make_app)
    dial.feed(dial.accept())
    assert isinstance(dial.error, KeyError)


# -- real sockets


@asynccontextmanager
async def served(answer_to: Callable[[ServerConnection], None], **options: Any) -> AsyncIterator[Server]:
    """websockets' server in a thread; it ends when its connections have, for which the reactor must run."""
    with serve(answer_to, "127.0.0.1", 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            await deferToThread(server.shutdown)
            thread.join(10)


def port_of(server: Server) -> int:
    return int(server.socket.getsockname()[1])


async def test_a_real_server_echoes() -> None:
    seen: list[Request] = []

    def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request)
        connection.send("welcome")
        for message in connection:
            connection.send(message)

    network, timers, app = Network(reactor), Timers(reactor), App()
    large = bytes(range(256)) * 4096
    got: Deferred[None] = Deferred()

    def make_app(made: WebSocket) -> App:
        made.send_binary(b"from the start")
        return app

    def frame_received(opcode: int, data: bytes, fin: bool) -> None:
        app.frames.append((opcode, data, fin))
        if sum(len(data) for _, data, _ in app.frames) == len(b"welcomefrom the start") + len(large):
            got.callback(None)

    app.frame_received = frame_received  # type: ignore[method-assign]
    async with served(echo, subprotocols=[Subprotocol("wsrelayedconnection")]) as server:
        opened = await connect_websocket(
            network,
            timers,
            f"ws://127.0.0.1:{port_of(server)}/$hc/x?sb-hc-action=connect",
            headers=[("ServiceBusAuthorization", "token")],
            subprotocols=["other", "wsrelayedconnection"],
            make_app=make_app,
        )
        assert opened.subprotocol == "wsrelayedconnection"
        assert any(name.lower() == "server" for name, _ in opened.response_headers)
        opened.send_binary(large)
        await got
        assert app.frames[:2] == [(TEXT, b"welcome", True), (BINARY, b"from the start", True)]
        assert b"".join(data for _, data, _ in app.frames[2:]) == large
        assert app.frames[-1][2]
        opened.close(1000, "enough")
        assert await app.over == 1000
    assert seen[0].path == "/$hc/x?sb-hc-action=connect"
    assert seen[0].headers["ServiceBusAuthorization"] == "token"
    timers.stop()


async def test_a_real_server_over_tls(tmp_path: Path) -> None:
    def greet(connection: ServerConnection) -> None:
        connection.send(connection.recv())

    ca, certificate, key = development_certificate(tmp_path / "tls", ["localhost"], datetime.now(UTC))
    network, timers, app = Network(reactor), Timers(reactor), App()
    async with served(greet, ssl=ServerTls(certificate, key).ssl_context()) as server:
        url = f"wss://127.0.0.1:{port_of(server)}/"
        trust = ClientTls(ca_file=ca, server_name="localhost")
        opened = await connect_websocket(network, timers, url, tls=trust, make_app=lambda _: app)
        opened.send_text(b"round and round")
        assert await app.over == 1000
        assert app.frames == [(TEXT, b"round and round", True)]
        with pytest.raises(GatewayUnreachableError):
            await connect_websocket(network, timers, url, make_app=lambda _: App())
    timers.stop()


async def test_a_real_server_refuses() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        body = b'{"error":{"code":"EndpointNotFound","message":"Endpoint does not exist. TrackingId:7_G1"}}'
        return Response(404, "Not Found", Fields([("Content-Length", str(len(body)))]), body)

    network, timers = Network(reactor), Timers(reactor)
    async with served(lambda connection: None, process_request=refuse) as server:
        url = f"ws://127.0.0.1:{port_of(server)}/"
        with pytest.raises(EndpointNotFoundError, match=r"^Endpoint does not exist\. TrackingId:7_G1$"):
            await connect_websocket(network, timers, url, make_app=lambda _: App())
    timers.stop()


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(GatewayUnreachableError):
            await connect_websocket(Network(reactor), Timers(reactor), url, make_app=lambda _: App(), timeout=5)
