from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wcfrelay.errors import ProtocolError
from wcfrelay.wire.hybrid import (
    Accept,
    Command,
    RemoteEndpoint,
    RenewToken,
    Request,
    Response,
    decode_command,
    encode_command,
    joined_headers,
    listed_headers,
    parse_target,
    rendezvous_query,
    request_headers,
    strip_relay_query,
)

PER_CONNECTION = ["Connection", "Content-Length", "Host", "TE", "Trailer", "Transfer-Encoding", "Upgrade", "Close"]
"""What the specification removes (§7)."""
TOKEN = "SharedAccessSignature sr=http%3a%2f%2fh%2f&sig=a%2bb%2f%3d&se=1&skn=k"

# -- targets

written = st.text("abZ09-._~!*'()%+=;:@/?,", max_size=8)
foreign = written.filter(lambda member: not unquote(member.partition("=")[0]).lower().startswith("sb-hc-"))
ours = st.sampled_from(
    ["sb-hc-id=1", "sb-hc-action=connect", "SB-HC-ID=2", "sb-hc-", "Sb-Hc-New=x", "sb-hc-id", "%73b-hc-id=3&sb-hc-x"]
)


@given(st.lists(st.tuples(st.booleans(), foreign, ours), min_size=1, max_size=6), st.sampled_from(["/", "/a/B%2f"]))
def test_only_our_members_are_taken_out_of_a_query(members: list[tuple[bool, str, str]], path: str) -> None:
    query = "&".join(ours if is_ours else other for is_ours, other, ours in members)
    kept = [other for is_ours, other, _ in members if not is_ours]
    target, token = strip_relay_query(f"{path}?{query}")
    assert token is None
    if len(kept) == len(members):
        assert target == f"{path}?{query}"
    else:
        rest = "&".join(kept)
        assert target == (f"{path}?{rest}" if rest else path)
        assert parse_target(f"/$hc{path}?{query.replace('Action', '')}").query == rest
    assert strip_relay_query(target) == (target, None)


@given(st.text("abAB-%&=?/+.sbhc", max_size=30))
def test_without_our_members_a_target_is_returned_as_it_is(text: str) -> None:
    if "sb-hc-" not in text.lower():
        assert strip_relay_query(f"/{text}") == (f"/{text}", None)


@pytest.mark.parametrize("name", ["sb-hc-token", "SB-HC-Token", "%73b-hc-token&sb-hc-x"])
def test_the_token_of_a_query_is_decoded_once(name: str) -> None:
    name, _, more = name.partition("&")
    target, token = strip_relay_query(f"/a?x=1&{name}={quote(TOKEN, safe='')}&y=%2b&{more}")
    assert (target, token) == ("/a?x=1&y=%2b" + ("" if more else "&"), TOKEN)
    assert parse_target(f"/$hc/a?{name}={quote(TOKEN, safe='')}").token == TOKEN


def test_of_two_tokens_the_last_counts_everywhere() -> None:
    assert strip_relay_query("/a?sb-hc-token=1&sb-hc-token=2") == ("/a", "2")
    assert parse_target("/$hc/a?sb-hc-token=1&sb-hc-token=2").token == "2"


def test_an_encoded_name_alone_is_ours_too() -> None:
    assert strip_relay_query(f"/a?%73b-hc-token={quote(TOKEN, safe='')}") == ("/a", TOKEN)


def test_the_token_of_a_query_may_be_form_encoded() -> None:
    assert parse_target(f"/$hc/a?sb-hc-token={quote_plus(TOKEN)}").token == TOKEN
    assert strip_relay_query(f"/a?sb-hc-token={quote_plus(TOKEN)}") == ("/a", TOKEN)


def test_a_target_taken_apart() -> None:
    target = parse_target("/$HC/Orders/%C3%BC?a=%41&Sb-Hc-Action=LISTEN&b&sb-hc-id=x%2Fy+z&sb-hc-token=")
    assert (target.path, target.query, target.action) == ("/Orders/%C3%BC", "a=%41&b", "listen")
    assert (target.id, target.token, target.status, target.description) == ("x/y z", "", None, "")


@pytest.mark.parametrize(
    ("query", "status", "description"),
    [
        ("sb-hc-action=accept&sb-hc-statusCode=403&sb-hc-statusDescription=No%20way", 403, "No way"),
        ("sb-hc-action=accept&statusCode=599&statusDescription=So+so", 599, "So so"),
        ("sb-hc-action=accept&statusCode=x&sb-hc-statusCode=400", 400, ""),
        ("sb-hc-action=accept&statusDescription=only", None, "only"),
        ("sb-hc-action=connect&statusCode=5&statusDescription=the+sender%27s+own", None, ""),
        ("sb-hc-action=request&sb-hc-statusCode=503", 503, ""),
        ("", None, ""),
    ],
)
def test_the_status_of_a_rejection(query: str, status: int | None, description: str) -> None:
    target = parse_target(f"/$hc/a?{query}")
    assert (target.status, target.description) == (status, description)


def test_the_members_of_a_rejection_by_their_old_names_are_not_the_senders() -> None:
    assert parse_target("/$hc/a?sb-hc-action=connect&statusCode=5").query == "statusCode=5"


@pytest.mark.parametrize(
    "target",
    [
        *("", "/", "/$h", "/a/$hc/b", "$hc/a", "*"),
        *(
            f"/$hc/a?sb-hc-statusCode={status}"
            for status in ("", "x", "200", "399", "600", "-400", "4e2", "%D9%A4%D9%A0%D9%A0")
        ),
        "/$hc/a?sb-hc-action=accept&statusCode=200",
    ],
)
def test_targets_that_are_refused(target: str) -> None:
    with pytest.raises(ProtocolError):
        parse_target(target)


def test_the_mark_is_a_whole_segment() -> None:
    with pytest.raises(ProtocolError):
        parse_target("/$hcorders?sb-hc-action=listen")


@pytest.mark.parametrize("status", ["04000", "0400" + "0" * 5000])
def test_a_status_of_more_than_three_digits_is_refused(status: str) -> None:
    with pytest.raises(ProtocolError):
        parse_target(f"/$hc/a?sb-hc-statusCode={status}")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
def test_any_target_is_taken_apart_or_refused(rest: str) -> None:
    try:
        target = parse_target(f"/$hc{rest}")
    except ProtocolError:
        return
    assert f"/$hc{rest}".startswith(f"/$hc{target.path if rest[:1] not in ('', '?') else ''}")


def test_a_rendezvous_address_is_found_again() -> None:
    query = rendezvous_query("request") + "0a1b-_G0"
    assert parse_qsl(query) == [("sb-hc-action", "request"), ("sb-hc-id", "0a1b-_G0")]
    target = parse_target(f"/$hc/a?{query}")
    assert (target.action, target.id) == ("request", "0a1b-_G0")


# -- headers

names = st.sampled_from(
    [
        "A",
        "a",
        "B",
        "Via",
        "via",
        "Cookie",
        "COOKIE",
        "X-Hop",
        "Authorization",
        "Connection",
        "connection",
        "Host",
        "TE",
    ]
)
values = st.text("ab, ;=\xe9", max_size=6) | st.sampled_from(["X-Hop", "close, x-hop", "via", "a , B"])
fields = st.lists(st.tuples(names, values), max_size=8)


def first_of(headers: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), (name, value))
    return found


@given(fields, st.sampled_from([frozenset[str](), frozenset({"authorization"})]))
def test_the_headers_of_a_request(headers: list[tuple[str, str]], drop: frozenset[str]) -> None:
    options = {
        option.strip().lower() for name, value in headers if name.lower() == "connection" for option in value.split(",")
    }
    gone = {name.lower() for name in PER_CONNECTION} | options | drop
    expected: dict[str, str] = {}
    for low, (name, _) in first_of(headers).items():
        if low not in gone:
            separator = "; " if low == "cookie" else ", "
            expected[name] = separator.join(value for each, value in headers if each.lower() == low)
    via = next((name for name in expected if name.lower() == "via"), None)
    expected[via or "Via"] = f"{expected[via]}, 1.1 h" if via else "1.1 h"
    assert request_headers(headers, first_of(headers), drop, "1.1 h") == expected


@pytest.mark.parametrize("name", [*PER_CONNECTION, "Keep-Alive", "Proxy-Connection", "Expect"])
@pytest.mark.parametrize("spell", [str.upper, str.lower, str.title])
def test_headers_about_one_connection_end_at_it(name: str, spell: Any) -> None:
    headers = [(spell(name), "x"), ("Kept", "y")]
    assert request_headers(headers, first_of(headers), frozenset(), "v") == {"Kept": "y", "Via": "v"}
    assert joined_headers(headers) == {"Kept": "y"}
    assert listed_headers(dict(headers)) == [("Kept", "y")]


@given(fields)
def test_the_headers_of_an_answer_come_back_joined(headers: list[tuple[str, str]]) -> None:
    cookies = [("Set-Cookie", "a=1"), ("set-cookie", "b=2")]
    listed = listed_headers(joined_headers([*headers, *cookies]))
    assert [value for name, value in listed if name == "Set-Cookie"] == ["a=1", "b=2"]
    sent = {name.lower(): value for name, value in listed if name != "Set-Cookie"}
    options = {
        option.strip().lower() for name, value in headers if name.lower() == "connection" for option in value.split(",")
    }
    assert sent == {
        low: ", ".join(value for name, value in headers if name.lower() == low)
        for low in first_of(headers)
        if low not in options and low not in {name.lower() for name in PER_CONNECTION}
    }


def test_what_a_listener_may_write_for_a_value() -> None:
    assert listed_headers(
        {"A": "1", "B": 2, "C": None, "D": ["x", 3, ""], "E": [], "F": 1.5, "G": True, "H": "tab\tand \xe9\u0416"}
    ) == [
        *(("A", "1"), ("B", "2"), ("C", ""), ("D", "x"), ("D", "3"), ("D", ""), ("F", "1.5"), ("G", "True")),
        ("H", "tab\tand \xe9\u0416"),
    ]
    assert listed_headers(None) == listed_headers({}) == []


@given(st.text("a\r\n\0\x0b\x85\u2028:b", max_size=4), st.booleans())
def test_no_header_is_injected(text: str, many: bool) -> None:
    if any(c in text for c in "\r\n\0"):
        with pytest.raises(ProtocolError):
            listed_headers({"X": [text] if many else text})
    else:
        ((_, value),) = listed_headers({"X": [text] if many else text})
        assert not set(value.encode("latin-1", "replace")) & {10, 13, 0}


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", "a\r\nb", "\xe9", "a\0", "(a)", "a,b", "\u0416"])
def test_names_that_are_no_tokens(name: str) -> None:
    for _ in range(2):
        with pytest.raises(ProtocolError):
            listed_headers({name: "x"})


# -- commands

COMMANDS = [
    Command(request=Request(address="ws://h/$hc/a?x", id="i")),
    Command(
        request=Request(
            *("ws://h/$hc/a?x", "i", "/a?b", "GET", RemoteEndpoint("::1", 5), {"A": "\xe9"}, False),
            origin="http://h",
            bodyLength=7,
        )
    ),
    Command(response=Response("i", 200)),
    Command(response=Response("i", "404", "No", {"A": ["1", "2"], "B": None}, True, 5)),
    Command(accept=Accept("ws://h/$hc/a?x", "i", {"Host": "h"}, RemoteEndpoint("1.2.3.4", None))),
    Command(renewToken=RenewToken("t")),
    Command(),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_come_back(command: Command) -> None:
    assert decode_command(encode_command(command)) == command


def test_a_request_names_its_members_as_others_do() -> None:
    assert json.loads(encode_command(COMMANDS[0])) == {"request": {"address": "ws://h/$hc/a?x", "id": "i"}}
    assert list(json.loads(encode_command(COMMANDS[1]))["request"]) == [
        *("address", "id", "requestTarget", "method", "remoteEndpoint", "requestHeaders", "body", "origin"),
        "bodyLength",
    ]


def test_a_body_that_is_false_is_written_in_a_request() -> None:
    assert b'"body":false' in encode_command(Command(request=Request("a", "i", body=False)))


@pytest.mark.parametrize(
    "text",
    [
        '{"response":{"requestId":"i","statusCode":200,"body":false,"more":{"x":[1]}},"later":1}',
        ' {"response" : {"statusDescription":null,"requestId":"i","statusCode":200,"responseHeaders":null}} ',
        '{"response":{"requestId":"i","statusCode":200},"response":{"requestId":"i","statusCode":200}}',
    ],
)
def test_what_is_unknown_is_ignored(text: str) -> None:
    assert decode_command(text.encode()).response == Response("i", 200)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"{", b"[]", b"1", b"null", b'"x"', b"\xff", b'{"response":5}', b'{"response":{}}', b"{}{}"),
        *(b'{"response":{"requestId":1,"statusCode":1}}', b'{"response":{"requestId":"1","statusCode":null}}'),
        *(b'{"response":{"requestId":"1","statusCode":1,"body":"x"}}', b'{"renewToken":{"token":null}}'),
        b'{"response":{"requestId":"1","statusCode":1,"responseHeaders":[]}}',
        b'{"x":' * 40_000 + b"1" + b"}" * 40_000,
        b'{"response":{"responseHeaders":{"a":' + b"[" * 40_000 + b"]" * 40_000 + b"}}}",
    ],
)
def test_what_is_no_command(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_command(data)


def test_the_text_of_an_error_has_nothing_of_the_message() -> None:
    for data in (
        b'{"renewToken":{"token":["SECRET"]}}',
        b'{"renewToken":"SECRET"}',
        b"SECRET",
        b'{"renewToken":SECRET}',
    ):
        with pytest.raises(ProtocolError) as caught:
            decode_command(data)
        assert "SECRET" not in str(caught.value)


def test_a_length_is_not_negative() -> None:
    with pytest.raises(ProtocolError):
        decode_command(b'{"response":{"requestId":"1","statusCode":200,"bodyLength":-1}}')


@given(st.binary(max_size=60) | st.text('{}[]":,0truefalsnul', max_size=30).map(str.encode))
def test_any_message_is_a_command_or_refused(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        decode_command(data)
