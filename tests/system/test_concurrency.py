"""Many calls at a time, on many connections and on one: each gets its own answer."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.processes import Running
from tests.system.senders import ask, connected, read_answer, token
from wcfrelay.testing import Gateway

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("exposed")]

_CALLS = 200
_SIZES = (0, 1, 700, 8_000, 60_000, 65_536, 70_000, 300_000)
"""Bodies that travel on the control channel, and bodies that take a rendezvous."""


def _body(name: str, size: int) -> bytes:
    """``size`` bytes that no other call has, as far as the size allows."""
    seed = hashlib.sha256(name.encode()).digest()
    return (seed * (size // len(seed) + 1))[:size]


def test_200_concurrent_calls_are_not_mixed_up(gateway: Gateway, report: Callable[[str], None]) -> None:
    """Each connection has two exchanges, so that the second meets a rendezvous that the first may have opened."""
    authorization = token(gateway, "svc")
    together = threading.Barrier(_CALLS, timeout=30)
    plan = random.Random(7)
    waits = [plan.choice((0, 0, 0.05, 0.2)) for _ in range(_CALLS)]

    def one(number: int) -> list[str]:
        wrong = []
        with connected(gateway, timeout=60) as connection:
            connection.connect()
            together.wait()
            for turn in range(2):
                name, size = f"call {number}.{turn}", _SIZES[(number + 3 * turn) % len(_SIZES)]
                headers = {"ServiceBusAuthorization": authorization, "X-Call": name, "Content-Type": "text/x-call"}
                body = _body(name, size)
                answer = ask(connection, "POST", f"/svc/echo?wait={waits[number]}", body, headers)
                if (answer.status, answer.field("X-Call"), answer.body) != (200, name, body):
                    wrong.append(f"{name} of {size}: {answer.status} {answer.field('X-Call')} {answer.body[:200]!r}")
        return wrong

    began = time.monotonic()
    with ThreadPoolExecutor(_CALLS) as pool:
        wrong = [text for texts in pool.map(one, range(_CALLS)) for text in texts]
    report(f"{_CALLS} concurrent senders, {2 * _CALLS} calls: {time.monotonic() - began:.1f} s, {len(wrong)} wrong")
    assert not wrong


def test_a_kept_connection_serves_call_after_call(gateway: Gateway, exposed: Running) -> None:
    headers = {"ServiceBusAuthorization": token(gateway, "svc")}
    with connected(gateway) as connection:
        connection.connect()
        kept = connection.sock
        for turn in range(3):
            for size in _SIZES:
                name = f"kept {turn} {size}"
                answer = ask(connection, "POST", "/svc/echo", _body(name, size), {**headers, "X-Call": name})
                assert (answer.status, answer.field("X-Call"), answer.body) == (200, name, _body(name, size))
                assert connection.sock is kept, f"closed behind {name}"


def test_a_refused_call_leaves_the_connection_to_the_next(gateway: Gateway) -> None:
    headers = {"ServiceBusAuthorization": token(gateway, "svc")}
    with connected(gateway) as connection:
        assert ask(connection, "POST", "/svc/echo", b"x").status == 401
        kept = connection.sock
        assert ask(connection, "POST", "/nowhere", b"x", headers).status == 404
        assert ask(connection, "POST", "/svc/echo", b"good", headers).body == b"good"
        assert connection.sock is kept


@pytest.mark.parametrize("sizes", [(10, 0, 500, 20), (10, 70_000, 0, 200_000, 5)], ids=["small", "mixed"])
def test_pipelined_requests_are_answered_in_order(gateway: Gateway, sizes: tuple[int, ...]) -> None:
    """The first takes longest, so that an answer that overtakes would show."""
    authorization = token(gateway, "svc")
    requests = bytearray()
    for number, size in enumerate(sizes):
        head = (
            f"POST /svc/echo?wait={0.3 if number == 0 else 0} HTTP/1.1\r\nHost: 127.0.0.1:{gateway.http_port}\r\n"
            f"ServiceBusAuthorization: {authorization}\r\nX-Call: {number}\r\nContent-Length: {size}\r\n\r\n"
        )
        requests += head.encode() + _body(f"piped {number}", size)
    with socket.create_connection(("127.0.0.1", gateway.http_port), 20) as connection:
        sender = threading.Thread(target=connection.sendall, args=(bytes(requests),))
        sender.start()
        with connection.makefile("rb") as stream:
            answers = [read_answer(stream) for _ in sizes]
        sender.join()
    assert [(each.status, each.field("X-Call")) for each in answers] == [(200, str(n)) for n in range(len(sizes))]
    for number, (answer, size) in enumerate(zip(answers, sizes, strict=True)):
        assert answer.body == _body(f"piped {number}", size)
