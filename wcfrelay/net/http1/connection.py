"""HTTP/1.1 server connections: a sans-IO core over llhttp.

Grammar: RFC 9112, parsed by llhttp in strict mode, so that bare CR or LF, folded header lines, two lengths and a
length beside a transfer coding are refused with 400 and the connection is closed. Checked here in addition: one Host,
chunked as the only transfer coding and not in HTTP/1.0, the quotas of :class:`~wcfrelay.net.http1.server.ServerLimits`.

One connection serves its requests in order. A pipelined request waits, parsed, until the answer before it is finished;
while one waits nothing more is read, so what is held is bounded by one read. Trailer fields are dropped.

Life of a connection (``_phase``), with the deadline that ends it::

    IDLE ──first byte──▶ HEAD ──head parsed──▶ OPEN ──answer finished and body read──▶ IDLE
    keep_alive           request_head          body_idle while the body is read or the answer does not drain;
                                               request_total; the wait for the answer is the responder's business

``OPEN ──switch_protocols──▶`` leaves this module: the transport goes to whoever speaks the other protocol.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import httptools

from wcfrelay.net.http1.exchange import RequestHead, ServerExchange
from wcfrelay.net.network import Transport, tune_transport
from wcfrelay.net.timers import Deadline

if TYPE_CHECKING:
    from wcfrelay.net.http1.server import HttpFront

__all__ = ["HttpConnection", "Refused"]

_DISCARDED_BODY = 64 * 1024 * 1024
"""Bytes read and dropped after an early answer, within the deadline of a silent body: senders that write everything
before they read would otherwise see a reset and not the answer."""
_REMEMBERED = 1024
_REMEMBERED_HEAD = 4 * 1024
"""Heads of requests that are remembered, and bytes of one."""

_IDLE, _HEAD, _OPEN, _CLOSED = range(4)
"""Phases, see above. The answer's own wait is not limited here."""


class Refused(Exception):
    """The request cannot be served; leaves a parser callback."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpConnection:
    """One server connection (a :class:`~wcfrelay.net.network.Stream`)."""

    __slots__ = (
        "_current",
        "_discarded",
        "_fields",
        "_fresh",
        "_head_fed",
        "_leftover",
        "_parser",
        "_parsing",
        "_phase",
        "_reading",
        "_resumable",
        "_resumed",
        "_since",
        "_target",
        "_timer",
        "_waiting",
        "answer_blocked",
        "closing",
        "front",
        "remote",
        "slot",
        "transport",
    )

    def __init__(self, front: HttpFront) -> None:
        self.front = front
        self.transport: Any = None
        self.remote: tuple[str, int] = ("", 0)
        self.slot: Any = None
        """What belongs to the sender's connection (its rendezvous); told ``sender_gone()`` when it closes."""
        self._parser: Any = None
        self._phase = _IDLE
        self._since = 0.0
        self._timer: Deadline | None = None
        self._current: ServerExchange | None = None
        """The exchange being answered."""
        self._parsing: ServerExchange | None = None
        """The exchange whose body is being read; the last of ``_waiting`` or ``_current``."""
        self._waiting: deque[ServerExchange] = deque()
        self._target = b""
        self._head_fed = 0
        self._fields: list[tuple[bytes, bytes]] = []
        self._leftover = b""
        self._discarded = 0
        self.answer_blocked = False
        self.closing = False
        """Nothing more is served after what has begun."""
        self._reading = True
        self._resumed: ServerExchange | None = None
        self._resumable = False
        self._fresh = False
        """The current exchange has not been handed on yet."""

    # -- what the network calls

    def connection_made(self, transport: Any) -> None:
        front = self.front
        self.transport = transport
        tune_transport(transport)
        peer = transport.get_extra_info("peername")
        if peer:
            self.remote = (peer[0], peer[1])
        self._parser = httptools.HttpRequestParser(self)
        if len(front.connections) >= front.limits.connections:
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self._phase = _CLOSED
            transport.close()
            return
        front.connections.add(self)
        self._since = front.network.seconds()
        self._arm(front.limits.request_head)

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase == _CLOSED:
            return
        first = phase == _IDLE
        if first and not self.answer_blocked:
            end = data.find(b"\r\n\r\n") + 4
            head = self.front.heads.get(data[:end])
            if head is not None and len(data) == end + head.length and not self.closing:
                self._repeated(head, data[end:])
                return
        # The deadlines of a head, and of a body that is dropped, are for all of it, not for each byte.
        if phase != _HEAD and (self._current is not None or self._parsing is None):
            self._since = self.front.network.seconds()
            if phase == _IDLE:
                self._phase = _HEAD
        self._head_fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            self._upgrade_requested(data[stop.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, Refused):
                self.abort()
                raise
            self._malformed(cause.status, str(cause))
            return
        except httptools.HttpParserError as error:
            self._malformed(400, f"malformed request: {error}")
            return
        if phase == _HEAD and self._phase != _HEAD:
            self._since = self.front.network.seconds()
        if self._fresh:
            if first:
                self._learn(data)
            self._take()
        if self._phase == _HEAD:
            limits = self.front.limits
            if len(self._target) > limits.request_line:
                self._refuse(414, "request line too long")
            elif self._head_fed > limits.request_line + limits.header_bytes:
                self._refuse(431, "request head too large")
        elif self._waiting or not (self._parsing is None or self._parsing.wants_body):
            self.flow()

    def _repeated(self, head: RequestHead, body: bytes) -> None:
        """A whole request, byte for byte with a head that the parser has accepted before."""
        self._since = now = self.front.network.seconds()
        self._phase = _OPEN
        self._current = exchange = ServerExchange(self, head)
        exchange.started_at = now
        exchange.whole(body)
        self.front.take(exchange)

    def _learn(self, data: bytes) -> None:
        """Remember the head of a request that came whole in one read, if there is nothing unusual about it."""
        exchange, heads = self._current, self.front.heads
        end = data.find(b"\r\n\r\n") + 4
        if (
            exchange is not None
            and exchange.body_at_hand
            and exchange.usual
            and not self._waiting
            and end <= _REMEMBERED_HEAD
            and len(data) == end + exchange.received
            and 65 <= data[0] <= 90
        ):
            if len(heads) >= _REMEMBERED:
                heads.clear()
            heads[data[:end]] = exchange.head = RequestHead(exchange)

    def _take(self) -> None:
        """Hand the current exchange on, once all that was read has been parsed: often its whole body is there."""
        self._fresh = False
        current = self._current
        if current is not None:
            self.front.take(current)

    def eof_received(self) -> bool | None:
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _CLOSED
        self.front.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        current, self._current, self._parsing = self._current, None, None
        self._waiting.clear()
        if current is not None:
            current.cancel(exc or ConnectionResetError("the sender disconnected"))
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.sender_gone()

    def pause_writing(self) -> None:
        self.answer_blocked = True
        self._since = self.front.network.seconds()
        if self._current is not None:
            self._current.pause_answer()
        else:
            self.flow()

    def resume_writing(self) -> None:
        self.answer_blocked = False
        if self._current is not None:
            self._current.resume_answer()
        elif self._waiting:
            self._serve_next()
        else:
            self.flow()

    # -- what llhttp calls

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > self.front.limits.request_line:
            raise Refused(414, "request line too long")

    def on_message_begin(self) -> None:
        self._phase = _HEAD
        self._target = b""
        self._fields = []
        if self._resumed is None:
            self._parsing = ServerExchange(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._parsing
        if exchange is None or exchange.method:
            return  # a trailer field: dropped
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        exchange = self._parsing
        assert exchange is not None
        if self._resumed is not None:
            self._resumed = None
            self._phase = _OPEN
            return
        front, parser = self.front, self._parser
        limits, names = front.limits, front.names
        headers, lower = exchange.headers, exchange.lower
        size = 0
        for name, value in self._fields:
            size += len(name) + len(value)
            text, low = names.get(name) or front.spelling(name)
            field = (text, value.decode("latin-1"))
            headers.append(field)
            if low not in lower:
                lower[low] = field
            elif low == "host":
                raise Refused(400, "more than one Host")
        if len(headers) > limits.header_count or size > limits.header_bytes:
            raise Refused(431, "too many header fields")
        exchange.head_bytes = size
        version = parser.get_http_version()
        host_field = lower.get("host")
        if version == "1.1":
            if host_field is None:
                raise Refused(400, "a Host header is required")
        elif version == "1.0":
            exchange.http_1_0 = True
        else:
            raise Refused(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        if host_field is not None and host_field[1]:
            exchange.host = host = host_field[1]
            exchange.origin = front.origins.get(host) or front.origin(host)
        if "transfer-encoding" in lower:
            if exchange.http_1_0 or lower["transfer-encoding"][1].strip().lower() != "chunked":
                raise Refused(501 if not exchange.http_1_0 else 400, "the only transfer coding is chunked")
            exchange.length = None
        elif "content-length" in lower:
            exchange.length = int(lower["content-length"][1])
        target = self._target.decode("ascii")
        if target[:1] != "/":
            target = _origin_form(target)
        exchange.target = target
        exchange.method = parser.get_method().decode("ascii")
        exchange.keep_alive = parser.should_keep_alive() and not self.closing
        exchange.upgrade = "upgrade" in lower and parser.should_upgrade()
        if "expect" in lower:
            exchange.expects_continue = exchange.length != 0 and lower["expect"][1].lower() == "100-continue"
        exchange.started_at = self._since
        self._phase = _OPEN
        self._resumable = exchange.upgrade
        if self._current is None and not self.answer_blocked:
            self._current = exchange
            self._fresh = True
        else:
            self._waiting.append(exchange)

    def on_body(self, body: bytes) -> None:
        exchange = self._parsing
        assert exchange is not None
        exchange.body_piece(body)
        if exchange is not self._current and self._current is None:
            self._discarded += len(body)
            if self._discarded > _DISCARDED_BODY:
                self.close()

    def on_message_complete(self) -> None:
        exchange = self._parsing
        assert exchange is not None
        if exchange.upgrade and exchange.length != 0 and self._resumable:
            return  # llhttp takes a request with Upgrade for one without a body; see _upgrade_requested
        self._parsing = None
        self._head_fed = 0
        exchange.body_complete()
        if exchange is not self._current and not self._waiting and self._current is None:
            self._after_answer(exchange)

    # -- what the exchange calls

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def write_many(self, pieces: tuple[bytes, ...]) -> None:
        self.transport.writelines(pieces)

    def flow(self) -> None:
        """Read on or stop reading, as the exchanges can take it. A sender that does not read its answers is not asked
        for more requests."""
        wanted = (
            len(self._waiting) == 0
            and (self._parsing is None or self._parsing.wants_body)
            and not (self.answer_blocked and self._current is None)
        )
        if wanted != self._reading and self._phase != _CLOSED:
            self._reading = wanted
            if wanted:
                self._since = self.front.network.seconds()
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def exchange_finished(self, exchange: ServerExchange) -> None:
        """The answer is written. Serve the next request, or read what is left of this one's body first."""
        self._current = None
        if exchange.body_at_hand:
            self._after_answer(exchange)
        elif exchange.expects_continue:
            self.close()  # the body was never asked for
        else:
            self._discarded = 0
            self._since = self.front.network.seconds()
            self.flow()

    def hand_over(self, head: bytes) -> tuple[Transport, bytes]:
        """Write ``head``, forget the transport and return it with the bytes read behind the request."""
        self.transport.write(head)
        self._phase = _CLOSED
        self._current = None
        self.front.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        leftover, self._leftover = self._leftover, b""
        return self.transport, leftover

    @property
    def at_work(self) -> bool:
        """An exchange has begun, or is coming in."""
        return self._phase in (_HEAD, _OPEN)

    def close_when_idle(self) -> None:
        """Finish what has begun, accept nothing more."""
        self.closing = True
        if self._phase == _IDLE:
            self.close()

    def close(self) -> None:
        """Close after what is written has been sent."""
        if self._phase != _CLOSED:
            self._phase = _CLOSED
            self._since = self.front.network.seconds()
            self.transport.close()

    def abort(self) -> None:
        self._phase = _CLOSED
        self.transport.abort()

    # -- inside

    def _after_answer(self, exchange: ServerExchange) -> None:
        if self._phase == _CLOSED:
            return
        if not exchange.keep_alive:
            self.close()
            return
        if self._waiting:
            if not self.answer_blocked:
                self._serve_next()
        elif self._parsing is None:
            self._phase = _IDLE
            self._since = self.front.network.seconds()
            if self.closing:
                self.close()
            elif not self._reading or self.answer_blocked:
                self.flow()

    def _serve_next(self) -> None:
        following = self._current = self._waiting.popleft()
        self.front.take(following)
        self.flow()

    def _upgrade_requested(self, rest: bytes) -> None:
        """llhttp stopped behind the head of a request with Upgrade.

        Whether a WebSocket opens is the taker's decision; until it has decided, nothing more is read. A request with
        any other Upgrade (Java's client offers h2c with its first POST) is an ordinary one. llhttp has dropped its
        framing, so a new parser is given a head with the same framing and goes on with the body.
        """
        if self._phase == _CLOSED:
            return
        self._parser = httptools.HttpRequestParser(self)
        parsing = self._parsing
        latest = self._waiting[-1] if self._waiting else self._current
        if parsing is not None:
            framing = "Transfer-Encoding: chunked" if parsing.length is None else f"Content-Length: {parsing.length}"
            self._resumed = parsing
            self._resumable = False
            self._parser.feed_data(f"POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
            self.data_received(rest)
        elif latest is not None and latest.opens_websocket:
            self._leftover = rest
            self._reading = False
            self.transport.pause_reading()
            latest.keep_alive = False
            if self._fresh:
                self._take()
        else:
            if self._fresh:
                self._take()
            if rest:
                self.data_received(rest)

    def _malformed(self, status: int, text: str) -> None:
        """What was read last is no request. Whole ones before it are served, and are the last of the connection."""
        if self._waiting and self._waiting[-1] is self._parsing:
            self._waiting.pop()
        last = self._waiting[-1] if self._waiting else self._current
        if last is None or last is self._parsing:
            self._refuse(status, text)
            return
        last.keep_alive = False
        self._parsing = None
        if self._fresh:
            self._take()

    def _refuse(self, status: int, text: str) -> None:
        """Answer a request that cannot be served, and close. An answer that has begun is cut."""
        current = self._current
        if self._fresh:  # nobody has seen the request yet
            self._fresh = False
            self._current = None
        elif current is not None:
            self.abort()
            current.cancel(ConnectionResetError(text))
            return
        body = f"{text}\n".encode("latin-1", "replace")
        self.transport.write(
            b"HTTP/1.1 %d Refused\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, len(body), body)
        )
        self.close()

    def _arm(self, seconds: float) -> None:
        self._timer = self.front.timers.after(seconds, self._check)

    def _check(self) -> None:
        """The one deadline of a connection: looks at how long the present phase has lasted, and when to look again."""
        limits, now = self.front.limits, self.front.network.seconds()
        quiet = now - self._since
        look_again = limits.body_idle
        current = self._current
        if self._phase == _CLOSED:
            look_again = limits.body_idle - quiet
            if look_again <= 0:  # the peer does not take what is left to send
                self.transport.abort()
                return
        elif self._phase == _IDLE and not self.answer_blocked:
            look_again = limits.keep_alive - quiet
            if look_again <= 0:
                self.close()
                return
        elif self._phase == _HEAD:
            look_again = limits.request_head - quiet
            if look_again <= 0:
                self._refuse(408, "the request head did not arrive in time")
                return
        elif self.answer_blocked or (self._parsing is not None and self._reading):
            look_again = limits.body_idle - quiet
            if look_again <= 0:
                self._too_slow(current, "the body moved too slowly")
                return
        if current is not None and limits.request_total > 0:
            left = limits.request_total - (now - current.started_at)
            if left <= 0:
                self._too_slow(current, "the exchange took too long")
                return
            look_again = min(look_again, left)
        self._arm(max(look_again, 0.05))

    def _too_slow(self, current: ServerExchange | None, text: str) -> None:
        self.abort()
        if current is not None:
            current.cancel(TimeoutError(text))


def _origin_form(target: str) -> str:
    """The origin form of an absolute-form target (RFC 9112 §3.2.2); ``*`` stays."""
    if target == "*":
        return target
    scheme, mark, rest = target.partition("://")
    if not mark or scheme.lower() not in ("http", "https"):
        raise Refused(400, "the request target is malformed")
    slash = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
    rest = rest[slash:]
    return rest if rest[:1] == "/" else "/" + rest
