"""Requests and answers that came before, at the listener: nothing may be different but the work it takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wcfrelay.net.repeats import RepeatedFields, Repeats
from wcfrelay.wire.hybrid import Command, RemoteEndpoint, Request, encode_command

from .hybridfakes import BINARY, LIMIT
from .test_exchange import Bench


def command(number: int, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "address": f"ws://g/$hc/p?sb-hc-action=request&sb-hc-id=i{number}",
        "id": f"i{number}",
        "requestTarget": "/p/x?a=1",
        "method": "POST",
        "remoteEndpoint": RemoteEndpoint("::1", 5),
        "requestHeaders": {"Accept": "a/b", "Via": "1.1 g"},
        "body": True,
        "origin": "http://g",
    }
    return encode_command(Command(request=Request(**(values | changes))))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_that_came_before_is_the_same_exchange(bench: Bench) -> None:
    for number in range(3):
        bench.socket.text(command(number))
        bench.socket.frame(BINARY, b"body %d" % number)
    first, second, third = bench.exchanges
    for exchange in (second, third):
        for name in ("method", "target", "origin", "length"):
            assert getattr(exchange, name) == getattr(first, name)
        assert list(exchange.headers) == list(first.headers)
    assert second.headers is third.headers
    assert [exchange.tracking_id for exchange in bench.exchanges] == ["i0", "i1", "i2"]
    assert [responder.body for responder in bench.responders] == [b"body 0", b"body 1", b"body 2"]


def test_a_repeated_request_without_body_and_one_with_are_told_apart(bench: Bench) -> None:
    for number in range(4):
        body = bool(number % 2)
        bench.socket.text(command(number, body=body))
        if body:
            bench.socket.frame(BINARY, b"x")
    assert [exchange.length for exchange in bench.exchanges] == [0, 1, 0, 1]


@pytest.mark.parametrize("body", [b"yes", b"", b"x" * (LIMIT + 1)])
@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_an_answer_with_fields_that_came_before_is_the_same(bench: Bench, method: str, body: bytes) -> None:
    fields = RepeatedFields([("Content-Type", "a/b"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    texts = []
    for number in range(3):
        bench.socket.text(command(number, method=method))
        bench.socket.frame(BINARY, b"x")
        bench.exchanges[-1].respond(200, "OK", fields, body)
        if len(body) > LIMIT and method != "HEAD":
            assert len(bench.dials) == number + 1  # too large for the control channel, the first time and later
            continue
        response = bench.socket.response(len(texts) * (2 if body and method != "HEAD" else 1))
        assert response.pop("requestId") == f"i{number}"
        texts.append(json.dumps(response))
    assert len(set(texts)) <= 1


def test_other_fields_with_the_same_content_are_no_repeat() -> None:
    memory: Repeats[int] = Repeats()
    fields = RepeatedFields([("A", "1")])
    assert memory.keep(1, fields, "k") == 1
    assert (memory.get(fields, "k"), memory.get(fields, "other"), memory.get(RepeatedFields(fields), "k")) == (
        1,
        None,
        None,
    )
    plain = [("A", "1")]
    assert memory.keep(2, plain) == 2 and memory.get(plain) is None


def test_memories_are_bounded(bench: Bench) -> None:
    memory: Repeats[int] = Repeats(limit=10)
    for number in range(25):
        memory.keep(number, RepeatedFields())
    assert len(memory._known) <= 10
    for number in range(1100):
        bench.socket.text(command(number, body=False, requestTarget=f"/p/{number}"))
        bench.exchanges.pop().respond(200, "", [], b"")
    bench.socket.text(command(2000, body=False, requestTarget="/p/" + "x" * 5000))
    assert 0 < len(bench.calls.requests) <= 1024
    assert max(map(len, bench.calls.requests)) <= 4096
