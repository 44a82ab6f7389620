from __future__ import annotations

import base64
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.fakes import MemoryNetwork, MemoryTransport, Recording
from wcfrelay.net.http1.connection import HttpConnection
from wcfrelay.net.http1.exchange import ServerExchange
from wcfrelay.net.http1.server import HttpFront, ServerLimits
from wcfrelay.net.timers import Timers


class Server:
    """A front with one connection; by default every exchange is begun by a :class:`Recording`."""

    def __init__(self, begin: bool = True, **limits: Any) -> None:
        self.network = MemoryNetwork()
        self.timers = Timers(self.network.clock)
        self.exchanges: list[ServerExchange] = []
        self.responders: list[Recording] = []
        self._begin = begin
        self.front = HttpFront(self.network, self.timers, ServerLimits(**limits), self._take)
        self.connection, self.transport = self.connect()

    def connect(self) -> tuple[HttpConnection, MemoryTransport]:
        connection = self.front.make()
        transport = MemoryTransport(connection)
        connection.connection_made(transport)
        return connection, transport

    def _take(self, exchange: ServerExchange) -> None:
        self.exchanges.append(exchange)
        if self._begin:
            responder = Recording(exchange)
            self.responders.append(responder)
            exchange.begin(responder)

    def feed(self, data: bytes) -> None:
        self.connection.data_received(data)

    def answer(self, number: int = -1, body: bytes = b"hi", status: int = 200) -> bytes:
        self.exchanges[number].respond(status, "", [], body)
        return self.transport.taken()


POST = b"POST /a/b%20c?x=1 HTTP/1.1\r\nHost: relay.example:8080\r\nContent-Length: 5\r\nX-One: 1\r\n\r\nhello"


@given(st.lists(st.integers(1, len(POST) - 1), max_size=12))
def test_a_request_is_the_same_under_any_split(cuts: list[int]) -> None:
    server = Server()
    edges = [0, *sorted(set(cuts)), len(POST)]
    for start, end in pairwise(edges):
        server.feed(POST[start:end])
    (exchange,), (responder,) = server.exchanges, server.responders
    assert (exchange.method, exchange.target, exchange.length) == ("POST", "/a/b%20c?x=1", 5)
    assert exchange.headers == [("Host", "relay.example:8080"), ("Content-Length", "5"), ("X-One", "1")]
    assert exchange.origin == "http://relay.example:8080"
    assert (responder.body, responder.ended) == (b"hello", 1)
    answer = server.answer()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\nhi")
    assert b"Content-Length: 2\r\n" in answer and b"Connection" not in answer and b"\r\nDate: " in answer


def test_pipelined_requests_are_answered_in_order_and_reading_waits() -> None:
    server = Server()
    server.feed(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert [x.target for x in server.exchanges] == ["/1"]
    assert not server.transport.reading
    server.answer()
    server.answer()
    assert [x.target for x in server.exchanges] == ["/1", "/2", "/3"]
    assert server.transport.reading
    server.answer()
    server.feed(b"GET /4 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert server.exchanges[-1].target == "/4"


def test_a_chunked_body_streams_and_trailers_are_dropped() -> None:
    server = Server()
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert server.exchanges[0].length is None
    assert (server.responders[0].body, server.responders[0].ended) == (b"abc", 0)
    server.feed(b"2\r\nde\r\n0\r\nX-Trailer: 1\r\nHost: b\r\n\r\n")
    assert (server.responders[0].body, server.responders[0].ended) == (b"abcde", 1)
    assert [name for name, _ in server.exchanges[0].headers] == ["Host", "Transfer-Encoding"]


def test_a_body_is_held_for_a_late_responder_and_reading_stops_at_the_quota() -> None:
    server = Server(begin=False)
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 60_000)
    assert server.transport.reading
    server.feed(b"x" * 10_000)
    assert not server.transport.reading
    responder = Recording(server.exchanges[0])
    server.exchanges[0].begin(responder)
    assert len(responder.body) == 70_000 and server.transport.reading
    server.exchanges[0].pause()
    server.feed(b"y" * 30_000)
    assert len(responder.body) == 70_000 and not responder.ended
    server.exchanges[0].resume()
    assert len(responder.body) == 100_000 and responder.ended == 1


def test_a_streamed_answer_is_chunked_or_has_its_length() -> None:
    server = Server()
    server.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    exchange = server.exchanges[-1]
    exchange.start(200, "Fine", [("X-A", "1")], None)
    exchange.write(b"abc")
    exchange.finish()
    answer = server.transport.taken()
    assert answer.startswith(b"HTTP/1.1 200 Fine\r\nX-A: 1\r\n") and answer.endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    server.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    exchange = server.exchanges[-1]
    exchange.start(200, "", [], 6)
    exchange.write(b"abc")
    exchange.write(b"def")
    exchange.finish()
    assert server.transport.taken().endswith(b"Content-Length: 6\r\n\r\nabcdef")
    assert not server.transport.closed


@pytest.mark.parametrize("sent", [b"ab", b"abcd"])
def test_an_answer_of_the_wrong_length_cuts_the_connection(sent: bytes) -> None:
    server = Server()
    server.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.exchanges[0].start(200, "", [], 3)
    server.exchanges[0].write(sent)
    server.exchanges[0].finish()
    assert server.transport.aborted


def test_head_204_and_304_have_no_body() -> None:
    server = Server()
    server.feed(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert server.answer(body=b"hello").endswith(b"Content-Length: 5\r\n\r\n")
    for status in (204, 304):
        server.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = server.answer(body=b"", status=status)
        assert answer.endswith(b"\r\n\r\n") and b"Content-Length" not in answer and b"Transfer" not in answer
    assert not server.transport.closed


def test_http_1_0_gets_no_chunks() -> None:
    server = Server()
    server.feed(b"GET / HTTP/1.0\r\n\r\n")
    server.exchanges[0].start(200, "", [], None)
    server.exchanges[0].write(b"abc")
    server.exchanges[0].finish()
    assert server.transport.taken().endswith(b"Connection: close\r\n\r\nabc")
    assert server.transport.closed


def test_http_1_0_keep_alive_on_request() -> None:
    server = Server()
    server.feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"Connection: keep-alive\r\n" in server.answer()
    assert not server.transport.closed


def test_connection_close_is_honoured() -> None:
    server = Server()
    server.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"Connection: close\r\n" in server.answer()
    assert server.transport.closed


def test_100_continue_is_sent_when_the_body_is_wanted() -> None:
    server = Server(begin=False)
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert server.transport.taken() == b""
    server.exchanges[0].begin(Recording(server.exchanges[0]))
    assert server.transport.taken() == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_100_continue_is_not_sent_when_the_request_is_refused() -> None:
    server = Server(begin=False)
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert server.answer(status=401).startswith(b"HTTP/1.1 401 Unauthorized\r\n")


def test_an_early_answer_reads_the_rest_of_the_body_then_closes() -> None:
    server = Server()
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 1000)
    assert b"Connection: close\r\n" in server.answer(status=413)
    assert not server.transport.closed
    server.feed(b"x" * 199_000)
    assert server.transport.closed


def test_an_early_answer_keeps_the_connection_when_little_is_left() -> None:
    server = Server()
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000\r\n\r\n" + b"x" * 1000)
    assert b"Connection" not in server.answer(status=401)
    server.feed(b"x" * 1000 + b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert server.exchanges[1].target == "/2" and not server.transport.closed


def test_an_early_answer_does_not_read_for_ever() -> None:
    server = Server()
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    server.answer(status=413)
    piece = b"100000\r\n" + b"x" * 1024 * 1024 + b"\r\n"
    for _ in range(64):
        server.feed(piece)
    assert not server.transport.closed
    server.feed(piece)
    assert server.transport.closed


def test_an_early_answer_does_not_read_a_trickle_for_ever() -> None:
    server = Server(body_idle=2.0, request_head=2.0)
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    server.answer(status=413)
    for _ in range(5):
        server.feed(b"1\r\nx\r\n")
        advance(server, 1.0)
    assert server.transport.aborted


def test_a_body_that_waits_for_100_continue_is_not_waited_for() -> None:
    server = Server()
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    responder = server.responders[0]
    assert responder.exchange is server.exchanges[0]  # begun: the 100 was sent, so its body is on its way
    server.answer(status=401)
    assert not server.transport.closed
    server = Server(begin=False)
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    server.answer(status=401)
    assert server.transport.closed


def test_a_responder_that_comes_after_the_sender_left_is_told_at_once() -> None:
    server = Server(begin=False)
    server.feed(POST)
    server.connection.connection_lost(None)
    responder = Recording(server.exchanges[0])
    server.exchanges[0].begin(responder)
    assert isinstance(responder.error, ConnectionResetError) and not responder.body


REFUSED = {
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare CR": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
    "obs-fold": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "length and coding": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "coding and length": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "list of lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
    "signed length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "bad host": b"GET / HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "chunked in 1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    "authority form": b"GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_ambiguous_requests_are_refused_and_the_connection_closed(raw: bytes) -> None:
    server = Server()
    server.feed(raw)
    assert server.exchanges == []
    assert server.transport.taken().startswith(b"HTTP/1.1 400 ")
    assert server.transport.closed


def test_a_coding_that_is_not_chunked_is_501() -> None:
    server = Server()
    server.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
    assert server.transport.taken().startswith(b"HTTP/1.1 501 ")


def test_a_bad_chunk_after_the_exchange_began_cuts_it() -> None:
    server = Server()
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    server.feed(b"zz\r\n")
    assert server.transport.aborted and server.responders[0].error is not None


def test_a_bad_chunk_before_anybody_saw_the_exchange_is_refused() -> None:
    server = Server()
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
    assert server.transport.taken().startswith(b"HTTP/1.1 400 ") and server.transport.closed and not server.exchanges


@pytest.mark.parametrize(
    ("limits", "raw", "status"),
    [
        ({"request_line": 100}, b"GET /" + b"a" * 200 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        ({"request_line": 100}, b"GET /" + b"a" * 200, 414),
        ({"header_count": 3}, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 3 + b"\r\n", 431),
        ({"header_bytes": 100}, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100 + b"\r\n\r\n", 431),
        ({"header_bytes": 1000}, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000, 431),
    ],
)
def test_quotas_of_the_head(limits: dict[str, int], raw: bytes, status: int) -> None:
    server = Server(**limits)
    server.feed(raw)
    assert server.exchanges == []
    assert server.transport.taken().startswith(b"HTTP/1.1 %d " % status)
    assert server.transport.closed


def test_quota_of_connections() -> None:
    server = Server(connections=1)
    _, second = server.connect()
    assert second.taken().startswith(b"HTTP/1.1 503 ") and second.closed
    server.connection.connection_lost(None)
    _, third = server.connect()
    assert not third.closed


def test_deadline_of_an_idle_connection() -> None:
    server = Server(keep_alive=5.0)
    server.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.answer()
    advance(server, 4.0)
    assert not server.transport.closed
    advance(server, 31.0)
    assert server.transport.closed and not server.transport.aborted


def test_deadline_of_a_head() -> None:
    server = Server(request_head=3.0)
    server.feed(b"GET / HT")
    advance(server, 4.0)
    assert server.transport.taken().startswith(b"HTTP/1.1 408 ") and server.transport.closed


def test_deadline_of_a_head_is_total_not_per_byte() -> None:
    server = Server(request_head=3.0)
    for byte in b"GET / HTTP/1.1":
        server.feed(bytes([byte]))
        advance(server, 0.5)
    assert server.transport.closed


def test_deadline_of_a_body() -> None:
    server = Server(body_idle=2.0, request_head=2.0)
    server.feed(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    advance(server, 1.5)
    server.feed(b"d")
    advance(server, 1.5)
    assert not server.transport.aborted
    advance(server, 2.5)
    assert server.transport.aborted and isinstance(server.responders[0].error, TimeoutError)


def test_no_deadline_while_the_answer_is_made() -> None:
    server = Server(body_idle=2.0, keep_alive=2.0, request_head=2.0)
    server.feed(POST)
    advance(server, 100.0)
    assert not server.transport.closed and not server.transport.aborted
    server.answer()


def test_deadline_of_an_answer_that_does_not_drain() -> None:
    server = Server(body_idle=2.0, request_head=2.0)
    server.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.exchanges[0].start(200, "", [], None)
    server.connection.pause_writing()
    assert server.responders[0].paused
    advance(server, 1.0)
    server.connection.resume_writing()
    assert not server.responders[0].paused
    server.connection.pause_writing()
    advance(server, 5.0)
    assert server.transport.aborted and server.responders[0].error is not None


def test_deadline_of_the_whole_exchange() -> None:
    server = Server(request_total=5.0, request_head=1.0)
    server.feed(POST)
    advance(server, 6.5)
    assert server.transport.aborted and isinstance(server.responders[0].error, TimeoutError)


def test_a_sender_that_leaves_cancels_the_exchange_once() -> None:
    server = Server()
    over: list[ServerExchange] = []
    server.feed(POST)
    server.exchanges[0].done = over.append
    server.connection.connection_lost(None)
    assert isinstance(server.responders[0].error, ConnectionResetError)
    assert over == server.exchanges and not server.front.connections
    server.exchanges[0].respond(200, "", [], b"late")
    server.exchanges[0].abort("late")
    assert over == server.exchanges


def test_upgrade_hands_the_connection_over_with_what_was_read() -> None:
    server = Server(begin=False)
    server.feed(b"GET /$hc/x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x00")
    assert server.exchanges[0].upgrade and not server.transport.reading
    transport, rest = server.exchanges[0].switch_protocols([("Upgrade", "websocket"), ("Connection", "Upgrade")])
    assert rest == b"\x81\x00" and transport is server.transport
    assert server.transport.taken() == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    )
    assert not server.front.connections


def test_a_refused_upgrade_closes() -> None:
    server = Server(begin=False)
    server.feed(b"GET /$hc/x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    assert b"Connection: close" in server.answer(status=404)
    assert server.transport.closed


def test_an_upgrade_that_nobody_wants_is_an_ordinary_request() -> None:
    server = Server()
    server.feed(
        b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc"
        b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert server.responders[0].body == b"abc" and server.responders[0].ended == 1
    server.answer()
    assert server.exchanges[1].target == "/2"


async def test_drain_closes_idle_connections_and_lets_work_finish() -> None:
    server = Server()
    idle, idle_transport = server.connect()
    server.feed(POST)

    def elapse() -> None:
        server.network.clock.advance(0.1)

    from twisted.internet.defer import Deferred

    draining = Deferred.fromCoroutine(server.front.drain(5.0))
    assert idle_transport.closed and not server.transport.closed
    idle.connection_lost(None)
    assert b"Connection: close" in server.answer()
    assert server.transport.closed
    server.connection.connection_lost(None)
    elapse()
    await draining


def test_the_llhttp_cases_are_one_message_or_refused(shared: Path) -> None:
    """Whatever is not refused must be read as llhttp reads it: the same number of messages, none twice."""
    cases = json.loads((shared / "vectors" / "http1_llhttp.json").read_text())["cases"]
    strict = [c for c in cases if c["type"] == "request" and c["mode"] == "strict"]
    assert len(strict) > 50
    for case in strict:
        server = Server()
        server.connection.data_received(base64.b64decode(case["raw_b64"]))
        while server.responders and server.responders[-1].ended and not server.exchanges[-1].status:
            if server.transport.closed or server.transport.aborted:
                break
            server.answer()
        complete = sum(r.ended for r in server.responders)
        if not case["title"].startswith(
            "CRLF between requests"
        ):  # there the file counts the unfinished second one only
            assert complete <= case["messages_complete"], case["title"]
        if case["error"]:
            assert complete == 0 or server.transport.closed or server.transport.aborted, case["title"]


def advance(server: Server, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        server.network.clock.advance(0.1)
