"""The hybrid dialect: `$hc` addresses and the JSON commands between gateway and listener. Both roles, no I/O.

Source: hybrid-connections.md of the specification, §1 (query parameters), §4 (commands), §7 (`request`),
§8 (`response`).

A command is one WebSocket text message with one root member::

    gateway → listener   {"accept": {...}}   {"request": {...}}
    listener → gateway   {"response": {...}} {"renewToken": {...}}

A `request` or `response` whose ``body`` is true is followed, on the same socket, by one binary message with the body
(it may be fragmented and ends at FIN); nothing comes between the two. A `request` without ``body`` says only where to
dial: the whole command follows on the rendezvous.

Members of our own, ignored by every other implementation (unknown members must be ignored): ``origin`` in `request`
(``scheme://host[:port]`` as the sender wrote it, which the removed Host header no longer tells) and ``bodyLength`` in
both commands (the length of a streamed body, where known, which the removed Content-Length no longer tells).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import parse_qsl, unquote, unquote_plus

import msgspec

from wcfrelay.errors import ProtocolError

__all__ = [
    "CONTROL_LIMIT",
    "HEADERS_LIMIT",
    "MESSAGE_LIMIT",
    "Accept",
    "Command",
    "HybridTarget",
    "RemoteEndpoint",
    "RenewToken",
    "Request",
    "Response",
    "connect_headers",
    "cut_request",
    "decode_command",
    "encode_command",
    "joined_headers",
    "listed_headers",
    "parse_target",
    "remote_text",
    "rendezvous_query",
    "repeated_request",
    "repeated_response",
    "request_headers",
    "request_parts",
    "response_parts",
    "strip_relay_query",
]

CONTROL_LIMIT = 64 * 1024
"""Bytes of headers and body that may travel on the control channel (§2)."""
MESSAGE_LIMIT = 4 * CONTROL_LIMIT
"""Bytes of one text message: 64 KiB of headers may take more as JSON."""
HEADERS_LIMIT = 32 * 1024
"""Bytes of headers above which a request takes a rendezvous (§2)."""

_REMEMBERED_LENGTH = 64
"""Characters of a field name up to which what it means is remembered."""

_REMOVED = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "close",
        "expect",
    }
)
"""Request and response headers about one connection, which end at it (§7; RFC 9110 §7.6.1)."""


class RemoteEndpoint(msgspec.Struct):
    address: str | None = None
    port: int | None = None


class Request(msgspec.Struct, omit_defaults=True):
    """`request`. Either the whole request, or only where to dial (then ``method`` is empty and ``body`` unset)."""

    address: str
    id: str
    requestTarget: str = ""
    method: str = ""
    remoteEndpoint: RemoteEndpoint | None = None
    requestHeaders: dict[str, str] | None = None
    body: bool | msgspec.UnsetType = msgspec.UNSET
    origin: str = ""
    bodyLength: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Response(msgspec.Struct, omit_defaults=True):
    """`response`. Node listeners send the status as text and repeated headers as arrays."""

    requestId: str
    statusCode: int | str
    statusDescription: str | None = None
    responseHeaders: dict[str, Any] | None = None
    body: bool = False
    bodyLength: Annotated[int, msgspec.Meta(ge=0)] | None = None


class Accept(msgspec.Struct, omit_defaults=True):
    """`accept`: a WebSocket sender waits at ``address``."""

    address: str
    id: str
    connectHeaders: dict[str, str] | None = None
    remoteEndpoint: RemoteEndpoint | None = None


class RenewToken(msgspec.Struct):
    token: str


class Command(msgspec.Struct, omit_defaults=True):
    """One text message. More than one member is tolerated, none at all is a command of a later day."""

    request: Request | None = None
    response: Response | None = None
    accept: Accept | None = None
    renewToken: RenewToken | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Command)


def encode_command(command: Command) -> bytes:
    """The text message of a command."""
    return _encoder.encode(command)


def request_parts(request: Request) -> tuple[bytes, bytes]:
    """The text of a `request` command without ``address``, ``id`` and ``remoteEndpoint``: what stands before that and
    after it, the same for every request with the same head. See :func:`repeated_request`."""
    members = msgspec.json.decode(_encoder.encode(request))
    for own in ("address", "id", "remoteEndpoint"):
        members.pop(own, None)
    before = {name: members.pop(name) for name in ("requestTarget", "method")}
    return _encoder.encode(before)[1:-1], _encoder.encode(members)[1:-1]


def repeated_request(address: bytes, request_id: bytes, remote: bytes, parts: tuple[bytes, bytes]) -> bytes:
    """The text of a `request` command from :func:`request_parts`. ``address`` is the rendezvous address up to its id,
    ``remote`` from :func:`remote_text`; neither has a character that JSON escapes."""
    return b'{"request":{"address":"%b%b","id":"%b",%b,%b,%b}}' % (
        address,
        request_id,
        request_id,
        parts[0],
        remote,
        parts[1],
    )


@lru_cache(4096)
def remote_text(remote: tuple[str, int]) -> bytes:
    """The ``remoteEndpoint`` member of a sender's address."""
    return b'"remoteEndpoint":' + _encoder.encode(RemoteEndpoint(*remote))


def cut_request(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Address, id and the text behind them of a `request` command that begins with the two, as :func:`encode_command`
    writes it; None when it is written in another way."""
    if not data.startswith(_REQUEST):
        return None
    end = data.find(_REQUEST_ID, len(_REQUEST))
    start = end + len(_REQUEST_ID)
    stop = data.find(b'"', start)
    if end < 0 or b"\\" in data[:stop]:
        return None
    return data[len(_REQUEST) : end], data[start:stop], data[stop:]


def repeated_response(request_id: bytes, tail: bytes) -> bytes:
    """A `response` command from an id without characters that JSON escapes, and the text behind it."""
    return _RESPONSE + request_id + tail


def response_parts(data: bytes) -> tuple[bytes, bytes] | None:
    """The id of a `response` command that begins with it, and the text behind it, which is the same for every answer
    with the same head; None when it is written in another way."""
    if not data.startswith(_RESPONSE):
        return None
    end = data.find(b'"', len(_RESPONSE))
    return data[len(_RESPONSE) : end], data[end:]


_RESPONSE = b'{"response":{"requestId":"'
_REQUEST = b'{"request":{"address":"'
_REQUEST_ID = b'","id":"'


def decode_command(data: bytes) -> Command:
    """The command in a text message.

    :raises ProtocolError: it is not JSON, or a member has the wrong shape.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"The command is not valid: {error}") from None


class HybridTarget(msgspec.Struct, frozen=True):
    """A `$hc` request target taken apart."""

    path: str
    """Path without the ``/$hc`` prefix, still percent-encoded, with a leading slash."""
    query: str
    """The query without any ``sb-hc-*`` member, as it came."""
    action: str
    id: str
    token: str
    status: int | None
    """Status with which a listener rejects (§5.4), under either of its names."""
    description: str


def parse_target(target: str) -> HybridTarget:
    """Take a request target that begins with ``/$hc`` apart.

    :raises ProtocolError: it is not such a target, or the reject status is no number from 400 to 599.
    """
    path, _, query = target.partition("?")
    if path[:4].lower() != "/$hc" or path[4:5] not in ("", "/"):
        raise ProtocolError("The address does not begin with /$hc.")
    values = {name.lower(): value for name, value in parse_qsl(query, keep_blank_values=True)}
    action = values.get("sb-hc-action", "").lower()
    status_text, description = values.get("sb-hc-statuscode"), values.get("sb-hc-statusdescription", "")
    if status_text is None and action == "accept":
        status_text, description = values.get("statuscode"), values.get("statusdescription", "")
    status = None
    if status_text is not None:
        if not re.fullmatch(r"[45][0-9]{2}", status_text):
            raise ProtocolError("The status of a rejection must be a number from 400 to 599.")
        status = int(status_text)
    return HybridTarget(
        path=path[4:] or "/",
        query=_without_relay_members(query),
        action=action,
        id=values.get("sb-hc-id", ""),
        token=values.get("sb-hc-token", ""),
        status=status,
        description=description,
    )


def strip_relay_query(target: str) -> tuple[str, str | None]:
    """The target as the listener may see it, and the token that its query carried.

    All ``sb-hc-*`` members are removed (§1); everything else keeps its exact spelling.
    """
    path, mark, query = target.partition("?")
    if not mark or "sb-hc-" not in unquote(query).lower():
        return target, None
    token = None
    for member in query.split("&"):
        name, _, value = member.partition("=")
        if unquote_plus(name).lower() == "sb-hc-token":
            token = unquote_plus(value)
    rest = _without_relay_members(query)
    return (f"{path}?{rest}" if rest else path), token


def _without_relay_members(query: str) -> str:
    members = query.split("&")
    return "&".join(m for m in members if not unquote_plus(m.partition("=")[0]).lower().startswith("sb-hc-"))


def rendezvous_query(action: str) -> str:
    """The query of a rendezvous address, up to the id that ends it. (It must have a ``?`` before it: Node appends.)"""
    return f"sb-hc-action={action}&sb-hc-id="


def request_headers(
    headers: Sequence[tuple[str, str]], first: Mapping[str, tuple[str, str]], drop: frozenset[str], via: str
) -> dict[str, str]:
    """The headers of an HTTP request as `request` carries them.

    ``first`` has the first field of each name by its lower-case name. Headers about one connection (also those that
    ``Connection`` names) and those in ``drop`` (lower case) are removed, repeated ones are joined, ``Via`` is extended
    (§7).
    """
    result = dict(headers)
    if len(result) != len(first) or len(result) != len(headers):
        result = _joined(headers, first)
    options = ""
    for low in _REMOVED & first.keys():
        value = result.pop(first[low][0])
        if low == "connection":
            options = value
    for low in drop:
        if low in first:
            del result[first[low][0]]
    if options:
        for option in options.split(","):
            named = first.get(option.strip().lower())
            if named is not None:
                result.pop(named[0], None)
    if "via" in first:
        known = first["via"][0]
        if known in result:
            result[known] = f"{result[known]}, {via}"
            return result
    result["Via"] = via
    return result


def connect_headers(
    headers: Sequence[tuple[str, str]], first: Mapping[str, tuple[str, str]], drop: frozenset[str]
) -> dict[str, str]:
    """The headers of a WebSocket sender's handshake as `accept` carries them: all of them but those in ``drop`` (§5).
    ``first`` as for :func:`request_headers`."""
    result = _joined(headers, first)
    for low in drop:
        if low in first:
            del result[first[low][0]]
    return result


def _joined(headers: Iterable[tuple[str, str]], first: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """All fields under the first spelling of their names, repeated ones joined."""
    result: dict[str, str] = {}
    for name, value in headers:
        low = name.lower()
        known = first[low][0]
        if known in result:
            result[known] = f"{result[known]}{'; ' if low == 'cookie' else ', '}{value}"
        else:
            result[known] = value
    return result


def joined_headers(headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The headers of an HTTP answer as `response` carries them.

    Headers about one connection are removed, repeated ones joined, except ``Set-Cookie``, which cannot be joined and
    becomes an array.
    """
    result: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    for name, value in headers:
        low = name.lower()
        if low in spelled:
            known = spelled[low]
            if low != "set-cookie":
                result[known] = f"{result[known]}, {value}"
            elif isinstance(result[known], list):
                result[known].append(value)
            else:
                result[known] = [result[known], value]
        else:
            spelled[low] = name
            result[name] = value
    for low in _REMOVED & spelled.keys():
        options = result.pop(spelled[low])
        if low == "connection":
            for option in options.split(","):
                named = spelled.get(option.strip().lower())
                if named is not None:
                    result.pop(named, None)
    return result


def listed_headers(headers: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The headers of a `response` as HTTP fields, without those about one connection.

    :raises ProtocolError: a name is no token, or a value has a control character in it (header injection).
    """
    result: list[tuple[str, str]] = []
    for name, value in (headers or {}).items():
        if not (_passes(name) if len(name) <= _REMEMBERED_LENGTH else _passes.__wrapped__(name)):
            continue
        if type(value) is not str:
            if isinstance(value, list):
                for item in value:
                    result.append((name, _field_value(str(item))))
                continue
            value = "" if value is None else str(value)
        result.append((name, value if value.isprintable() else _field_value(value)))
    return result


def _field_value(text: str) -> str:
    if any(c in text for c in "\r\n\0"):
        raise ProtocolError("A header value in the response has a control character in it.")
    return text


@lru_cache(1024)
def _passes(name: str) -> bool:
    """Whether a field of a response goes on to the sender.

    :raises ProtocolError: it is no field name.
    """
    if not name or not _TOKEN.issuperset(name):
        raise ProtocolError("A header name in the response is not an HTTP token.")
    return name.lower() not in _REMOVED


_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
