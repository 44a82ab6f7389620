"""Handshakes under ``/$hc``: who may register, who may dial, and how long a control channel lives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from tests.gateway.harness import HOST, KEY, UPGRADE, Dialled, Gateway, gateway
from wcfrelay.sas import make_token

EXPIRED = -301


@pytest.fixture
def relay() -> Iterator[Gateway]:
    with gateway() as made:
        yield made


def refusal(dialled: Dialled) -> tuple[int, str]:
    assert dialled.answer is not None
    body = dialled.received.partition(b"\r\n\r\n")[2]
    error = json.loads(body)["error"]
    assert dialled.reason == error["message"]  # .NET clients show the reason phrase (§3)
    assert " TrackingId:" in dialled.reason and ", Timestamp:" in dialled.reason
    return dialled.status, error["code"]


# -- registering


@pytest.mark.parametrize("path", ["orders", "Orders/New", "a/b/c", "%C3%BC", "orders/"])
def test_a_listener_brings_its_relay_into_being_and_takes_it_along(relay: Gateway, path: str) -> None:
    listener = Dialled(relay, f"/$hc/{path}?sb-hc-action=listen", [("ServiceBusAuthorization", relay.token())])
    assert listener.status == 101 and len(relay.node._relays) == 1
    listener.hang_up()
    assert listener.closed_with == (1000, "") and len(relay.node._relays) == 0


def test_the_relay_stays_for_the_other_listeners(relay: Gateway) -> None:
    listeners = [relay.listener() for _ in range(3)]
    for listener in listeners[:2]:
        listener.leave()
        assert relay.relay() is not None
    listeners[2].leave()
    assert relay.relay() is None
    assert relay.stats().listener_success == relay.stats().listener_disconnects == 3


def test_a_configured_relay_stays() -> None:
    with gateway(relays=[{"path": "orders"}], gateway__relays__dynamic=False) as relay:
        relay.listener().leave()
        assert relay.relay() is not None and not relay.relay().listeners  # type: ignore[union-attr]
        assert relay.listener("orders").status == 101
        refused = relay.listener("other")
        assert refusal(refused) == (404, "EndpointNotFound") and refused.reason.startswith("Endpoint does not exist.")
        assert refusal(relay.listener("orders/below")) == (404, "EndpointNotFound")


PLACES = {
    "query": lambda token: (f"&sb-hc-token={quote(token, safe='')}", []),
    "query with plus": lambda token: (f"&sb-hc-token={quote_plus(token)}", []),
    "query in capitals": lambda token: (f"&SB-HC-TOKEN={quote(token, safe='')}", []),
    "relay header": lambda token: ("", [("servicebusAUTHORIZATION", token)]),
    "Authorization": lambda token: ("", [("Authorization", token)]),
    "WRAP": lambda token: ("", [("Authorization", f'WRAP access_token="{quote(token, safe="")}"')]),
    "relay header first": lambda token: ("", [("ServiceBusAuthorization", token), ("Authorization", "x")]),
    "query first": lambda token: (f"&sb-hc-token={quote(token, safe='')}", [("ServiceBusAuthorization", "x")]),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_where_the_token_may_be(relay: Gateway, place: Any) -> None:
    query, headers = place(relay.token())
    assert relay.listener(token=None, headers=headers, query=query).status == 101
    query, headers = place(relay.token(lifetime=EXPIRED))
    assert refusal(relay.listener(token=None, headers=headers, query=query)) == (401, "TokenMissingOrInvalid")


TOKENS: dict[str, tuple[Any, int, str]] = {
    "none": (lambda relay: None, 401, "MissingToken"),
    "garbage": (lambda relay: "garbage", 401, "MalformedToken"),
    "wrong key": (lambda relay: relay.token(key="x" * 44), 401, "InvalidSignature"),
    "unknown rule": (lambda relay: relay.token(rule="nobody"), 401, "InvalidSignature"),
    "expired": (lambda relay: relay.token(lifetime=EXPIRED), 401, "ExpiredToken"),
    "another path": (lambda relay: relay.token("billing"), 401, "InvalidAudience"),
    "a path below": (lambda relay: relay.token("orders/new"), 401, "InvalidAudience"),
    "the beginning of a segment": (lambda relay: relay.token("ord"), 401, "InvalidAudience"),
    "only Send": (lambda relay: relay.token(rule="send"), 403, "The token is valid but its rule 'send' lacks"),
    "only Listen": (lambda relay: relay.token(rule="listen"), 101, ""),
    "this path": (lambda relay: relay.token("Orders"), 101, ""),
    "in the grace": (lambda relay: relay.token(lifetime=EXPIRED + 2), 101, ""),
}


@pytest.mark.parametrize(("make", "status", "text"), TOKENS.values(), ids=TOKENS)
def test_tokens(relay: Gateway, make: Any, status: int, text: str) -> None:
    token = make(relay)
    listener = relay.listener(token=token)
    assert listener.status == status
    if status != 101:
        assert refusal(listener)[1] == ("Forbidden" if status == 403 else "TokenMissingOrInvalid")
        assert listener.reason.startswith(text)
        assert token is None or token not in listener.received.decode("latin-1")
        assert len(relay.node._relays) == 0
        assert relay.node._recorder.unrouted.listener_client_error == 1


def test_the_rule_of_another_relay_cannot_listen_here() -> None:
    rules = [{"name": "own", "rights": ["Listen"], "primary_key": KEY, "path": "billing"}]
    with gateway(relays=[{"path": "billing"}], rules=rules) as relay:
        for path in ("", "orders"):
            assert refusal(relay.listener(token=relay.token(path, rule="own")))[0] == 401
        assert relay.listener("billing", token=relay.token(rule="own")).status == 101
        assert relay.listener("billing/new", token=relay.token("billing", rule="own")).status == 101


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/$hc/orders", 400),
        ("/$hc/orders?sb-hc-action=", 400),
        ("/$hc/orders?sb-hc-action=dance", 400),
        ("/$hc/orders?sb-hc-action=connect", 404),
        ("/$hc/orders?sb-hc-action=accept&sb-hc-id=x", 403),
        ("/$hc/orders?sb-hc-action=request", 403),
        ("/$hc/orders?sb-hc-action=request&sb-hc-id=unknown", 403),
        ("/$hc/orders?sb-hc-action=listen&sb-hc-statusCode=200", 400),
        ("/$hc?sb-hc-action=listen", 400),
        ("/$hc/?sb-hc-action=listen", 400),
        ("/$hc/a//b?sb-hc-action=listen", 400),
        ("/$hc/a/../b?sb-hc-action=listen", 400),
        ("/$hc/a%2fb?sb-hc-action=listen", 400),
        ("/$hc/a%00b?sb-hc-action=listen", 400),
        ("/$hc/%zz?sb-hc-action=listen", 400),
        ("/$hc/%ff?sb-hc-action=listen", 400),
        ("/$hc/%ff?sb-hc-action=request&sb-hc-id=x", 400),
        ("/$hc/$hc/x?sb-hc-action=listen", 400),
        ("/$hc/" + "x" * 261 + "?sb-hc-action=listen", 400),
    ],
)
def test_addresses_that_are_refused(relay: Gateway, target: str, status: int) -> None:
    token = [("ServiceBusAuthorization", relay.token())]
    assert refusal(Dialled(relay, target, token))[0] == status


@pytest.mark.parametrize("status", ["04001", "0599" + "9" * 5000])
def test_the_status_of_a_rejection_is_three_digits(relay: Gateway, status: str) -> None:
    assert refusal(Dialled(relay, f"/$hc/orders?sb-hc-action=request&sb-hc-id=x&sb-hc-statusCode={status}"))[0] == 400


def test_what_is_no_websocket(relay: Gateway) -> None:
    sender = relay.sender()
    for target in ("/$hc/orders", "/$hc/orders?sb-hc-action=listen"):
        sender.ask(target)
        assert sender.answer.status == 400 and "WebSocket" in sender.answer.error["message"]
    assert not sender.lost


@pytest.mark.parametrize(
    "headers",
    [[("Sec-WebSocket-Version", "12")], [("Sec-WebSocket-Key", "second")], [("Sec-WebSocket-Protocol", "a b")]],
)
def test_a_bad_handshake_registers_nobody(relay: Gateway, headers: list[tuple[str, str]]) -> None:
    assert relay.listener(headers=headers).status == 400
    assert not relay.node._store._registrations  # type: ignore[attr-defined]


def test_only_a_get_opens_a_websocket(relay: Gateway) -> None:
    sender = relay.sender()
    token = relay.token()
    sender.send(
        f"POST /$hc/orders?sb-hc-action=listen HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}"
        f"ServiceBusAuthorization: {token}\r\n\r\n".encode()
    )
    assert b" 101 " not in sender.received


def test_the_first_subprotocol_offered_is_accepted(relay: Gateway) -> None:
    listener = relay.listener(headers=[("Sec-WebSocket-Protocol", "wcfrelay, other")])
    assert listener.answer is not None and listener.answer.header("sec-websocket-protocol") == "wcfrelay"


def test_the_id_of_a_listener_is_its_own_choice(relay: Gateway) -> None:
    relay.listener(query="&sb-hc-id=11111111-2222")
    relay.listener()
    one, other = (link.id for link in relay.links)
    assert one == "11111111-2222" and other.endswith("_G0")
    relay.listener(query="&sb-hc-id=11111111-2222")  # a reconnect may be faster than the end of the old one
    assert len(relay.links) == 3


# -- quotas


def test_the_26th_listener_is_refused_and_may_come_when_one_left(relay: Gateway) -> None:
    listeners = [relay.listener() for _ in range(25)]
    assert {listener.status for listener in listeners} == {101}
    refused = relay.listener()
    assert refusal(refused) == (403, "QuotaExceeded") and refused.reason.startswith("MaximumListenersPerEndpoint")
    assert relay.listener("other").status == 101
    listeners[7].leave()
    assert relay.listener().status == 101


def test_the_number_of_relays() -> None:
    with gateway(gateway__limits__relays=2) as relay:
        first = relay.listener("a")
        relay.listener("b")
        assert relay.listener("c").status == 403 and relay.listener("a").status == 101
        for link in list(first.gateway.relay("a").listeners):  # type: ignore[union-attr]
            link.close(1001, "")
        relay.turn()
        assert relay.listener("c").status == 101


def test_a_store_that_fails_is_500(monkeypatch: pytest.MonkeyPatch) -> None:
    with gateway(failures=1) as relay:

        async def fail(*args: Any, **options: Any) -> int:
            raise OSError("the disk is full")

        monkeypatch.setattr(relay.node._store, "register", fail)
        refused = relay.listener()
        assert refusal(refused) == (500, "InternalServerError") and "disk" not in refused.reason
        assert relay.node._recorder.unrouted.listener_server_error == 1
        assert relay.sender().lost is False


def test_a_listener_that_leaves_before_it_is_registered(relay: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    register = relay.node._store.register

    async def slow(*args: Any, **options: Any) -> int:
        await relay.network.sleep(1)
        return await register(*args, **options)

    monkeypatch.setattr(relay.node._store, "register", slow)
    hasty = Dialled(relay, "/$hc/orders?sb-hc-action=listen", [("ServiceBusAuthorization", relay.token())])
    patient = Dialled(relay, "/$hc/orders?sb-hc-action=listen", [("ServiceBusAuthorization", relay.token())])
    assert (hasty.status, patient.status) == (0, 0)
    hasty.leave()
    relay.advance(1.5)
    assert patient.status == 101 and len(relay.relay().listeners) == 1  # type: ignore[union-attr]
    assert len(relay.run(relay.node._store.registrations("orders"))) == 1


@pytest.mark.parametrize("late", [False, True])
def test_frames_behind_the_handshake_are_not_lost(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    with gateway() as relay:
        register = relay.node._store.register

        async def slow(*args: Any, **options: Any) -> int:
            await relay.network.sleep(1)
            return await register(*args, **options)

        if late:
            monkeypatch.setattr(relay.node._store, "register", slow)
        listener = Dialled(
            relay,
            "/$hc/orders?sb-hc-action=listen",
            [("ServiceBusAuthorization", relay.token())],
            tail=b"\x81\x80abcd",  # an empty text message: no JSON
        )
        relay.advance(2)
        assert listener.closed_with and listener.closed_with[0] == 1002


# -- rendezvous


def test_an_address_is_good_once(relay: Gateway) -> None:
    listener, sender, small = relay.listener(), relay.sender(), relay.sender()
    sender.head(length=-1)
    small.ask()
    for request in listener.requests:
        assert listener.dial(request).status == 101
        again = listener.dial(request)
        assert refusal(again) == (403, "Forbidden")
        assert again.reason.startswith("The rendezvous address is not known here, was used already, or has expired.")


def test_the_address_of_an_answered_request_is_no_good(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    listener.respond(b"")
    assert listener.dial().status == 403


def test_an_address_without_its_path_or_of_another_relay_is_no_good(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    relay.listener("other")
    sender.ask()
    request = listener.request
    for path in ("other", "nothing", "", "orders/below"):
        target = f"/$hc/{path}?sb-hc-action=request&sb-hc-id={request['id']}"
        assert Dialled(relay, target).status in (400, 403)
    assert listener.dial().status == 101


def test_the_advertised_address() -> None:
    with gateway(gateway__advertise="relay.example:8443") as relay:
        listener, sender = relay.listener("a%20b%20c"), relay.sender()
        sender.ask("/a%20b%20c/x")
        assert listener.request["address"].startswith(
            "ws://relay.example:8443/$hc/a%20b%20c?sb-hc-action=request&sb-hc-id="
        )


# -- tokens in time


def test_a_control_channel_ends_with_its_token_and_the_grace(relay: Gateway) -> None:
    listener = relay.listener(token=relay.token(lifetime=60))
    relay.advance(359)
    assert listener.closed_with is None
    relay.advance(1.5)
    assert listener.closed_with == (1008, "the token has expired") and relay.relay() is None


@pytest.mark.parametrize("grace", [0.0, 5.0])
def test_the_grace_is_configured(grace: float) -> None:
    with gateway(gateway__limits__token_grace=grace) as relay:
        listener = relay.listener(token=relay.token(lifetime=60))
        relay.advance(59.5 + grace)
        assert listener.closed_with is None
        relay.advance(1.5)
        assert listener.closed_with and listener.closed_with[0] == 1008


def test_a_renewed_token_keeps_the_channel(relay: Gateway) -> None:
    listener = relay.listener(token=relay.token(lifetime=60))
    for _ in range(3):
        relay.advance(50)
        listener.text({"renewToken": {"token": relay.token(lifetime=60), "tomorrow": 1}})
    relay.advance(355)
    sender = relay.sender()
    sender.ask()
    listener.respond(b"still here")
    assert sender.answer.body == b"still here"
    relay.advance(6)
    assert listener.closed_with and listener.closed_with[0] == 1008


@pytest.mark.parametrize("shorter", [True, False])
def test_the_last_token_counts(relay: Gateway, shorter: bool) -> None:
    listener = relay.listener(token=relay.token(lifetime=600))
    listener.text({"renewToken": {"token": relay.token(lifetime=60 if shorter else 900)}})
    relay.advance(370)
    assert (listener.closed_with is not None) is shorter


@pytest.mark.parametrize(
    "make",
    [make for name, (make, status, _) in TOKENS.items() if status != 101 and name != "none"],
    ids=[name for name, (_, status, _) in TOKENS.items() if status != 101 and name != "none"],
)
def test_a_renewed_token_that_is_no_good_changes_nothing(relay: Gateway, make: Any) -> None:
    listener = relay.listener(token=relay.token(lifetime=60))
    listener.text({"renewToken": {"token": make(relay)}})
    relay.advance(355)
    assert listener.closed_with is None
    relay.advance(6)
    assert listener.closed_with and listener.closed_with[0] == 1008


def test_a_renewal_between_a_response_and_its_body_does_no_harm(relay: Gateway) -> None:
    listener, sender = relay.listener(token=relay.token(lifetime=60)), relay.sender()
    sender.ask()
    listener.start()
    listener.text({"renewToken": {"token": relay.token(lifetime=900)}})
    listener.binary(b"ok")
    assert sender.answer.body == b"ok"
    relay.advance(400)
    assert listener.closed_with is None


def test_a_token_that_never_ends(relay: Gateway) -> None:
    token = make_token(f"http://{HOST}/", "root", KEY, 10**15 - 1)
    listener = relay.listener(token=token)
    relay.advance(100_000)
    assert listener.closed_with is None


# -- signs of life


@pytest.mark.parametrize("alive", [True, False])
def test_a_silent_listener_is_given_up(alive: bool) -> None:
    with gateway(gateway__limits__ping_interval=30.0, gateway__limits__ping_timeout=15.0) as relay:
        listener, sender = relay.listener(), relay.sender()
        sender.ask()
        if not alive:
            listener.end.other.pause_reading()  # what it says does not come through
        relay.advance(50 if alive else 80)
        assert (relay.relay() is not None) is alive
        if not alive:
            assert sender.answer.status in (502, 504)
            listener.end.other.resume_reading()


def test_a_listener_that_pings_gets_its_pongs_while_it_works(relay: Gateway) -> None:
    listener, sender = relay.listener(), relay.sender()
    sender.ask()
    listener.socket.keep_alive(10, 5)
    relay.advance(50)
    assert listener.closed_with is None
    listener.respond(b"")
    assert sender.answer.status == 200
