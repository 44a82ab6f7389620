"""Requests and answers whose heads came before: nothing may be different but the work it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.harness import HOST, KEY, Dialled, Gateway, Sender, gateway
from wcfrelay.sas import Right, Rule
from wcfrelay.wire.hybrid import (
    Command,
    RemoteEndpoint,
    Request,
    Response,
    cut_request,
    decode_command,
    encode_command,
    remote_text,
    repeated_request,
    repeated_response,
    request_parts,
    response_parts,
)

DATE = "Mon, 23 Nov 2026 17:50:55 GMT"


@pytest.fixture
def relay() -> Iterator[Gateway]:
    with gateway() as made:
        yield made


def post(sender: Sender, token: str, body: bytes = b"hello", extra: str = "", target: str = "/orders/x?y=%41") -> None:
    """Head and body in one write, as most clients send a small request."""
    sender.methods.append("POST")
    sender.send(
        f"POST {target} HTTP/1.1\r\nHost: {HOST}\r\nServiceBusAuthorization: {token}\r\n{extra}"
        f'SOAPAction: "urn:a\\b"\r\nContent-Length: {len(body)}\r\n\r\n'.encode()
        + body
    )


def answered(listener: Dialled, headers: dict[str, Any] | None = None, body: bytes = b"yes", status: int = 200) -> None:
    command = Command(response=Response(listener.request["id"], status, "Fine", headers or {"Date": DATE}, bool(body)))
    listener.text(encode_command(command))
    if body:
        listener.binary(body)


def test_the_same_head_makes_the_same_command(relay: Gateway) -> None:
    listener, sender, other = relay.listener(), relay.sender(), relay.sender()
    token = relay.token()
    for who, body in ((sender, b"first"), (sender, b"again"), (other, b"third")):
        post(who, token, body, "X-A: 1\r\nX-A: 2\r\nConnection: X-B\r\nX-B: gone\r\n")
        answered(listener)
    first, again, third = listener.requests
    assert [m for m in listener.messages if isinstance(m, bytes)] == [b"first", b"again", b"third"]
    for request in (again, third):
        assert list(request) == list(first)
        for name in set(first) - {"id", "address", "remoteEndpoint"}:
            assert request[name] == first[name]
        assert request["address"].endswith(request["id"]) and request["id"] != first["id"]
    assert again["remoteEndpoint"] == first["remoteEndpoint"] != third["remoteEndpoint"]
    assert first["requestHeaders"]["X-A"] == "1, 2" and "X-B" not in first["requestHeaders"]
    assert "ServiceBusAuthorization" not in first["requestHeaders"]


@pytest.mark.parametrize(
    "headers", [{"Date": DATE, "X-A": "1"}, {"X-A": "1"}, {"Date": DATE, "Set-Cookie": ["a=1", "b=2"]}]
)
@pytest.mark.parametrize(("status", "body"), [(200, b"yes"), (500, b"no"), (202, b""), (204, b"")])
def test_the_same_answer_reads_the_same(relay: Gateway, headers: dict[str, Any], status: int, body: bytes) -> None:
    listener, sender = relay.listener(), relay.sender()
    token = relay.token()
    for _ in range(4):
        post(sender, token)
        answered(listener, headers, body, status)
    first, *others = sender.answers
    assert (first.status, first.reason, first.body) == (status, "Fine", body)
    for answer in others:
        assert (answer.status, answer.reason, answer.body) == (first.status, first.reason, first.body)
        without_date = [[field for field in a.headers if field[0] != "Date"] for a in (answer, first)]
        assert without_date[0] == without_date[1]
    assert first.header("via") == f"1.1 {HOST}"
    relay.assert_at_rest()
    assert relay.stats().sender_success + relay.stats().sender_server_error == 4


def test_lengths_and_methods_are_not_mixed_up(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    token = relay.token()
    for _ in range(2):
        for body in (b"", b"a", b"bb", b"x" * 60_000):
            post(sender, token, body)
            answered(listener, body=body)
            assert sender.answer.body == body
        sender.ask("/orders/x?y=%41", "HEAD")
        answered(listener, body=b"")
        assert sender.answer.status == 200 and not sender.answer.body


def test_a_remembered_token_still_expires(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    token = relay.token(lifetime=10)
    for _ in range(2):
        post(sender, token)
        answered(listener)
    relay.advance(311)
    late = relay.sender()
    post(late, token)
    assert late.answer.status == 401 and "ExpiredToken" in late.answer.error["message"]


def test_a_remembered_token_ends_with_its_rule(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    token = relay.token()
    for _ in range(2):
        post(sender, token)
        answered(listener)
    relay.node._authorizer.set_rules("", [Rule("root", Right.SEND, KEY[::-1])])
    post(sender, token)
    assert sender.answer.status == 401


def test_a_remembered_route_ends_with_its_relay(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    token = relay.token()
    for _ in range(2):
        post(sender, token)
        answered(listener)
    deeper = relay.listener("orders/x")
    post(sender, token)
    answered(deeper, body=b"deeper")
    assert sender.answer.body == b"deeper"
    deeper.leave()
    post(sender, token)
    answered(listener)
    assert sender.answer.body == b"yes"
    listener.leave()
    post(sender, token)
    assert sender.answer.status == 404


def test_a_request_in_pieces_or_with_another_behind_it_is_the_same(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    token = relay.token()
    post(sender, token)
    answered(listener)
    post(sender, token)
    answered(listener)
    head = f"POST /orders/x?y=%41 HTTP/1.1\r\nHost: {HOST}\r\nServiceBusAuthorization: {token}\r\n"
    whole = (head + 'SOAPAction: "urn:a\\b"\r\nContent-Length: 5\r\n\r\nhello').encode()
    sender.methods += ["POST"] * 3
    sender.send(whole[:-2])
    sender.send(whole[-2:] + whole + whole)
    for _ in range(3):
        answered(listener)
    assert [answer.body for answer in sender.answers] == [b"yes"] * 5


def test_what_is_remembered_is_bounded(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    token = relay.token()
    for number in range(1100):
        post(sender, token, extra=f"X-N: {number}\r\n")
        answered(listener, {"Date": DATE, "X-N": str(number)})
        if number % 100 == 99:  # what the harness keeps
            sender.received, listener.received = b"", b""
            listener.messages.clear()
    post(sender, token, extra=f"X-N: {'x' * 5000}\r\n")
    answered(listener, {"Date": DATE, "X-N": "x" * 5000})
    (front, *_) = relay.node._fronts
    assert 0 < len(front.heads) <= 1024 and max(map(len, front.heads)) <= 4096
    answers = relay.node._services.answers
    assert 0 < len(answers) <= 1024 and max(map(len, answers)) <= 2048


# -- the commands by themselves


def sample(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "address": "ws://h/$hc/o?sb-hc-action=request&sb-hc-id=1-2_G0",
        "id": "1-2_G0",
        "requestTarget": '/o/"\\é?x=1',
        "method": "POST",
        "remoteEndpoint": RemoteEndpoint("::1", 5),
        "requestHeaders": {"X": 'a"b\\c', "Y": "\u00ff"},
        "body": True,
        "origin": "http://h",
    }
    return Request(**(values | changes))


@pytest.mark.parametrize("changes", [{}, {"body": False}, {"origin": ""}, {"requestHeaders": {}}])
def test_a_repeated_request_reads_as_the_whole_one(changes: dict[str, Any]) -> None:
    request = sample(**changes)
    text = repeated_request(
        request.address.removesuffix(request.id).encode(),
        request.id.encode(),
        remote_text(("::1", 5)),
        request_parts(request),
    )
    assert decode_command(text) == Command(request=request)
    cut = cut_request(text)
    assert cut is not None and cut[:2] == (request.address.encode(), request.id.encode())


def test_commands_that_are_written_in_another_way_are_not_cut() -> None:
    assert cut_request(b'{"request": {"address":"a","id":"b"}}') is None
    assert cut_request(b'{"request":{"id":"b","address":"a"}}') is None
    assert cut_request(b'{"request":{"address":"a\\u0062","id":"b","method":"GET"}}') is None
    assert response_parts(b'{"response":{"statusCode":200,"requestId":"a"}}') is None


def test_a_repeated_response_reads_as_the_whole_one() -> None:
    text = encode_command(Command(response=Response("1-2_G0", 200, "OK", {"X": 'a"b'}, True)))
    parts = response_parts(text)
    assert parts is not None and parts[0] == b"1-2_G0" and repeated_response(*parts) == text
    assert re.match(rb'",', parts[1])
