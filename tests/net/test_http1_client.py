from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock

from wcfrelay.errors import BadRequestError, ConfigError, GatewayUnreachableError, ServerBusyError
from wcfrelay.net.http1.client import ClientRequest, HttpClientError, HttpTimeoutError
from wcfrelay.net.http1.pool import HttpPool
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Transport:
    """The client's end of a connection that the test plays the server of."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.sent = b""
        self.writes = 0
        self.reading = True
        self.open = True

    def write(self, data: bytes) -> None:
        self.sent += bytes(data)
        self.writes += 1

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def abort(self) -> None:
        if self.open:
            self.open = False
            self.core.connection_lost(None)

    close = abort

    def is_closing(self) -> bool:
        return not self.open

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # -- what the server does

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent

    def answer(self, data: bytes) -> None:
        assert self.open
        self.core.data_received(data)

    def end(self) -> None:
        if not self.core.eof_received():
            self.abort()


class Net:
    """A network without wires. ``held`` connects wait until the test lets them."""

    def __init__(self, clock: Clock) -> None:
        self.seconds = clock.seconds
        self.call_soon = lambda call: call()
        self.transports: list[Transport] = []
        self.held: list[Deferred[None]] | None = None
        self.refused: Exception | None = None

    async def connect(self, make: Any, host: str, port: int, tls: Any = None, timeout: float = 30.0) -> Any:
        if self.held is not None:
            waiting: Deferred[None] = Deferred()
            self.held.append(waiting)
            await waiting
        if self.refused is not None:
            raise self.refused
        core = make()
        transport = Transport(core)
        self.transports.append(transport)
        core.connection_made(transport)
        return core

    @property
    def last(self) -> Transport:
        return self.transports[-1]


class Answer:
    """A receiver that writes down what it is told."""

    request: ClientRequest

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.status = 0
        self.reason = ""
        self.headers: list[tuple[str, str]] = []
        self.length: int | None = None
        self.body = b""
        self.error: HttpClientError | None = None

    def response_started(self, status: int, reason: str, headers: Any, length: int | None) -> None:
        self.calls.append("started")
        self.status, self.reason, self.headers, self.length = status, reason, headers, length

    def response_data(self, data: bytes) -> None:
        assert data
        self.body += data

    def response_ended(self) -> None:
        self.calls.append("ended")

    def response_failed(self, error: HttpClientError) -> None:
        self.calls.append("failed")
        self.error = error

    def pause_request(self) -> None:
        self.calls.append("pause")

    def resume_request(self) -> None:
        self.calls.append("resume")


class Bench:
    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.net = Net(self.clock)
        self.pool = HttpPool(self.net, Timers(self.clock), "svc.example", 80, **options)  # type: ignore[arg-type]

    def call(self, method: str = "GET", target: str = "/", body: bytes | None = b"", **options: Any) -> Answer:
        answer = Answer()
        options.setdefault("length", None)
        headers = options.pop("headers", [("Host", "svc.example")])
        answer.request = self.pool.request(method, target, headers, answer, body=body, **options)
        return answer

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)

    @property
    def server(self) -> Transport:
        return self.net.last


# -- what goes out


def test_a_whole_request_is_one_write() -> None:
    bench = Bench()
    bench.call("POST", "/a?b", b"hello", headers=[("Host", "svc.example"), ("X-A", "1"), ("x-a", "2")])
    expected = b"POST /a?b HTTP/1.1\r\nHost: svc.example\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 5\r\n\r\nhello"
    assert (bench.server.writes, bench.server.take()) == (1, expected)


@pytest.mark.parametrize(
    ("method", "framing"),
    [("GET", b""), ("DELETE", b""), ("POST", b"\r\nContent-Length: 0"), ("PUT", b"\r\nContent-Length: 0")],
)
def test_no_body(method: str, framing: bytes) -> None:
    bench = Bench()
    bench.call(method)
    assert bench.server.take() == b"%s / HTTP/1.1\r\nHost: svc.example%s\r\n\r\n" % (method.encode(), framing)


def test_a_large_whole_body_is_not_copied_into_the_head() -> None:
    bench = Bench()
    bench.call("PUT", body=bytes(200_000))
    assert bench.server.take().endswith(b"Content-Length: 200000\r\n\r\n" + bytes(200_000))


def test_streamed_with_length() -> None:
    bench = Bench()
    first = bench.call()
    bench.server.answer(OK)
    bench.server.take()
    answer = bench.call("POST", body=None, length=6)
    assert bench.server.take() == b"POST / HTTP/1.1\r\nHost: svc.example\r\nContent-Length: 6\r\n\r\n"
    answer.request.write(b"abc")
    answer.request.write(b"def")
    answer.request.finish()
    assert bench.server.take() == b"abcdef"
    bench.server.answer(OK)
    assert first.calls == answer.calls == ["started", "ended"]


def test_streamed_in_chunks_while_there_is_no_connection() -> None:
    bench = Bench()
    bench.net.held = []
    answer = bench.call("POST", body=None)
    assert answer.calls == ["pause"]
    answer.request.write(b"abc")
    bench.net.held[0].callback(None)
    assert answer.calls == ["pause", "resume"]
    answer.request.write(b"0123456789abcdef")
    answer.request.finish()
    expected = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    assert bench.server.take().endswith(expected)


def test_a_finished_body_waits_with_its_request() -> None:
    bench = Bench()
    bench.net.held = []
    answer = bench.call("POST", body=None, length=3)
    answer.request.write(b"abc")
    answer.request.finish()
    bench.net.held[0].callback(None)
    assert answer.calls == ["pause"]
    assert bench.server.take().endswith(b"Content-Length: 3\r\n\r\nabc")


@pytest.mark.parametrize("pieces", [[b"abcd"], [b"ab"], []])
def test_a_body_of_another_length_than_announced(pieces: list[bytes]) -> None:
    bench = Bench()
    answer = bench.call("POST", body=None, length=3)
    for piece in pieces:
        answer.request.write(piece)
    answer.request.finish()
    assert answer.error is not None and "announced length" in str(answer.error)
    assert not bench.server.open


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("GET", "/", ("X", "a\r\nY: b")),
        ("GET", "/", ("X", "a\nb")),
        ("GET", "/", ("X", "a\rb")),
        ("GET", "/", ("X", "a\0b")),
        ("GET", "/", ("X", "\u20ac")),
        ("GET", "/", ("X: y", "a")),
        ("GET", "/", ("X\r\nY", "a")),
        ("GET", "/", ("", "a")),
        ("GET", "/", ("Content-length", "1")),
        ("GET", "/", ("Transfer-Encoding", "chunked")),
        ("GET", "/a b", ("X", "a")),
        ("GET", "/ HTTP/1.1\r\nX: a\r\n\r\n", ("X", "a")),
        ("GET", "/a\tb", ("X", "a")),
        ("GET", "http://x/", ("X", "a")),
        ("GET", "", ("X", "a")),
        ("GET /x", "/", ("X", "a")),
        ("", "/", ("X", "a")),
    ],
)
def test_requests_that_cannot_be_written(method: str, target: str, header: tuple[str, str]) -> None:
    bench = Bench()
    with pytest.raises(BadRequestError):
        bench.call(method, target, headers=[header])
    assert not bench.net.transports


# -- what comes back


ANSWERS: list[tuple[str, bytes, int, bytes, bool]] = [
    # method, answer, status, body, whether the connection is kept
    ("GET", OK, 200, b"hi", True),
    ("GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, b"", True),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, b"", False),
    ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK, 200, b"hi", True),
    (
        "GET",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: x\r\n\r\n",
        200,
        b"abc0123456789",
        True,
    ),
    ("GET", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    ("GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    ("GET", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", True),
    ("GET", b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
]


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize(("method", "data", "status", "body", "kept"), ANSWERS)
def test_answers_under_any_split(method: str, data: bytes, status: int, body: bytes, kept: bool, size: int) -> None:
    bench = Bench()
    answer = bench.call(method)
    for start in range(0, len(data), size):
        assert "ended" not in answer.calls
        bench.server.answer(data[start : start + size])
    assert answer.calls == ["started", "ended"]
    assert (answer.status, answer.body, bench.server.open) == (status, body, kept)
    second = bench.call()
    bench.server.answer(OK)
    assert second.body == b"hi"
    assert len(bench.net.transports) == (1 if kept else 2)


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_body_that_ends_with_the_connection(size: int, version: bytes) -> None:
    bench = Bench()
    answer = bench.call()
    data = b"HTTP/" + version + b" 200 OK\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    for start in range(0, len(data), size):
        bench.server.answer(data[start : start + size])
    assert answer.calls == ["started"] and answer.length is None
    bench.server.end()
    assert answer.calls == ["started", "ended"] and answer.body == b"HTTP/1.1 200 OK\r\n\r\n"


def test_a_body_that_ends_with_a_broken_connection_is_cut() -> None:
    bench = Bench()
    answer = bench.call()
    bench.server.answer(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    bench.server.core.connection_lost(ConnectionResetError())
    assert answer.calls == ["started", "failed"]


REFUSED = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\nx",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"Content-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 65_600 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 65_600,
    b"HTTP/1.1 100 OK\r\n\r\n" * 4000,
    b"220 mail.example ESMTP\r\n",
]


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("data", REFUSED, ids=range(len(REFUSED)))
def test_answers_refused(data: bytes, size: int) -> None:
    bench = Bench()
    answer = bench.call("POST", body=b"x")
    for start in range(0, len(data), size):
        if not bench.server.open:
            break
        bench.server.answer(data[start : start + size])
    assert answer.calls == ["failed"] and not bench.server.open
    assert answer.error is not None and answer.error.request_sent and "svc.example:80" in str(answer.error)


@pytest.mark.parametrize("rest", [b"zz\r\n", b"3\r\nabcd\r\n", b"0\r\nT: " + b"x" * 65_600, b"1;" + b"x" * 65_600])
def test_a_body_that_breaks_off_into_nonsense(rest: bytes) -> None:
    bench = Bench()
    answer = bench.call()
    bench.server.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    bench.server.answer(rest)
    assert answer.calls == ["started", "failed"] and answer.body[:2] == b"hi" and not bench.server.open


@pytest.mark.parametrize("extra", [b"H", OK, b"junk"])
def test_bytes_behind_an_answer_close_the_connection(extra: bytes) -> None:
    for together in (True, False):
        bench = Bench()
        answer = bench.call()
        if together:
            bench.server.answer(OK + extra)
        else:
            bench.server.answer(OK)
            bench.server.answer(extra)
        assert (answer.calls, answer.body, answer.reason) == (["started", "ended"], b"hi", "OK")
        assert not bench.server.open


@pytest.mark.parametrize("extra", [b"hello", b"5\r\nhello\r\n0\r\n\r\n"])
def test_a_body_behind_an_answer_to_head_closes_the_connection(extra: bytes) -> None:
    bench = Bench()
    answer = bench.call("HEAD")
    bench.server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + extra)
    assert (answer.calls, answer.body, answer.length) == (["started", "ended"], b"", 5)
    assert not bench.server.open


@pytest.mark.parametrize("size", [1000, 65_536, 1_000_000])
def test_a_large_body_and_the_next_answer(size: int) -> None:
    bench = Bench()
    answer = bench.call()
    body = bytes(range(256)) * 1200
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for start in range(0, len(data), size):
        bench.server.answer(data[start : start + size])
    assert answer.calls == ["started", "ended"] and answer.body == body and answer.length == len(body)
    second = bench.call()
    bench.server.answer(OK)
    assert second.body == b"hi" and len(bench.net.transports) == 1


def test_bytes_behind_a_large_body() -> None:
    bench = Bench()
    answer = bench.call()
    bench.server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nx")
    bench.server.answer(b"y" * 99_999 + b"z")
    assert answer.calls == ["started", "ended"] and answer.body == b"x" + b"y" * 99_999 and not bench.server.open


def test_header_values_have_no_white_space_around_them() -> None:
    bench = Bench()
    answer = bench.call()
    bench.server.answer(b"HTTP/1.1 200 Fine \xe9\r\nA: \t b\xa0c \t\r\nB:\r\nContent-Length:  0 \r\n\r\n")
    assert answer.headers == [("A", "b\xa0c"), ("B", ""), ("Content-Length", "0")] and answer.reason == "Fine \xe9"


def test_llhttp_cases(shared: Path) -> None:
    """No answer is ever seen in two ways: what llhttp refuses fails, and what is delivered does not depend on how the
    bytes were split."""
    cases = json.loads((shared / "vectors" / "http1_llhttp.json").read_text())["cases"]
    seen = 0
    for case in cases:
        if case["type"] != "response":
            continue
        data = base64.b64decode(case["raw_b64"])
        outcomes = []
        for size in (1, 3, len(data) or 1):
            bench = Bench()
            answer = bench.call()
            for start in range(0, len(data), size):
                if bench.server.open:
                    bench.server.answer(data[start : start + size])
            if bench.server.open:
                bench.server.end()
            assert answer.calls[-1] in ("ended", "failed") and answer.calls.count("started") <= 1
            outcomes.append((answer.calls[-1], answer.status, answer.headers, answer.body))
        title = case["title"]
        ends = {outcome[0] for outcome in outcomes}
        assert len(ends) == 1, title
        if ends == {"ended"}:
            assert all(outcome == outcomes[0] for outcome in outcomes), title
        if case["error"] and not case["messages_complete"]:
            assert ends == {"failed"}, title
        whole = case["messages_complete"] and not case["error"] and not data.startswith(b"HTTP/1.1 1")
        if whole and "no body is received" not in title:  # as an answer to HEAD
            assert ends == {"ended"}, title
        seen += 1
    assert seen > 70


# -- flow


def test_reading_is_paused_and_resumed_before_the_connection_is_used_again() -> None:
    bench = Bench()
    answer = bench.call()
    bench.server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    answer.request.pause()
    assert not bench.server.reading
    answer.request.resume()
    assert bench.server.reading
    answer.request.pause()
    bench.server.answer(b"cd")  # was in memory already
    assert answer.calls == ["started", "ended"] and bench.server.reading


def test_a_full_buffer_holds_the_request_back() -> None:
    bench = Bench()
    answer = bench.call("POST", body=None)
    bench.server.core.pause_writing()
    bench.server.core.resume_writing()
    assert answer.calls == ["pause", "resume"] * 2  # first for want of a connection
    answer.request.finish()
    bench.server.core.pause_writing()
    bench.server.core.resume_writing()
    assert len(answer.calls) == 4


def test_an_answer_while_the_request_is_still_being_sent() -> None:
    bench = Bench()
    answer = bench.call("POST", body=None)
    bench.server.answer(OK)
    assert answer.calls[-2:] == ["started", "ended"] and not bench.server.open
    answer.request.write(b"late")
    answer.request.finish()


def test_a_refusal_stops_the_request() -> None:
    bench = Bench()
    answer = bench.call("POST", body=None)
    bench.server.answer(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nn")
    bench.server.take()
    answer.request.write(b"more")
    assert bench.server.take() == b""
    bench.server.answer(b"o")
    assert answer.calls[-2:] == ["started", "ended"] and answer.body == b"no" and not bench.server.open


def test_a_success_does_not_stop_the_request() -> None:
    bench = Bench()
    answer = bench.call("POST", body=None)
    bench.server.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    bench.server.take()
    answer.request.write(b"more")
    answer.request.finish()
    assert bench.server.take() == b"4\r\nmore\r\n0\r\n\r\n"
    bench.server.answer(b"0\r\n\r\n")
    assert answer.calls[-2:] == ["started", "ended"] and bench.server.open


def test_cancel_closes_the_connection_and_nothing_more_is_said() -> None:
    bench = Bench()
    answer = bench.call()
    bench.server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
    answer.request.cancel()
    answer.request.cancel()
    assert not bench.server.open and answer.calls == ["started"]


@pytest.mark.parametrize("when", ["response_started", "response_data"])
def test_cancel_from_inside_a_callback(when: str) -> None:
    bench = Bench()
    answer = bench.call()
    setattr(answer, when, lambda *_: answer.request.cancel())
    bench.server.answer(OK)
    assert "ended" not in answer.calls and not bench.server.open


def test_a_new_request_from_inside_a_callback() -> None:
    bench = Bench()
    answer = bench.call()
    seconds: list[Answer] = []
    answer.response_ended = lambda: seconds.append(bench.call())  # type: ignore[method-assign]
    bench.server.answer(OK)
    bench.server.answer(OK)
    assert seconds[0].body == b"hi" and len(bench.net.transports) == 1


# -- connections


def test_the_most_recently_used_connection_is_taken() -> None:
    bench = Bench()
    bench.call(), bench.call()
    first, second = bench.net.transports
    second.answer(OK)
    first.answer(OK)
    first.take()
    bench.call()
    assert first.take() and len(bench.net.transports) == 2


def test_a_connection_that_the_server_closed_is_not_used() -> None:
    bench = Bench()
    bench.call()
    bench.server.answer(OK)
    bench.server.end()
    assert not bench.server.open
    bench.call("POST")
    assert len(bench.net.transports) == 2


def test_idle_connections_are_closed_in_time() -> None:
    bench = Bench(idle=30.0)
    bench.call()
    bench.server.answer(OK)
    bench.pass_time(27)
    assert bench.server.open
    bench.pass_time(3)
    assert not bench.server.open
    bench.pass_time(3)
    assert not bench.clock.getDelayedCalls()


def test_idle_connections_are_closed_before_the_server_does() -> None:
    bench = Bench(idle=30.0)
    bench.call()
    bench.server.answer(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nContent-Length: 0\r\n\r\n")
    bench.pass_time(1)
    assert bench.server.open
    bench.pass_time(4)
    assert not bench.server.open


def closed_when_used(method: str, **options: Any) -> tuple[Bench, Answer]:
    bench = Bench()
    bench.call()
    bench.server.answer(OK)
    answer = bench.call(method, **options)
    bench.server.end()
    return bench, answer


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_safe_request_on_a_connection_just_closed_is_sent_again_once(method: str) -> None:
    bench, answer = closed_when_used(method)
    assert answer.calls == [] and len(bench.net.transports) == 2
    assert bench.server.take().startswith(method.encode())
    bench.server.end()
    assert answer.calls == ["failed"] and len(bench.net.transports) == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_no_other_request_is_sent_twice(method: str) -> None:
    bench, answer = closed_when_used(method, body=b"x")
    assert answer.calls == ["failed"] and len(bench.net.transports) == 1
    assert answer.error is not None and answer.error.request_sent


def test_a_streamed_request_is_not_sent_twice() -> None:
    bench, answer = closed_when_used("GET", body=None)
    assert answer.calls == ["failed"] and len(bench.net.transports) == 1


def test_nothing_is_sent_twice_when_an_answer_had_begun_or_the_connection_was_new() -> None:
    bench = Bench()
    fresh = bench.call()
    bench.server.end()
    assert fresh.calls == ["failed"]
    bench.call()
    bench.server.answer(OK)
    begun = bench.call()
    bench.server.answer(b"H")
    bench.server.end()
    assert begun.calls == ["failed"] and len(bench.net.transports) == 2


def test_a_cancelled_request_is_not_sent_again() -> None:
    bench = Bench()
    bench.call()
    bench.server.answer(OK)
    answer = bench.call()
    bench.net.held = []
    bench.server.end()
    answer.request.cancel()
    bench.net.held[0].callback(None)
    assert bench.server.take() == b"" and answer.calls == []


def test_a_repeat_stays_within_the_limit_and_goes_first() -> None:
    bench = Bench(limit=1)
    bench.call()
    bench.server.answer(OK)
    first, second = bench.call("GET", "/1"), bench.call("GET", "/2")
    bench.server.end()
    assert len(bench.net.transports) == 2
    for path, answer in ((b"/1", first), (b"/2", second)):
        assert bench.server.take().startswith(b"GET " + path)
        bench.server.answer(OK)
        assert answer.body == b"hi"


def test_requests_beyond_the_limit_wait_and_then_fail() -> None:
    bench = Bench(limit=2, queue=2)
    running = [bench.call() for _ in range(2)]
    waiting = [bench.call("POST", f"/{n}") for n in range(2)]
    with pytest.raises(ServerBusyError):
        bench.call()
    first, second = bench.net.transports
    waiting[0].request.cancel()
    first.take()
    first.answer(OK)
    assert first.take().startswith(b"POST /1 ")
    second.take()
    second.answer(OK)
    first.answer(OK)
    assert second.take() == b"" and [a.calls for a in running] == [["started", "ended"]] * 2
    assert waiting[0].calls == [] and waiting[1].calls == ["started", "ended"]


def test_waiting_ends_with_head_timeout() -> None:
    bench = Bench(limit=1, head_timeout=5.0)
    bench.call("POST", body=None)  # its caller takes all the time there is
    waiting = bench.call()
    bench.pass_time(4.9)
    assert waiting.calls == []
    bench.pass_time(2.5)
    assert waiting.calls == ["failed"]
    assert isinstance(waiting.error, HttpTimeoutError) and not waiting.error.request_sent


def test_a_connection_lost_makes_room_for_those_who_wait() -> None:
    bench = Bench(limit=1)
    bench.call("POST")
    waiting = bench.call("POST")
    bench.server.end()
    assert len(bench.net.transports) == 2
    bench.server.answer(OK)
    assert waiting.body == b"hi"


@pytest.mark.parametrize("kind", [GatewayUnreachableError, ConfigError])
def test_refused(kind: type[Exception]) -> None:
    bench = Bench()
    bench.net.held = []
    bench.net.refused = kind("No connection to svc.example:80: refused")
    answers = [bench.call() for _ in range(3)]
    bench.net.held[0].callback(None)
    assert [a.calls for a in answers] == [["failed"]] * 3
    error = answers[0].error
    assert error is not None and not error.request_sent and str(error) == "No connection to svc.example:80: refused"


def test_one_refusal_among_connections_that_work_fails_one() -> None:
    bench = Bench(limit=2)
    bench.call()
    bench.net.held = []
    answers = [bench.call() for _ in range(2)]
    bench.net.refused = GatewayUnreachableError("refused")
    bench.net.held[0].callback(None)
    bench.server.answer(OK)
    bench.server.answer(OK)
    assert [a.calls for a in answers] == [["failed"], ["started", "ended"]]


# -- time


def test_head_timeout() -> None:
    bench = Bench(head_timeout=5.0)
    answer = bench.call()
    bench.pass_time(4.9)
    assert answer.calls == []
    bench.pass_time(2.5)
    assert isinstance(answer.error, HttpTimeoutError) and not bench.server.open


def test_body_timeout_counts_from_the_last_piece_and_not_while_paused() -> None:
    bench = Bench(body_timeout=5.0)
    answer = bench.call()
    bench.server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    bench.pass_time(4)
    bench.server.answer(b"a")
    bench.pass_time(4)
    answer.request.pause()
    bench.pass_time(20)
    answer.request.resume()
    bench.pass_time(4.9)
    assert answer.calls == ["started"]
    bench.pass_time(2.5)
    assert answer.calls == ["started", "failed"] and isinstance(answer.error, HttpTimeoutError)


def test_a_server_that_takes_no_more_of_the_request() -> None:
    bench = Bench(body_timeout=5.0, head_timeout=8.0)
    answer = bench.call("POST", body=None)
    bench.pass_time(20)  # the caller's time
    bench.server.core.pause_writing()
    bench.pass_time(4.9)
    assert "failed" not in answer.calls
    bench.pass_time(2.5)
    assert isinstance(answer.error, HttpTimeoutError)


def test_head_timeout_counts_from_the_end_of_the_request() -> None:
    bench = Bench(head_timeout=5.0)
    answer = bench.call("POST", body=None)
    bench.pass_time(20)
    answer.request.finish()
    bench.pass_time(4.9)
    assert "failed" not in answer.calls
    bench.pass_time(2.5)
    assert "failed" in answer.calls


def test_fetch_times_out_and_limits() -> None:
    bench = Bench()
    late: list[Any] = []
    ensureDeferred(bench.pool.fetch("GET", "/", limit=10, timeout=3.0)).addBoth(late.append)
    assert bench.server.take() == b"GET / HTTP/1.1\r\nHost: svc.example:80\r\n\r\n"
    bench.pass_time(4)
    assert late[0].check(HttpTimeoutError) and not bench.server.open
    big: list[Any] = []
    ensureDeferred(bench.pool.fetch("GET", "/", limit=10, timeout=3.0)).addBoth(big.append)
    bench.server.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world")
    assert big[0].check(HttpClientError) and not bench.server.open


def test_close_fails_what_waits_and_what_runs() -> None:
    bench = Bench(limit=1)
    running, waiting = bench.call(), bench.call()
    closed: list[None] = []
    ensureDeferred(bench.pool.close()).addCallback(closed.append)
    assert running.calls == waiting.calls == ["failed"]
    assert closed == [None] and not bench.server.open
    with pytest.raises(ServerBusyError):
        bench.call()


def test_close_while_connecting() -> None:
    bench = Bench()
    bench.net.held = []
    answer = bench.call()
    closed: list[None] = []
    ensureDeferred(bench.pool.close()).addCallback(closed.append)
    assert answer.calls == ["failed"] and closed == [None]


# -- real sockets


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self._chunks()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"until the end")

    def log_message(self, *_: Any) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Connections that the client resets are expected here."""


@contextmanager
def echo_server() -> Iterator[int]:
    server = QuietServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def socket_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept connections, one after the other, and run ``serve`` on each until the test is over."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(5)
                with suppress(OSError):  # the client may end it in any way
                    if connection.recv(1, socket.MSG_PEEK) == b"!":
                        return
                    serve(connection)

    thread = threading.Thread(target=run)
    thread.start()
    port = listening.getsockname()[1]
    try:
        yield port
    finally:
        with socket.create_connection(("127.0.0.1", port)) as last:
            last.sendall(b"!")
            thread.join()
        listening.close()


@contextmanager
def real_pool(port: int, **options: Any) -> Iterator[HttpPool]:
    timers = Timers(reactor)
    yield HttpPool(Network(reactor), timers, "127.0.0.1", port, **options)
    timers.stop()


async def test_a_standard_server() -> None:
    with echo_server() as port, real_pool(port) as pool:
        for body in (b"", b"hello", bytes(300_000)):
            answer = await pool.fetch("POST", "/", body=body, limit=1_000_000, timeout=5)
            assert (answer.status, answer.body) == (200, body)
        assert len(pool._connections) == 1
        answer = await pool.fetch("GET", "/", limit=100, timeout=5)
        assert answer.body == b"until the end"
        await pool.close()


async def test_streaming_to_a_standard_server() -> None:
    with echo_server() as port, real_pool(port) as pool:
        for length in (6, None):
            done: Deferred[None] = Deferred()
            answer = Answer()
            answer.response_ended = lambda done=done: done.callback(None)  # type: ignore[method-assign, misc]
            request = pool.request("POST", "/", [("Host", "x")], answer, body=None, length=length)
            request.write(b"abc")
            request.write(b"def")
            request.finish()
            await done
            assert answer.body == b"abcdef"
        await pool.close()


async def test_refused_by_a_real_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with real_pool(port) as pool:
        with pytest.raises(HttpClientError) as caught:
            await pool.fetch("GET", "/", limit=100, timeout=5)
        assert not caught.value.request_sent and f"127.0.0.1:{port}" in str(caught.value)
        await pool.close()


async def test_a_real_connection_closed_when_used() -> None:
    """The server answers one request a connection and then closes it without a word, a moment too late to be seen."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(OK)
        connection.recv(65536)

    with socket_server(serve) as port, real_pool(port) as pool:
        assert (await pool.fetch("GET", "/1", limit=100, timeout=5)).body == b"hi"
        assert (await pool.fetch("GET", "/2", limit=100, timeout=5)).body == b"hi"
        with pytest.raises(HttpClientError, match="before it had answered"):
            await pool.fetch("POST", "/3", limit=100, timeout=5)
        await pool.close()


async def test_cut_in_the_middle_by_a_real_server() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with socket_server(serve) as port, real_pool(port) as pool:
        with pytest.raises(HttpClientError, match="in the middle"):
            await pool.fetch("GET", "/", limit=100, timeout=5)
        await pool.close()


async def test_a_real_server_that_does_not_answer() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.recv(1)

    with socket_server(serve) as port, real_pool(port, head_timeout=0.3) as pool:
        with pytest.raises(HttpTimeoutError):
            await pool.fetch("GET", "/", limit=100, timeout=5)
        with pytest.raises(HttpTimeoutError, match=r"within 0\.2 s"):
            await pool.fetch("GET", "/", limit=100, timeout=0.2)
        await pool.close()


async def test_close_with_a_connection_open() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.recv(1)

    with socket_server(serve) as port, real_pool(port) as pool:
        failed: list[Any] = []
        ensureDeferred(pool.fetch("GET", "/", limit=100, timeout=5)).addErrback(failed.append)
        await Network(reactor).sleep(0.05)
        await pool.close()
        assert failed[0].check(HttpClientError)


async def test_close_while_a_real_connection_is_being_opened() -> None:
    """A listening socket whose queue is full lets nobody in and refuses nobody."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        try:
            with real_pool(full.getsockname()[1]) as pool:
                failed: list[Any] = []
                ensureDeferred(pool.fetch("GET", "/", limit=100, timeout=5)).addErrback(failed.append)
                await Network(reactor).sleep(0.05)
                assert not failed
                await pool.close()
                assert failed[0].check(HttpClientError)
        finally:
            for filler in fillers:
                filler.close()


# -- answers whose head came before


def repeated(clock: Clock, method: str = "GET", times: int = 3, data: bytes = OK) -> list[Answer]:
    net = Net(clock)
    pool = HttpPool(net, Timers(clock), "server", 80)  # type: ignore[arg-type]
    answers = []
    for _ in range(times):
        answers.append(Answer())
        pool.request(method, "/", [("Host", "server")], answers[-1], body=b"", length=None)
        net.last.answer(data)
    assert len(net.transports) == 1 or b"close" in data
    return answers


@pytest.mark.parametrize("body", [b"hi", b""])
def test_an_answer_whose_head_came_before_is_the_same(body: bytes) -> None:
    data = b"HTTP/1.1 404 Not here\r\nX-A: 1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    first, second, third = repeated(Clock(), data=data)
    for answer in (first, second, third):
        assert (answer.calls, answer.status, answer.reason) == (["started", "ended"], 404, "Not here")
        assert (answer.headers, answer.length, answer.body) == (first.headers, len(body), body)
    assert second.headers is third.headers


def test_a_known_head_with_less_or_more_behind_it_goes_the_ordinary_way() -> None:
    net = Net(clock := Clock())
    pool = HttpPool(net, Timers(clock), "server", 80)  # type: ignore[arg-type]
    for pieces in ([OK], [OK], [OK[:-1], OK[-1:]], [OK[:20], OK[20:]], [OK]):
        answer = Answer()
        pool.request("GET", "/", [("Host", "server")], answer, body=b"", length=None)
        for piece in pieces:
            net.last.answer(piece)
        assert (answer.calls, answer.body) == (["started", "ended"], b"hi")
    answer = Answer()
    pool.request("GET", "/", [("Host", "server")], answer, body=b"", length=None)
    net.last.answer(OK + b"more")
    assert answer.body == b"hi" and not net.last.open


def test_a_known_head_in_answer_to_head_has_no_body() -> None:
    net = Net(clock := Clock())
    pool = HttpPool(net, Timers(clock), "server", 80)  # type: ignore[arg-type]
    for method, data, body in (("GET", OK, b"hi"), ("HEAD", OK[:-2], b""), ("GET", OK, b"hi"), ("HEAD", OK[:-2], b"")):
        answer = Answer()
        pool.request(method, "/", [("Host", "server")], answer, body=b"", length=None)
        net.last.answer(data)
        assert (answer.calls, answer.body, answer.length) == (["started", "ended"], body, 2)
    assert len(net.transports) == 1


def test_heads_that_close_are_not_remembered() -> None:
    data = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
    assert [answer.body for answer in repeated(Clock(), data=data)] == [b"hi"] * 3
