"""WebSocket senders through the gateway, in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.gateway.harness import HOST, Dialled, Gateway, gateway
from wcfrelay.net.websocket import BINARY, CONTINUATION, TEXT


@pytest.fixture
def relay() -> Iterator[Gateway]:
    with gateway() as made:
        yield made


def connect(relay: Gateway, target: str = "/$hc/orders", query: str = "", **options: Any) -> Dialled:
    headers = options.pop("headers", [])
    token = options.pop("token", relay.token())
    fields = [("ServiceBusAuthorization", token), *headers] if token else headers
    return Dialled(relay, f"{target}?{query}sb-hc-action=connect", fields)


def accepts(listener: Dialled) -> list[dict[str, Any]]:
    return [m["accept"] for m in listener.messages if isinstance(m, dict) and "accept" in m]


def accept(relay: Gateway, listener: Dialled, suffix: str = "", headers: Any = ()) -> Dialled:
    address = accepts(listener)[-1]["address"]
    assert address.startswith(f"ws://{HOST}/$hc/")
    return Dialled(relay, address.removeprefix(f"ws://{HOST}") + suffix, headers)


def joined(relay: Gateway) -> tuple[Dialled, Dialled]:
    listener = relay.listener()
    sender = connect(relay)
    assert sender.status == 0
    accepted = accept(relay, listener)
    assert (sender.status, accepted.status) == (101, 101)
    return sender, accepted


def test_what_the_listener_is_told(relay: Gateway) -> None:
    listener = relay.listener()
    sender = connect(
        relay,
        "/$hc/orders/sub%20x",
        "x=1&sb-hc-id=mine&",
        headers=[("X-App", "1"), ("Sec-WebSocket-Protocol", "chat, other"), ("Authorization", "own"), ("X-App", "2")],
    )
    (told,) = accepts(listener)
    assert list(told) == ["address", "id", "connectHeaders", "remoteEndpoint"]
    assert told["id"] == "mine"
    path, _, query = told["address"].partition("?")
    assert path == f"ws://{HOST}/$hc/orders/sub%20x"
    assert query.startswith("x=1&sb-hc-action=accept&sb-hc-id=") and "mine" not in query
    headers = told["connectHeaders"]
    assert headers["X-App"] == "1, 2" and headers["Authorization"] == "own" and headers["Host"] == HOST
    assert "ServiceBusAuthorization" not in headers
    assert told["remoteEndpoint"]["address"] == "203.0.113.7"
    accepted = accept(relay, listener, headers=[("Sec-WebSocket-Protocol", "other"), ("X-From", "listener")])
    assert accepted.status == sender.status == 101
    assert sender.answer is not None and accepted.answer is not None
    assert sender.answer.header("sec-websocket-protocol") == "other" == accepted.answer.header("sec-websocket-protocol")
    assert sender.answer.header("x-from") == "listener" and sender.answer.header("user-agent") is None


def test_messages_pass_with_type_and_boundaries(relay: Gateway) -> None:
    sender, accepted = joined(relay)
    frames: list[tuple[int, bytes, bool]] = []
    accepted.frame_received = lambda *frame: frames.append(frame)  # type: ignore[method-assign]
    sender.binary(b"one")
    sender.socket.send(TEXT, b"\xc3", fin=False)
    sender.socket.send(CONTINUATION, b"\xa9", fin=True)
    sender.binary(b"")
    relay.turn()
    assert frames == [
        (BINARY, b"one", True),
        (TEXT, b"\xc3", False),
        (CONTINUATION, b"\xa9", True),
        (BINARY, b"", True),
    ]
    accepted.text(b'{"back":1}')
    assert sender.messages == [{"back": 1}]
    assert relay.stats().active_connections == 1 and relay.stats().bytes_transferred == 15


@pytest.mark.parametrize("who", [0, 1])
def test_close_codes_and_reasons_pass(relay: Gateway, who: int) -> None:
    pair = joined(relay)
    pair[who].socket.close(4321, "enough")
    relay.turn()
    assert pair[1 - who].closed_with == (4321, "enough")
    relay.assert_at_rest()
    assert relay.stats().active_connections == 0 and not relay.node._services.senders


@pytest.mark.parametrize("who", [0, 1])
def test_the_other_side_hears_1001_when_one_vanishes(relay: Gateway, who: int) -> None:
    pair = joined(relay)
    pair[who].leave()
    assert pair[1 - who].closed_with is not None and pair[1 - who].closed_with[0] == 1001
    assert relay.stats().active_connections == 0


@pytest.mark.parametrize("who", [0, 1])
def test_a_side_that_does_not_read_holds_the_other_back(relay: Gateway, who: int) -> None:
    pair = joined(relay)
    slow, fast = pair[who], pair[1 - who]
    slow.socket.pause_reading()
    for _ in range(40):
        fast.socket.send_binary(b"x" * 50_000)
        relay.turn()
    assert not fast.end.other.reading and len(slow.end.other.waiting) < 400_000
    slow.socket.resume_reading()
    relay.turn()
    assert len(slow.messages) == 40


@pytest.mark.parametrize(
    "names", [("sb-hc-statusCode", "sb-hc-statusDescription"), ("statusCode", "statusDescription")]
)
def test_a_listener_rejects_with_status_and_description(relay: Gateway, names: tuple[str, str]) -> None:
    listener = relay.listener()
    sender = connect(relay)
    rejecting = accept(relay, listener, f"&{names[0]}=403&{names[1]}=Not%20you")
    assert rejecting.status == 410
    assert (sender.status, sender.reason) == (403, "Not you")
    relay.assert_at_rest()


def test_an_address_is_good_once_and_for_a_time(relay: Gateway) -> None:
    listener = relay.listener()
    connect(relay)
    assert accept(relay, listener).status == 101
    assert accept(relay, listener).status == 403
    late = connect(relay)
    relay.advance(31)
    assert late.status == 504 and accept(relay, listener).status == 403
    assert relay.links[0].load == 0


def test_a_bad_handshake_of_the_listener_does_not_use_the_address_up(relay: Gateway) -> None:
    listener = relay.listener()
    sender = connect(relay)
    assert accept(relay, listener, headers=[("Sec-WebSocket-Version", "12")]).status == 400
    assert accept(relay, listener).status == sender.status == 101


def test_a_protocol_that_nobody_offered_fails_both(relay: Gateway) -> None:
    listener = relay.listener()
    sender = connect(relay, headers=[("Sec-WebSocket-Protocol", "chat")])
    assert accept(relay, listener, headers=[("Sec-WebSocket-Protocol", "other")]).status == 400
    assert sender.status == 502
    relay.assert_at_rest()


def test_a_sender_that_leaves_is_not_accepted(relay: Gateway) -> None:
    listener = relay.listener()
    sender = connect(relay)
    sender.leave()
    assert accept(relay, listener).status == 403
    relay.assert_at_rest()


def test_another_listener_takes_a_sender_whose_listener_left(relay: Gateway) -> None:
    first = relay.listener()
    sender = connect(relay)
    second = relay.listener()
    first.leave()
    assert accept(relay, second).status == sender.status == 101
    lonely = connect(relay)
    second.leave()
    assert lonely.status == 502


@pytest.mark.parametrize(
    ("target", "token", "status"),
    [("/$hc/orders", "", 401), ("/$hc/orders", "x", 401), ("/$hc/unknown", None, 404), ("/$hc/orders", "late", 401)],
)
def test_senders_that_are_refused(relay: Gateway, target: str, token: str | None, status: int) -> None:
    listener = relay.listener()
    if token == "late":
        token = relay.token(lifetime=-400)
    sender = connect(relay, target, **({} if token is None else {"token": token}))
    assert sender.status == status and not accepts(listener)
    assert relay.node._recorder.unrouted.listener_client_error == 0


def test_without_listener(relay: Gateway) -> None:
    with gateway(relays=[{"path": "quiet"}]) as made:
        assert connect(made, "/$hc/quiet").status == 404


def test_a_token_in_the_query(relay: Gateway) -> None:
    listener = relay.listener()
    token = quote(relay.token(), safe="")
    sender = connect(relay, query=f"sb-hc-token={token}&a=1&", token="")
    assert "sb-hc-token" not in accepts(listener)[0]["address"] and "?a=1&" in accepts(listener)[0]["address"]
    assert accept(relay, listener).status == sender.status == 101
