"""Forwarding to a service that exists already, by its URL.

What becomes of a request to the relay ``orders/new`` in front of ``http://127.0.0.1:8080/svc``::

    /orders/new            → /svc             behind the relay path the target keeps its exact spelling
    /orders/new?wsdl       → /svc?wsdl
    /orders/new/items/a%20 → /svc/items/a%20
    /orders/new/../x       → 400              as anything that could leave the path (wcfrelay.address.path_segments)

Headers about one connection end here in both directions (RFC 9110 §7.6.1), all others pass in order. In answers the
service's own address becomes the public one: in ``Location``, ``Content-Location``, the path of cookies, and in the
contract documents that :mod:`wcfrelay.contracts.rewrite` knows. Every other body passes byte for byte.

Bodies stream both ways and each side holds the other back. What fits in 64 KiB travels in one piece.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
import threading
import zlib
from collections.abc import Iterable
from urllib.parse import urlsplit

from wcfrelay.address import path_segments, quote_path, relay_path, strip_segments
from wcfrelay.contracts.rewrite import AddressMap, rewrite_document
from wcfrelay.errors import BadRequestError, ConfigError, ListenerTimeoutError, RelayError, ServiceUnreachableError
from wcfrelay.net.exchange import Exchange, header
from wcfrelay.net.http1.client import ClientRequest, HttpClientError, HttpTimeoutError
from wcfrelay.net.http1.pool import HttpPool
from wcfrelay.net.network import Network
from wcfrelay.net.repeats import RepeatedFields, Repeats
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ClientTls
from wcfrelay.wire.soap import error_answer

__all__ = ["ForwardDispatcher"]

_SMALL = 64 * 1024
"""Bytes of body that travel in one piece."""
_DOCUMENT_LIMIT = 8 * 1024 * 1024
"""Bytes of a contract document, before and after decompression; a larger one passes as it is."""
_REMEMBERED = 1024
_NAME_WAIT = 0.2
"""Seconds that asking for this machine's full name may take."""

_PASS, _DROP, _CONNECTION, _HOST, _FORWARDED_HOST, _FORWARDED_PROTO, _ADDRESS, _COOKIE = range(8)
"""What happens to a header field."""
_HOP_BY_HOP = dict.fromkeys(
    (
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ),
    _DROP,
) | {"connection": _CONNECTION}
_REQUEST_FIELDS = _HOP_BY_HOP | {
    "host": _HOST,
    "x-forwarded-host": _FORWARDED_HOST,
    "x-forwarded-proto": _FORWARDED_PROTO,
}
_ANSWER_FIELDS = _HOP_BY_HOP | {
    "location": _ADDRESS,
    "content-location": _ADDRESS,
    "set-cookie": _COOKIE,
}
_NO_OPTIONS = frozenset({"", "keep-alive", "close"})
"""Options of ``Connection`` that name no other field."""
_OF_OLD_BYTES = frozenset({"content-encoding", "content-md5", "content-digest", "digest", "repr-digest"})
"""Fields that are no longer true when a body was changed."""

_XML = re.compile(
    r"\s*(?:text/xml|application/xml|application/wsdl\+xml|[^\s;/]+/[^\s;/]+\+xml)\s*(?:;|$)", re.IGNORECASE
)
_NOT_IN_URL = re.compile(r"[^!-~]")

_Fields = list[tuple[str, str]]


class ForwardDispatcher:
    """Forwards every exchange to the service at ``url``.

    ``relay_path`` is the path that senders address; ``public_url`` is the whole address as senders see it, where that
    is not the origin of the exchange and the path. ``aliases`` are further base URLs under which the service may name
    itself in its answers. ``preserve_host`` sends it the sender's Host instead of its own. ``timeout`` is in seconds,
    for an answer to begin and between two pieces of a body; ``limit`` is the number of connections.

    :raises ConfigError: ``url``, ``public_url`` or ``relay_path`` cannot be used.
    """

    def __init__(
        self,
        network: Network,
        timers: Timers,
        url: str,
        relay_path: str,
        *,
        tls: ClientTls | None = None,
        public_url: str = "",
        aliases: tuple[str, ...] = (),
        preserve_host: bool = False,
        timeout: float = 60.0,
        limit: int = 128,
    ) -> None:
        scheme, host, port, authority, path = _service_url(url)
        self.pool = HttpPool(
            network,
            timers,
            host,
            port,
            (tls or ClientTls()) if scheme == "https" else None,
            limit=limit,
            head_timeout=timeout,
            body_timeout=timeout,
        )
        self.origin = f"{scheme}://{authority}"
        self._path = path
        self._base = self.origin + path
        self._host = ("Host", authority)
        self._preserve_host = preserve_host
        self._segments, self._relay_path = _relay(relay_path)
        self._public_url = _public_url(public_url)
        self._cookie_path = urlsplit(self._public_url).path.rstrip("/") if public_url else self._relay_path
        names = _own_names() if _is_loopback(host) else ()
        self._aliases = (*aliases, *(f"{scheme}://{name}:{port}{path}" for name in names))
        self.heads: Repeats[bytes] = Repeats()
        """Heads of requests to the service, by the fields of the exchange."""
        self.fields: Repeats[_Fields] = Repeats()
        """Fields of answers to senders, by those of the service."""
        self._targets: dict[str, str] = {}
        self._maps: dict[str, AddressMap] = {}
        self._request_kinds: dict[str, int] = {}
        self._answer_kinds: dict[str, int] = {}

    def dispatch(self, exchange: Exchange) -> None:
        call = _Call(self, exchange)
        target = self._targets.get(exchange.target)
        if target is None:
            try:
                target = self._map(exchange.target)
            except BadRequestError as error:
                call.turn_away(error)
                return
        call.target = target
        length = exchange.length
        if length is not None and length <= _SMALL:
            exchange.begin(call)
        else:
            call.stream(length)

    async def close(self) -> None:
        await self.pool.close()

    # -- what calls use

    def request_fields(self, exchange: Exchange) -> _Fields:
        """The header fields of a request as the service gets them."""
        kinds = self._request_kinds
        host = self._host
        fields = [host]
        named: set[str] | None = None
        forwarded_host = forwarded_proto = False
        for field in exchange.headers:
            name = field[0]
            kind = kinds.get(name)
            if kind is None:
                kind = _learn(kinds, _REQUEST_FIELDS, name)
            if kind == _PASS:
                fields.append(field)
            elif kind == _CONNECTION:
                named = _named(field[1], named)
            elif kind == _HOST:
                if self._preserve_host:
                    fields[0] = ("Host", field[1])
            elif kind == _FORWARDED_HOST:
                forwarded_host = True
                fields.append(field)
            elif kind == _FORWARDED_PROTO:
                forwarded_proto = True
                fields.append(field)
        if named is not None:
            fields[1:] = _without(fields[1:], named)
            forwarded_host = forwarded_host and "x-forwarded-host" not in named
            forwarded_proto = forwarded_proto and "x-forwarded-proto" not in named
        scheme, _, sender_host = exchange.origin.partition("://")
        if sender_host:
            if not forwarded_host:
                fields.append(("X-Forwarded-Host", sender_host))
            if not forwarded_proto:
                fields.append(("X-Forwarded-Proto", scheme))
            if self._preserve_host and fields[0] is host:
                fields[0] = ("Host", sender_host)
        return fields

    def answer_fields(self, headers: Iterable[tuple[str, str]], origin: str) -> _Fields:
        """The header fields of an answer as the sender gets them."""
        kinds = self._answer_kinds
        fields: _Fields = []
        named: set[str] | None = None
        for field in headers:
            name = field[0]
            kind = kinds.get(name)
            if kind is None:
                kind = _learn(kinds, _ANSWER_FIELDS, name)
            if kind == _PASS:
                fields.append(field)
            elif kind == _CONNECTION:
                named = _named(field[1], named)
            elif kind == _ADDRESS:
                fields.append((name, self._public_address(field[1], origin)))
            elif kind == _COOKIE:
                fields.append((name, self._public_cookie(field[1])))
        return fields if named is None else _without(fields, named)

    def addresses(self, origin: str) -> AddressMap | None:
        """Service URL ↔ public URL for a sender who addressed ``origin``; None when nobody knows the public one."""
        found = self._maps.get(origin)
        if found is None:
            public = self._public_url or (origin and origin + self._relay_path)
            if not public:
                return None
            found = AddressMap(self._base, public, self._aliases)
            if len(self._maps) >= _REMEMBERED:
                self._maps.clear()
            self._maps[origin] = found
        return found

    # -- inside

    def _map(self, target: str) -> str:
        path_segments(target)
        rest = strip_segments(target, self._segments)
        mapped = self._path.removesuffix("/") + rest if rest[:1] == "/" else (self._path or "/") + rest
        if len(target) <= _REMEMBERED:
            if len(self._targets) >= _REMEMBERED:
                self._targets.clear()
            self._targets[target] = mapped
        return mapped

    def _public_address(self, value: str, origin: str) -> str:
        addresses = self.addresses(origin)
        if addresses is None:
            return value
        if value[:2] == "//":
            absolute = self.origin.partition("//")[0] + value
        elif value[:1] == "/":
            absolute = self.origin + value
        else:
            absolute = value
        return addresses.to_public(absolute) or value

    def _public_cookie(self, value: str) -> str:
        parts = value.split(";")
        base = self._path.rstrip("/")
        for index, part in enumerate(parts[1:], 1):
            name, equals, path = part.partition("=")
            if name.strip().lower() != "path":
                continue
            path = path.strip()
            inside = path[len(base) :]
            if path[:1] == "/" and path[: len(base)].lower() == base.lower() and inside[:1] in ("", "/"):
                parts[index] = f"{name}{equals}{(self._cookie_path + inside) or '/'}"
        return ";".join(parts)


_HELD, _COLLECTED, _STREAMED = range(3)
"""How an answer is passed on: whole, when the first piece of body is all of it; whole, for rewriting; as it comes."""


class _Call:
    """One exchange on its way: its responder, and the receiver of the service's answer."""

    __slots__ = (
        "_begun",
        "_body",
        "_exchange",
        "_forward",
        "_head",
        "_length",
        "_mode",
        "_over",
        "_paused",
        "_request",
        "_size",
        "_started",
        "target",
    )

    def __init__(self, forward: ForwardDispatcher, exchange: Exchange) -> None:
        self.target = ""
        self._forward = forward
        self._exchange = exchange
        self._request: ClientRequest | None = None
        self._body: list[bytes] = []
        """What is held of the request's body, later of the answer's."""
        self._begun = False
        self._paused = False
        """The way to the service is congested."""
        self._over = False
        self._started = False
        self._mode = _STREAMED
        self._head: tuple[int, str, _Fields] = (0, "", [])
        self._length: int | None = None
        self._size = 0

    def stream(self, length: int | None) -> None:
        """Send the request while its body comes."""
        problem = self._send(None, length)
        if problem is not None:
            self.turn_away(problem)
            return
        self._begun = True
        self._exchange.begin(self)
        if self._paused:
            self._exchange.pause()

    def turn_away(self, error: RelayError) -> None:
        """Take the exchange only to answer it with an error."""
        self._over = True
        self._exchange.begin(self)
        self._refuse(error)

    def _send(self, body: bytes | None, length: int | None) -> RelayError | None:
        exchange, forward = self._exchange, self._forward
        pool, method = forward.pool, exchange.method
        size = length if body is None else len(body)
        try:
            head = forward.heads.get(exchange.headers, method, self.target, exchange.origin, size)
            if head is None:
                head = pool.head(method, self.target, forward.request_fields(exchange), size)
                forward.heads.keep(head, exchange.headers, method, self.target, exchange.origin, size)
            self._request = pool.send(method, head, self, body=body, length=length)
        except RelayError as error:
            return error
        return None

    # -- Responder

    def body_received(self, data: bytes) -> None:
        if self._request is not None:
            self._request.write(data)
        elif not self._over:
            self._body.append(data)

    def body_ended(self) -> None:
        if self._over:
            return
        if self._request is not None:
            self._request.finish()
            return
        body = self._body
        if body:
            self._body = []
        problem = self._send(body[0] if len(body) == 1 else b"".join(body), None)
        if problem is not None:
            self._refuse(problem)

    def cancelled(self, error: Exception) -> None:
        request = self._request
        self._end()
        self._body = []
        if request is not None:
            request.cancel()

    def pause_response(self) -> None:
        if self._request is not None:
            self._request.pause()

    def resume_response(self) -> None:
        if self._request is not None:
            self._request.resume()

    # -- ResponseReceiver

    def pause_request(self) -> None:
        self._paused = True
        if self._begun:
            self._exchange.pause()

    def resume_request(self) -> None:
        self._paused = False
        if self._begun:
            self._exchange.resume()

    def response_started(self, status: int, reason: str, headers: list[tuple[str, str]], length: int | None) -> None:
        exchange = self._exchange
        forward, origin = self._forward, exchange.origin
        fields = forward.fields.get(headers, origin)
        if fields is None:
            fields = forward.answer_fields(headers, origin)
            if type(headers) is RepeatedFields:
                fields = forward.fields.keep(RepeatedFields(fields), headers, origin)
        self._head = (status, reason, fields)
        self._length = length
        if exchange.method == "HEAD" or status == 204 or status == 304:
            self._start()
        elif status == 200 and exchange.method == "GET" and self._is_document(length):
            self._mode = _COLLECTED
        elif length is not None and length <= _SMALL:
            self._mode = _HELD
        else:
            self._start()

    def response_data(self, data: bytes) -> None:
        mode = self._mode
        if mode == _STREAMED:
            self._exchange.write(data)
            return
        self._body.append(data)
        self._size += len(data)
        if (mode == _HELD and self._size != self._length) or (mode == _COLLECTED and self._size > _DOCUMENT_LIMIT):
            self._mode = _STREAMED
            body, self._body = self._body, []
            self._start()
            for piece in body:
                self._exchange.write(piece)

    def response_ended(self) -> None:
        mode = self._mode
        self._end()
        if mode == _HELD:
            self._exchange.respond(*self._head, self._body[0] if self._body else b"")
        elif mode == _COLLECTED:
            status, reason, fields = self._head
            fields, body = self._rewritten(fields, b"".join(self._body))
            self._exchange.respond(status, reason, fields, body)
        else:
            self._exchange.finish()

    def response_failed(self, error: HttpClientError) -> None:
        self._end()
        self._body = []
        if self._started:
            self._exchange.abort(error.message)
        elif isinstance(error, HttpTimeoutError):
            self._refuse(ListenerTimeoutError(f"The service behind the listener is too slow. {error.message}"))
        else:
            self._refuse(
                ServiceUnreachableError(
                    f"The listener could not reach the service behind it. {error.message} "
                    "Check that the service runs, and its address in the listener's configuration."
                )
            )

    # -- inside

    def _end(self) -> None:
        """Nothing more is to be done; what refers to each other lets go, for which no collector has to run."""
        self._over = True
        self._request = None

    def _refuse(self, error: RelayError) -> None:
        """Answer with an error."""
        self._end()
        error.tracking_id = self._exchange.tracking_id
        self._exchange.respond(*error_answer(error, self._exchange.headers))

    def _start(self) -> None:
        self._started = True
        self._exchange.start(*self._head, self._length)

    def _is_document(self, length: int | None) -> bool:
        if length is not None and length > _DOCUMENT_LIMIT:
            return False
        content_type = header(self._head[2], "content-type")
        return content_type is not None and _XML.match(content_type) is not None

    def _rewritten(self, fields: _Fields, body: bytes) -> tuple[_Fields, bytes]:
        addresses = self._forward.addresses(self._exchange.origin)
        plain = _decoded(body, header(fields, "content-encoding") or "")
        if addresses is None or plain is None:
            return fields, body
        document = rewrite_document(plain, addresses)
        if document == plain:
            return fields, body
        result: _Fields = []
        for name, value in fields:
            low = name.lower()
            if low == "etag" and not value.startswith("W/"):
                value = f"W/{value}"
            if low not in _OF_OLD_BYTES:
                result.append((name, value))
        return result, document


def _learn(kinds: dict[str, int], table: dict[str, int], name: str) -> int:
    kind = table.get(name.lower(), _PASS)
    if len(kinds) < _REMEMBERED and len(name) <= 64:
        kinds[name] = kind
    return kind


def _named(value: str, named: set[str] | None) -> set[str] | None:
    """The fields that a ``Connection`` field names, added to ``named``."""
    if value in _NO_OPTIONS:
        return named
    options = {option.strip().lower() for option in value.split(",")} - _NO_OPTIONS
    return options | named if named else options or None


def _without(fields: _Fields, named: set[str]) -> _Fields:
    return [field for field in fields if field[0].lower() not in named]


def _decoded(body: bytes, coding: str) -> bytes | None:
    """A body without its content coding; None for an unknown coding, a damaged body or one that is too large."""
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding in ("gzip", "x-gzip"):
        windows: tuple[int, ...] = (31,)
    elif coding == "deflate":
        windows = (15, -15)  # zlib as specified, and bare as some servers do
    else:
        return None
    for window in windows:
        unpacker = zlib.decompressobj(window)
        try:
            plain = unpacker.decompress(body, _DOCUMENT_LIMIT + 1)
        except zlib.error:
            continue
        if len(plain) <= _DOCUMENT_LIMIT and unpacker.eof and not unpacker.unused_data:
            return plain
    return None


def _service_url(url: str) -> tuple[str, str, int, str, str]:
    """(scheme, host, port, authority, path) of a service's URL. Its text is not quoted: it may hold a password."""
    if _NOT_IN_URL.search(url):
        raise ConfigError(
            "The URL of the service has a character that must be percent-encoded (blank, control, non-ASCII)."
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError("The URL of the service is malformed; write http://host[:port]/path.") from None
    if parts.scheme not in ("http", "https"):
        raise ConfigError(
            f"The URL of the service has the scheme {parts.scheme or '(none)'!r}; write http:// or https://."
        )
    if "@" in parts.netloc:
        raise ConfigError("The URL of the service has credentials in it; remove them, senders' headers are passed on.")
    if "?" in url or "#" in url:
        raise ConfigError("The URL of the service has a query or a fragment; end it with the path.")
    if not host or port == 0:
        raise ConfigError("The URL of the service has no usable host and port; write http://host[:port]/path.")
    try:
        path_segments(parts.path or "/")
    except BadRequestError as error:
        raise ConfigError(f"The URL of the service cannot be used: {error.message}") from None
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), parts.netloc, parts.path


def _public_url(url: str) -> str:
    if url and ("?" in url or "#" in url or "@" in url or _NOT_IN_URL.search(url) or "://" not in url):
        raise ConfigError("The public URL must be https://host[:port]/path without credentials, query and fragment.")
    return url


def _relay(path: str) -> tuple[int, str]:
    """Number of segments of a relay path, and the path of its URL."""
    try:
        canonical = relay_path(path)
    except BadRequestError as error:
        raise ConfigError(error.message) from None
    return canonical.count("/") + 1, "/" + quote_path(path.removeprefix("/").removesuffix("/"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@functools.cache
def _own_names() -> tuple[str, ...]:
    """The names of this machine, under which a service on it may name itself."""
    name = socket.gethostname()
    names = {name, name.partition(".")[0]}
    # The full name may need DNS, and DNS may hang.
    asking = threading.Thread(target=lambda: names.add(socket.getfqdn(name)), daemon=True)
    asking.start()
    asking.join(_NAME_WAIT)
    return tuple(sorted(names - {""}))
