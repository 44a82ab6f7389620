"""Senders: which relay, whose token, what the listener may see of it, and how refusals look."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from lxml import etree

from tests.gateway.harness import HOST, KEY, UPGRADE, Dialled, Gateway, gateway

ANONYMOUS = [{"path": "open", "requires_client_authorization": False}, {"path": "closed"}]


@pytest.fixture
def relay() -> Iterator[Gateway]:
    with gateway(relays=ANONYMOUS) as made:
        yield made


# -- which relay


def test_the_longest_prefix_on_whole_segments_wins() -> None:
    with gateway() as relay:
        listeners = {path: relay.listener(path) for path in ("orders", "orders/new", "orders/new/big")}
        sender = relay.sender()
        for target, path in {
            "/orders": "orders",
            "/orders/": "orders",
            "/ORDERS/newer": "orders",
            "/orders/new": "orders/new",
            "/Orders/N%65w/x?y=/orders/new/big": "orders/new",
            "/orders/new/big/er": "orders/new/big",
        }.items():
            sender.ask(target)
            assert listeners[path].request["requestTarget"] == target
            listeners[path].respond(path.encode())
            assert sender.answer.body == path.encode()
        for target in ("/order", "/ordersnew", "/", "/x/orders", "/?orders", "*"):
            sender.ask(target, "OPTIONS")
            assert sender.answer.status in (400, 404), target
        listeners["orders/new"].leave()
        sender.ask("/orders/new/x")
        assert listeners["orders"].request["requestTarget"] == "/orders/new/x"  # the remembered route is forgotten


@pytest.mark.parametrize(
    "path", ["/orders/../closed", "/orders/%2e%2e/closed", "/a%2fb", "/a%5cb", "/%zz", "/%ff", "/a%00"]
)
def test_malformed_paths_are_400(relay: Gateway, path: str) -> None:
    sender = relay.sender()
    sender.ask(path)
    assert (sender.answer.status, sender.answer.error["code"]) == (400, "BadRequest")
    sender.ask("/closed")
    assert sender.answer.status == 404


@pytest.mark.parametrize("status", [404, 502])
def test_a_known_relay_without_listeners(status: int) -> None:
    with gateway(relays=ANONYMOUS, gateway__relays__no_listener_status=status) as relay:
        sender = relay.sender()
        sender.ask("/closed/x")
        assert sender.answer.status == status
        assert sender.answer.error["code"] == {404: "EndpointNotFound", 502: "BadGateway"}[status]
        assert sender.answer.error["message"].startswith("There are no listeners connected for the endpoint.")
        sender.ask("/unknown")
        assert sender.answer.status == 404
        assert sender.answer.error["message"].startswith("Endpoint does not exist.")
        assert not sender.lost


def test_a_dynamic_relay_is_unknown_when_its_last_listener_is_gone() -> None:
    with gateway(gateway__relays__no_listener_status=502) as relay:
        relay.listener().leave()
        sender = relay.sender()
        sender.ask()
        assert sender.answer.status == 404


# -- tokens


def ask(relay: Gateway, target: str, headers: list[tuple[str, str]], listener: Dialled | None = None) -> Any:
    """What the listener saw of a request, or the status and code of its refusal."""
    sender = relay.sender()
    sender.ask(target, headers=headers, token=None)
    if sender.answers:
        return sender.answer.status, sender.answer.error["code"]
    assert listener is not None
    request = listener.request
    listener.respond(b"")
    assert sender.answer.status == 200
    return request["requestTarget"], {k: v for k, v in request["requestHeaders"].items() if k != "Via"}


@pytest.mark.parametrize("path", ["open", "closed"])
@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("with_header", [None, "ServiceBusAuthorization", "servicebusauthorization"])
@pytest.mark.parametrize("with_query", [True, False])
@pytest.mark.parametrize("with_authorization", [True, False])
def test_where_the_token_may_be_and_what_is_stripped(
    relay: Gateway, path: str, good: bool, with_header: str | None, with_query: bool, with_authorization: bool
) -> None:
    """The first of query, relay header, Authorization counts; the first two never reach the listener (§6)."""
    listener = relay.listener(path)
    token, other = relay.token(path if good else "elsewhere", rule="send"), "Basic other"
    target, headers = f"/{path}/x?a=1", []
    if with_query:
        target += f"&sb-hc-token={quote(token, safe='')}&b=2"
    if with_header:
        headers.append((with_header, other if with_query else token))
    authorization = other if with_query or with_header else token
    if with_authorization:
        headers.append(("Authorization", authorization))
    seen = ask(relay, target, headers, listener)
    if path == "closed" and not (good and (with_query or with_header or with_authorization)):
        assert seen == (401, "TokenMissingOrInvalid")
        return
    hidden = path == "closed" and not with_query and not with_header
    assert seen == (
        f"/{path}/x?a=1{'&b=2' if with_query else ''}",
        {"Authorization": authorization} if with_authorization and not hidden else {},
    )


TOKENS: dict[str, tuple[Any, Any]] = {
    "garbage": (lambda relay: "x", 401),
    "empty": (lambda relay: "", 401),
    "wrong key": (lambda relay: relay.token(key="x" * 44), 401),
    "unknown rule": (lambda relay: relay.token(rule="nobody"), 401),
    "expired": (lambda relay: relay.token(lifetime=-301), 401),
    "in the grace": (lambda relay: relay.token(lifetime=-299), 200),
    "another path": (lambda relay: relay.token("elsewhere"), 401),
    "the beginning of a segment": (lambda relay: relay.token("clo"), 401),
    "below the target": (lambda relay: relay.token("closed/x/y"), 401),
    "beside the target": (lambda relay: relay.token("closed/y"), 401),
    "the target": (lambda relay: relay.token("closed/x"), 200),
    "the relay": (lambda relay: relay.token("closed"), 200),
    "the namespace": (lambda relay: relay.token(), 200),
    "only Listen": (lambda relay: relay.token(rule="listen"), 403),
    "only Send": (lambda relay: relay.token(rule="send"), 200),
}


@pytest.mark.parametrize(("make", "status"), TOKENS.values(), ids=TOKENS)
def test_tokens(relay: Gateway, make: Any, status: int) -> None:
    listener, token = relay.listener("closed"), make(relay)
    headers = [("ServiceBusAuthorization", token)]
    for _ in range(2):  # also from the memory of good tokens
        seen = ask(relay, "/closed/x", headers, listener)
        assert seen == (("/closed/x", {}) if status == 200 else (status, seen[1]))
        if status != 200:
            assert seen[1] == ("Forbidden" if status == 403 else "TokenMissingOrInvalid")
            answer = relay.clients[-1].received.decode("latin-1")
            assert not token or (token not in answer and "sig=" not in answer)


def test_a_token_for_a_part_of_a_relay_is_good_for_that_part_only(relay: Gateway) -> None:
    listener, token = relay.listener("closed"), [("Authorization", relay.token("closed/x"))]
    for _ in range(2):
        assert ask(relay, "/closed/x", token, listener) == ("/closed/x", {})
        assert ask(relay, "/closed/x/y", token, listener) == ("/closed/x/y", {})
        assert ask(relay, "/closed", token) == (401, "TokenMissingOrInvalid")
        assert ask(relay, "/closed/xy", token) == (401, "TokenMissingOrInvalid")


def test_a_good_token_ends_also_when_it_is_remembered(relay: Gateway) -> None:
    listener = relay.listener("closed")
    token = [("Authorization", relay.token(lifetime=10))]
    assert ask(relay, "/closed", token, listener) == ("/closed", {})
    relay.advance(309)
    assert ask(relay, "/closed", token, listener) == ("/closed", {})
    relay.advance(2)
    assert ask(relay, "/closed", token) == (401, "TokenMissingOrInvalid")


def test_rules_hold_for_their_entity_and_what_is_below() -> None:
    rules = [
        {"name": "all", "rights": ["Listen", "Send"], "primary_key": KEY},
        {"name": "own", "rights": ["Send"], "primary_key": "k" * 44, "path": "a/b"},
    ]
    with gateway(relays=[{"path": "a"}, {"path": "a/b"}], rules=rules) as relay:
        listeners = {path: relay.listener(path, token=relay.token(rule="all")) for path in ("a", "a/b", "a/b/c")}
        own = {path: [("Authorization", relay.token(path, "own", key="k" * 44))] for path in ("", "a", "a/b", "a/b/c")}
        for path in ("a/b", "a/b/c"):
            for token in ("", "a", "a/b"):
                assert ask(relay, f"/{path}/x", own[token], listeners[path]) == (f"/{path}/x", {})
        assert ask(relay, "/a/b/x", own["a/b/c"]) == (401, "TokenMissingOrInvalid")
        for token in own:
            assert ask(relay, "/a/x", own[token]) == (401, "TokenMissingOrInvalid")


def test_hosts_of_the_namespace() -> None:
    for hosts, good in (([HOST], True), (["other.test"], False)):
        with gateway(gateway__hosts=hosts, relays=ANONYMOUS) as relay:
            listener = relay.listener("closed")
            assert (listener.status == 101) is good


def test_a_dynamic_relay_needs_tokens_also_below_an_open_one(relay: Gateway) -> None:
    relay.listener("open")
    below = relay.listener("open/below")
    assert ask(relay, "/open/below", []) == (401, "TokenMissingOrInvalid")
    assert ask(relay, "/open/below", [("Authorization", relay.token())], below) == ("/open/below", {})


@pytest.mark.parametrize(
    ("query", "rest"),
    [
        ("", ""),
        ("?", "?"),
        ("?sb-hc-id=5", ""),
        ("?sb-hc-id=5&a=%41+b&&c", "?a=%41+b&&c"),
        ("?a&sb-hc-action=request&b;c=d&sb-hc-x", "?a&b;c=d"),
        ("?a=sb-hc-token", "?a=sb-hc-token"),
        ("?xsb-hc-id=1", "?xsb-hc-id=1"),
        ("?a=1&Sb-Hc-Id=5", "?a=1"),
        ("?%73b-hc-id=5&a", "?a"),
    ],
)
def test_the_target_that_the_listener_sees(relay: Gateway, query: str, rest: str) -> None:
    listener = relay.listener("open")
    assert ask(relay, f"/Open/%41{query}", [], listener)[0] == f"/Open/%41{rest}"


def test_a_token_in_the_query_may_be_form_encoded(relay: Gateway) -> None:
    listener = relay.listener("closed")
    target = f"/closed?sb-hc-token={quote_plus(relay.token())}"
    assert ask(relay, target, [], listener) == ("/closed", {})


# -- refusals

SUFFIX = re.compile(
    r" TrackingId:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}_G0, SystemTracker:(\S+), "
    r"Timestamp:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d$"
)


@pytest.mark.parametrize(
    ("target", "tracker"), [("/unknown", "NoSystemTracker"), ("/closed/x?a=1", f"sb://{HOST}/closed"), ("/%zz", None)]
)
def test_a_refusal_is_json_with_a_tracking_id_and_without_via(relay: Gateway, target: str, tracker: str | None) -> None:
    sender = relay.sender()
    sender.ask(target, token=None)
    answer = sender.answer
    assert answer.header("content-type") == "application/json" and answer.header("via") is None
    assert answer.reason == answer.error["message"]
    found = SUFFIX.search(answer.error["message"])
    assert found and found[2] == (tracker or "NoSystemTracker")


@pytest.mark.parametrize(
    ("headers", "namespace", "code"),
    [
        ([("Content-Type", "text/xml"), ("SOAPAction", '""')], "http://schemas.xmlsoap.org/soap/envelope/", "Client"),
        ([("Content-Type", 'application/soap+xml; action="x"')], "http://www.w3.org/2003/05/soap-envelope", "Sender"),
    ],
)
def test_a_refusal_of_a_soap_call_is_a_fault(
    relay: Gateway, headers: list[tuple[str, str]], namespace: str, code: str
) -> None:
    sender = relay.sender()
    sender.ask("/closed", "POST", headers=headers, body=b"<x/>", token=None)
    assert sender.answer.status == 401
    envelope = etree.fromstring(sender.answer.body)
    assert envelope.tag == f"{{{namespace}}}Envelope" and f"s:{code}".encode() in sender.answer.body
    assert b"TokenMissingOrInvalid" in sender.answer.body


def test_a_head_is_refused_without_a_body(relay: Gateway) -> None:
    sender = relay.sender()
    sender.ask("/unknown", "HEAD")
    assert sender.answer.status == 404 and sender.received.endswith(b"\r\n\r\n")


def test_a_refused_upload_is_answered_before_it_is_read(relay: Gateway) -> None:
    sender = relay.sender()
    sender.head("/closed", token=None, length=10_000_000, headers=[("Expect", "100-continue")])
    assert sender.answer.status == 401 and b"100 Continue" not in sender.received
    assert sender.answer.header("connection") == "close"


def test_tracking_ids_are_unique_guids(relay: Gateway) -> None:
    sender = relay.sender()
    for _ in range(300):
        sender.ask("/unknown")
    ids = {answer.error["message"].partition("TrackingId:")[2].partition(",")[0] for answer in sender.answers}
    assert len(ids) == 300


def test_http_1_0(relay: Gateway) -> None:
    listener = relay.listener("open")
    sender = relay.sender()
    sender.ask("/open", version="1.0")
    listener.respond(b"old")
    assert sender.answer.body == b"old" and sender.lost
    sender = relay.sender()
    sender.send(b"POST /open HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
    assert "origin" not in listener.request
    listener.respond(b"older")
    assert sender.received.endswith(b"older")


def test_via_names_this_relay_also_when_the_request_names_no_host(relay: Gateway) -> None:
    listener, sender = relay.listener("open"), relay.sender()
    sender.send(b"GET /open HTTP/1.0\r\n\r\n")
    assert re.fullmatch(r"1\.1 \S+", listener.request["requestHeaders"]["Via"])
    listener.respond(b"")


# -- what a sender can make the gateway keep


@pytest.mark.parametrize("target", ["/unknown", "/closed"])
def test_a_sender_that_asks_much_and_reads_nothing_is_not_served_for_ever(relay: Gateway, target: str) -> None:
    listener, sender = relay.listener("closed"), relay.sender()
    sender.end.pause_reading()
    for _ in range(60):
        sender.ask(f"{target}?{'x' * 4000}")
        for request in listener.requests:
            listener.respond(b"y" * 20_000, request=request)
        listener.messages.clear()
        sender.send(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 100)
    assert len(sender.server_end.waiting) < 200_000


def test_long_header_names_are_not_remembered(relay: Gateway) -> None:
    for number in range(20):
        sender = relay.sender()
        sender.ask("/unknown", headers=[("x" * 50_000 + str(number), "1")])
    assert sum(map(len, relay.node._fronts[0].names)) < 20_000


WITH_BODY = {"length": "Content-Length: 5\r\n\r\nhello", "chunks": "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"}


@pytest.mark.parametrize("rest", WITH_BODY.values(), ids=WITH_BODY)
@pytest.mark.parametrize(("target", "status"), [("/open", 200), ("/unknown", 404), ("/$hc/a?sb-hc-action=listen", 400)])
def test_a_get_with_upgrade_and_a_body_is_answered(relay: Gateway, target: str, status: int, rest: str) -> None:
    listener, sender = relay.listener("open"), relay.sender()
    sender.send(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}{rest}".encode())
    if listener.requests:
        place = listener if "method" in listener.request else listener.dial()
        place.respond(b"")
    assert [answer.status for answer in sender.answers] == [status]


@pytest.mark.parametrize("target", ["/open", "/unknown"])
def test_an_upgrade_that_nobody_wants_is_an_ordinary_request(relay: Gateway, target: str) -> None:
    listener, sender = relay.listener("open"), relay.sender()
    sender.send(
        f"GET /open/1 HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET {target} HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}\r\n".encode()
    )
    listener.respond(b"1")
    if target == "/open":
        assert "Upgrade" not in listener.request["requestHeaders"]
        listener.respond(b"2")
    assert [answer.status for answer in sender.answers] == [200, 200 if target == "/open" else 404]


@pytest.mark.parametrize("behind", ["", "\r\n", "garbage", "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"])
@pytest.mark.parametrize("close", [True, False])
def test_what_stands_behind_a_request_does_not_hide_it(relay: Gateway, close: bool, behind: str) -> None:
    sender = relay.sender()
    connection = "Connection: close\r\n" if close else ""
    sender.send(f"POST /unknown HTTP/1.1\r\nHost: {HOST}\r\n{connection}Content-Length: 2\r\n\r\nhi{behind}".encode())
    assert sender.received and (sender.lost or not close)


def test_slow_senders_of_many_uploads_are_not_cut(relay: Gateway) -> None:
    """What a blocked connection holds of the next request is not what is thrown away behind an early answer."""
    listener, sender = relay.listener("open"), relay.sender()
    for _ in range(25):
        sender.end.pause_reading()
        sender.ask("/open", token=None)
        listener.respond(b"x" * 100_000)
        sender.methods.append("POST")
        head = f"POST /open HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 60000\r\n\r\n"
        sender.send(head.encode() + b"y" * 60_000)
        sender.end.resume_reading()
        relay.turn()
        assert listener.messages[-1] == b"y" * 60_000
        listener.respond(b"")
    assert len(sender.answers) == 50 and not sender.lost


@pytest.mark.parametrize("close", [True, False])
def test_a_sender_that_never_reads_its_answer_is_dropped(relay: Gateway, close: bool) -> None:
    listener, sender = relay.listener("open"), relay.sender()
    sender.end.pause_reading()
    sender.ask("/open", headers=[("Connection", "close")] if close else [])
    listener.respond(b"x" * 250_000)
    relay.advance(300)
    assert not relay.node._fronts[0].connections
