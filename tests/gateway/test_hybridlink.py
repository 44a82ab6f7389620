"""Calls between senders and a listener of the hybrid dialect, through a whole node in memory."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from tests.gateway.harness import HOST, Dialled, Gateway, Sender, gateway
from wcfrelay.gateway.hybridcall import HybridCall
from wcfrelay.net.websocket import BINARY, CONTINUATION, TEXT

LARGE = b"x" * (64 * 1024 + 1)
GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}_G0")
VIA = ("Via", f"1.1 {HOST}")


@pytest.fixture
def relay() -> Iterator[Gateway]:
    with gateway() as made:
        yield made


def code(sender: Sender) -> tuple[int, str]:
    return sender.answer.status, sender.answer.error["code"]


# -- small exchanges on the control channel


def test_a_small_exchange_stays_on_the_control_channel(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask("/Orders/new%20one?a=1&b", "POST", headers=[("Content-Type", "text/plain")], body=b"hello")
    request, body = listener.messages
    assert list(request["request"]) == [
        *("address", "id", "requestTarget", "method", "remoteEndpoint", "requestHeaders", "body", "origin")
    ]
    request = request["request"]
    assert GUID.fullmatch(request["id"])
    assert request["address"] == f"ws://{HOST}/$hc/orders?sb-hc-action=request&sb-hc-id={request['id']}"
    assert request["requestTarget"] == "/Orders/new%20one?a=1&b"
    assert (request["method"], request["body"], body) == ("POST", True, b"hello")
    assert request["remoteEndpoint"] == {"address": "203.0.113.7", "port": 40003}
    assert request["requestHeaders"] == {"Content-Type": "text/plain", "Via": f"1.1 {HOST}"}
    assert request["origin"] == f"http://{HOST}"
    listener.respond(b"done", statusDescription="Made", status=201, responseHeaders={"X-One": "1"})
    answer = sender.answer
    assert (answer.status, answer.reason, answer.body) == (201, "Made", b"done")
    assert answer.headers[:2] == [("X-One", "1"), VIA] and answer.header("content-length") == "4"
    assert not sender.lost and listener.closed_with is None
    relay.assert_at_rest()


@pytest.mark.parametrize("body", [None, b""])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PROPFIND"])
def test_a_request_without_a_body_says_so(relay: Gateway, method: str, body: bytes | None) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask(method=method, body=body)
    assert listener.request["body"] is False and len(listener.messages) == 1
    listener.respond(None)
    assert sender.answer.status == 200 and sender.answer.complete


HEADERS = [
    ("Connection", "keep-alive, X-Hop"),
    ("X-Hop", "1"),
    ("Keep-Alive", "300"),
    ("TE", "trailers"),
    ("Upgrade", "h2c"),
    ("Close", "x"),
    ("Expect", "100-continue"),
    ("Authorization", "Basic eA=="),
    ("Via", "1.0 fred"),
    ("Accept", "a/b"),
    ("accept", "c/d"),
    ("Cookie", "a=1"),
    ("Cookie", "b=2"),
    ("X-Latin", "na\xefve"),
]


@pytest.mark.parametrize("body", [b"hello", LARGE])
def test_the_headers_that_the_listener_sees(relay: Gateway, body: bytes) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask("/orders", "POST", headers=HEADERS, body=body)
    if body is LARGE:
        listener = listener.dial()
    assert listener.request["requestHeaders"] == {
        "Authorization": "Basic eA==",
        "Via": f"1.0 fred, 1.1 {HOST}",
        "Accept": "a/b, c/d",
        "Cookie": "a=1; b=2",
        "X-Latin": "na\xefve",
    }
    assert sender.received.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")


RESPONSES: dict[str, tuple[str, dict[str, Any], tuple[int, str, bytes, str | None]]] = {
    # method, members of the response and its body; what the sender gets: status, reason, body, Content-Length
    "body": ("GET", {"body": b"ok"}, (200, "OK", b"ok", "2")),
    "empty body": ("GET", {"body": b""}, (200, "OK", b"", "0")),
    "no body": ("GET", {"body": None}, (200, "OK", b"", "0")),
    "status as text": ("GET", {"body": b"ok", "status": "404"}, (404, "Not Found", b"ok", "2")),
    "description": ("GET", {"body": b"", "statusDescription": "So so"}, (200, "So so", b"", "0")),
    "null members": ("GET", {"body": b"", "statusDescription": None, "responseHeaders": None}, (200, "OK", b"", "0")),
    "unknown status": ("GET", {"body": b"", "status": 299}, (299, "", b"", "0")),
    "forbidden status": ("GET", {"body": b"", "status": 502}, (502, "Bad Gateway", b"", "0")),
    "reason in two lines": ("GET", {"body": b"", "statusDescription": "a\r\nX: 1"}, (200, "OK", b"", "0")),
    "reason not latin": ("GET", {"body": b"", "statusDescription": "\u0416"}, (200, "?", b"", "0")),
    "HEAD": ("HEAD", {"body": None}, (200, "OK", b"", None)),
    "HEAD with length": ("HEAD", {"body": None, "bodyLength": 7}, (200, "OK", b"", "7")),
    "204": ("GET", {"body": None, "status": 204}, (204, "No Content", b"", None)),
    "304": ("GET", {"body": None, "status": 304}, (304, "Not Modified", b"", None)),
    "length from the listener": (
        "GET",
        {"body": b"ok", "responseHeaders": {"Content-Length": "9"}},
        (200, "OK", b"ok", "2"),
    ),
}


@pytest.mark.parametrize("way", ["control", "rendezvous", "pipelined"])
@pytest.mark.parametrize(("method", "members", "expected"), RESPONSES.values(), ids=RESPONSES)
def test_answers(
    relay: Gateway, method: str, members: dict[str, Any], expected: tuple[int, str, bytes, str | None], way: str
) -> None:
    listener, sender = relay.listener(), relay.sender()
    members = dict(members)
    body = members.pop("body")
    sender.ask(method=method)
    request = listener.request
    if way == "pipelined":
        sender.ask("/orders/next")
    place = listener.dial() if way == "rendezvous" else listener
    place.respond(body, request=request, **members)
    answer = sender.answers[0]
    status, reason, content, length = expected
    assert (answer.status, answer.reason, answer.body, answer.complete) == (status, reason, content, True)
    if way != "rendezvous" or body is None:
        assert answer.header("content-length") == length
    assert answer.header("via") == f"1.1 {HOST}"
    if way == "pipelined":
        listener.respond(b"2")
    else:
        sender.ask("/orders/next")
        (place if way == "rendezvous" else listener).respond(b"2", request=place.request)
    assert [each.status for each in sender.answers] == [status, 200] and sender.answer.body == b"2"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("way", ["control", "rendezvous"])
def test_a_body_where_http_has_none_is_dropped(relay: Gateway, way: str, status: int, method: str) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask(method=method)
    place = listener.dial() if way == "rendezvous" else listener
    place.respond(b"too much", status, listener.request)
    assert sender.answer.status == status and sender.received.endswith(b"\r\n\r\n")
    sender.ask()
    place.respond(b"next", request=place.request)
    assert [each.status for each in sender.answers] == [status, 200] and sender.answer.body == b"next"


def test_header_arrays_and_what_belongs_to_the_connection(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    listener.respond(
        b"",
        responseHeaders={
            "Set-Cookie": ["a=1", "b=2"],
            "X-Number": 5,
            "X-Null": None,
            "Connection": "close",
            "Transfer-Encoding": "chunked",
            "Keep-Alive": "x",
            "Date": "Mon, 01 Jan 2024 00:00:00 GMT",
        },
    )
    assert [field for field in sender.answer.headers if field[0] != "Content-Length"] == [
        *(("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Number", "5"), ("X-Null", "")),
        *(("Date", "Mon, 01 Jan 2024 00:00:00 GMT"), VIA),
    ]


BAD_ANSWERS = {
    "CR LF in a value": {"responseHeaders": {"X": "a\r\nSet-Cookie: b"}},
    "LF in an array": {"responseHeaders": {"X": ["a", "b\nc"]}},
    "NUL": {"responseHeaders": {"X": "\0"}},
    "LF in a name": {"responseHeaders": {"X\nY": "a"}},
    "colon in a name": {"responseHeaders": {"X: Y": "a"}},
    "no name": {"responseHeaders": {"": "a"}},
    "status 100": {"status": 100},
    "status 101": {"status": 101},
    "status 600": {"status": 600},
    "status 0": {"status": 0},
    "status -200": {"status": -200},
    "status in words": {"status": "OK"},
    "status too long": {"status": "0200"},
    "status in other digits": {"status": "\u0662\u0660\u0660"},
}


@pytest.mark.parametrize("body", [None, b"body"])
@pytest.mark.parametrize("members", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_an_invalid_answer_is_502_and_the_control_channel_goes_on(
    relay: Gateway, members: dict[str, Any], body: bytes | None
) -> None:
    listener, sender, other = relay.listener(), relay.sender(), relay.sender()
    sender.ask()
    first = listener.request
    other.ask()
    listener.respond(body, request=first, **members)
    assert code(sender) == (502, "BadGateway") and sender.answer.header("via") is None
    assert b"Set-Cookie" not in sender.received
    listener.respond(b"fine")
    assert other.answer.body == b"fine" and listener.closed_with is None
    sender.ask()
    listener.respond(b"again")
    assert sender.answer.body == b"again"


@pytest.mark.parametrize("body", [None, b"body"])
@pytest.mark.parametrize("members", list(BAD_ANSWERS.values())[::4])
def test_an_invalid_answer_on_the_rendezvous_is_502_and_ends_it(
    relay: Gateway, members: dict[str, Any], body: bytes | None
) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    rendezvous = listener.dial()
    rendezvous.respond(body, request=listener.request, **members)
    assert code(sender) == (502, "BadGateway")
    assert rendezvous.closed_with and rendezvous.closed_with[0] == 1011
    relay.assert_at_rest()


def test_answers_in_another_order_find_their_requests(relay: Gateway) -> None:
    listener, senders = relay.listener(), [relay.sender() for _ in range(5)]
    for number, sender in enumerate(senders):
        sender.ask(f"/orders/{number}")
    for request in reversed(listener.requests):
        listener.respond(request["requestTarget"].encode(), request=request)
    assert [sender.answer.body for sender in senders] == [b"/orders/%d" % number for number in range(5)]


def test_pipelined_requests_are_answered_in_order(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    for number in range(3):
        sender.ask(f"/orders/{number}")
    for number in range(3):
        assert len(listener.requests) == number + 1
        listener.respond(listener.request["requestTarget"].encode())
    assert [answer.body for answer in sender.answers] == [b"/orders/0", b"/orders/1", b"/orders/2"]


def test_a_body_that_comes_slowly_is_sent_when_it_is_whole(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=6)
    for piece in (b"ab", b"cd"):
        sender.send(piece)
        relay.advance(5)
        assert not listener.messages
    sender.send(b"ef")
    assert listener.messages[1:] == [b"abcdef"]
    listener.respond(b"")
    assert sender.answer.status == 200


@pytest.mark.parametrize("split", [1, 7, 64])
def test_fragments_on_the_control_channel(relay: Gateway, split: int) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    text = b'{"response":{"requestId":"%s","statusCode":200,"body":true}}' % listener.request["id"].encode()
    for opcode, message in ((TEXT, text), (2, b"body of the answer" * 4)):
        for at in range(0, len(message), split):
            last = at + split >= len(message)
            listener.binary(message[at : at + split], last, CONTINUATION if at else opcode)
            listener.socket.ping()
    assert sender.answer.body == b"body of the answer" * 4


def test_an_answer_that_comes_bit_by_bit_and_one_of_256_kib_at_once(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    for size in (70_000, 262_144):
        sender.ask()
        listener.respond(b"z" * size)
        assert sender.answer.body == b"z" * size


# -- what breaks the control channel


def fragments(opcode: int, size: int, count: int) -> Callable[[Dialled], None]:
    def send(listener: Dialled) -> None:
        for number in range(count):
            listener.binary(b" " * size, False, CONTINUATION if number else opcode)

    return send


def in_answer(listener: Dialled) -> None:
    listener.start()
    listener.binary(b"x" * (256 * 1024 + 1))


def respond_and_more(listener: Dialled) -> None:
    listener.respond(None)
    listener.binary(b"x")


VIOLATIONS: dict[str, tuple[int, Callable[[Dialled], None]]] = {
    "no JSON": (1002, lambda listener: listener.text(b"garbage")),
    "no text": (1002, lambda listener: listener.text(b"\xff\xfe")),
    "an array": (1002, lambda listener: listener.text([])),
    "a number": (1002, lambda listener: listener.text(1)),
    "deep": (1002, lambda listener: listener.text(b'{"x":' * 5000 + b"1" + b"}" * 5000)),
    "empty text": (1002, lambda listener: listener.text(b"")),
    "response without id": (1002, lambda listener: listener.text({"response": {"statusCode": 200}})),
    "response without status": (1002, lambda listener: listener.text({"response": {"requestId": "x"}})),
    "response is text": (1002, lambda listener: listener.text({"response": "x"})),
    "renewToken is text": (1002, lambda listener: listener.text({"renewToken": "x"})),
    "token is a number": (1002, lambda listener: listener.text({"renewToken": {"token": 5}})),
    "binary without response": (1002, lambda listener: listener.binary(b"x")),
    "binary after body:false": (1002, respond_and_more),
    "text too big": (1009, lambda listener: listener.text(b" " * (256 * 1024 + 1))),
    "text in fragments too big": (1009, fragments(TEXT, 60_000, 5)),
    "binary too big": (1009, in_answer),
    "binary in fragments too big": (1009, fragments(2, 60_000, 5)),
}


@pytest.mark.parametrize(("close_code", "violate"), VIOLATIONS.values(), ids=VIOLATIONS)
def test_violations_close_the_control_channel(
    relay: Gateway, close_code: int, violate: Callable[[Dialled], None]
) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    violate(listener)
    assert listener.closed_with and listener.closed_with[0] == close_code
    assert sender.answer.status in (200, 502)
    assert relay.relay() is None and relay.stats().listener_disconnects == 1


@pytest.mark.parametrize(
    "message",
    [
        {"injectFault": {"x": 1}},
        {},
        {"response": None},
        {"tomorrow": {"response": {}}},
        {"request": {"address": "a", "id": "b"}},
        {"accept": {"address": "a", "id": "b"}},
        {"response": {"requestId": "unknown", "statusCode": 200, "strange": [1]}},
        {"response": {"requestId": "", "statusCode": "x"}},
    ],
)
def test_what_is_not_understood_is_ignored(relay: Gateway, message: Any) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    listener.text(message)
    listener.respond(b"ok")
    assert sender.answer.body == b"ok" and listener.closed_with is None


@pytest.mark.parametrize("body", [None, b"late"])
@pytest.mark.parametrize("why", ["answered", "timeout", "sender left", "never asked"])
def test_late_answers_are_ignored_with_their_bodies(relay: Gateway, why: str, body: bytes | None) -> None:
    listener, sender, other = relay.listener(), relay.sender(), relay.sender()
    sender.ask()
    request = listener.request
    if why == "answered":
        listener.respond(b"in time")
    elif why == "timeout":
        relay.advance(61)
    elif why == "sender left":
        sender.leave()
    else:
        request = {"id": "00000000-0000-0000-0000-000000000000_G0"}
    before = len(sender.answers)
    listener.respond(body, request=request)
    assert len(sender.answers) == before
    other.ask()
    listener.respond(b"ok")
    assert other.answer.body == b"ok" and listener.closed_with is None


def test_an_answer_whose_sender_leaves_between_head_and_body(relay: Gateway) -> None:
    listener, sender, other = relay.listener(), relay.sender(), relay.sender()
    sender.ask()
    listener.start()
    sender.leave()
    listener.binary(b"late")
    other.ask()
    listener.respond(b"ok")
    assert other.answer.body == b"ok"


def test_a_response_between_a_response_and_its_body_is_refused(relay: Gateway) -> None:
    listener, sender, other = relay.listener(), relay.sender(), relay.sender()
    sender.ask()
    first = listener.request
    other.ask()
    listener.start(request=first)
    listener.respond(b"for the other")
    assert sender.answers and sender.answer.status == 502
    assert listener.closed_with and listener.closed_with[0] == 1002


# -- requests over a rendezvous


def big_headers() -> list[tuple[str, str]]:
    return [(f"X-{number}", "v" * 4000) for number in range(9)]


TO_RENDEZVOUS: dict[str, Callable[[Sender], None]] = {
    "large": lambda sender: sender.ask(method="POST", body=LARGE),
    "large with its headers": lambda sender: sender.ask(method="POST", body=LARGE[:-300], headers=[("X", "y" * 400)]),
    "long headers": lambda sender: sender.ask(method="POST", headers=big_headers(), body=b"x"),
    "long headers, no body": lambda sender: sender.ask(method="GET", headers=big_headers()),
    "chunked": lambda sender: sender.head(length=-1),
    "announced only": lambda sender: sender.head(length=1_000_000),
}


@pytest.mark.parametrize("ask", TO_RENDEZVOUS.values(), ids=TO_RENDEZVOUS)
def test_what_is_large_or_of_unknown_length_goes_over_a_rendezvous(
    relay: Gateway, ask: Callable[[Sender], None]
) -> None:
    listener, sender = relay.listener(), relay.sender()
    ask(sender)
    (message,) = listener.messages
    assert list(message["request"]) == ["address", "id"] and relay.rendezvous == 1
    rendezvous = listener.dial()
    assert rendezvous.status == 101 and relay.rendezvous == 0
    assert rendezvous.request["id"] == listener.request["id"] and rendezvous.request["method"] == sender.methods[0]
    assert rendezvous.request["body"] is not (sender.methods[0] == "GET")


def test_a_small_request_just_fits(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask(method="POST", body=LARGE[:-500])
    assert listener.messages[1] == LARGE[:-500]


def test_a_streamed_exchange(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head("/orders/up?x=1", length=-1)
    rendezvous = listener.dial()
    assert rendezvous.request["requestTarget"] == "/orders/up?x=1" and rendezvous.request["body"] is True
    assert "bodyLength" not in rendezvous.request
    sender.chunk(b"one")
    assert rendezvous.partial == b"one"
    sender.chunk(b"two")
    sender.chunk(b"")
    assert rendezvous.messages[1:] == [b"onetwo"]
    rendezvous.start(responseHeaders={"X": "1"})
    assert sender.answer.status == 200 and not sender.answer.complete
    rendezvous.binary(b"A" * 10, False)
    assert sender.answer.body == b"A" * 10
    rendezvous.binary(b"B", False, CONTINUATION)
    rendezvous.binary(b"", True, CONTINUATION)
    assert (sender.answer.body, sender.answer.complete) == (b"A" * 10 + b"B", True)
    assert rendezvous.closed_with is None and not sender.lost
    relay.assert_at_rest()


def test_an_answer_may_begin_before_the_request_ends(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    rendezvous = listener.dial()
    rendezvous.start()
    for number in range(3):
        sender.chunk(b"%d" % number)
        assert rendezvous.partial == b"012"[: number + 1]
        rendezvous.binary(rendezvous.partial[-1:], False, CONTINUATION if number else BINARY)
        assert sender.answer.body == b"012"[: number + 1]
    sender.chunk(b"")
    assert rendezvous.messages[-1] == b"012"
    rendezvous.binary(b"", True, CONTINUATION)
    assert sender.answer.complete and sender.answer.header("connection") == "close" and sender.lost
    assert rendezvous.closed_with and rendezvous.closed_with[0] == 1001


@pytest.mark.parametrize("length", [3, -1])
def test_an_empty_streamed_body_is_an_empty_message(relay: Gateway, length: int) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=length, headers=big_headers())
    rendezvous = listener.dial()
    if length == -1:
        sender.chunk(b"")
        assert rendezvous.messages[1:] == [b""]
    else:
        assert rendezvous.request["bodyLength"] == 3
        sender.send(b"abc")
        assert rendezvous.messages[1:] == [b"abc"]
    rendezvous.respond(b"ok")
    assert sender.answer.body == b"ok"


def test_bodies_of_megabytes_both_ways(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    up, down = bytes(range(256)) * 8192, b"d" * 3_000_000
    sender.ask(method="POST", body=up)
    rendezvous = listener.dial()
    assert rendezvous.messages[1] == up and rendezvous.request["bodyLength"] == len(up)
    rendezvous.start(bodyLength=len(down))
    rendezvous.binary(down)
    assert sender.answer.body == down and sender.answer.header("content-length") == str(len(down))
    assert relay.stats().bytes_transferred == len(up) + len(down)


@pytest.mark.parametrize("late", [False, True])
def test_the_answer_to_a_small_request_may_take_a_rendezvous(relay: Gateway, late: bool) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask(method="POST", body=b"small")
    if late:
        relay.advance(40)  # longer than an address to dial is good for, but the sender still waits
    rendezvous = listener.dial()
    assert rendezvous.status == 101 and not rendezvous.messages
    rendezvous.respond(LARGE, request=listener.request)
    assert sender.answer.body == LARGE
    relay.assert_at_rest()


def test_the_rendezvous_serves_the_later_requests_of_its_sender_connection_only(relay: Gateway) -> None:
    listener, sender, other = relay.listener(), relay.sender(), relay.sender()
    sender.ask()
    rendezvous = listener.dial()
    rendezvous.respond(b"1", request=listener.request)
    for number in (2, 3):
        sender.ask(method="POST", body=b"small %d" % number)
        assert rendezvous.messages[-1] == b"small %d" % number and rendezvous.request["bodyLength"] == 7
        rendezvous.respond(b"%d" % number)
    sender.head(length=-1)
    sender.chunk(b"chunked")
    sender.chunk(b"")
    assert rendezvous.messages[-1] == b"chunked"
    rendezvous.respond(None)
    assert [answer.body for answer in sender.answers] == [b"1", b"2", b"3", b""]
    other.ask()
    assert len(listener.requests) == 2
    listener.respond(b"other")
    assert other.answer.body == b"other"


def test_a_request_for_another_relay_does_not_take_the_rendezvous(relay: Gateway) -> None:
    listener, billing, sender = relay.listener(), relay.listener("billing"), relay.sender()
    sender.ask()
    rendezvous = listener.dial()
    rendezvous.respond(b"1", request=listener.request)
    sender.ask("/billing")
    billing.respond(b"2")
    sender.head("/billing", length=-1)
    second = billing.dial()
    assert rendezvous.closed_with and rendezvous.closed_with[0] == 1001
    sender.chunk(b"")
    second.respond(b"3")
    assert [answer.body for answer in sender.answers] == [b"1", b"2", b"3"] and not sender.lost


def test_the_rendezvous_outlives_its_control_channel_for_the_call_it_carries(relay: Gateway) -> None:
    """Later requests go to a listener that is there: hyco-https keeps the sockets of a listener that was closed."""
    first, sender = relay.listener(), relay.sender()
    sender.ask(method="POST", body=LARGE)
    rendezvous = first.dial()
    second = relay.listener()
    first.leave()
    rendezvous.respond(b"still here")
    assert sender.answer.body == b"still here"
    sender.ask()
    second.respond(b"by the second")
    assert sender.answer.body == b"by the second"


def test_a_pipelined_request_behind_one_on_a_rendezvous(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask("/orders/1")
    sender.ask("/orders/2")
    rendezvous = listener.dial()
    rendezvous.respond(b"1", request=listener.request)
    place = rendezvous if rendezvous.requests else listener
    place.respond(b"2", request=place.request)
    assert [answer.body for answer in sender.answers] == [b"1", b"2"]


def test_an_answer_before_the_request_is_read(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    rendezvous = listener.dial()
    sender.chunk(b"much")
    rendezvous.respond(b"no", 413)
    assert sender.answer.status == 413 and sender.answer.header("connection") == "close"
    assert rendezvous.closed_with and rendezvous.closed_with[0] == 1000
    sender.chunk(b"more")
    sender.chunk(b"")
    assert sender.lost
    relay.assert_at_rest()


def test_an_answer_on_the_control_channel_to_a_request_that_was_to_be_dialled(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    listener.respond(b"I can not dial", 503)
    assert sender.answer.body == b"I can not dial" and relay.rendezvous == 0
    assert listener.dial().status == 403


def twice(rendezvous: Dialled) -> None:
    rendezvous.start()
    rendezvous.start()


@pytest.mark.parametrize(
    ("close_code", "violate"),
    [
        pytest.param(1002, lambda rendezvous: rendezvous.text(b"garbage"), id="no JSON"),
        pytest.param(1002, lambda rendezvous: rendezvous.binary(b"x"), id="body before head"),
        pytest.param(1002, twice, id="two heads"),
        pytest.param(1009, fragments(TEXT, 60_000, 5), id="text too big"),
    ],
)
def test_violations_on_a_rendezvous(relay: Gateway, close_code: int, violate: Callable[[Dialled], None]) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask(method="POST", body=LARGE)
    rendezvous = listener.dial()
    violate(rendezvous)
    assert rendezvous.closed_with and rendezvous.closed_with[0] == close_code
    if sender.answer.status == 200:
        assert not sender.answer.complete and sender.lost
    else:
        assert code(sender) == (502, "BadGateway")
    assert listener.closed_with is None
    relay.assert_at_rest()


@pytest.mark.parametrize("sent", [b"ab", b"abcd"])
def test_a_body_of_another_length_than_announced_cuts_the_answer(relay: Gateway, sent: bytes) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask(method="POST", body=LARGE)
    rendezvous = listener.dial()
    rendezvous.start(bodyLength=3)
    rendezvous.binary(sent)
    assert sender.lost and not sender.answer.complete
    assert rendezvous.closed_with and rendezvous.closed_with[0] == 1001


def test_an_answer_to_another_request_is_not_taken_for_this_one(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    rendezvous = listener.dial()
    first = listener.request
    rendezvous.respond(b"1", request=first)
    sender.ask()
    rendezvous.respond(b"1 again", request=first)
    assert b"1 again" not in sender.received


@pytest.mark.parametrize("why", ["timeout", "invalid answer"])
def test_after_a_failure_on_a_rendezvous_the_next_request_takes_another_way(relay: Gateway, why: str) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    rendezvous = listener.dial()
    rendezvous.socket.pause_reading()  # a listener that hangs does not answer our close
    if why == "timeout":
        relay.advance(61)
        assert sender.answer.status == 504
    else:
        rendezvous.respond(None, 700, listener.request)
        assert sender.answer.status == 502
    sender.ask("/orders/next")
    assert listener.request["requestTarget"] == "/orders/next"
    listener.respond(b"fine")
    assert sender.answer.body == b"fine"


def test_a_bad_handshake_does_not_use_an_address_up(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    refused = listener.dial(headers=[("Sec-WebSocket-Version", "12")])
    assert refused.status == 400
    rendezvous = listener.dial(listener.requests[0])
    assert rendezvous.status == 101
    sender.chunk(b"")
    rendezvous.respond(b"ok")
    assert sender.answer.body == b"ok"
    relay.assert_at_rest()


# -- who leaves when


def at_small_body(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    sender.head(length=10)
    sender.send(b"abc")


def at_small_sent(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    sender.ask(method="POST", body=b"abc")


def at_half_answered(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    sender.ask(method="POST", body=b"abc")
    listener.start()


def at_dial(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    sender.head(length=-1)
    sender.chunk(b"abc")


def at_upload(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_dial(relay, listener, sender)
    listener.dial()
    sender.chunk(b"def")


def at_uploaded(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_upload(relay, listener, sender)
    sender.chunk(b"")


def at_upgraded(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_small_sent(relay, listener, sender)
    listener.dial()


def at_streaming(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_uploaded(relay, listener, sender)
    rendezvous = newest(relay)
    rendezvous.start()
    rendezvous.binary(b"part", False)


def at_both_streaming(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_upload(relay, listener, sender)
    rendezvous = newest(relay)
    rendezvous.start()
    rendezvous.binary(b"part", False)


def at_idle_rendezvous(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_uploaded(relay, listener, sender)
    newest(relay).respond(b"whole")


def at_second(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_idle_rendezvous(relay, listener, sender)
    sender.ask(method="POST", body=b"second")


def at_idle(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    at_small_sent(relay, listener, sender)
    listener.respond(b"whole")


def at_backlog(relay: Gateway, listener: Dialled, sender: Sender) -> None:
    fill(relay, listener)
    sender.ask("/orders/held")


STATES = [
    *(at_small_body, at_small_sent, at_half_answered, at_dial, at_upload, at_uploaded, at_upgraded, at_streaming),
    *(at_both_streaming, at_idle_rendezvous, at_second, at_idle, at_backlog),
]
State = Callable[[Gateway, Dialled, Sender], None]


def newest(relay: Gateway) -> Dialled:
    return [each for each in relay.clients if isinstance(each, Dialled)][-1]


def fill(relay: Gateway, listener: Dialled) -> list[Sender]:
    """Make the control channel take no more; the senders who did so."""
    listener.socket.pause_reading()
    senders = []
    while not relay.links[0].blocked:
        senders.append(relay.sender())
        senders[-1].ask(f"/orders/fill{len(senders)}", "POST", body=LARGE[:60_000])
        assert len(senders) < 10
    return senders


@pytest.mark.parametrize("state", STATES)
def test_the_sender_leaves(relay: Gateway, state: State) -> None:
    listener, sender, other = relay.listener(), relay.sender(), relay.sender()
    state(relay, listener, sender)
    rendezvous = newest(relay)
    sender.leave()
    assert not sender.answers or sender.answer.body in (b"whole", b"part", b"")
    if rendezvous is not listener:
        assert rendezvous.closed_with and rendezvous.closed_with[0] == 1001
        assert rendezvous.dial(listener.requests[0]).status == 403
    elif state is at_dial:
        assert listener.dial().status == 403
    if state is at_half_answered:
        listener.binary(b"late")
    listener.socket.resume_reading()
    relay.turn()
    if state is at_backlog:
        assert "/orders/held" not in [request["requestTarget"] for request in listener.requests]
        for request in listener.requests:
            listener.respond(b"", request=request)
    relay.assert_at_rest()
    assert listener.closed_with is None
    other.ask()
    listener.respond(b"still serving")
    assert other.answer.body == b"still serving"


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_the_only_listener_leaves(relay: Gateway, state: State, clean: bool) -> None:
    listener, sender = relay.listener(), relay.sender()
    state(relay, listener, sender)
    rendezvous = newest(relay)
    if clean:
        listener.hang_up()
        if state is at_backlog:  # its close stands behind what it does not read
            relay.advance(1)
    else:
        listener.leave()
    assert relay.relay() is None
    if rendezvous is not listener:
        assert rendezvous.closed_with is None  # it lives on
    elif state is not at_idle:
        assert code(sender) == (502, "BadGateway")
        relay.assert_at_rest()
    if state is at_upgraded or state is at_second or state is at_uploaded:
        rendezvous.respond(
            b"late but there", request=rendezvous.requests[-1] if rendezvous.requests else listener.request
        )
        assert sender.answer.body == b"late but there"
    if state is not at_small_body and state is not at_dial:
        fresh = relay.sender()
        fresh.ask()
        assert code(fresh) == (404, "EndpointNotFound")


NOT_SENT = (at_small_body, at_dial, at_backlog)


@pytest.mark.parametrize("state", STATES)
def test_one_of_two_listeners_leaves(relay: Gateway, state: State) -> None:
    listener, sender = relay.listener(), relay.sender()
    state(relay, listener, sender)
    second = relay.listener()
    listener.leave()
    if state is at_small_body:
        sender.send(b"defghij")
        assert second.messages[-1] == b"abcdefghij"
        second.respond(b"by the second")
    elif state is at_dial:
        rendezvous = second.dial()
        sender.chunk(b"")
        assert rendezvous.messages[-1] == b"abc"
        rendezvous.respond(b"by the second")
    elif state is at_backlog:
        (held,) = [request for request in second.requests if request["requestTarget"] == "/orders/held"]
        second.respond(b"by the second", request=held)
    elif state in (at_small_sent, at_half_answered):
        assert code(sender) == (502, "BadGateway") and not second.messages
    if state in NOT_SENT:
        assert sender.answer.body == b"by the second"
    elif not sender.lost and sender.answers and sender.answer.complete:
        sender.ask("/orders/again")
        place = newest(relay) if state in (at_second, at_idle_rendezvous) else second
        if place.requests and place.request["requestTarget"] == "/orders/again":
            place.respond(b"again")
            assert sender.answer.body == b"again"


@pytest.mark.parametrize("state", [at_upload, at_uploaded, at_upgraded, at_second, at_streaming, at_both_streaming])
@pytest.mark.parametrize("clean", [False, True])
def test_the_rendezvous_leaves(relay: Gateway, state: State, clean: bool) -> None:
    listener, sender = relay.listener(), relay.sender()
    state(relay, listener, sender)
    rendezvous = newest(relay)
    if clean:
        rendezvous.hang_up()
    else:
        rendezvous.leave()
    if state in (at_streaming, at_both_streaming):
        assert not sender.answer.complete and sender.answer.body == b"part"
    else:
        assert code(sender) == (502, "BadGateway")
    if state is at_upload:
        sender.chunk(b"")
    assert sender.lost  # the listener closing it drops the sender connection (§8)
    assert listener.closed_with is None
    relay.assert_at_rest()


def test_an_idle_rendezvous_that_leaves_drops_the_sender_connection(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    at_idle_rendezvous(relay, listener, sender)
    newest(relay).hang_up()
    assert sender.answer.body == b"whole" and sender.lost


def test_a_rendezvous_is_closed_with_its_idle_sender_connection(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    at_idle_rendezvous(relay, listener, sender)
    relay.advance(80)
    assert sender.lost and newest(relay).closed_with


def test_calls_that_are_over_leave_nothing_behind(relay: Gateway) -> None:
    listener = relay.listener()
    for state in STATES[1:-1]:
        sender = relay.sender()
        state(relay, listener, sender)
        if state is at_half_answered:
            listener.binary(b"")
        else:
            sender.leave()
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, HybridCall)]


# -- deadlines


@pytest.mark.parametrize(
    ("state", "status"), [(at_small_sent, 504), (at_half_answered, 504), (at_upgraded, 504), (at_second, 504)]
)
def test_the_deadline_of_an_answer(relay: Gateway, state: State, status: int) -> None:
    listener, sender = relay.listener(), relay.sender()
    state(relay, listener, sender)
    before = len(sender.answers)
    relay.advance(59)
    assert len(sender.answers) == before
    relay.advance(2)
    assert code(sender) == (status, "GatewayTimeout")
    assert sender.answer.error["message"].startswith(
        "The request was routed to the listener but the listener did not respond in the required time."
    )
    relay.assert_at_rest()


def test_the_deadline_between_fragments_begins_again_with_each(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    at_streaming(relay, listener, sender)
    rendezvous = newest(relay)
    for _ in range(3):
        relay.advance(50)
        rendezvous.binary(b"!", False, CONTINUATION)
    assert sender.answer.body == b"part!!!"
    relay.advance(61)
    assert sender.lost and not sender.answer.complete
    assert rendezvous.closed_with and rendezvous.closed_with[0] == 1011


def test_the_deadline_of_a_rendezvous_that_is_not_dialled(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    relay.advance(29.5)
    assert not sender.answers
    relay.advance(1)
    assert code(sender) == (504, "GatewayTimeout")
    assert listener.dial().status == 403
    sender.chunk(b"")
    relay.assert_at_rest()


def test_the_deadline_of_the_answer_may_be_shorter_than_that_of_the_rendezvous() -> None:
    with gateway(relays=[{"path": "orders", "response_timeout": 5.0}]) as relay:
        listener, sender = relay.listener(), relay.sender()
        sender.head(length=-1)
        relay.advance(6)
        assert sender.answer.status == 504 and listener.dial().status == 403
        relay.assert_at_rest()


def test_a_dial_just_in_time_stops_the_deadline_of_the_rendezvous(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    relay.advance(29)
    rendezvous = listener.dial()
    sender.chunk(b"")
    relay.advance(25)
    rendezvous.respond(b"ok")
    assert sender.answer.body == b"ok"


def test_the_time_of_a_slow_body_is_not_the_listeners(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=4)
    relay.advance(40)
    sender.send(b"abcd")
    relay.advance(40)
    assert not sender.answers
    listener.respond(b"in time")
    assert sender.answer.body == b"in time"


def test_the_time_of_a_sender_that_reads_slowly_is_not_the_listeners() -> None:
    with gateway(relays=[{"path": "orders", "response_timeout": 5.0}]) as relay:
        listener, sender = relay.listener(), relay.sender()
        sender.ask(method="POST", body=LARGE)
        rendezvous = listener.dial()
        sender.end.pause_reading()
        rendezvous.start(bodyLength=1_000_000)
        rendezvous.binary(b"x" * 1_000_000)
        relay.advance(20)
        sender.end.resume_reading()
        relay.turn()
        assert sender.answer.complete


def test_the_time_of_a_sender_that_writes_slowly_is_not_the_listeners() -> None:
    with gateway(relays=[{"path": "orders", "response_timeout": 5.0}]) as relay:
        listener, sender = relay.listener(), relay.sender()
        sender.head(length=-1)
        rendezvous = listener.dial()
        relay.advance(20)
        sender.chunk(b"")
        rendezvous.respond(b"ok")
        assert sender.answer.body == b"ok"


def test_a_deadline_that_goes_wrong_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway(failures=None, relays=[{"path": "orders"}]) as relay:
        relay.listener()
        sender, other = relay.sender(), relay.sender()
        sender.ask()
        fail = HybridCall.fail
        monkeypatch.setattr(HybridCall, "fail", lambda call, error: 1 / 0)
        relay.advance(62)
        monkeypatch.setattr(HybridCall, "fail", fail)
        other.ask()
        relay.advance(61)
        assert other.answer.status == 504


# -- more than the peers can take


def test_a_blocked_control_channel_holds_requests_and_sends_them_in_order(relay: Gateway) -> None:
    listener = relay.listener()
    senders = fill(relay, listener)
    held = [relay.sender() for _ in range(4)]
    for number, sender in enumerate(held):
        if number % 2:
            sender.head(f"/orders/held{number}", length=-1)
        else:
            sender.ask(f"/orders/held{number}", "POST", body=b"%d" % number)
    wrote = relay.links[0].websocket._transport.wrote
    relay.turn()
    assert relay.links[0].websocket._transport.wrote == wrote and relay.links[0].load == len(senders) + 4
    listener.socket.resume_reading()
    relay.turn()
    later = listener.requests[len(senders) :]
    assert [request.get("requestTarget") for request in later] == ["/orders/held0", None, "/orders/held2", None]
    for request in listener.requests:
        listener.respond(b"", request=request)
    assert all(sender.answer.status == 200 for sender in senders + held)


def test_a_blocked_listener_is_passed_over(relay: Gateway) -> None:
    listener = relay.listener()
    fill(relay, listener)
    second, sender = relay.listener(), relay.sender()
    for _ in range(5):
        sender.ask()
        second.respond(b"by the second")
        assert sender.answer.body == b"by the second"


def test_a_held_request_meets_its_deadline(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    fill(relay, listener)
    sender.ask("/orders/held")
    relay.advance(61)
    assert sender.answer.status == 504
    listener.socket.resume_reading()
    relay.turn()
    assert "/orders/held" not in [request["requestTarget"] for request in listener.requests]


def test_senders_who_give_up_on_a_blocked_channel_leave_nothing_behind(relay: Gateway) -> None:
    listener = relay.listener()
    fill(relay, listener)
    for _ in range(20):
        sender = relay.sender()
        sender.ask(method="POST", body=LARGE[:60_000])
        sender.leave()
    assert len(relay.links[0]._backlog) == 0


def test_too_many_pending_exchanges_are_503() -> None:
    with gateway(gateway__limits__pending_per_listener=3) as relay:
        listener, senders = relay.listener(), [relay.sender() for _ in range(4)]
        for sender in senders:
            sender.ask()
        assert code(senders[3]) == (503, "ServerBusy") and not any(sender.answers for sender in senders[:3])
        listener.respond(b"")
        senders[3].ask()
        assert len(listener.requests) == 4
        second, more = relay.listener(), [relay.sender() for _ in range(4)]
        for sender in more:
            sender.ask()
        assert len(second.requests) == 3 and code(more[3]) == (503, "ServerBusy")
        assert relay.stats().sender_server_error == 2


def test_a_request_moved_to_a_full_listener_is_502() -> None:
    with gateway(gateway__limits__pending_per_listener=1) as relay:
        listener, sender, other = relay.listener(), relay.sender(), relay.sender()
        sender.head(length=-1)
        second = relay.listener()
        other.ask()
        assert second.requests
        listener.leave()
        assert code(sender) == (502, "BadGateway")


def test_an_upload_waits_for_a_listener_that_does_not_read(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    rendezvous = listener.dial()
    rendezvous.socket.pause_reading()
    for _ in range(40):
        sender.chunk(b"x" * 50_000)
    assert not sender.server_end.reading and len(rendezvous.end.other.waiting) < 400_000
    rendezvous.socket.resume_reading()
    relay.turn()
    sender.chunk(b"")
    assert len(rendezvous.messages[-1]) == 2_000_000


def test_an_answer_waits_for_a_sender_that_does_not_read(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask(method="POST", body=LARGE)
    rendezvous = listener.dial()
    sender.end.pause_reading()
    rendezvous.start()
    rendezvous.binary(b"x" * 2_000_000)
    assert not rendezvous.end.other.reading and len(sender.server_end.waiting) < 400_000
    sender.end.resume_reading()
    relay.turn()
    assert sender.answer.body == b"x" * 2_000_000
    sender.ask()
    rendezvous.respond(b"next")
    assert sender.answer.body == b"next"


def test_a_second_upload_waits_too_when_the_rendezvous_is_blocked_by_the_first(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.head(length=-1)
    rendezvous = listener.dial()
    rendezvous.socket.pause_reading()
    sender.chunk(b"x" * 40_000)
    sender.send(b"9c40\r\n%s\r\n0\r\n\r\n" % (b"x" * 40_000))
    rendezvous.respond(b"early", request=listener.request)
    assert sender.answer.body == b"early"
    sender.head(length=-1)
    for _ in range(40):
        sender.chunk(b"x" * 50_000)
    assert len(rendezvous.end.other.waiting) < 600_000


@pytest.mark.parametrize(
    "way",
    [
        "the same rendezvous",
        "its own rendezvous",
        "dialled for its answer",
    ],
)
def test_a_second_answer_waits_too_when_the_sender_has_not_read_the_first(relay: Gateway, way: str) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    rendezvous = listener.dial()
    rendezvous.respond(b"", request=listener.request)
    sender.end.pause_reading()
    for _ in range(2):
        sender.ask()
        rendezvous.start()
        rendezvous.binary(b"x" * 60_000)
    target = "/orders" if way == "the same rendezvous" else "/billing"
    billing = relay.listener("billing")
    sender.head(target, length=-1 if way == "its own rendezvous" else None)
    if billing.requests:
        rendezvous = billing.dial()
    if way == "its own rendezvous":
        sender.chunk(b"")
    if len(rendezvous.requests) == 3 or billing.requests:  # or it is not taken before the sender reads
        rendezvous.start(request=rendezvous.requests[-1] if rendezvous.requests else billing.request)
        rendezvous.binary(b"x" * 2_000_000)
    assert len(sender.server_end.waiting) < 600_000


@pytest.mark.parametrize("why", ["expired", "violation"])
def test_a_listener_that_is_being_closed_gets_no_more_requests(relay: Gateway, why: str) -> None:
    listener = relay.listener(token=relay.token(lifetime=1 if why == "expired" else 3600))
    second = relay.listener()
    listener.socket.pause_reading()  # it does not answer our close
    if why == "expired":
        relay.advance(301.5)
    else:
        listener.text(b"garbage")
    sender = relay.sender()
    for number in range(8):
        sender.ask()
        assert len(second.requests) == number + 1
        second.respond(b"by the second")
    relay.advance(6)
    assert [answer.status for answer in sender.answers] == [200] * 8


# -- everything at once


class Crowd:
    """Senders and listeners who do something at random."""

    def __init__(self, relay: Gateway, seed: int) -> None:
        self.relay = relay
        self.random = Random(seed)
        self.listeners: list[Dialled] = []
        self.senders: list[Sender] = []
        self.asked: dict[Sender, list[str]] = {}
        self.open: list[tuple[Dialled, dict[str, Any]]] = []
        """Requests that were dialled for, with the rendezvous, so long as they may be answered there."""
        self.answered: set[str] = set()
        self.stalled: list[Any] = []
        self.number = 0

    def act(self) -> None:
        acts = {
            **{self.come: 3, self.go: 1, self.connect: 4, self.leave: 1, self.ask: 8, self.upload: 6, self.dial: 8},
            **{self.answer: 16, self.close: 1, self.wait: 2, self.stall: 2, self.flow: 3, self.violate: 0.3},
        }
        self.random.choices(list(acts), list(acts.values()))[0]()

    def come(self) -> None:
        if len(self.listeners) < 4:
            self.listeners.append(self.relay.listener())

    def go(self) -> None:
        if self.listeners:
            gone = self.listeners.pop(self.random.randrange(len(self.listeners)))
            self.random.choice((gone.leave, gone.hang_up))()

    def connect(self) -> None:
        if len(self.senders) < 8:
            self.senders.append(self.relay.sender())

    def leave(self) -> None:
        if self.senders:
            self.senders.pop(self.random.randrange(len(self.senders))).leave()

    def sender(self) -> tuple[Sender, str] | None:
        living = [sender for sender in self.senders if not sender.lost]
        if not living:
            return None
        sender = self.random.choice(living)
        self.number += 1
        target = f"/orders/{self.number}"
        self.asked.setdefault(sender, []).append(target)
        return sender, target

    def ask(self) -> None:
        if found := self.sender():
            found[0].ask(found[1], "POST", body=self.random.choice((None, b"small", LARGE)))

    def upload(self) -> None:
        if found := self.sender():
            found[0].head(found[1], length=-1)
            found[0].chunk(b"chunk" * self.random.choice((1, 20_000)))
            found[0].chunk(b"")

    def dial(self) -> None:
        if not self.listeners:
            return
        listener = self.random.choice(self.listeners)
        for request in self.random.sample(listener.requests, min(2, len(listener.requests))):
            dialled = listener.dial(request)
            assert dialled.status in (101, 403)
            if dialled.status == 101:
                self.open.append((dialled, request))

    def answer(self) -> None:
        ready = [(dialled, request) for dialled, request in self.open if not dialled.requests]
        for place in [*self.listeners, *{dialled for dialled, _ in self.open}]:
            ready += [(place, request) for request in place.requests if "method" in request]
        dialled_for = {request["id"] for _, request in self.open}
        ready = [
            (place, request)
            for place, request in ready
            if place.closed_with is None
            and request["id"] not in self.answered
            and not (place in self.listeners and request["id"] in dialled_for)
        ]
        if ready:
            place, request = self.random.choice(ready)
            self.answered.add(request["id"])
            target = request.get("requestTarget", "").encode()
            place.respond(target + b" " * self.random.choice((0, 10, 100_000)), request=request)

    def close(self) -> None:
        if self.open:
            dialled, _ = self.random.choice(self.open)
            if dialled.closed_with is None:
                self.random.choice((dialled.leave, dialled.hang_up))()

    def stall(self) -> None:
        """Somebody reads no more."""
        readers: list[Any] = [sender.end for sender in self.senders]
        readers += [each.socket for each in [*self.listeners, *(dialled for dialled, _ in self.open)]]
        if readers:
            self.stalled.append(self.random.choice(readers))
            self.stalled[-1].pause_reading()

    def flow(self) -> None:
        if self.stalled:
            self.stalled.pop(self.random.randrange(len(self.stalled))).resume_reading()
            self.relay.turn()

    def violate(self) -> None:
        places = [*self.listeners, *(dialled for dialled, _ in self.open)]
        if places:
            place = self.random.choice(places)
            place.binary(b"unasked") if self.random.random() < 0.5 else place.text(b"garbage")
            self.listeners = [listener for listener in self.listeners if listener.closed_with is None]

    def wait(self) -> None:
        self.relay.advance(self.random.choice((0.1, 1, 10)))


@pytest.mark.parametrize("seed", range(40))
def test_everybody_comes_and_goes_at_random(seed: int) -> None:
    """Each request has exactly one answer, its own, or its sender saw the connection break."""
    with gateway(relays=[{"path": "orders"}]) as relay:
        crowd = Crowd(relay, seed)
        for _ in range(120):
            crowd.act()
        while crowd.stalled:
            crowd.flow()
        for listener in crowd.listeners:
            listener.hang_up()
        for dialled, _ in crowd.open:
            if dialled.closed_with is None:
                dialled.hang_up()
        relay.advance(1)
        relay.assert_at_rest()
        statuses = set()
        for sender, targets in crowd.asked.items():
            assert len(sender.answers) == len(targets) or sender.lost
            for target, answer in zip(targets, sender.answers, strict=False):
                statuses.add(answer.status)
                assert answer.complete or sender.lost
                if answer.status == 200 and answer.complete:
                    assert answer.body.rstrip() == target.encode()
        assert statuses <= {200, 404, 502, 504}
