"""The opening handshake of a WebSocket (RFC 6455 §4), both roles.

Headers are checked, and keys computed, by the sans-IO part of ``websockets``. It sees heads only, never a frame, and
never sends our request, which it would log, token and all. No extension is offered or accepted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec
from twisted.internet.defer import Deferred
from websockets.client import ClientProtocol
from websockets.datastructures import Headers as HeaderFields
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from wcfrelay.errors import BadRequestError, GatewayUnreachableError, ProtocolError, RelayError, error_for
from wcfrelay.net.exchange import Headers
from wcfrelay.net.network import Network, Transport, tune_transport
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ClientTls
from wcfrelay.net.websocket import WebSocket, WebSocketApp

__all__ = ["connect_websocket", "is_websocket_upgrade", "server_handshake"]

_HEAD_LIMIT = 32 * 1024
_BODY_LIMIT = 16 * 1024
"""Bytes of a refusal's body that are read for its text."""

_READ = frozenset(
    {
        "connection",
        "origin",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "upgrade",
    }
)
_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: ([^\r\n]*))?\r?\n")
_TRACKING = re.compile(r"\s*TrackingId:\s*([^\s,]+)")


def is_websocket_upgrade(headers: Headers) -> bool:
    """Whether a request asks for a WebSocket; whether it does so properly is for :func:`server_handshake` to say."""
    upgrade = connection = False
    for name, value in headers:
        low = name.lower()
        if low == "upgrade":
            upgrade = upgrade or _names(value, "websocket")
        elif low == "connection":
            connection = connection or _names(value, "upgrade")
    return upgrade and connection


def _names(value: str, option: str) -> bool:
    return any(part.strip().lower() == option for part in value.split(","))


def server_handshake(
    headers: Headers, target: str, subprotocol: str | None, extra: Sequence[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """The headers of the 101 that answers a GET over HTTP/1.1 for ``target``, ``extra`` at their end.

    ``subprotocol`` is the one chosen, None for none.

    :raises BadRequestError: the request is no valid handshake, or does not offer ``subprotocol``; the text says what
        is wrong.
    """
    protocol = ServerProtocol(subprotocols=None if subprotocol is None else [Subprotocol(subprotocol)])
    try:
        fields = HeaderFields([(name, value) for name, value in headers if name.lower() in _READ])
        accept, _, chosen = protocol.process_request(Request(target, fields))
    except InvalidHandshake as exc:
        raise BadRequestError(f"The request is no valid WebSocket handshake: {_short(exc)}.") from None
    answer = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)]
    if chosen is not None:
        answer.append(("Sec-WebSocket-Protocol", chosen))
    answer.extend(extra)
    return answer


async def connect_websocket(
    network: Network,
    timers: Timers,
    url: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    subprotocols: Sequence[str] = (),
    tls: ClientTls | None = None,
    timeout: float = 30.0,
    random_bytes: Callable[[int], bytes] = os.urandom,
    max_piece: int = 65536,
    make_app: Callable[[WebSocket], WebSocketApp],
) -> WebSocket:
    """Dial ``url`` and return the open socket; it belongs to the caller, who closes it.

    ``ws`` and ``http`` are plain, ``wss`` and ``https`` are TLS (with ``tls``, else the system's trust). Path and query
    are sent exactly as they stand in ``url``. ``timeout`` (seconds) is for everything up to the 101. ``make_app`` is
    called once, after the 101 and before any frame is delivered; frames may be delivered before this returns.

    :raises GatewayUnreachableError: no connection, or no answer within ``timeout``.
    :raises ProtocolError: the answer is no valid handshake.
    :raises BadRequestError: ``url`` or a header cannot be sent.
    :raises RelayError: another status than 101, as :func:`wcfrelay.errors.error_for` has it; its ``handshake_status``
        is the status.
    """
    uri = _parse(url)
    fields = _checked(headers)
    where = f"{uri.host}:{uri.port}"

    def make_socket() -> WebSocket:
        return WebSocket(network, timers, client=True, random_bytes=random_bytes, max_piece=max_piece)

    began = network.seconds()
    opening = await network.connect(
        lambda: _Opening(uri, fields, subprotocols, where, make_socket, make_app),
        uri.host,
        uri.port,
        tls=(tls or ClientTls()) if uri.secure else None,
        timeout=timeout,
    )
    left = max(0.0, timeout - (network.seconds() - began))
    deadline = timers.after(left, lambda: opening.expired(timeout))
    try:
        return await opening.result()
    finally:
        deadline.cancel()


def _parse(url: str) -> WebSocketURI:
    """Take a URL apart; the texts of errors leave the query out, which may hold a token."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme not in ("ws", "wss", "http", "https"):
        raise BadRequestError("A WebSocket address begins with ws://, wss://, http:// or https://.")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise BadRequestError("A WebSocket address has a character in it that must be percent-encoded.")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    target = rest[len(authority) :].partition("#")[0]
    secure = scheme in ("wss", "https")
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or "@" in authority:
        raise BadRequestError("A WebSocket address needs a host, a valid port and no user name.")
    path = target if target.startswith("/") else f"/{target}"
    return WebSocketURI(secure, host, port or (443 if secure else 80), path, "")


def _checked(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise BadRequestError("A header name is no HTTP token.")
        if any(c in "\r\n\0" or c > "\xff" for c in value):
            raise BadRequestError(f"The value of header {name} has a character in it that cannot be sent.")
    return list(headers)


def _short(exc: BaseException) -> str:
    return str(exc)[:200]


class _Opening:
    """The core of a connection until its handshake is over."""

    def __init__(
        self,
        uri: WebSocketURI,
        headers: Sequence[tuple[str, str]],
        subprotocols: Sequence[str],
        where: str,
        make_socket: Callable[[], WebSocket],
        make_app: Callable[[WebSocket], WebSocketApp],
    ) -> None:
        offered = [Subprotocol(name) for name in subprotocols]
        self._protocol = ClientProtocol(uri, subprotocols=offered or None)
        request = self._protocol.connect()
        for name, value in headers:
            request.headers.set_insecure(name, value)
        self._request = request.serialize()
        self._where = where
        self._make_socket = make_socket
        self._make_app = make_app
        self._transport: Transport | None = None
        self._head = bytearray()
        self._head_complete = False
        self._body_bytes = 0
        self._outcome: WebSocket | Exception | None = None
        self._waiting: Deferred[None] | None = None

    async def result(self) -> WebSocket:
        """The open socket, once; the connection is dropped when the waiting is cancelled."""
        if self._outcome is None:
            self._waiting = Deferred(lambda _: self._cancelled())
            await self._waiting
        outcome = self._outcome
        assert outcome is not None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def expired(self, timeout: float) -> None:
        if self._head_complete:
            self._refused_by_head()  # only the body of a refusal is missing
        else:
            self._end(GatewayUnreachableError(f"No WebSocket handshake with {self._where} within {timeout:g} s."))

    def _cancelled(self) -> None:
        self._waiting = None
        self._end(GatewayUnreachableError("The WebSocket handshake was given up."))

    # -- what the transport calls

    def connection_made(self, transport: Transport) -> None:
        self._transport = transport
        tune_transport(transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._outcome is not None:
            return
        if not self._head_complete:
            head = self._head
            searched = max(0, len(head) - 3)
            head += data
            end = head.find(b"\r\n\r\n", searched) + 4
            if end < 4 and len(head) <= _HEAD_LIMIT:
                return
            if not 4 <= end <= _HEAD_LIMIT:
                self._end(ProtocolError(f"The head of the answer of {self._where} is above {_HEAD_LIMIT} bytes."))
                return
            data = bytes(head[end:])
            del head[end:]
            self._head_complete = True
            self._protocol.receive_data(bytes(head))
            if self._protocol.state is State.OPEN:
                self._opened(data)
                return
        self._body_bytes += len(data)
        if self._body_bytes > _BODY_LIMIT:
            self._refused_by_head()
            return
        self._protocol.receive_data(data)
        self._judge()

    def eof_received(self) -> bool | None:
        self.connection_lost(None)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._outcome is None and self._head_complete:
            self._protocol.receive_eof()
            self._judge()
        self._end(GatewayUnreachableError(f"{self._where} closed the connection during the WebSocket handshake."))

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    # -- outcomes

    def _opened(self, rest: bytes) -> None:
        socket, transport = self._make_socket(), self._transport
        assert transport is not None
        socket.subprotocol = self._protocol.subprotocol
        (response,) = self._protocol.events_received()
        socket.response_headers = list(response.headers.raw_items())  # type: ignore[union-attr]
        try:
            socket.app = self._make_app(socket)
        except Exception as exc:
            self._end(exc)
            return
        socket.attach(transport, rest)
        self._settle(socket)

    def _judge(self) -> None:
        """See whether ``websockets`` has the whole refusal, or found that it is no valid answer."""
        problem = self._protocol.handshake_exc
        if isinstance(problem, InvalidStatus):
            response = problem.response
            tracking_id = ",".join(response.headers.get_all("TrackingId"))
            body = bytes(response.body)
            self._end(_refusal(response.status_code, response.reason_phrase, tracking_id, body))
        elif problem is not None:
            self._refused_by_head(_short(problem))

    def _refused_by_head(self, problem: str = "no status line of HTTP/1") -> None:
        """The refusal as far as its status line goes: its body is too long, or incomplete, or no HTTP."""
        line = _STATUS_LINE.match(self._head)
        if line is None or line[1] == b"101":
            self._end(ProtocolError(f"The answer of {self._where} is no valid WebSocket handshake: {problem}."))
        else:
            self._end(_refusal(int(line[1]), (line[2] or b"").decode("latin-1"), "", b""))

    def _end(self, error: Exception) -> None:
        if self._outcome is None:
            self._settle(error)
            if self._transport is not None:
                self._transport.abort()

    def _settle(self, outcome: WebSocket | Exception) -> None:
        self._outcome = outcome
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)


class _Detail(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Body(msgspec.Struct):
    error: _Detail


def _refusal(status: int, reason: str, tracking_id: str, body: bytes) -> RelayError:
    """The error that an answer other than 101 stands for. The text of its JSON body comes before the reason phrase."""
    try:
        detail = msgspec.json.decode(body, type=_Body).error
    except (msgspec.DecodeError, RecursionError):
        detail = _Detail()  # not a relay's body; an intermediary's page, most often
    message = detail.message or reason
    tracked = _TRACKING.search(message)
    if tracked is not None:
        # The error puts its id behind its text itself.
        message, tracking_id = message[: tracked.start()], tracked[1]
    error = error_for(status, message, code=detail.code, tracking_id=tracking_id)
    error.handshake_status = status  # type: ignore[attr-defined]
    return error
