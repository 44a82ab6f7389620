"""The exchange that an HTTP/1.1 server connection carries: held body, answer framing, backpressure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from wcfrelay.net.exchange import Responder
from wcfrelay.net.network import Transport

if TYPE_CHECKING:
    from wcfrelay.net.http1.connection import HttpConnection

__all__ = ["ServerExchange"]

_HELD_BODY = 64 * 1024
"""Request body bytes kept for a responder that has not begun or has paused, before reading stops."""

_STATUS_LINES = {
    (s.value, reason): f"HTTP/1.1 {s.value} {s.phrase}\r\n" for s in HTTPStatus for reason in ("", s.phrase)
}


def answer_head(status: int, reason: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Status line and fields as they go out, for :meth:`ServerExchange.respond_prepared`."""
    return _opening(status, reason, headers).encode("latin-1", "replace")


def _opening(status: int, reason: str, headers: Iterable[tuple[str, str]]) -> str:
    line = _STATUS_LINES.get((status, reason)) or f"HTTP/1.1 {status} {reason}\r\n"
    return line + "".join([f"{name}: {value}\r\n" for name, value in headers])


class RequestHead:
    """The head of a request that came before, and what follows from it alone.

    ``plan`` is a place for whoever takes exchanges.
    """

    __slots__ = ("attributes", "length", "plan")

    def __init__(self, exchange: ServerExchange) -> None:
        self.attributes = {name: getattr(exchange, name) for name in _OF_THE_HEAD}
        self.length: int = exchange.length or 0
        self.plan: Any = None


_OF_THE_HEAD = ("method", "target", "headers", "lower", "host", "origin", "length", "head_bytes")


class ServerExchange:
    """An :class:`~wcfrelay.net.exchange.Exchange` carried by an HTTP/1.1 connection."""

    # Most attributes keep their defaults in the life of an exchange: as class attributes they cost nothing to make.
    status = 0
    """Status of the answer; 0 while there is none."""
    received = 0
    """Body bytes of the request so far."""
    sent = 0
    """Body bytes of the answer so far."""
    length: int | None = 0
    host = ""
    origin = ""
    tracking_id = ""
    head_bytes = 0
    """Bytes of all field names and values."""
    started_at = 0.0
    """When the first byte came, by the reactor's clock."""
    http_1_0 = False
    keep_alive = True
    upgrade = False
    expects_continue = False
    answered = False
    """The answer is complete."""
    sender_left = False
    """The sender went away before its answer was complete."""
    done: Callable[[ServerExchange], None] | None = None
    """Called once, when the exchange has ended, however it did."""
    note: Any = None
    """A place for whoever takes exchanges to keep what ``done`` needs."""
    _responder: Responder | None = None
    _held_bytes = 0
    _body_over = False
    _paused = False
    _told_end = False
    _gone: Exception | None = None
    """Why nobody waits for an answer, where that was before there was a responder."""
    _started = False
    _finished = False
    _answer_chunked = False
    _answer_silent = False
    _answer_left: int | None = None

    method = ""
    target = ""
    headers: list[tuple[str, str]]
    lower: dict[str, tuple[str, str]]
    """The first field of each name, by lower-case name."""
    head: RequestHead | None = None
    """What is remembered of the head, where it came before."""

    def __init__(self, connection: HttpConnection, head: RequestHead | None = None) -> None:
        self._connection = connection
        self._held: list[bytes] = []
        if head is None:
            self.headers = []
            self.lower = {}
        else:
            self.head = head
            self.__dict__.update(head.attributes)

    # -- request side

    @property
    def opens_websocket(self) -> bool:
        """It is the opening handshake of a WebSocket (RFC 6455 §4.1), as far as method, Upgrade and no body tell."""
        return (
            self.upgrade
            and self.method == "GET"
            and self.length == 0
            and self.lower["upgrade"][1].strip().lower() == "websocket"
        )

    @property
    def remote(self) -> tuple[str, int]:
        """Address and port of the sender's end of the connection."""
        return self._connection.remote

    @property
    def connection(self) -> HttpConnection:
        return self._connection

    @property
    def body_at_hand(self) -> bool:
        """The whole body has been received."""
        return self._body_over

    def begin(self, responder: Responder) -> None:
        if self._gone is not None:
            responder.cancelled(self._gone)
            return
        if self._finished:
            return
        self._responder = responder
        if self._connection.answer_blocked:
            responder.pause_response()
        if self.expects_continue and not self._body_over and not self._held:
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.expects_continue = False
        if self._held or self._body_over:
            self._deliver()

    def take_body(self, responder: Responder) -> bytes:
        """Begin an exchange whose whole body is at hand, and have the body without the calls that deliver it."""
        self._told_end = True
        held = self._held
        body = held[0] if len(held) == 1 else b"".join(held)
        held.clear()
        self.begin(responder)
        return body

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._deliver()

    def _deliver(self) -> None:
        responder = self._responder
        if responder is None or self._finished:
            return
        while self._held and not self._paused:
            held, self._held, self._held_bytes = self._held, [], 0
            responder.body_received(held[0] if len(held) == 1 else b"".join(held))
            if self._finished:
                return
        if self._body_over and not self._held and not self._paused and not self._told_end:
            self._told_end = True
            responder.body_ended()
        self._connection.flow()

    @property
    def usual(self) -> bool:
        """Nothing about the head asks for anything but an ordinary answer on a connection that stays."""
        return (
            self.keep_alive
            and not self.http_1_0
            and not self.upgrade
            and not self.expects_continue
            and self.length is not None
            and self.method != "HEAD"
        )

    @property
    def plain(self) -> bool:
        """:meth:`respond_prepared` will do."""
        return self.head is not None and self._body_over and not self._connection.closing

    def whole(self, body: bytes) -> None:
        """Called by the connection: the body came with the head."""
        if body:
            self._held.append(body)
            self.received = len(body)
        self._body_over = True

    def body_piece(self, data: bytes) -> None:
        """Called by the connection."""
        self.received += len(data)
        if self._finished:
            return
        if self._responder is None or self._paused or self._held:
            self._held.append(data)
            self._held_bytes += len(data)
        else:
            self._responder.body_received(data)

    def body_complete(self) -> None:
        """Called by the connection."""
        self._body_over = True
        if self._responder is not None and not self._held and not self._paused and not self._finished:
            self._told_end = True
            self._responder.body_ended()

    @property
    def wants_body(self) -> bool:
        """Whether the connection should go on reading for this exchange."""
        return self._finished or (self._held_bytes < _HELD_BODY and not (self._paused and self._held))

    # -- answer side

    def respond(self, status: int, reason: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        if self._started or self._finished:
            return
        silent = self.method == "HEAD" or status == 204 or status == 304
        head = self._head(status, reason, headers, len(body), silent)
        self.sent = 0 if silent else len(body)
        self._connection.write(head if silent else b"".join((head, body)))
        self._finish()

    def respond_prepared(self, status: int, head: bytes, body: bytes) -> None:
        """:meth:`respond` with a head that was rendered before, Date and all but the length, to a :attr:`plain`
        exchange."""
        if self._started or self._finished:
            return
        self._started = True
        self.status = status
        self.sent = len(body)
        self._connection.write(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        self._finish()

    def start(self, status: int, reason: str, headers: Iterable[tuple[str, str]], length: int | None) -> None:
        if self._started or self._finished:
            return
        self._answer_silent = self.method == "HEAD" or status == 204 or status == 304
        self._answer_left = length
        self._answer_chunked = length is None and not self.http_1_0 and not self._answer_silent
        if length is None and self.http_1_0:
            self.keep_alive = False
        self._connection.write(self._head(status, reason, headers, length, self._answer_silent))

    def write(self, data: bytes) -> None:
        if self._finished or not data or self._answer_silent:
            return
        self.sent += len(data)
        if self._answer_left is not None:
            self._answer_left -= len(data)
            if self._answer_left < 0:
                self.abort("the answer is longer than the length it announced")
                return
            self.answered = self._answer_left == 0  # a sender that has it all may leave before finish
        if self._answer_chunked:
            self._connection.write_many((b"%x\r\n" % len(data), data, b"\r\n"))
        else:
            self._connection.write(data)

    def finish(self) -> None:
        if self._finished:
            return
        if not self._started or (self._answer_left and not self._answer_silent):
            self.abort("the answer is shorter than the length it announced")
            return
        if self._answer_chunked:
            self._connection.write(b"0\r\n\r\n")
        self._finish()

    def abort(self, reason: str) -> None:
        if not self._finished:
            self._finished = True
            self._held.clear()
            self._connection.abort()
            self._over()

    def switch_protocols(self, headers: Iterable[tuple[str, str]]) -> tuple[Transport, bytes]:
        """Answer 101 and hand the connection over: its transport, and the bytes that were read behind the request.

        The caller installs itself with ``transport.set_protocol`` and calls ``resume_reading``.
        """
        self.status = 101
        head = b"HTTP/1.1 101 Switching Protocols\r\n" + _fields(headers) + b"\r\n"
        self._started = self._finished = self.answered = True
        handed = self._connection.hand_over(head)
        self._over()
        return handed

    def cancel(self, error: Exception) -> None:
        """Called by the connection: the sender is gone."""
        if self._finished:
            return
        self._finished = True
        self.sender_left = not self.answered
        self._held.clear()
        if self._responder is not None:
            self._responder.cancelled(error)
        else:
            self._gone = error
        self._over()

    def pause_answer(self) -> None:
        if self._responder is not None and not self._finished:
            self._responder.pause_response()

    def resume_answer(self) -> None:
        if self._responder is not None and not self._finished:
            self._responder.resume_response()

    def _head(
        self, status: int, reason: str, headers: Iterable[tuple[str, str]], length: int | None, silent: bool
    ) -> bytes:
        self._started = True
        self.status = status
        connection = self._connection
        head = _opening(status, reason, headers)
        if "\nDate: " not in head and "\ndate: " not in head:
            head += connection.front.date()
        if length is not None:
            if status != 204 and (status != 304 or length):
                head += f"Content-Length: {length}\r\n"
        elif not silent and not self.http_1_0:
            head += "Transfer-Encoding: chunked\r\n"
        if connection.closing or not (self._body_over or self._rest_is_short()):
            self.keep_alive = False
        if not self.keep_alive:
            head += "Connection: close\r\n"
        elif self.http_1_0:
            head += "Connection: keep-alive\r\n"
        return (head + "\r\n").encode("latin-1", "replace")

    def _rest_is_short(self) -> bool:
        """What is left of the body will come by itself and is quickly dropped, so the connection may stay."""
        return not self.expects_continue and self.length is not None and self.length - self.received <= _HELD_BODY

    def _finish(self) -> None:
        self._finished = self.answered = True
        self._held.clear()
        self._over()
        self._connection.exchange_finished(self)

    def _over(self) -> None:
        self._responder = None  # it refers back to the exchange; without the cycle both go at once
        done, self.done = self.done, None
        if done is not None:
            done(self)


def _fields(headers: Iterable[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1", "replace")
