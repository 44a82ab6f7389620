"""HTTP/1.1 client connections: a sans-IO core over llhttp. :mod:`wcfrelay.net.http1.pool` keeps them.

Grammar: RFC 9112, parsed by llhttp in strict mode (bare CR or LF, folded header lines, two lengths, a length beside a
transfer coding: refused). Checked here in addition: chunked as the only transfer coding and not in HTTP/1.0, the
quotas on the answer's head, nothing on the connection that was not asked for. Interim (1xx) answers and trailer fields
are dropped; 101 is refused, because nothing here asks for another protocol.

A connection carries one request at a time (no pipelining)::

    connect ──▶ idle ──start──▶ busy ──answer complete──▶ idle ──▶ … ──▶ closed
                                 └─ anything unusual: an answer before the request was sent, `Connection: close`, a
                                    body that ends with the connection, bytes behind the answer ──▶ closed

A request that may have been executed is never sent a second time. The one repeat there is: a safe method (RFC 9110
§9.2.1), sent whole on a connection that had served before and that the server closed without one byte of an answer.
To make that rare for all others, the most recently used connection is taken first, idle ones are closed early, and
earlier still where the server says how long it keeps them (``Keep-Alive: timeout=``).

One sweep a second looks after every wait, so that a call costs no timer and does not ask for the time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httptools

from wcfrelay.errors import RelayError
from wcfrelay.net.network import tune_transport
from wcfrelay.net.repeats import RepeatedFields

if TYPE_CHECKING:
    from wcfrelay.net.http1.pool import HttpPool

__all__ = [
    "CODING",
    "KEEP",
    "LENGTH",
    "PLAIN",
    "ClientConnection",
    "ClientRequest",
    "HttpClientError",
    "HttpTimeoutError",
    "KnownHead",
    "ResponseReceiver",
]

_HEADER_COUNT = 100
_HEADER_BYTES = 64 * 1024
_ONE_WRITE = 64 * 1024
"""Bytes of body up to which head and body are joined."""
_REMEMBERED_HEAD = 2 * 1024
"""Bytes of an answer's head up to which it is remembered."""
_PAST_PARSER = 64 * 1024
"""Bytes of body still to come from which on they are passed on without going through the parser."""

_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout\s*=\s*([0-9]{1,6})", re.IGNORECASE)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

PLAIN, LENGTH, CODING, KEEP = range(4)
"""What a field of an answer means to the connection."""


class HttpClientError(RelayError):
    """No complete answer came from the server.

    ``request_sent`` tells whether any byte of the request may have reached the server.
    """

    status = 502
    code = "BadGateway"
    transient = True

    def __init__(self, message: str = "", *, request_sent: bool = True) -> None:
        super().__init__(message)
        self.request_sent = request_sent


class HttpTimeoutError(HttpClientError):
    """The server did not answer in the required time."""

    status = 504
    code = "GatewayTimeout"


class ResponseReceiver(Protocol):
    """Who takes an answer. Nothing is called after ``response_ended`` or ``response_failed``, or after the request was
    cancelled; nothing of the answer is delivered inside :meth:`HttpPool.request`."""

    def response_started(self, status: int, reason: str, headers: list[tuple[str, str]], length: int | None) -> None:
        """The head of the final answer. ``headers`` are all fields as received, the framing too. ``length`` is the
        declared length of the body in bytes, None where it shows at the end only; an answer to HEAD, and 304, has no
        body whatever is declared."""

    def response_data(self, data: bytes) -> None:
        """The next piece of the body, never empty."""

    def response_ended(self) -> None: ...

    def response_failed(self, error: HttpClientError) -> None:
        """Before ``response_started``: there will be no answer. After it: the answer was cut in the middle."""

    def pause_request(self) -> None:
        """The buffer towards the server is full, or there is no connection yet: write no more of the body until
        ``resume_request``. May be called inside :meth:`HttpPool.request`."""

    def resume_request(self) -> None: ...


class ClientRequest:
    """One request, from :meth:`HttpPool.request`. Every call after its end is ignored."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_early",
        "_head",
        "_left",
        "_mark",
        "_once",
        "_over",
        "_paused",
        "_pool",
        "_sent",
        "method",
        "receiver",
    )

    def __init__(
        self, pool: HttpPool, receiver: ResponseReceiver, method: str, head: bytes, body: bytes | None
    ) -> None:
        self.method = method
        self.receiver = receiver
        self._pool = pool
        self._connection: ClientConnection | None = None
        self._head = head
        self._early: list[bytes] = [] if body is None else [body]
        """The body as far as it was given before there was a connection; the whole body where ``_sent``."""
        self._sent = body is not None
        """The body is complete (``finish`` was called)."""
        self._chunked = False
        self._left = 0
        self._over = False
        self._paused = False
        self._once = body is None
        """Not to be sent again, and ``_early`` not to be kept."""
        self._mark = 0.0

    def write(self, data: bytes) -> None:
        """The next piece of a streamed body."""
        if self._over or self._sent or not data:
            return
        if self._chunked:
            self._send((b"%x\r\n" % len(data), data, b"\r\n"))
            return
        self._left -= len(data)
        if self._left < 0:
            self._give_up("The body of the request is longer than its announced length.")
        else:
            self._send((data,))

    def finish(self) -> None:
        """A streamed body is complete."""
        if self._over or self._sent:
            return
        if self._chunked:
            self._send((b"0\r\n\r\n",))
        elif self._left:
            self._give_up("The body of the request is shorter than its announced length.")
            return
        self._sent = True
        if self._connection is not None:
            self._connection.mark = self._pool.now

    def pause(self) -> None:
        """Deliver no more of the answer's body; at most what is already in memory still comes."""
        if self._connection is not None and not self._over:
            self._connection.pause_reading()

    def resume(self) -> None:
        if self._connection is not None and not self._over:
            self._connection.resume_reading()

    def cancel(self) -> None:
        """Nobody wants the answer any more. The connection is closed, since the answer cannot be stopped otherwise."""
        if not self._over:
            self._over = True
            self._pool.abandoned(self)

    def _send(self, pieces: tuple[bytes, ...]) -> None:
        connection = self._connection
        if connection is None:
            self._early.extend(pieces)
        elif len(pieces) == 1:
            connection.transport.write(pieces[0])
        else:
            connection.transport.writelines(pieces)

    def _give_up(self, text: str) -> None:
        sent = self._connection is not None
        self.cancel()
        self.receiver.response_failed(HttpClientError(text, request_sent=sent))

    def fail(self, error: HttpClientError) -> None:
        """Called by the pool and the connection."""
        if not self._over:
            self._over = True
            self.receiver.response_failed(error)

    def pause_body(self) -> None:
        """Called by the pool and the connection."""
        if not self._paused and not self._sent:
            self._paused = True
            self.receiver.pause_request()

    def resume_body(self) -> None:
        """Called by the connection."""
        if self._paused:
            self._paused = False
            if not self._sent and not self._over:
                self.receiver.resume_request()


@dataclass(frozen=True, slots=True)
class KnownHead:
    """The head of an answer that came before. Its fields are the same list each time."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    length: int


class ClientConnection:
    """One connection to the server (a :class:`~wcfrelay.net.network.Stream`)."""

    __slots__ = (
        "_answered",
        "_complete",
        "_direct",
        "_fields",
        "_head_done",
        "_headers",
        "_keep_alive",
        "_left",
        "_length",
        "_parser",
        "_pieces",
        "_pool",
        "_problem",
        "_quiet",
        "_reading",
        "_reason",
        "_request",
        "_reused",
        "_started",
        "_status",
        "_until_eof",
        "_writable",
        "idle",
        "mark",
        "transport",
    )

    def __init__(self, pool: HttpPool) -> None:
        self.transport: Any = None
        self.mark = 0.0
        """When progress was made last, on the pool's clock."""
        self.idle = pool.idle
        """Seconds to keep the connection unused."""
        self._pool = pool
        self._fields = pool.fields
        self._parser: Any = None
        self._request: ClientRequest | None = None
        self._reused = False
        self._reading = True
        self._writable = True
        self._keep_alive = True
        self._answered = False
        """A byte of the answer has come."""
        self._started = False
        """The head has been delivered."""
        self._head_done = False
        self._complete = False
        self._until_eof = False
        self._problem = ""
        self._status = 0
        self._reason = ""
        self._headers: list[tuple[str, str]] = []
        self._length: int | None = None
        self._left = 0
        self._pieces: list[bytes] = []
        self._quiet = 0
        """Bytes read since something was delivered: what the parser may hold."""
        self._direct = 0
        """Bytes of body that will not go through the parser."""

    # -- what the pool and the request call

    @property
    def busy(self) -> bool:
        return self._request is not None

    def start(self, request: ClientRequest) -> None:
        """Send a request; the connection is idle."""
        self._request = request
        request._connection = self
        self.mark = self._pool.now
        self._keep_alive = True
        self._answered = self._started = self._head_done = self._complete = self._until_eof = False
        self._quiet = 0
        head, early = request._head, request._early
        if len(early) == 1 and len(early[0]) <= _ONE_WRITE:
            self.transport.write(head + early[0])
        elif early:
            self.transport.writelines((head, *early))
        else:
            self.transport.write(head)
        if request._once:
            request._early = []
            if self._writable:
                request.resume_body()

    def pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.mark = self._pool.now
            self.transport.resume_reading()

    def check(self, waited: float) -> None:
        """Fail what has waited too long; ``waited`` is the least time in seconds since ``mark``."""
        pool, request = self._pool, self._request
        if request is None:
            return
        if not request._sent:
            if not self._writable and waited >= pool.body_timeout:
                self._fail(HttpTimeoutError(f"{pool.name} took no more of the request for {pool.body_timeout:g} s."))
        elif not self._head_done:
            if waited >= pool.head_timeout:
                self._fail(HttpTimeoutError(f"{pool.name} did not answer within {pool.head_timeout:g} s."))
        elif self._reading and waited >= pool.body_timeout:
            self._fail(HttpTimeoutError(f"{pool.name} sent no more of its answer for {pool.body_timeout:g} s."))

    def fail(self, text: str) -> None:
        """Give the request up, if there is one, and close."""
        self._fail(HttpClientError(text))

    def leave(self) -> None:
        """Close without a word to the request."""
        self._request = None
        self._pool.drop(self)
        self.transport.abort()

    # -- what the network calls

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        tune_transport(transport)
        self._parser = httptools.HttpResponseParser(self)
        self._pool.made(self)

    def data_received(self, data: bytes) -> None:
        request = self._request
        if request is None:
            self.leave()  # nobody asked for this
            return
        self.mark = self._pool.now
        if self._direct:
            self._past_parser(request, data)
            return
        first = not self._answered
        self._answered = True
        if first and request._sent and request.method != "HEAD":
            end = data.find(b"\r\n\r\n") + 4
            known = self._pool.heads.get(data[:end])
            if known is not None and len(data) == end + known.length:
                self._started = True
                receiver = request.receiver
                receiver.response_started(known.status, known.reason, known.headers, known.length)
                if self._request is request and known.length:
                    receiver.response_data(data[end:])
                if self._request is request:
                    self._finish(request)
                return
        self._quiet += len(data)
        self._problem = ""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep_alive = False
            self._problem = self._problem or str(error)
        if not self._head_done:
            if not self._problem and self._quiet > _HEADER_BYTES:
                self._problem = "its head is too large"
        elif not self._started:
            if not self._problem or self._complete:
                if first and self._complete:
                    self._learn(request, data)
                self._deliver_head(request)
                if self._request is not request:
                    return
        elif self._quiet > _HEADER_BYTES and not self._pieces:
            self._problem = "its chunk or trailer lines are too large"
        pieces = self._pieces
        if pieces and self._started:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = []
            self._quiet = 0
            self._left -= len(body)
            request.receiver.response_data(body)
            if self._request is not request:
                return
        if self._complete:
            self._finish(request)
        elif self._problem:
            self.fail(f"{self._pool.name} sent an answer that is no valid HTTP: {self._problem}.")
        elif self._left > _PAST_PARSER and self._started:
            self._direct = self._left
            self._parser = httptools.HttpResponseParser(self)

    def eof_received(self) -> bool | None:
        self._ended(None)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        self._pool.lost(self)

    def pause_writing(self) -> None:
        self._writable = False
        self.mark = self._pool.now
        if self._request is not None:
            self._request.pause_body()

    def resume_writing(self) -> None:
        self._writable = True
        self.mark = self._pool.now
        if self._request is not None:
            self._request.resume_body()

    # -- what llhttp calls

    def on_message_begin(self) -> None:
        if self._complete:
            self._keep_alive = False  # bytes behind the answer
        else:
            self._headers = []
            self._reason = ""
            self._length = None
            self._until_eof = True

    def on_status(self, text: bytes) -> None:
        if not self._head_done:
            self._reason += text.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer field, or behind the answer
        text, meaning = self._fields.get(name) or self._pool.learn_field(name)
        self._headers.append((text, value.strip().decode("latin-1")))
        if meaning == LENGTH:
            self._length = int(value)
            self._until_eof = False
        elif meaning == CODING:
            if not self._until_eof or value.strip().lower() != b"chunked":
                self._problem = "the only transfer coding is chunked, once"
            self._until_eof = False
        elif meaning == KEEP:
            self._server_keeps(value)

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        status = self._parser.get_status_code()
        if status == 101:
            self._problem = "it switched protocols unasked"
        if status < 200:
            return
        headers = self._headers
        if len(headers) > _HEADER_COUNT:
            self._problem = "it has too many header fields"
        elif self._quiet > _HEADER_BYTES and sum(len(n) + len(v) + 4 for n, v in headers) > _HEADER_BYTES:
            self._problem = "its head is too large"
        if not self._parser.should_keep_alive():
            self._keep_alive = False
        if self._length is None or not self._keep_alive:
            version = self._parser.get_http_version()
            if version not in ("1.0", "1.1"):
                self._problem = "its version is not HTTP/1"
            elif version == "1.0" and self._length is None and not self._until_eof:
                self._problem = "HTTP/1.0 has no transfer codings"
        self._status = status
        self._head_done = True
        request = self._request
        if self._problem:
            self._left = 0
        elif request is not None and request.method == "HEAD":
            # llhttp cannot be told, and would wait for a body.
            self._complete = True
            self._keep_alive = self._keep_alive and self._length is not None
            self._left = 0
        else:
            self._left = self._length or 0

    def on_body(self, data: bytes) -> None:
        if self._complete:
            self._keep_alive = False
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._head_done and not self._problem:
            self._complete = True

    # -- inside

    def _server_keeps(self, value: bytes) -> None:
        found = _KEEP_ALIVE_TIMEOUT.search(value)
        if found is not None:
            seconds = int(found[1])
            self.idle = min(self._pool.idle, seconds - 1.0)
            if seconds < 2:
                self._keep_alive = False

    def _deliver_head(self, request: ClientRequest) -> None:
        self._started = True
        self._quiet = 0
        if self._status >= 400 and not request._sent:
            # The server has judged; what is left of the body is of no use to it (RFC 9112 §9.5).
            request._sent = True
            self._keep_alive = False
        request.receiver.response_started(self._status, self._reason, self._headers, self._length)

    def _learn(self, request: ClientRequest, data: bytes) -> None:
        """Remember the head of an answer that came whole in one read, if there is nothing unusual about it."""
        end = data.find(b"\r\n\r\n") + 4
        if (
            self._keep_alive
            and self._length is not None
            and self.idle == self._pool.idle
            and request.method != "HEAD"
            and 200 <= self._status != 304
            and end <= _REMEMBERED_HEAD
            and len(data) == end + self._length
        ):
            self._pool.learn_head(
                data[:end], KnownHead(self._status, self._reason, RepeatedFields(self._headers), self._length)
            )

    def _past_parser(self, request: ClientRequest, data: bytes) -> None:
        left = self._direct = self._direct - len(data)
        if left < 0:
            self._direct = 0
            self._keep_alive = False
            data = data[:left]
        request.receiver.response_data(data)
        if left <= 0 and self._request is request:
            self._finish(request)

    def _finish(self, request: ClientRequest) -> None:
        """The answer is complete: keep or close the connection, then tell."""
        pool = self._pool
        self._request = None
        request._over = True
        keep = self._keep_alive and request._sent and self._writable and not self.transport.is_closing()
        if not keep:
            self.leave()
        else:
            if request.method == "HEAD":
                self._parser = httptools.HttpResponseParser(self)
            if not self._reading:
                self.resume_reading()
            self._reused = True
            self.mark = pool.now
            pool.release(self)
        request.receiver.response_ended()

    def _ended(self, exc: Exception | None) -> None:
        """The server closed."""
        request = self._request
        if request is None:
            self._pool.drop(self)
            self.transport.abort()
        elif self._started and self._until_eof and exc is None:
            self._keep_alive = False
            self._finish(request)
        elif self._reused and not self._answered and not request._once and request.method in _SAFE:
            request._once = True
            request._connection = None
            # The repeat first, so that it has the room that this connection leaves.
            self._pool.repeat(request)
            self.leave()
        else:
            where = "in the middle of its answer" if self._head_done else "before it had answered"
            self.fail(f"{self._pool.name} closed the connection {where}.")

    def _fail(self, error: HttpClientError) -> None:
        request = self._request
        self.leave()
        if request is not None:
            request.fail(error)
