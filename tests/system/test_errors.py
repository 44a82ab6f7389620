"""The relay's errors, each with its status and code, as JSON for plain HTTP and as a fault of the request's SOAP
version (hybrid-connections.md §10 of the specification)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.system.processes import Backend, free_port, listener, refused_listener
from tests.system.senders import (
    CALCULATOR,
    FORMS,
    SOAP11,
    SOAP12,
    Answer,
    Form,
    ask,
    assert_refused,
    call,
    call_in_every_form,
    connected,
    raw,
    request,
    token,
)
from wcfrelay.sas import generate_key, make_token
from wcfrelay.testing import Gateway, relay

pytestmark = pytest.mark.system

_KEYS = {name: generate_key(os.urandom) for name in ("Root", "ListenOnly", "SendOnly", "OfOther")}
_CONFIG = f"""
[[relays]]
path = "quiet"

[[relays]]
path = "other"

[[relays]]
path = "late"
response_timeout = 1.0

[[rules]]
name = "Root"
rights = ["Listen", "Send", "Manage"]
primary_key = "{_KEYS["Root"]}"

[[rules]]
name = "ListenOnly"
rights = ["Listen"]
primary_key = "{_KEYS["ListenOnly"]}"

[[rules]]
name = "SendOnly"
rights = ["Send"]
primary_key = "{_KEYS["SendOnly"]}"

[[rules]]
name = "OfOther"
rights = ["Listen", "Send"]
primary_key = "{_KEYS["OfOther"]}"
path = "other"
"""

FORM = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def strict() -> Iterator[Gateway]:
    """A gateway whose relays and rules are configured."""
    with relay(_CONFIG) as started:
        yield started


@pytest.fixture(scope="module")
def online(strict: Gateway, service: Backend) -> Iterator[None]:
    """A listener at the relay ``svc``."""
    with listener(strict, "expose", service.url, "svc", connection=_connection(strict, "Root")):
        yield


def _connection(gateway: Gateway, rule: str) -> str:
    return f"Endpoint={gateway.http_url}/;SharedAccessKeyName={rule};SharedAccessKey={_KEYS[rule]}"


def _token(path: str, rule: str = "Root", *, key: str = "", seconds: float = 600) -> str:
    return make_token(f"http://127.0.0.1/{path}", rule, key or _KEYS[rule], int(time.time() + seconds))


def _with(value: str) -> dict[str, str]:
    return {"ServiceBusAuthorization": value}


def _tampered(path: str) -> str:
    """A token of another key."""
    return _token(path, key=generate_key(os.urandom))


REFUSED: dict[str, tuple[str, Callable[[str], dict[str, str]], int, str, str]] = {
    # name: path, header fields with the token, status, code, beginning of the text
    "no listener": ("quiet", lambda p: _with(_token(p)), 404, "EndpointNotFound", "There are no listeners"),
    "unknown path": ("nowhere/at/all", lambda p: _with(_token(p)), 404, "EndpointNotFound", "Endpoint does not exist"),
    "no token": ("svc", lambda p: {"X-Other": "1"}, 401, "TokenMissingOrInvalid", "MissingToken"),
    "malformed": ("svc", lambda p: _with("SharedAccessSignature sr=x"), 401, "TokenMissingOrInvalid", "MalformedToken"),
    "no token at all": ("svc", lambda p: _with("Basic dTpw"), 401, "TokenMissingOrInvalid", "MalformedToken"),
    "expired": ("svc", lambda p: _with(_token(p, seconds=-1000)), 401, "TokenMissingOrInvalid", "ExpiredToken"),
    "other key": ("svc", lambda p: _with(_tampered(p)), 401, "TokenMissingOrInvalid", "InvalidSignature"),
    "unknown rule": (
        "svc",
        lambda p: _with(make_token(f"http://127.0.0.1/{p}", "Nobody", _KEYS["Root"], int(time.time() + 600))),
        401,
        "TokenMissingOrInvalid",
        "InvalidSignature",
    ),
    "rule of another relay": (
        "svc",
        lambda p: _with(_token(p, "OfOther")),
        401,
        "TokenMissingOrInvalid",
        "InvalidSignature",
    ),
    "other audience": ("svc", lambda p: _with(_token("other")), 401, "TokenMissingOrInvalid", "InvalidAudience"),
    "audience below": ("svc", lambda p: _with(_token("svc/below")), 401, "TokenMissingOrInvalid", "InvalidAudience"),
    "no right": ("svc", lambda p: _with(_token(p, "ListenOnly")), 403, "Forbidden", "The token is valid but"),
    "in Authorization": (
        "svc",
        lambda p: {"Authorization": _token(p, "ListenOnly")},
        403,
        "Forbidden",
        "The token is valid but",
    ),
}


def _text(answer: Answer) -> str:
    """The error's text, wherever it is."""
    body = answer.body.decode()
    start = body.find("<faultstring") if "<faultstring" in body else body.find("<s:Text")
    return body[body.index(">", start) + 1 :] if start >= 0 else str(answer.json()["error"]["message"])


@FORM
@pytest.mark.parametrize("name", REFUSED)
def test_what_the_gateway_refuses(strict: Gateway, online: None, name: str, form: Form) -> None:
    path, authorization, status, code, opening = REFUSED[name]
    body, fields = request(form)
    with connected(strict) as connection:
        answer = ask(connection, "POST", f"/{path}", body, {**fields, **authorization(path)})
    assert_refused(form, answer, status, code)
    assert _text(answer).startswith(opening)
    assert answer.field("Via") is None  # which tells that no listener has answered
    assert "sig=" not in answer.body.decode() and "sig=" not in answer.reason


def test_a_call_without_a_body_gets_json(strict: Gateway) -> None:
    with connected(strict) as connection:
        assert_refused("plain", ask(connection, "GET", "/nowhere?wsdl"), 404, "EndpointNotFound")


def test_the_good_token_is_good(strict: Gateway, online: None) -> None:
    for rule in ("Root", "SendOnly"):
        assert call(strict, "/svc/echo", b"x", _with(_token("svc", rule))).body == b"x"
    assert call(strict, "/svc/echo", b"x", _with(_token(""))).body == b"x"  # for the whole namespace


def test_a_listener_without_the_right(strict: Gateway, service: Backend) -> None:
    code, said = refused_listener(strict, service.url, "mute", _connection(strict, "SendOnly"))
    assert code == 3
    assert "lacks the right Listen" in said and "TrackingId:" in said
    assert _KEYS["SendOnly"] not in said and "sig=" not in said


@pytest.mark.parametrize(
    ("path", "make", "status", "opening"),
    [
        ("mute", lambda: _token("mute", "SendOnly"), 403, "The token is valid but"),
        ("mute", lambda: _token("mute", seconds=-1000), 401, "ExpiredToken"),
        ("mute", lambda: "", 401, "MissingToken"),
        ("mute", lambda: _token("other"), 401, "InvalidAudience"),
        ("a//b", lambda: _token("a"), 400, "The relay path has an empty segment"),
    ],
)
def test_a_refused_listener_finds_the_reason_in_the_status_line(
    strict: Gateway, path: str, make: Callable[[], str], status: int, opening: str
) -> None:
    """.NET listeners show nothing else (hybrid-connections.md §3)."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    target = f"/$hc/{path}?sb-hc-action=listen&sb-hc-token={quote(make(), safe='')}"
    with connected(strict) as connection:
        answer = ask(connection, "GET", target, None, upgrade)
    assert answer.status == status
    assert answer.reason.startswith(opening) and "TrackingId:" in answer.reason


# -- what happens on the way


def test_a_listener_that_answers_too_late_for_its_relay(strict: Gateway, service: Backend) -> None:
    with listener(strict, "expose", service.url, "late", connection=_connection(strict, "Root")):
        began = time.monotonic()
        answers = call_in_every_form(strict, "/late/slow?seconds=3", _with(_token("late")))
        assert 0.9 < time.monotonic() - began < 4
        for form, answer in answers.items():
            assert_refused(form, answer, 504, "GatewayTimeout")
            assert answer.field("Via") is None
        assert call(strict, "/late/echo", b"fine", _with(_token("late"))).body == b"fine"


def test_a_service_that_answers_too_late_for_its_listener(gateway: Gateway, service: Backend) -> None:
    with listener(gateway, "expose", service.url, "patient", "--response-timeout", "1"):
        began = time.monotonic()
        small = call_in_every_form(gateway, "/patient/slow?seconds=3")
        large = call_in_every_form(gateway, "/patient/slow?seconds=3", {"X-Pad": "x" * 40_000})  # on a rendezvous
        assert 1.8 < time.monotonic() - began < 8
    for form in FORMS:
        assert_refused(form, small[form], 504, "GatewayTimeout")
        assert_refused(form, large[form], 504, "GatewayTimeout")


def test_a_listener_gone_in_the_middle(gateway: Gateway, service: Backend) -> None:
    with listener(gateway, "expose", service.url, "gone") as gone, ThreadPoolExecutor(1) as pool:
        answers = pool.submit(call_in_every_form, gateway, "/gone/slow?seconds=60&why=gone")
        service.wait_until_begun("why=gone", len(FORMS))
        gone.kill()
        for form, answer in answers.result(5).items():
            assert_refused(form, answer, 502, "BadGateway")


def test_a_service_that_is_not_there(gateway: Gateway) -> None:
    with listener(gateway, "expose", f"http://127.0.0.1:{free_port()}/svc", "empty"):
        for form, answer in call_in_every_form(gateway, "/empty").items():
            assert_refused(form, answer, 502, "ServiceUnreachable")


@pytest.mark.usefixtures("hosted")
@pytest.mark.parametrize("form", ["1.1", "1.2"])
@pytest.mark.parametrize(
    ("chunked", "size"),
    [
        (True, 8 * 2**20),
        (False, 20 * 2**20),
    ],
    ids=["chunked", "length"],
)
def test_a_message_over_the_quota_of_the_hosted_service(gateway: Gateway, form: Form, chunked: bool, size: int) -> None:
    """The sender, as many do, looks for an answer only when it has sent everything."""

    def echo(size: int) -> Answer:
        head = f'<s:Envelope xmlns:s="{SOAP11 if form == "1.1" else SOAP12}"><s:Body><Echo xmlns="{CALCULATOR}"><s>'
        body = head.encode() + b"x" * size + b"</s></Echo></s:Body></s:Envelope>"
        pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
        headers = {**request(form)[1], "ServiceBusAuthorization": token(gateway, "hosted/calculator")}
        with connected(gateway) as connection:
            return ask(connection, "POST", "/hosted/calculator", pieces if chunked else body, headers)

    assert_refused(form, echo(size), 413, "MessageSizeExceeded")
    good = echo(6 * 2**20)
    assert good.status == 200 and len(good.body) > 6 * 2**20


# -- requests that are not what they seem


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 5\r\n",
        b"Content-Length: 4, 5\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: -4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length : 4\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"X-Folded: a\r\n b\r\nContent-Length: 4\r\n",
        b" X-Leading: a\r\nContent-Length: 4\r\n",
        b"X-Bare: a\nContent-Length: 4\r\n",
        b"X-Bare: a\rContent-Length: 4\r\n",
        b"X-Nul: a\x00b\r\nContent-Length: 4\r\n",
        b"Host: other\r\nContent-Length: 4\r\n",
        b"No colon\r\nContent-Length: 4\r\n",
    ],
)
def test_an_ambiguous_request_is_refused_and_the_connection_closed(
    strict: Gateway, online: None, service: Backend, fields: bytes
) -> None:
    authorization = b"ServiceBusAuthorization: " + _token("svc").encode() + b"\r\n"
    smuggled = b"POST /svc/slow?seconds=0&why=smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" + authorization
    head = b"POST /svc/echo HTTP/1.1\r\nHost: a\r\n" + authorization + fields + b"\r\n"
    for body in (b"0\r\n\r\n" + smuggled + b"\r\n", b"abcd" + smuggled + b"\r\n"):
        answered = raw(strict, head + body)
        status_lines = [line for line in answered.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert len(status_lines) == 1, answered
        assert status_lines[0].split()[1] in ((b"400", b"501") if b"Encoding" in fields else (b"400",))
        assert b"Connection: close" in answered
    assert not any("smuggled" in line for line in service.process.output)


@pytest.mark.parametrize(
    "target",
    [
        "/svc/../quiet",
        "/svc/./echo",
        "/svc/echo/..",
        "/svc/%2e%2e/quiet",
        "/svc/%2E./echo",
        "/svc/..%2fquiet",
        "/svc%2fecho",
        "/svc/a%5c..%5cb",
        "/svc/%00",
        "/svc/%zz",
        "/../svc/echo",
        "/%2e%2e/svc/echo",
    ],
)
def test_a_path_that_climbs_is_refused(strict: Gateway, online: None, target: str) -> None:
    with connected(strict) as connection:
        answer = ask(connection, "POST", target, b"x", _with(_token("")))
    assert_refused("plain", answer, 400, "BadRequest")
