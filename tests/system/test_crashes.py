"""What senders see when a part of the way is gone, and how it comes back."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.system.processes import Backend, backend, listener
from tests.system.senders import Answer, assert_refused, call, connected, token
from wcfrelay.testing import Gateway, relay

pytestmark = pytest.mark.system

_LARGE = bytes(300_000)
_SOON = 5.0
"""Seconds in which a sender must know."""


@pytest.fixture
def own_gateway() -> Iterator[Gateway]:
    """A gateway that may be harmed."""
    with relay() as started:
        yield started


class _Download:
    """A download whose first ``size`` bytes have come."""

    def __init__(self, gateway: Gateway, target: str, size: int) -> None:
        self.error: Exception | None = None
        self.ended = threading.Event()
        self.received = 0
        self._begun = threading.Event()
        self._arguments = gateway, target, size
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._begun.wait(20), (self.error, self.received)

    def _run(self) -> None:
        gateway, target, size = self._arguments
        headers = {"ServiceBusAuthorization": token(gateway, target[1:].partition("/")[0])}
        try:
            with connected(gateway) as connection:
                connection.request("GET", target, headers=headers)
                answer = connection.getresponse()
                assert answer.status == 200
                while piece := answer.read1(65536):
                    self.received += len(piece)
                    if self.received >= size:
                        self._begun.set()
                if answer.length:
                    raise http.client.IncompleteRead(b"", answer.length)
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        self.ended.set()


def _in_flight(gateway: Gateway, service: Backend, target: str, calls: int) -> list[Future[tuple[Answer, float]]]:
    """``calls`` small calls and as many large ones, which the service has but will not answer for long; each future
    has the answer and when it came."""

    def one(number: int) -> tuple[Answer, float]:
        answer = call(gateway, target, b"small" if number % 2 else _LARGE)
        return answer, time.monotonic()

    pool = ThreadPoolExecutor(2 * calls)
    futures = [pool.submit(one, number) for number in range(2 * calls)]
    pool.shutdown(wait=False)
    service.wait_until_begun(target.partition("?")[2], 2 * calls)
    return futures


def test_a_killed_listener(gateway: Gateway, service: Backend, report: Callable[[str], None]) -> None:
    with listener(gateway, "expose", service.url, "doomed") as doomed:
        calls = _in_flight(gateway, service, "/doomed/slow?seconds=60&why=listener", 4)
        downloads = [
            _Download(gateway, f"/doomed/cut?bytes=2000000&framing={framing}", 900_000)
            for framing in ("length", "chunked")
        ]
        doomed.kill()
        killed = time.monotonic()
        outcomes = [future.result(_SOON) for future in calls]
        for download in downloads:
            assert download.ended.wait(_SOON), "the download hangs"
            assert download.error is not None, "the cut download looks complete"
    for answer, _ in outcomes:
        assert_refused("plain", answer, 502, "BadGateway")
    report(
        f"listener killed: the last of {len(calls)} senders knew after {max(at for _, at in outcomes) - killed:.2f} s"
    )
    # The relay came with its listener and went with it.
    assert_refused("plain", call(gateway, "/doomed/echo", b"x"), 404, "EndpointNotFound")
    with listener(gateway, "expose", service.url, "doomed"):
        assert call(gateway, "/doomed/echo", b"again").body == b"again"
        assert call(gateway, "/doomed/echo", _LARGE).body == _LARGE


def test_a_killed_listener_leaves_the_calls_to_the_other(gateway: Gateway, service: Backend) -> None:
    with listener(gateway, "expose", service.url, "twin"), listener(gateway, "expose", service.url, "twin") as other:
        assert {call(gateway, "/twin/echo", b"x").status for _ in range(10)} == {200}
        other.kill()
        assert {call(gateway, "/twin/echo", b"x").status for _ in range(10)} == {200}


def test_a_listener_that_falls_silent(service: Backend) -> None:
    """Its machine hangs or its network is gone: nothing is refused or reset, only pings stay without answer."""
    config = """
        [gateway.limits]
        ping_interval = 0.5
        ping_timeout = 0.5
        [gateway.relays]
        response_timeout = 2.5
    """
    with relay(config) as own, listener(own, "expose", service.url, "silent") as silent:
        calls = _in_flight(own, service, "/silent/slow?seconds=60&why=silence", 2)
        os.kill(silent.pid, signal.SIGSTOP)
        try:
            small, large = (sorted({future.result(_SOON)[0].status for future in calls[i::2]}) for i in (1, 0))
            assert small == large == [502]  # as soon as the control channel and the rendezvous are given up
            assert_refused("plain", call(own, "/silent/echo", b"x"), 404, "EndpointNotFound")
        finally:
            os.kill(silent.pid, signal.SIGCONT)
        silent.wait_for("Online:", count=2)
        assert call(own, "/silent/echo", b"back").body == b"back"


def test_a_service_killed_in_its_answer(gateway: Gateway) -> None:
    """A cut answer must not look like a whole one, whatever framed it."""
    with backend() as fragile, listener(gateway, "expose", fragile.url, "fragile"):
        downloads = [
            _Download(gateway, f"/fragile/cut?bytes=2000000&framing={framing}", 900_000)
            for framing in ("length", "chunked")
        ]
        with ThreadPoolExecutor(2) as pool:
            # Less than the listener collects before it sends anything on.
            small = [
                pool.submit(call, gateway, f"/fragile/cut?bytes=2000&framing={framing}")
                for framing in ("length", "chunked")
            ]
            fragile.wait_until_begun("bytes=2000&", 2)
            fragile.process.kill()
            for future in small:
                assert future.result(_SOON).status == 502
        for download in downloads:
            assert download.ended.wait(_SOON), "the download hangs"
            assert download.error is not None, "the cut download looks complete"
            assert download.received < 2_000_000
        assert_refused("plain", call(gateway, "/fragile/echo", b"x"), 502, "ServiceUnreachable")


@pytest.mark.parametrize(
    ("target", "length", "sent"),
    [
        pytest.param("slow?seconds=1&why=left", 5, 5, id="waiting for a small answer"),
        pytest.param("slow?seconds=60&why=left-large", 300_000, 300_000, id="waiting on a rendezvous"),
        pytest.param("digest", 50, 10, id="in a small body"),
        pytest.param("digest", 300_000, 1000, id="before the rendezvous is open"),
        pytest.param("bulk?bytes=90000000&framing=length", 0, 0, id="in its answer"),
    ],
)
def test_a_sender_that_goes_away_leaves_nothing_behind(
    gateway: Gateway, service: Backend, target: str, length: int, sent: int
) -> None:
    with listener(gateway, "expose", service.url, "left") as left:
        head = (
            f"POST /left/{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n"
            f"ServiceBusAuthorization: {token(gateway, 'left')}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.http_port), 10) as connection:
            connection.sendall(head.encode() + bytes(sent))
            if target.startswith("slow"):
                service.wait_until_begun(target)
            elif target.startswith("bulk"):
                assert connection.recv(1000)
        assert call(gateway, "/left/echo", b"fine").body == b"fine"
        assert call(gateway, "/left/echo", _LARGE).body == _LARGE
        # Stopping, a listener waits for what is in work. On the control channel it cannot know that a sender is gone.
        began = time.monotonic()
        assert left.stop() == 0
        assert time.monotonic() - began < 3


def test_a_gateway_that_is_stopped_finishes_its_calls(own_gateway: Gateway, service: Backend) -> None:
    with listener(own_gateway, "expose", service.url, "svc"):
        calls = _in_flight(own_gateway, service, "/svc/slow?seconds=2&why=gateway", 1)
        download = _Download(own_gateway, "/svc/drip?pieces=25&pause=0.1", 1)
        process = own_gateway.process
        assert process is not None
        process.terminate()
        time.sleep(0.5)
        with pytest.raises(ConnectionRefusedError):
            call(own_gateway, "/svc/echo", b"late")
        assert [future.result(10)[0].body for future in calls] == [b"slept"] * 2
        assert download.ended.wait(10) and download.error is None
        assert download.received == sum(len(b"line %d\n" % number) for number in range(25))
        assert process.wait(5) == 0


def test_a_listener_that_is_stopped_finishes_its_calls(gateway: Gateway, service: Backend) -> None:
    with listener(gateway, "expose", service.url, "leaving") as leaving:
        calls = _in_flight(gateway, service, "/leaving/slow?seconds=2&why=leaving", 1)
        leaving.process.terminate()
        assert [future.result(10)[0].body for future in calls] == [b"slept"] * 2
        assert leaving.process.wait(5) == 0
    assert_refused("plain", call(gateway, "/leaving/echo", b"x"), 404, "EndpointNotFound")


def test_a_gateway_that_is_killed_and_restarted(
    own_gateway: Gateway, service: Backend, report: Callable[[str], None]
) -> None:
    with listener(own_gateway, "expose", service.url, "svc") as waiting:
        authorization = {"ServiceBusAuthorization": token(own_gateway, "svc")}
        assert call(own_gateway, "/svc/echo", b"before", authorization).body == b"before"
        seen = len(waiting.output)
        own_gateway.kill()
        waiting.wait_for("Connecting:", after=seen)
        own_gateway.start()
        up = time.monotonic()
        # Tries are 1, 2, 5 … s apart, up to a fifth longer, and one of the first three finds the gateway up.
        waiting.wait_for("Online:", after=seen, seconds=1.2 * (1 + 2 + 5))
        report(
            f"gateway killed and restarted: the listener was Online {time.monotonic() - up:.1f} s after it was ready"
        )
        # The key was kept, so tokens made before are good.
        assert call(own_gateway, "/svc/echo", b"after", authorization).body == b"after"
        assert call(own_gateway, "/svc/echo", _LARGE, authorization).body == _LARGE
