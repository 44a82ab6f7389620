"""Exchanges over the hybrid dialect, against a gateway that is a list of frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from wcfrelay.errors import GatewayUnreachableError, ListenerTimeoutError
from wcfrelay.listener.channel import Calls, ControlChannel
from wcfrelay.net.timers import Timers

from .hybridfakes import BINARY, CONTINUATION, LIMIT, TEXT, FakeSocket, Responder, failures, request


class Dial:
    def __init__(self, address: str, make_app: Callable[[Any], Any]) -> None:
        self.address = address
        self.make_app = make_app
        self.outcome: Deferred[Any] = Deferred()
        self.socket = FakeSocket()

    def accept(self) -> FakeSocket:
        self.socket.app = self.make_app(self.socket)
        self.outcome.callback(self.socket)
        return self.socket


class Bench:
    """One control channel; its dispatcher is ``on_dispatch``, by default: begin, and leave the rest to the test."""

    def __init__(self, max_calls: int = 10) -> None:
        self.clock = Clock()
        self.dials: list[Dial] = []
        self.exchanges: list[Any] = []
        self.responders: list[Responder] = []
        self.lost: list[tuple[int, str]] = []
        self.on_dispatch: Callable[[Any], None] = self.take
        self.calls = Calls(
            self,
            Timers(self.clock),
            self.open_socket,
            origin="https://relay.test",
            response_timeout=60.0,
            max_calls=max_calls,
        )
        self.socket = FakeSocket()
        self.socket.app = self.channel()

    def channel(self) -> ControlChannel:
        return ControlChannel(self.calls, self.socket, lambda *end: self.lost.append(end))  # type: ignore[arg-type]

    async def open_socket(self, address: str, make_app: Callable[[Any], Any]) -> Any:
        dial = Dial(address, make_app)
        self.dials.append(dial)
        return await dial.outcome

    def dispatch(self, exchange: Any) -> None:
        self.exchanges.append(exchange)
        self.on_dispatch(exchange)

    def take(self, exchange: Any) -> None:
        self.responders.append(Responder())
        exchange.begin(self.responders[-1])

    async def close(self) -> None:
        raise AssertionError("the exchanges do not own the dispatcher")

    def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def request(self, body: bytes | None = None, **members: Any) -> Any:
        """A small request; the exchange that came of it."""
        self.socket.text(request(body=body is not None, **members))
        if body is not None:
            self.socket.frame(BINARY, body)
        return self.exchanges[-1]

    def upload(self, **members: Any) -> tuple[Any, FakeSocket]:
        """A request on a rendezvous, without its body."""
        self.socket.text({"request": {"address": "wss://g/$hc/p?r", "id": "u1"}})
        rendezvous = self.dials[-1].accept()
        rendezvous.text(request(**{"id": "u1", "body": True, **members}))
        return self.exchanges[-1], rendezvous


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- small requests


def test_a_request_without_body(bench: Bench) -> None:
    exchange = bench.request(method="DELETE", requestHeaders={"Accept": "a/b", "Via": "1.1 g"})
    assert (exchange.method, exchange.target, exchange.length) == ("DELETE", "/p/x?a=1", 0)
    assert list(exchange.headers) == [("Accept", "a/b"), ("Via", "1.1 g")]
    assert (exchange.tracking_id, exchange.origin) == ("i1", "https://relay.test")
    assert bench.responders[0].events == ["end"]


def test_the_origin_that_the_gateway_tells_counts(bench: Bench) -> None:
    assert bench.request(origin="http://other:8080").origin == "http://other:8080"


def test_a_request_with_body_is_dispatched_when_the_body_is_complete(bench: Bench) -> None:
    bench.socket.text(request(body=True))
    bench.socket.frame(BINARY, b"ab", False)
    bench.socket.frame(CONTINUATION, b"cd", False)
    assert bench.exchanges == []
    bench.socket.frame(CONTINUATION, b"", True)
    assert bench.exchanges[0].length == 4
    assert bench.responders[0].body == b"abcd"
    assert bench.responders[0].events == ["data", "data", "end"]


def test_a_body_waits_for_a_dispatcher_that_takes_the_exchange_later(bench: Bench) -> None:
    bench.on_dispatch = lambda exchange: None
    exchange = bench.request(b"later")
    bench.take(exchange)
    assert (bench.responders[0].body, bench.responders[0].events) == (b"later", ["data", "end"])


def test_a_command_may_come_in_fragments(bench: Bench) -> None:
    text = json.dumps(request()).encode()
    for at in range(len(text)):
        bench.socket.frame(CONTINUATION if at else TEXT, text[at : at + 1], at == len(text) - 1)
    assert len(bench.exchanges) == 1


def test_a_command_above_its_quota(bench: Bench) -> None:
    for at in range(9):
        bench.socket.frame(CONTINUATION if at else TEXT, b" " * 32 * 1024, False)
    assert bench.socket.close_code == 1009


def test_a_body_above_the_quota_of_the_control_channel(bench: Bench) -> None:
    bench.socket.text(request(body=True))
    bench.socket.frame(BINARY, b"x" * LIMIT, False)
    assert bench.socket.close_code is None
    bench.socket.frame(CONTINUATION, b"x" * 5000, False)
    assert bench.socket.close_code == 1009
    assert bench.exchanges == []


@pytest.mark.parametrize(
    "frames",
    [
        [(TEXT, b"{")],
        [(TEXT, b'{"request":{"id":"1"}}')],
        [(TEXT, b'{"request":{"id":"1","address":"a","body":true}}')],
        [(BINARY, b"x")],
        [(TEXT, json.dumps(request(body=True)).encode()), (TEXT, json.dumps(request()).encode())],
    ],
    ids=["json", "shape", "method", "binary", "text for body"],
)
def test_a_broken_protocol_closes_the_channel(bench: Bench, frames: list[tuple[int, bytes]]) -> None:
    for opcode, data in frames:
        bench.socket.frame(opcode, data)
    assert bench.socket.close_code == 1002


def test_unknown_commands_are_ignored(bench: Bench) -> None:
    bench.socket.text({"injectFault": {"delay": 1}})
    bench.socket.text({"renewToken": {"token": "x"}})
    bench.request()
    assert bench.socket.close_code is None


# -- small answers


def test_an_answer_and_its_body_are_sent_in_one_go(bench: Bench) -> None:
    bench.request().respond(200, "OK", [("Content-Type", "a/b"), ("Set-Cookie", "a"), ("Set-Cookie", "b")], b"hi")
    assert bench.socket.response() == {
        "requestId": "i1",
        "statusCode": 200,
        "statusDescription": "OK",
        "responseHeaders": {"Content-Type": "a/b", "Set-Cookie": ["a", "b"]},
        "body": True,
    }
    assert bench.socket.sent[1:] == [(BINARY, b"hi", True)]
    assert not bench.calls.running


def test_an_answer_without_body(bench: Bench) -> None:
    bench.request().respond(202, "", [], b"")
    assert bench.socket.response() == {"requestId": "i1", "statusCode": 202, "responseHeaders": {}}
    assert len(bench.socket.sent) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_head_is_answered_with_the_length_only(bench: Bench, streamed: bool) -> None:
    exchange = bench.request(method="HEAD")
    if streamed:
        exchange.start(200, "OK", [], 7)
        exchange.write(b"content")
        exchange.finish()
    else:
        exchange.respond(200, "OK", [], b"content")
    answer = bench.socket.response()
    assert ("body" in answer, answer["bodyLength"]) == (False, 7)
    assert len(bench.socket.sent) == 1


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_body(bench: Bench, status: int) -> None:
    bench.request().respond(status, "", [], b"x")
    answer = bench.socket.response()
    assert "body" not in answer and "bodyLength" not in answer
    assert len(bench.socket.sent) == 1


def test_a_streamed_answer_that_ends_in_time_stays_on_the_control_channel(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "OK", [], None)
    exchange.write(b"a")
    bench.advance(1.8)
    exchange.write(b"b")
    assert bench.socket.sent == []
    exchange.finish()
    assert bench.socket.response()["body"] is True
    assert bench.socket.sent[1] == (BINARY, b"ab", True)
    bench.advance(70)
    assert bench.dials == []


def test_what_comes_after_the_answer_is_ignored(bench: Bench) -> None:
    exchange = bench.request()
    exchange.respond(200, "", [], b"")
    exchange.respond(201, "", [], b"")
    exchange.start(200, "", [], None)
    exchange.write(b"x")
    exchange.finish()
    exchange.abort("late")
    bench.advance(70)
    assert len(bench.socket.sent) == 1
    assert bench.responders[0].events == ["end"]


def test_the_buffered_answer_is_not_the_body_that_nobody_took(bench: Bench) -> None:
    bench.on_dispatch = lambda exchange: None
    exchange = bench.request(b"question")
    exchange.start(200, "", [], None)
    exchange.write(b"answer")
    exchange.finish()
    assert bench.socket.sent[1] == (BINARY, b"answer", True)


# -- answers that take a rendezvous


def test_a_large_answer_takes_a_rendezvous(bench: Bench) -> None:
    body = b"x" * LIMIT
    bench.request().respond(200, "OK", [], body)
    assert bench.socket.sent == []
    assert bench.dials[0].address == "wss://g/$hc/p?r"
    rendezvous = bench.dials[0].accept()
    assert rendezvous.keep_alive_args == (30.0, 15.0)
    answer = rendezvous.response()
    assert (answer["body"], answer["bodyLength"]) == (True, LIMIT)
    assert rendezvous.sent[1:] == [(BINARY, body, True)]
    assert bench.responders[0].events == ["end"]
    assert not bench.calls.running


def test_the_largest_answer_of_the_control_channel(bench: Bench) -> None:
    bench.request().respond(200, "OK", [], b"x" * (LIMIT - 200))
    assert len(bench.socket.sent) == 2 and bench.dials == []


def test_large_headers_take_a_rendezvous(bench: Bench) -> None:
    bench.request(method="HEAD").respond(200, "OK", [("X", "x" * LIMIT)], b"abc")
    answer = bench.dials[0].accept().response()
    assert "body" not in answer and answer["bodyLength"] == 3


def test_a_slow_answer_takes_a_rendezvous_after_two_seconds(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "OK", [], None)
    exchange.write(b"a")
    bench.advance(2.2)
    assert len(bench.dials) == 1
    assert bench.responders[0].events == ["end", "pause"]
    exchange.write(b"b")
    rendezvous = bench.dials[0].accept()
    assert bench.responders[0].events == ["end", "pause", "resume"]
    assert rendezvous.response()["body"] is True and "bodyLength" not in rendezvous.response()
    exchange.write(b"c")
    exchange.finish()
    assert rendezvous.sent[1:] == [
        (BINARY, b"ab", False),
        (CONTINUATION, b"c", False),
        (CONTINUATION, b"", True),
    ]


def test_a_growing_answer_takes_a_rendezvous_at_64_kib(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "OK", [], None)
    exchange.write(b"x" * LIMIT)
    assert bench.dials == []
    exchange.write(b"x")
    assert len(bench.dials) == 1
    exchange.finish()
    rendezvous = bench.dials[0].accept()
    assert rendezvous.response()["bodyLength"] == LIMIT + 1
    assert rendezvous.sent[1:] == [(BINARY, b"x" * (LIMIT + 1), True)]


def test_an_answer_known_to_be_large_dials_at_once(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "OK", [], 100_000)
    rendezvous = bench.dials[0].accept()
    assert rendezvous.response()["bodyLength"] == 100_000
    exchange.write(b"x" * 100_000)
    exchange.finish()
    assert [frame[0::2] for frame in rendezvous.sent[1:]] == [(BINARY, False), (CONTINUATION, True)]


def test_a_congested_rendezvous_holds_the_responder(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "OK", [], 100_000)
    rendezvous = bench.dials[0].accept()
    rendezvous.app.pause_sending()
    rendezvous.app.resume_sending()
    assert bench.responders[0].events == ["end", "pause", "resume", "pause", "resume"]
    exchange.finish()
    rendezvous.app.pause_sending()
    assert len(bench.responders[0].events) == 5


def test_an_answer_that_starts_on_a_congested_rendezvous_is_held(bench: Bench) -> None:
    exchange, rendezvous = bench.upload(body=False)
    rendezvous.app.pause_sending()
    exchange.respond(200, "", [], b"")
    rendezvous.text(request(id="i2"))
    bench.exchanges[1].start(200, "", [], None)
    assert bench.responders[1].events == ["end", "pause"]
    rendezvous.app.resume_sending()
    assert bench.responders[1].events == ["end", "pause", "resume"]


def test_a_rendezvous_that_cannot_be_opened_is_answered_on_the_control_channel(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "OK", [], 100_000)
    bench.dials[0].outcome.errback(GatewayUnreachableError("No connection to inside:1"))
    assert bench.socket.response()["statusCode"] == 502
    assert b"inside" not in bench.socket.sent[1][1]
    assert bench.responders[0].events == ["end", "pause", "cancelled"]
    assert not bench.calls.rendezvous and not bench.calls.running


def test_a_whole_answer_without_rendezvous_tells_the_sender_but_not_the_responder(bench: Bench) -> None:
    bench.request().respond(200, "OK", [], b"x" * LIMIT)
    bench.dials[0].outcome.errback(GatewayUnreachableError())
    assert bench.socket.response()["statusCode"] == 502
    assert bench.responders[0].events == ["end"]


# -- requests on a rendezvous


def test_a_request_without_body_member_is_fetched(bench: Bench) -> None:
    exchange, rendezvous = bench.upload(method="PUT", bodyLength=6)
    assert (exchange.method, exchange.length) == ("PUT", 6)
    rendezvous.frame(BINARY, b"abc", False)
    assert bench.responders[0].body == b"abc"
    rendezvous.frame(CONTINUATION, b"def", True)
    assert bench.responders[0].events == ["data", "data", "end"]
    exchange.respond(200, "OK", [], b"done")
    assert bench.socket.sent == []
    assert rendezvous.response()["bodyLength"] == 4
    assert rendezvous.sent[1:] == [(BINARY, b"done", True)]


def test_a_request_that_comes_before_the_dialling_returns(bench: Bench) -> None:
    bench.socket.text({"request": {"address": "wss://g/$hc/p?r", "id": "u1"}})
    dial = bench.dials[0]
    dial.socket.app = dial.make_app(dial.socket)
    dial.socket.text(request(id="u1"))
    bench.exchanges[0].respond(200, "", [], b"")
    dial.outcome.callback(dial.socket)
    bench.advance(40)
    assert (len(dial.socket.sent), dial.socket.close_code) == (1, None)


def test_a_streamed_body_of_unknown_length(bench: Bench) -> None:
    exchange, rendezvous = bench.upload()
    assert exchange.length is None
    rendezvous.frame(BINARY, b"", True)
    assert bench.responders[0].events == ["end"]


def test_backpressure_of_the_request_body(bench: Bench) -> None:
    exchange, rendezvous = bench.upload()
    assert rendezvous.reading
    exchange.pause()
    assert not rendezvous.reading
    rendezvous.frame(BINARY, b"already read", False)
    assert bench.responders[0].body == b"already read"
    exchange.resume()
    assert rendezvous.reading
    exchange.pause()
    rendezvous.frame(CONTINUATION, b"", True)
    assert rendezvous.reading  # nothing is left to hold back, and the end of the connection must be seen
    exchange.pause()
    assert rendezvous.reading


def test_a_body_is_not_read_before_somebody_takes_the_exchange(bench: Bench) -> None:
    bench.on_dispatch = lambda exchange: None
    exchange, rendezvous = bench.upload()
    assert not rendezvous.reading
    rendezvous.frame(BINARY, b"early", False)
    bench.take(exchange)
    assert rendezvous.reading
    assert bench.responders[0].body == b"early"
    rendezvous.frame(CONTINUATION, b"!", True)
    assert bench.responders[0].events == ["data", "data", "end"]


def test_the_rest_of_a_body_is_drained_after_an_early_answer(bench: Bench) -> None:
    exchange, rendezvous = bench.upload()
    exchange.pause()
    exchange.respond(413, "", [], b"")
    assert rendezvous.reading
    rendezvous.frame(BINARY, b"more", False)
    rendezvous.frame(CONTINUATION, b"", True)
    assert bench.responders[0].events == []
    rendezvous.text(request(id="next"))
    assert bench.exchanges[1].tracking_id == "next"


def test_later_requests_of_the_sender_come_on_its_rendezvous(bench: Bench) -> None:
    bench.request().respond(200, "OK", [], b"x" * LIMIT)
    rendezvous = bench.dials[0].accept()
    rendezvous.sent.clear()
    rendezvous.text(request(id="i2"))
    bench.exchanges[1].start(200, "", [], None)
    bench.exchanges[1].write(b"2")
    bench.exchanges[1].finish()
    rendezvous.text(request(id="i3", body=True))
    rendezvous.frame(BINARY, b"q", True)
    bench.exchanges[2].respond(200, "", [], b"3")
    assert [frame[0] for frame in rendezvous.sent] == [TEXT, BINARY, CONTINUATION, TEXT, BINARY]
    assert rendezvous.response(0)["requestId"] == "i2"
    assert rendezvous.response(3)["requestId"] == "i3"
    assert len(bench.dials) == 1 and bench.socket.sent == []


def test_a_request_before_the_answer_to_the_last_breaks_the_protocol(bench: Bench) -> None:
    _, rendezvous = bench.upload(body=False)
    rendezvous.text(request(id="i2"))
    assert rendezvous.close_code == 1002
    rendezvous.app.closed(1002, "")
    assert bench.responders[0].events == ["end", "cancelled"]


def test_a_rendezvous_on_which_nothing_comes(bench: Bench) -> None:
    bench.socket.text({"request": {"address": "wss://g/$hc/p?r", "id": "u1"}})
    rendezvous = bench.dials[0].accept()
    bench.advance(29)
    assert rendezvous.close_code is None
    bench.advance(2)
    assert rendezvous.close_code == 1002
    rendezvous.app.closed(1006, "")
    assert not bench.calls.arriving and not bench.calls.rendezvous


def test_a_request_that_cannot_be_fetched(bench: Bench) -> None:
    bench.socket.text({"request": {"address": "wss://g/$hc/p?r", "id": "u1"}})
    bench.dials[0].outcome.errback(GatewayUnreachableError())
    answer = bench.socket.response()
    assert (answer["requestId"], answer["statusCode"]) == ("u1", 502)
    assert not bench.calls.arriving and not bench.calls.rendezvous


def test_an_unexpected_error_of_a_dial_is_logged(bench: Bench) -> None:
    bench.socket.text({"request": {"address": "wss://g/$hc/p?r", "id": "u1"}})
    with capturedLogs() as logs:
        bench.dials[0].outcome.errback(ValueError("bug"))
    assert bench.socket.response()["statusCode"] == 502
    assert failures(logs) == [ValueError]


# -- ends


def test_a_lost_rendezvous_cancels_its_call(bench: Bench) -> None:
    exchange, rendezvous = bench.upload()
    rendezvous.app.closed(1001, "the sender disconnected")
    assert bench.responders[0].events == ["cancelled"]
    assert "1001" in str(bench.responders[0].error)
    exchange.respond(200, "", [], b"")
    assert rendezvous.sent == [] and not bench.calls.running and not bench.calls.rendezvous


def test_a_rendezvous_lost_while_it_opens_cancels_its_call(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "OK", [], 100_000)
    dial = bench.dials[0]
    dial.make_app(dial.socket).closed(1006, "")
    dial.outcome.callback(dial.socket)
    assert bench.responders[0].events == ["end", "pause", "cancelled"]
    assert dial.socket.sent == [] and not bench.calls.running


def test_a_lost_control_channel_cancels_what_it_should_have_answered(bench: Bench) -> None:
    small, buffered, dialling = bench.request(), bench.request(), bench.request()
    buffered.start(200, "", [], None)
    dialling.start(200, "", [], 100_000)
    uploaded, rendezvous = bench.upload()
    bench.socket.app.closed(1006, "")
    assert bench.lost == [(1006, "")]
    assert [responder.events[-1:] for responder in bench.responders] == [["cancelled"], ["cancelled"], ["pause"], []]
    assert bench.calls.running == {dialling, uploaded}
    small.respond(200, "", [], b"")
    uploaded.respond(200, "", [], b"")
    assert rendezvous.response()["statusCode"] == 200
    assert bench.dials[0].accept().response()["bodyLength"] == 100_000


def test_a_body_that_is_cut_off_with_its_control_channel_is_forgotten(bench: Bench) -> None:
    bench.socket.text(request(body=True))
    bench.socket.app.closed(1006, "")
    assert bench.exchanges == [] and not bench.calls.running


def test_taking_a_cancelled_exchange(bench: Bench) -> None:
    bench.on_dispatch = lambda exchange: None
    exchange = bench.request()
    bench.socket.app.closed(1006, "")
    bench.take(exchange)
    assert bench.responders[0].events == ["cancelled"]


def test_abort_before_the_start_is_answered_with_502(bench: Bench) -> None:
    bench.request().abort("no luck")
    assert bench.socket.response()["statusCode"] == 502
    assert bench.responders[0].events == ["end"]


def test_abort_of_a_buffered_answer_is_answered_with_502(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "", [], None)
    exchange.write(b"half")
    exchange.abort("no luck")
    assert bench.socket.response()["statusCode"] == 502
    assert b"half" not in bench.socket.sent[1][1]


def test_abort_while_dialling_is_answered_with_502(bench: Bench) -> None:
    exchange = bench.request()
    exchange.start(200, "", [], 100_000)
    exchange.write(b"half")
    exchange.abort("no luck")
    rendezvous = bench.dials[0].accept()
    assert rendezvous.response()["statusCode"] == 502
    assert b"half" not in rendezvous.sent[1][1] and rendezvous.close_code is None


def test_abort_after_the_start_cuts_the_rendezvous(bench: Bench) -> None:
    exchange, rendezvous = bench.upload(body=False)
    exchange.start(200, "", [], None)
    exchange.write(b"half")
    exchange.abort("no luck")
    assert rendezvous.close_code == 1011
    assert not any(fin for opcode, _, fin in rendezvous.sent if opcode != TEXT)
    rendezvous.app.closed(1011, "")
    assert bench.responders[0].events == ["end"]


def test_a_dispatcher_that_never_answers(bench: Bench) -> None:
    exchange = bench.request()
    bench.advance(59.9)
    assert bench.socket.sent == []
    bench.advance(0.3)
    assert bench.socket.response()["statusCode"] == 504
    assert isinstance(bench.responders[0].error, ListenerTimeoutError)
    assert "i1" in str(bench.responders[0].error)
    exchange.respond(200, "", [], b"")
    assert len(bench.socket.sent) == 2 and not bench.calls.running


def test_a_dispatcher_that_never_begins(bench: Bench) -> None:
    bench.on_dispatch = lambda exchange: None
    bench.request()
    bench.advance(61)
    assert bench.socket.response()["statusCode"] == 504


def test_a_long_upload_is_no_silent_dispatcher(bench: Bench) -> None:
    _, rendezvous = bench.upload()
    for at in range(4):
        bench.advance(50)
        rendezvous.frame(CONTINUATION if at else BINARY, b"x", False)
    assert rendezvous.sent == []
    bench.advance(121)
    assert rendezvous.response()["statusCode"] == 504
    assert bench.responders[0].events[-1] == "cancelled"


def test_a_body_that_never_ends_on_the_control_channel(bench: Bench) -> None:
    bench.socket.text(request(body=True))
    bench.advance(61)
    assert bench.socket.response()["statusCode"] == 504
    bench.socket.frame(BINARY, b"late", True)
    bench.request()
    assert bench.socket.close_code is None


def test_a_dispatcher_that_raises(bench: Bench) -> None:
    def broken(exchange: Any) -> None:
        raise ValueError("secret")

    bench.on_dispatch = broken
    with capturedLogs() as logs:
        bench.request()
    assert bench.socket.response()["statusCode"] == 500
    assert b"secret" not in b"".join(data for _, data, _ in bench.socket.sent)
    assert failures(logs) == [ValueError]


def test_a_responder_that_raises(bench: Bench) -> None:
    _, rendezvous = bench.upload()

    def broken(data: bytes) -> None:
        raise ValueError

    bench.responders[0].body_received = broken  # type: ignore[method-assign]
    with capturedLogs() as logs:
        rendezvous.frame(BINARY, b"x", False)
    assert rendezvous.response()["statusCode"] == 500
    assert bench.responders[0].events == ["cancelled"]
    assert failures(logs) == [ValueError]


# -- quotas


def test_calls_above_the_quota_get_503() -> None:
    bench = Bench(max_calls=2)
    first = bench.request()
    bench.socket.text({"request": {"address": "wss://g/$hc/p?r", "id": "u1"}})
    bench.socket.text(request(id="i2", body=True))
    bench.socket.frame(BINARY, b"body that nobody reads", True)
    bench.socket.text({"request": {"address": "wss://g/$hc/p?r", "id": "u2"}})
    assert [bench.socket.response(at)["requestId"] for at in (0, 2)] == ["i2", "u2"]
    assert [bench.socket.response(at)["statusCode"] for at in (0, 2)] == [503, 503]
    assert len(bench.exchanges) == 1 and len(bench.dials) == 1
    first.respond(200, "", [], b"")
    bench.request(id="i3")
    assert bench.exchanges[-1].tracking_id == "i3"
    bench.dials[0].accept().text(request(id="u1"))  # was counted when it was dialled
    assert bench.exchanges[-1].tracking_id == "u1"


def test_later_requests_on_a_rendezvous_count() -> None:
    bench = Bench(max_calls=1)
    exchange, rendezvous = bench.upload(body=False)
    exchange.respond(200, "", [], b"")
    bench.request()
    rendezvous.text(request(id="i2", body=True))
    rendezvous.frame(BINARY, b"nobody reads", True)
    assert rendezvous.response(1)["statusCode"] == 503
    assert len(bench.exchanges) == 2


def test_answers_that_the_gateway_does_not_read_count() -> None:
    bench = Bench(max_calls=2)
    bench.socket.app.pause_sending()
    for _ in range(2):
        bench.request().respond(200, "", [], b"")
    bench.socket.text(request())
    assert bench.socket.response(2)["statusCode"] == 503
    assert bench.socket.reading
    bench.socket.app.resume_sending()
    bench.request()
    assert len(bench.exchanges) == 3


def test_a_websocket_sender_is_turned_away(bench: Bench) -> None:
    bench.socket.text({"accept": {"address": "wss://g/$hc/p?a=1", "id": "a1", "connectHeaders": {}}})
    address = bench.dials[0].address
    assert address.startswith("wss://g/$hc/p?a=1&sb-hc-statusCode=501&sb-hc-statusDescription=The%20listener")
    bench.dials[0].outcome.errback(GatewayUnreachableError())
    assert bench.socket.sent == [] and not bench.calls.arriving


def test_turning_senders_away_counts() -> None:
    bench = Bench(max_calls=1)
    for _ in range(2):
        bench.socket.text({"accept": {"address": "wss://g/$hc/p?a=1", "id": "a1"}})
    assert len(bench.dials) == 1
