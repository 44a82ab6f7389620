from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import resource
import socket
import ssl
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from wcfrelay.errors import ConfigError, ListenerGoneError
from wcfrelay.listener import forward
from wcfrelay.listener.forward import ForwardDispatcher
from wcfrelay.net.exchange import Headers, Responder, header
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ClientTls, ServerTls, development_certificate

ORIGIN = "https://gateway.example:8443"


class Call:
    """An exchange that the test is the carrier of."""

    def __init__(
        self,
        method: str = "GET",
        target: str = "/orders",
        headers: list[tuple[str, str]] | None = None,
        body: bytes = b"",
        *,
        length: int | None = -1,
        origin: str = ORIGIN,
        deliver: bool = True,
    ) -> None:
        self.method, self.target, self.origin = method, target, origin
        self.headers: Headers = headers or []
        self.length = len(body) if length == -1 else length
        self.tracking_id = "tid"
        self.responder: Responder | None = None
        self.begun = 0
        self.paused = False
        self.status = 0
        self.reason = ""
        self.answer: list[tuple[str, str]] = []
        self.started_length: int | None = None
        self.how = ""
        self.body = b""
        self.aborted = ""
        self.done: Deferred[None] = Deferred()
        self._given, self._deliver = body, deliver

    def begin(self, responder: Responder) -> None:
        self.begun += 1
        self.responder = responder
        if self._deliver:
            if self._given:
                responder.body_received(self._given)
            responder.body_ended()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def respond(self, status: int, reason: str, headers: Any, body: bytes) -> None:
        assert not self.how
        self.how = "respond"
        self.status, self.reason, self.answer, self.body = status, reason, list(headers), body
        self.done.callback(None)

    def start(self, status: int, reason: str, headers: Any, length: int | None) -> None:
        assert not self.how
        self.how = "start"
        self.status, self.reason, self.answer, self.started_length = status, reason, list(headers), length

    def write(self, data: bytes) -> None:
        assert self.how == "start"
        self.body += data

    def finish(self) -> None:
        assert self.how == "start"
        self.done.callback(None)

    def abort(self, reason: str) -> None:
        self.aborted = reason
        self.done.callback(None)

    def field(self, name: str) -> str | None:
        return header(self.answer, name)

    @property
    def seen(self) -> Any:
        """What the service saw."""
        return json.loads(self.body)


class Service(http.server.BaseHTTPRequestHandler):
    """Answers with what ``answers`` has for the path, else tells what it saw."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, tuple[int, list[tuple[str, str]], bytes]]

    def handle_any(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if path in self.answers:
            status, headers, answer = self.answers[path]
        else:
            status, headers = 200, [("Content-Type", "application/json")]
            told = {
                "method": self.command,
                "target": self.path,
                "headers": list(self.headers.items()),
                "sha": hashlib.sha256(body).hexdigest(),
                "size": len(body),
            }
            answer = json.dumps(told).encode()
        self.send_response(status)
        chunked = False
        for name, value in headers:
            self.send_header(name, value)
            chunked = chunked or name == "Transfer-Encoding"
        if not chunked and status not in (204, 304):
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command == "HEAD" or status in (204, 304):
            return
        if chunked:
            for start in range(0, len(answer), 50_000):
                piece = answer[start : start + 50_000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_any

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def log_message(self, *_: Any) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Connections that the client resets are expected here."""


@contextmanager
def service(
    answers: dict[str, tuple[int, list[tuple[str, str]], bytes]] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A service that runs while the test does; gives ``host:port``."""
    handler = type("Handler", (Service,), {"answers": {} if answers is None else answers})
    server = QuietServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def raw_service(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serves one connection with ``serve``."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(10)

    def run() -> None:
        with suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(10)
                serve(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        thread.join()
        listening.close()


@asynccontextmanager
async def forwarding(url: str, relay: str = "orders", **options: Any) -> AsyncIterator[ForwardDispatcher]:
    timers = Timers(reactor)
    dispatcher = ForwardDispatcher(Network(reactor), timers, url, relay, **options)
    try:
        yield dispatcher
    finally:
        await dispatcher.close()
        timers.stop()


async def ask(dispatcher: ForwardDispatcher, *arguments: Any, **options: Any) -> Call:
    call = Call(*arguments, **options)
    dispatcher.dispatch(call)
    await call.done
    assert call.begun == 1
    return call


# -- addresses


MAPPING = [
    # path of the base URL, relay path, target, what the service is asked for
    ("", "orders", "/orders", "/"),
    ("", "orders", "/orders/", "/"),
    ("", "orders", "/orders/a/b?c=d", "/a/b?c=d"),
    ("", "orders", "/orders?wsdl", "/?wsdl"),
    ("/", "orders", "/orders", "/"),
    ("/", "orders", "/orders/a", "/a"),
    ("/svc.asmx", "orders", "/orders", "/svc.asmx"),
    ("/svc.asmx", "orders", "/orders?wsdl", "/svc.asmx?wsdl"),
    ("/svc.asmx", "orders", "/orders/Add", "/svc.asmx/Add"),
    ("/svc/", "orders", "/orders", "/svc/"),
    ("/svc/", "orders", "/orders?x", "/svc/?x"),
    ("/svc/", "orders", "/orders/a", "/svc/a"),
    ("/svc/", "orders", "/orders/", "/svc/"),
    ("/svc", "a/b", "/a/b/c%20d;e=%E2%82%AC?f=%2F..", "/svc/c%20d;e=%E2%82%AC?f=%2F.."),
    ("/svc", "a/b", "/A/B//c", "/svc//c"),
    ("/svc", "a b", "/a%20b/c", "/svc/c"),
]


async def test_targets() -> None:
    with service() as there:
        for path, relay, target, expected in MAPPING:
            async with forwarding(f"http://{there}{path}", relay) as dispatcher:
                for _ in range(2):
                    assert (await ask(dispatcher, "GET", target)).seen["target"] == expected


@pytest.mark.parametrize(
    "target",
    ["/orders/../x", "/orders/%2e%2e/x", "/orders/a%2fb", "/orders/a\\b", "/orders/%5c", "/orders/./a", "orders"],
)
async def test_targets_refused(target: str) -> None:
    with service() as there:
        async with forwarding(f"http://{there}/svc") as dispatcher:
            call = await ask(dispatcher, "GET", target)
            assert call.status == 400 and "tid" in str(call.seen)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/x", "scheme"),
        ("host/x", "scheme"),
        ("", "scheme"),
        ("http:///x", "host"),
        ("http://host:0/", "host"),
        ("http://host:99999/", "malformed"),
        ("http://[::1/", "malformed"),
        ("http://host/x?y", "query"),
        ("http://host/x?", "query"),
        ("http://host/x#y", "fragment"),
        ("http://me:secret@host/x", "credentials"),
        ("http://host/a b", "percent"),
        ("http://host/a/../b", "dot segment"),
    ],
)
def test_urls_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        ForwardDispatcher(Network(reactor), Timers(reactor), url, "orders")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("public", ["gateway/x", "https://g/x?y", "https://u:p@g/"])
def test_public_urls_refused(public: str) -> None:
    with pytest.raises(ConfigError, match="public URL"):
        ForwardDispatcher(Network(reactor), Timers(reactor), "http://h/", "orders", public_url=public)


def test_relay_paths_refused() -> None:
    with pytest.raises(ConfigError):
        ForwardDispatcher(Network(reactor), Timers(reactor), "http://h/", "a/../b")


# -- headers


async def test_request_headers() -> None:
    sent = [
        ("Host", "gateway.example:8443"),
        ("User-Agent", "x"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TE", "trailers"),
        ("Proxy-Connection", "keep-alive"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("Content-Length", "2"),
        ("SOAPAction", '"urn:x"'),
        ("x-dup", "1"),
        ("X-Dup", "2"),
        ("Authorization", "Basic abc"),
    ]
    with service() as there:
        async with forwarding(f"http://{there}") as dispatcher:
            call = await ask(dispatcher, "POST", "/orders", sent, b"hi")
            assert [tuple(field) for field in call.seen["headers"]] == [
                ("Host", there),
                ("User-Agent", "x"),
                ("SOAPAction", '"urn:x"'),
                ("x-dup", "1"),
                ("X-Dup", "2"),
                ("Authorization", "Basic abc"),
                ("X-Forwarded-Host", "gateway.example:8443"),
                ("X-Forwarded-Proto", "https"),
                ("Content-Length", "2"),
            ]


async def test_forwarded_headers_that_are_there_stay() -> None:
    with service() as there:
        async with forwarding(f"http://{there}") as dispatcher:
            sent = [("x-forwarded-host", "a"), ("X-Forwarded-Proto", "b")]
            assert (await ask(dispatcher, "GET", "/orders", sent)).seen["headers"][1:] == [list(f) for f in sent]
            call = await ask(dispatcher, "GET", "/orders", [*sent, ("Connection", "x-forwarded-host")])
            names = dict(call.seen["headers"])
            assert names["X-Forwarded-Host"] == "gateway.example:8443" and names["X-Forwarded-Proto"] == "b"
            assert (await ask(dispatcher, "GET", "/orders", origin="")).seen["headers"] == [["Host", there]]


async def test_preserve_host() -> None:
    with service() as there:
        async with forwarding(f"http://{there}", preserve_host=True) as dispatcher:
            for headers, origin, expected in (
                ([("host", "asked.example")], ORIGIN, "asked.example"),
                ([], ORIGIN, "gateway.example:8443"),
                ([], "", there),
            ):
                call = await ask(dispatcher, "GET", "/orders", headers, origin=origin)
                assert call.seen["headers"][0] == ["Host", expected]


async def test_answer_headers() -> None:
    given = [
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=9"),
        ("X-A", "1"),
        ("x-a", "2"),
        ("Via", "v"),
    ]
    with service({"/a": (200, given, b"hi")}) as there:
        async with forwarding(f"http://{there}") as dispatcher:
            call = await ask(dispatcher, "GET", "/orders/a")
            assert [name for name, _ in call.answer] == ["Server", "Date", "X-A", "x-a", "Via"]
            assert (call.how, call.status, call.reason, call.body) == ("respond", 200, "OK", b"hi")


LOCATIONS = [
    ("http://HERE/svc/new/1?x#y", f"{ORIGIN}/orders/new/1?x#y"),
    ("http://localhost:PORT/svc", f"{ORIGIN}/orders"),
    ("http://box.example/old/a", f"{ORIGIN}/orders/a"),
    ("/svc/new", f"{ORIGIN}/orders/new"),
    ("//HERE/svc/new", f"{ORIGIN}/orders/new"),
    ("new", "new"),
    ("/other", "/other"),
    ("/svc2", "/svc2"),
    ("http://HERE/other", "http://HERE/other"),
    ("https://elsewhere.example/svc", "https://elsewhere.example/svc"),
]


async def test_redirects() -> None:
    answers: dict[str, Any] = {}
    with service(answers) as there:

        def here(text: str) -> str:
            return text.replace("HERE", there).replace("PORT", there.partition(":")[2])

        for index, (given, _) in enumerate(LOCATIONS):
            fields = [("Location", here(given)), ("Content-Location", here(given))]
            answers[f"/svc/{index}"] = (302, fields, b"")
        async with forwarding(f"http://{there}/svc", aliases=("http://box.example/old",)) as dispatcher:
            for index, (_, expected) in enumerate(LOCATIONS):
                call = await ask(dispatcher, "GET", f"/orders/{index}")
                assert call.field("location") == call.field("content-location") == here(expected)
            call = await ask(dispatcher, "GET", "/orders/0", origin="")
            assert call.field("location") == here(LOCATIONS[0][0])
        async with forwarding(f"http://{there}/svc", public_url="https://public.example/p") as dispatcher:
            call = await ask(dispatcher, "GET", "/orders/0")
            assert call.field("location") == "https://public.example/p/new/1?x#y"


async def test_names_of_this_machine_are_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    forward._own_names.cache_clear()
    monkeypatch.setattr(socket, "gethostname", lambda: "box")
    monkeypatch.setattr(socket, "getfqdn", lambda name: "box.corp.example")
    answers: dict[str, Any] = {}
    with service(answers) as there:
        port = there.partition(":")[2]
        answers["/svc/a"] = (302, [("Location", f"http://BOX.corp.example:{port}/svc/x")], b"")
        answers["/svc/b"] = (302, [("Location", f"http://box:{port}/svc/x")], b"")
        async with forwarding(f"http://{there}/svc") as dispatcher:
            for path in ("a", "b"):
                assert (await ask(dispatcher, "GET", f"/orders/{path}")).field("location") == f"{ORIGIN}/orders/x"
    forward._own_names.cache_clear()


def test_a_name_service_that_hangs_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    forward._own_names.cache_clear()
    answer = threading.Event()
    monkeypatch.setattr(forward, "_NAME_WAIT", 0.01)
    monkeypatch.setattr(socket, "gethostname", lambda: "box.local")
    monkeypatch.setattr(socket, "getfqdn", lambda name: str(answer.wait(10)))
    try:
        assert forward._own_names() == ("box", "box.local")
    finally:
        answer.set()
        forward._own_names.cache_clear()


@pytest.mark.parametrize(
    ("base", "given", "expected"),
    [
        ("/svc", "a=b; Path=/svc; HttpOnly", "a=b; Path=/orders; HttpOnly"),
        ("/svc", "a=b; path = /svc/x;Domain=d", "a=b; path =/orders/x;Domain=d"),
        ("/svc", "a=b; Path=/", "a=b; Path=/"),
        ("/svc", "a=b; Path=/svcx", "a=b; Path=/svcx"),
        ("/svc", "a=b", "a=b"),
        ("/svc", "Path=/svc; Secure", "Path=/svc; Secure"),
        ("", "a=b; Path=/", "a=b; Path=/orders/"),
        ("", "a=b; Path=/x", "a=b; Path=/orders/x"),
    ],
)
async def test_cookies(base: str, given: str, expected: str) -> None:
    with service({f"{base}/a": (200, [("Set-Cookie", given), ("Set-Cookie", "c=d")], b"")}) as there:
        async with forwarding(f"http://{there}{base}") as dispatcher:
            call = await ask(dispatcher, "GET", "/orders/a")
            assert [value for name, value in call.answer if name == "Set-Cookie"] == [expected, "c=d"]
        async with forwarding(f"http://{there}{base}", public_url="https://p.example") as dispatcher:
            call = await ask(dispatcher, "GET", "/orders/a")
            mapped = expected.replace("/orders/", "/").replace("/orders", "/")
            assert [value for name, value in call.answer if name == "Set-Cookie"] == [mapped, "c=d"]


# -- bodies


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("known", [True, False])
async def test_bodies_are_the_same_bytes(size: int, known: bool) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    framing = [] if known else [("Transfer-Encoding", "chunked")]
    with service({"/down": (200, [("Content-Type", "application/octet-stream"), *framing], body)}) as there:
        async with forwarding(f"http://{there}") as dispatcher:
            call = await ask(dispatcher, "POST", "/orders", [], body, length=size if known else None)
            assert (call.seen["size"], call.seen["sha"]) == (size, hashlib.sha256(body).hexdigest())
            names = {name for name, _ in call.seen["headers"]}
            assert ("Content-Length" in names) == known and ("Transfer-Encoding" in names) != known
            call = await ask(dispatcher, "GET", "/orders/down")
            assert call.body == body
            assert call.how == ("respond" if known and size <= 65_536 and call.how == "respond" else "start")
            assert call.how == "respond" or call.started_length == (size if known else None)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answers_without_body(method: str, status: int) -> None:
    with service({"/a": (status, [("ETag", '"x"')], b"0123456789")}) as there:
        async with forwarding(f"http://{there}") as dispatcher:
            for _ in range(2):
                call = await ask(dispatcher, method, "/orders/a")
                assert (call.status, call.body, call.field("etag")) == (status, b"", '"x"')
                assert call.started_length == (10 if method == "HEAD" else None)


async def test_100_mb_up_and_down_in_bounded_memory() -> None:
    """The service sends back what it gets, as it gets it; the sender of the test is slow to take it."""
    size, piece = 100 * 1024 * 1024, bytes(65536)

    def serve(connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        assert b"Content-Length: %d" % size in head
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        rest = head.partition(b"\r\n\r\n")[2]
        connection.sendall(rest)
        left = size - len(rest)
        while left:
            data = connection.recv(262_144)
            left -= len(data)
            connection.sendall(data)

    with raw_service(serve) as there:
        async with forwarding(f"http://{there}") as dispatcher:
            network = Network(reactor)
            call = Call("POST", length=size, deliver=False)
            received, sent, unread, most = 0, 0, 0, 0

            def write(data: bytes) -> None:
                nonlocal received, unread
                received += len(data)
                unread += len(data)
                if unread > 256 * 1024:
                    call.responder.pause_response()  # type: ignore[union-attr]

            call.write = write  # type: ignore[method-assign]
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            dispatcher.dispatch(call)
            responder = call.responder
            assert responder is not None
            while received < size:
                while sent < size and not call.paused:
                    responder.body_received(piece)
                    sent += len(piece)
                    if sent == size:
                        responder.body_ended()
                most = max(most, unread)
                if unread:
                    unread = 0
                    responder.resume_response()
                await network.sleep(0)
            await call.done
            assert (call.how, call.aborted, received) == ("start", "", size)
            assert most < 2 * 1024 * 1024
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024  # KiB


# -- contract documents


def wsdl(address: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\r\n'
        '<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:soap="http://schemas.xmlsoap.org/wsdl/soap/">'
        f"<service name='s'><port name='p' binding='b'><soap:address   location='{address}'/></port></service>"
        "</definitions>\n"
    ).encode()


PUBLIC_WSDL = wsdl(f"{ORIGIN}/orders/x.svc")
XML = ("Content-Type", "text/xml; charset=utf-8")


async def test_wsdl_is_rewritten() -> None:
    answers: dict[str, Any] = {}
    with service(answers) as there:
        plain = wsdl(f"http://{there}/svc/x.svc")
        raw_deflate = zlib.compressobj(wbits=-15)
        fields = [XML, ("ETag", '"1"'), ("Content-MD5", "x"), ("Digest", "x"), ("Repr-Digest", "x"), ("X-Kept", "1")]
        for name, coding, body in (
            ("plain", None, plain),
            ("chunked", "", plain),
            ("gzip", "gzip", gzip.compress(plain)),
            ("deflate", "deflate", zlib.compress(plain)),
            ("bare", "deflate", raw_deflate.compress(plain) + raw_deflate.flush()),
        ):
            more = (
                [("Content-Encoding", coding)] if coding else [("Transfer-Encoding", "chunked")] if coding == "" else []
            )
            answers[f"/svc/{name}"] = (200, [*fields, *more], body)
        async with forwarding(f"http://{there}/svc") as dispatcher:
            for path in answers:
                call = await ask(dispatcher, "GET", path.replace("/svc", "/orders") + "?wsdl")
                assert call.body == PUBLIC_WSDL, path
                kept = [field for field in call.answer if field[0] not in ("Server", "Date")]
                assert kept == [XML, ("ETag", 'W/"1"'), ("X-Kept", "1")]


async def test_everything_else_is_not_rewritten() -> None:
    answers: dict[str, Any] = {}
    with service(answers) as there:
        document = wsdl(f"http://{there}/svc/x.svc")
        foreign = wsdl("http://elsewhere.example/svc/x.svc")
        unchanged: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {
            "status": (500, [XML], document),
            "type": (200, [("Content-Type", "text/plain")], document),
            "no-type": (200, [], document),
            "foreign": (200, [XML], foreign),
            "foreign-gzip": (200, [XML, ("Content-Encoding", "gzip"), ("ETag", '"1"')], gzip.compress(foreign)),
            "broken-gzip": (200, [XML, ("Content-Encoding", "gzip")], gzip.compress(document)[:-20]),
            "other-coding": (200, [XML, ("Content-Encoding", "br")], document),
            "bomb": (200, [XML, ("Content-Encoding", "gzip")], gzip.compress(document + bytes(9_000_000))),
            "large": (200, [XML], document + b" " * 8_400_000),
            "large-chunked": (200, [XML, ("Transfer-Encoding", "chunked")], document + b" " * 8_400_000),
            "xml": (200, [("Content-Type", "application/xml")], b"<a href='http://%b/svc'/>" % there.encode()),
        }
        for name, answer in unchanged.items():
            answers[f"/svc/{name}"] = answer
        async with forwarding(f"http://{there}/svc") as dispatcher:
            for name, (status, fields, body) in unchanged.items():
                call = await ask(dispatcher, "GET", f"/orders/{name}")
                assert (call.status, call.body) == (status, body), name
                kept = [f for f in call.answer if f[0] not in ("Server", "Date")]
                assert kept == [f for f in fields if f[0] != "Transfer-Encoding"], name
            assert (await ask(dispatcher, "POST", "/orders/plain-post")).status == 200
            answers["/svc/posted"] = (200, [XML], document)
            assert (await ask(dispatcher, "POST", "/orders/posted")).body == document


# -- failures


async def test_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        there = f"127.0.0.1:{taken.getsockname()[1]}"
    async with forwarding(f"http://{there}/svc") as dispatcher:
        for length in (-1, None):
            call = await ask(dispatcher, "POST", "/orders?key=secret", [], b"hi", length=length)
            assert call.status == 502 and there in call.body.decode() and "tid" in call.body.decode()
            assert "secret" not in call.body.decode() and "ServiceUnreachable" in call.body.decode()
        soap = await ask(dispatcher, "POST", "/orders", [("Content-Type", "text/xml"), ("SOAPAction", "x")], b"<a/>")
        assert soap.status == 502 and b"Fault" in soap.body


async def test_timeout() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.recv(1)

    with raw_service(serve) as there:
        async with forwarding(f"http://{there}", timeout=0.3) as dispatcher:
            call = await ask(dispatcher)
            assert call.status == 504 and there in call.body.decode() and "GatewayTimeout" in call.body.decode()


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: 100\r\n\r\n<a", False),
        (b"HTTP/1.1 200 OK\r\nContent-Le", False),
        (b"", False),
        (b"220 mail.example ESMTP\r\n", False),
    ],
)
async def test_cut(answer: bytes, cut: bool) -> None:
    """Where nothing has been passed on yet a cut answer is an error, else the sender sees the cut."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    with raw_service(serve) as there:
        async with forwarding(f"http://{there}") as dispatcher:
            call = await ask(dispatcher)
            if cut:
                assert (call.how, call.body) == ("start", b"half") and there in call.aborted
            else:
                assert (call.how, call.status, call.aborted) == ("respond", 502, "")


@pytest.mark.parametrize("begun", [True, False])
async def test_cancel_closes_the_connection_to_the_service(begun: bool) -> None:
    arrived, ended = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        if begun:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf")
        arrived.set()
        with suppress(ConnectionResetError):
            connection.recv(1)
        ended.set()

    async def until(happened: Callable[[], object]) -> None:
        for _ in range(500):
            if happened():
                return
            await Network(reactor).sleep(0.01)
        raise AssertionError("it did not happen")

    with raw_service(serve) as there:
        async with forwarding(f"http://{there}") as dispatcher:
            call = Call()
            dispatcher.dispatch(call)
            await until(lambda: arrived.is_set() and (call.how or not begun))
            assert call.responder is not None and not ended.is_set()
            call.responder.cancelled(ListenerGoneError())
            await until(ended.is_set)
            assert not call.aborted


async def test_cancelled_before_the_body_had_come() -> None:
    async with forwarding("http://127.0.0.1:9") as dispatcher:
        call = Call("POST", length=5, deliver=False)
        dispatcher.dispatch(call)
        assert call.responder is not None
        call.responder.body_received(b"hi")
        call.responder.cancelled(ListenerGoneError())
        call.responder.body_ended()
        assert call.how == ""


async def test_a_request_that_cannot_be_written() -> None:
    async with forwarding("http://127.0.0.1:9") as dispatcher:
        for length in (0, None):
            call = await ask(dispatcher, "GET", "/orders", [("X", "a\nb")], length=length)
            assert call.status == 400


async def test_too_many() -> None:
    async with forwarding("http://127.0.0.1:9") as dispatcher:
        dispatcher.pool._queue = 0
        assert (await ask(dispatcher)).status == 503


async def test_an_early_answer_ends_the_request() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        with suppress(OSError):
            while connection.recv(65536):
                pass

    with raw_service(serve) as there:
        async with forwarding(f"http://{there}") as dispatcher:
            call = Call("POST", length=None, deliver=False)
            dispatcher.dispatch(call)
            await call.done
            assert (call.status, call.body) == (413, b"no")
            assert call.responder is not None
            call.responder.body_received(b"late")
            call.responder.body_ended()


async def test_a_service_behind_tls(tmp_path: Path) -> None:
    authority, certificate, key = development_certificate(tmp_path, ["localhost"], datetime.now(UTC))
    answers: dict[str, Any] = {}
    with service(answers, ServerTls(certificate, key).ssl_context()) as there:
        url = f"https://localhost:{there.partition(':')[2]}/svc"
        answers["/svc/a"] = (201, [("Location", f"{url}/b")], bytes(300_000))
        async with forwarding(url, tls=ClientTls(ca_file=authority)) as dispatcher:
            for _ in range(2):
                call = await ask(dispatcher, "POST", "/orders/a", [], bytes(100_000))
                assert (call.status, call.body, call.field("location")) == (201, bytes(300_000), f"{ORIGIN}/orders/b")
        async with forwarding(url) as dispatcher:
            assert (await ask(dispatcher)).status == 502
