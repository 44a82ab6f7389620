from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred

from tests.gateway.harness import Answer, Gateway, Sender, gateway

ADMIN = 1
"""The port that a gateway of the harness opens after the one for senders."""


def get(relay: Gateway, target: str, method: str = "GET") -> Answer:
    sender = Sender(relay, ADMIN)
    sender.ask(target, method, token=None)
    assert not sender.lost
    return sender.answer


@pytest.mark.parametrize(
    ("target", "method", "status", "body"),
    [
        ("/healthz", "GET", 200, b"ok\n"),
        ("/healthz?x", "GET", 200, b"ok\n"),
        ("/healthz", "HEAD", 200, b""),
        ("/readyz", "GET", 200, b"ready\n"),
        ("/healthz", "POST", 405, b"only GET is answered here\n"),
        ("/", "GET", 404, b"here are /healthz, /readyz and /metrics\n"),
        ("/healthz/", "GET", 404, b"here are /healthz, /readyz and /metrics\n"),
        ("/orders", "GET", 404, b"here are /healthz, /readyz and /metrics\n"),
        ("/$hc/orders?sb-hc-action=listen", "GET", 404, b"here are /healthz, /readyz and /metrics\n"),
    ],
)
def test_pages(target: str, method: str, status: int, body: bytes) -> None:
    with gateway() as relay:
        answer = get(relay, target, method)
        assert (answer.status, answer.body) == (status, body)
        assert answer.header("cache-control") == "no-store"
        assert (answer.header("allow") is not None) is (status == 405)


def test_metrics_of_relays_and_of_the_process() -> None:
    with gateway() as relay:
        relay.listener()
        answer = get(relay, "/metrics")
        assert answer.status == 200 and (answer.header("content-type") or "").startswith("text/plain; version=0.0.4")
        assert b'wcfrelay_active_listeners{relay="orders"} 1.0\n' in answer.body
        assert b"python_info{" in answer.body and b"process_" in answer.body


def test_the_ports_for_senders_show_nothing_of_it() -> None:
    with gateway() as relay:
        sender = relay.sender()
        for target in ("/healthz", "/readyz", "/metrics"):
            sender.ask(target)
            assert sender.answer.status == 404


def test_not_ready_while_it_drains() -> None:
    with gateway(relays=[{"path": "orders"}]) as relay:
        listener, sender, watcher = relay.listener(), relay.sender(), Sender(relay, ADMIN)
        sender.ask()
        watcher.ask("/readyz")
        assert watcher.answer.status == 200
        stopping = Deferred.fromCoroutine(relay.node.stop(5))
        relay.turn()
        watcher.ask("/readyz")
        assert watcher.answer.status == 503 and watcher.answer.body == b"not ready\n"
        watcher = Sender(relay, ADMIN)
        watcher.ask("/healthz")
        assert watcher.answer.status == 200
        listener.respond(b"last")
        assert sender.answer.body == b"last"
        relay.advance(2, 0.05)
        assert stopping.called
