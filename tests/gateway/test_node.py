"""The composition root: what it loads, opens, publishes, and how it ends."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from tests.gateway.harness import HOST, KEY, Gateway, Sender, gateway
from wcfrelay.gateway.node import ROOT_RULE, GatewayNode
from wcfrelay.sas import Right, Rule, make_token
from wcfrelay.store import RelayRecord
from wcfrelay.store.sqlite import SqliteStore


def stopped(relay: Gateway, seconds: float = 10.0) -> Callable[[], bool]:
    """Begin to stop; tells whether it is done."""
    done: list[Any] = []
    Deferred.fromCoroutine(relay.node.stop(seconds)).addCallback(done.append)
    relay.turn()
    return lambda: bool(done)


# -- what is loaded and published


def test_the_first_start_makes_a_root_rule_and_publishes_it_to_its_owner_only(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gateway__store": "sqlite", "gateway__state": str(tmp_path / "state"), "rules": []}
    texts = []
    for first in (True, False):
        with gateway(**settings) as relay:
            node = relay.node
            assert node.first_start is first and node.connection_string is not None
            text = node.connection_string.format()
            texts.append(text)
            file = tmp_path / "state" / "connection-string"
            assert file.read_text() == text + "\n" and stat.S_IMODE(file.stat().st_mode) == 0o600
            file.chmod(0o644)
            assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
            assert node.connection_string.shared_access_key_name == ROOT_RULE
            token = make_token(f"http://{HOST}/", ROOT_RULE, node.connection_string.shared_access_key, 2_000_000_000)
            assert relay.listener(token=token).status == 101
            relay.run(node.stop(0))
    assert texts[0] == texts[1]


def test_in_memory_nothing_is_written(tmp_path: Path) -> None:
    with gateway(rules=[], gateway__state=str(tmp_path / "state")) as relay:
        assert relay.node.connection_string is not None and relay.node.first_start
        assert not (tmp_path / "state").exists()


def test_with_rules_of_its_own_no_root_rule_is_made() -> None:
    with gateway() as relay:
        assert relay.node.connection_string is None and not relay.node.first_start
        assert relay.run(relay.node._store.rules("")) == []


@pytest.mark.parametrize(
    ("settings", "endpoint"),
    [
        ({}, "http://localhost:1001/"),
        ({"gateway__hosts": ["relay.example", "other"]}, "http://relay.example:1001/"),
        ({"gateway__advertise": "relay.example"}, "http://relay.example:1001/"),
        ({"gateway__advertise": "relay.example:9000"}, "http://relay.example:1001/"),
        ({"gateway__advertise": "[2001:db8::1]:9000"}, "http://[2001:db8::1]:1001/"),
    ],
)
def test_the_endpoint_that_is_published(settings: dict[str, Any], endpoint: str) -> None:
    with gateway(rules=[], **settings) as relay:
        assert relay.node.connection_string is not None
        assert relay.node.connection_string.format().startswith(f"Endpoint={endpoint};")


def test_relays_and_rules_of_the_store_and_of_the_configuration(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "wcfrelay.db")

    async def fill() -> None:
        await store.put_relay(RelayRecord("stored", False, 0, 0, False, 5.0))
        await store.put_relay(RelayRecord("plain", False, 0, 0))
        await store.put_rule("stored", Rule("stored", Right.LISTEN, "s" * 44))
        await store.close()

    relays = [{"path": "Configured", "response_timeout": 7.0}, {"path": "open", "requires_client_authorization": False}]
    rules = [{"name": "own", "rights": ["Listen"], "primary_key": KEY, "path": "configured"}]
    Deferred.fromCoroutine(fill())
    with gateway(
        gateway__store="sqlite",
        gateway__state=str(tmp_path),
        gateway__relays__response_timeout=9.0,
        relays=relays,
        rules=rules,
    ) as relay:
        found = {
            each.path: (each.response_timeout, each.requires_client_authorization, each.dynamic)
            for each in relay.node._relays
        }
        assert found == {
            "stored": (5.0, False, False),
            "plain": (9.0, True, False),
            "configured": (7.0, True, False),
            "open": (9.0, False, False),
        }
        assert relay.listener("configured", token=relay.token(rule="own")).status == 101
        assert relay.listener("stored", token=relay.token(rule="stored", key="s" * 44)).status == 101
        assert relay.listener("plain", token=relay.token(rule="own")).status == 401
        relay.run(relay.node.stop(0))


def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.gateway import harness

    made: list[Any] = []

    class Network(harness._Network):
        async def listen(self, make: Any, host: str, port: int, tls: Any = None) -> Any:
            made.append(self)
            if len(made) == 2:
                raise OSError("cannot listen on 127.0.0.1:9090: Address already in use")
            return await super().listen(make, host, port, tls)

    monkeypatch.setattr(harness, "_Network", Network)
    with pytest.raises(OSError, match="cannot listen"):
        Gateway(gateway__store="sqlite", gateway__state=str(tmp_path))
    assert made[0].closed == 1
    SqliteStore(tmp_path / "wcfrelay.db")._database.close()  # the file is free again


# -- the end


def test_stop_lets_work_finish_and_closes_everybody() -> None:
    with gateway(relays=[{"path": "orders"}]) as relay:
        listener, working, idle, streaming = relay.listener(), relay.sender(), relay.sender(), relay.sender()
        idle.ask("/unknown")
        working.ask()
        streaming.head(length=-1)
        rendezvous = listener.dial()
        done = stopped(relay)
        assert idle.lost and not working.lost and relay.network.closed
        relay.advance(2, 0.05)
        listener.respond(b"done", request=listener.requests[0])
        assert working.answer.body == b"done" and working.answer.header("connection") == "close" and working.lost
        streaming.chunk(b"x")
        streaming.chunk(b"")
        rendezvous.respond(b"done too")
        assert streaming.answer.body == b"done too" and streaming.lost
        relay.advance(1, 0.05)
        assert done() and listener.closed_with == (1001, "the gateway is shutting down")


def test_stop_does_not_wait_for_ever() -> None:
    with gateway(relays=[{"path": "orders"}]) as relay:
        listener, sender = relay.listener(), relay.sender()
        sender.ask()
        done = stopped(relay, 3)
        relay.advance(2.5, 0.05)
        assert not done() and not sender.lost
        relay.advance(1, 0.05)
        assert done() and sender.lost and not sender.answers
        assert listener.closed_with and listener.closed_with[0] == 1001
        assert relay.stats().active_connections == 0


def test_stop_at_once() -> None:
    with gateway() as relay:
        listener, sender = relay.listener(), relay.sender()
        sender.ask()
        assert stopped(relay, 0)()
        assert sender.lost and listener.closed_with and listener.closed_with[0] == 1001


def test_a_connection_in_the_middle_of_a_head_is_not_kept_while_it_stops() -> None:
    with gateway(relays=[{"path": "orders"}]) as relay:
        listener, sender = relay.listener(), relay.sender()
        sender.methods.append("GET")
        sender.send(b"GET /orders HTTP/1.1\r\nHost: x\r\n")
        stopped(relay)
        sender.send(f"ServiceBusAuthorization: {relay.token()}\r\n\r\n".encode())
        listener.respond(b"yes")
        assert sender.answer.body == b"yes" and sender.lost


def test_all_fronts_drain_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatewayNode, "_server_tls", lambda self: object())
    with gateway(gateway__https__enabled=True, relays=[{"path": "orders"}]) as relay:
        relay.listener()
        one, other, idle = relay.sender(), Sender(relay, 1), Sender(relay, 1)
        one.ask()
        other.ask()
        idle.ask("/unknown")
        done = stopped(relay, 3)
        closed = idle.lost
        relay.advance(3.5, 0.05)
        late = not done()
        relay.advance(4, 0.05)
        assert closed and not late and done()


def test_the_admin_port_is_open_while_it_drains() -> None:
    with gateway() as relay:
        relay.listener()
        sender = relay.sender()
        sender.ask()
        done = stopped(relay, 2)
        closed = relay.network.closed
        relay.advance(3, 0.05)
        assert done() and closed == 1


def test_a_listener_that_hangs_is_dropped_at_the_end() -> None:
    with gateway(relays=[{"path": "orders"}]) as relay:
        listener = relay.listener()
        listener.socket.pause_reading()
        done = stopped(relay, 1)
        relay.advance(30, 0.05)
        assert done() and listener.end.lost
