"""HTTP/1.1 client: a pool of keep-alive connections to one server, each a sans-IO core over llhttp.

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
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import httptools
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from wcfrelay.errors import BadRequestError, ConfigError, RelayError, ServerBusyError
from wcfrelay.net.network import Network, tune_transport
from wcfrelay.net.timers import Deadline, Timers
from wcfrelay.net.tls import ClientTls

__all__ = [
    "ClientRequest",
    "FetchedResponse",
    "HttpClientError",
    "HttpPool",
    "HttpTimeoutError",
    "ResponseReceiver",
]

_HEADER_COUNT = 100
_HEADER_BYTES = 64 * 1024
_ONE_WRITE = 64 * 1024
"""Bytes of body up to which head and body are joined."""
_PAST_PARSER = 64 * 1024
"""Bytes of body still to come from which on they are passed on without going through the parser."""
_REMEMBERED = 1024
_REMEMBERED_LENGTH = 64
"""Field names remembered in each direction, and characters of one. Few names make up nearly all fields."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_IN_TARGET = re.compile(r"[\x00-\x20\x7f]")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout\s*=\s*([0-9]{1,6})", re.IGNORECASE)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_METHODS = _SAFE | _WITH_BODY | {"DELETE"}
_FRAMING = frozenset({"content-length", "transfer-encoding"})

_PLAIN, _LENGTH, _CODING, _KEEP = range(4)
"""What a field of an answer means to the connection."""
_MEANINGS = {"content-length": _LENGTH, "transfer-encoding": _CODING, "keep-alive": _KEEP}


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


@dataclass(frozen=True, slots=True)
class FetchedResponse:
    """A whole answer. ``headers`` as received."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


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
        self._connection: _Connection | None = None
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


class _Connection:
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
        self._answered = True
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
        if meaning == _LENGTH:
            self._length = int(value)
            self._until_eof = False
        elif meaning == _CODING:
            if not self._until_eof or value.strip().lower() != b"chunked":
                self._problem = "the only transfer coding is chunked, once"
            self._until_eof = False
        elif meaning == _KEEP:
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


class HttpPool:
    """Connections to one server.

    ``limit`` connections at most; requests beyond wait, at most ``queue`` of them. Times in seconds: ``idle`` keeps an
    unused connection, ``head_timeout`` is the wait for a connection and then, once the request was sent, for the head
    of its answer, ``body_timeout`` the wait between two pieces of a body, in either direction. How long the *caller*
    takes, with a streamed request or with an answer it paused, is the caller's business.
    """

    def __init__(
        self,
        network: Network,
        timers: Timers,
        host: str,
        port: int,
        tls: ClientTls | None = None,
        *,
        limit: int = 128,
        idle: float = 30.0,
        connect_timeout: float = 10.0,
        head_timeout: float = 60.0,
        body_timeout: float = 60.0,
        queue: int = 1024,
    ) -> None:
        self.name = f"{f'[{host}]' if ':' in host else host}:{port}"
        self.idle = idle
        self.head_timeout = head_timeout
        self.body_timeout = body_timeout
        self.now = 0.0
        """The time of the last sweep: what happens now is stamped at most one sweep too early."""
        self.fields: dict[bytes, tuple[str, int]] = {}
        self._names: dict[str, str] = {}
        self._network = network
        self._timers = timers
        self._host = host
        self._port = port
        self._tls = tls
        self._limit = limit
        self._connect_timeout = connect_timeout
        self._queue = queue
        self._interval = max(0.1, min(1.0, idle / 4, head_timeout / 4, body_timeout / 4))
        self._slack = self._interval + 0.1
        """From one sweep to the next, with what Timers may be late."""
        self._sweeping: Deadline | None = None
        self._connections: set[_Connection] = set()
        self._closing: set[_Connection] = set()
        """Closed by us, not yet reported as lost."""
        self._connecting: set[Deferred[None]] = set()
        self._idle: list[_Connection] = []
        """The most recently used one last."""
        self._waiting: deque[ClientRequest] = deque()
        self._closed = False
        self._drained: Deferred[None] | None = None

    def request(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]],
        receiver: ResponseReceiver,
        *,
        body: bytes | None,
        length: int | None,
    ) -> ClientRequest:
        """Send a request. ``headers`` are all but the framing, ``Host`` included.

        With ``body`` it is whole, and goes out in one write. Without, the body follows through the returned handle:
        ``length`` bytes of it, or chunked where that is None.

        :raises BadRequestError: method, target or a header cannot be put on the wire as one (control characters and the
            like), or a header is about framing.
        :raises ServerBusyError: too many requests wait already, or the pool is closed.
        """
        if body is None:
            tail = (
                "\r\nTransfer-Encoding: chunked\r\n\r\n" if length is None else f"\r\nContent-Length: {length}\r\n\r\n"
            )
            breaks = 3
        elif body or method in _WITH_BODY:
            tail = f"\r\nContent-Length: {len(body)}\r\n\r\n"
            breaks = 3
        else:
            tail = "\r\n\r\n"
            breaks = 2
        names = self._names
        parts = [method, " ", target, " HTTP/1.1"]
        for name, value in headers:
            parts.append(names.get(name) or self._learn_name(name))
            parts.append(value)
            breaks += 1
        parts.append(tail)
        text = "".join(parts)
        if text.count("\n") != breaks or text.count("\r") != breaks or "\0" in text:
            raise BadRequestError("The request has a control character in its line or in a header.")
        if target[:1] != "/" or _NOT_IN_TARGET.search(target):
            raise BadRequestError("The request target must be a path, percent-encoded where needed.")
        if method not in _METHODS and not _TOKEN.fullmatch(method):
            raise BadRequestError("The request method is no HTTP token.")
        try:
            head = text.encode("latin-1")
        except UnicodeEncodeError:
            raise BadRequestError("The request has a character beyond U+00FF in its line or in a header.") from None
        request = ClientRequest(self, receiver, method, head, body)
        if body is None:
            if length is None:
                request._chunked = True
            else:
                request._left = length
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.transport.is_closing():
                self.drop(connection)
                continue
            connection.start(request)
            return request
        self._enqueue(request)
        return request

    async def fetch(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        limit: int,
        timeout: float,
    ) -> FetchedResponse:
        """The whole answer to a request, ``Host`` added where it is missing.

        ``limit`` is in bytes of the answer's body, ``timeout`` in seconds for everything.

        :raises HttpClientError: no connection, no complete answer, or one of more than ``limit`` bytes.
        :raises BadRequestError, ServerBusyError: as :meth:`request`.
        """
        fields = list(headers)
        if not any(name.lower() == "host" for name, _ in fields):
            fields.insert(0, ("Host", self.name))
        collector = _Collector(limit, self.name)
        request = self.request(method, target, fields, collector, body=body, length=len(body))

        def expired() -> None:
            request.cancel()
            collector.response_failed(HttpTimeoutError(f"{self.name} did not answer within {timeout:g} s."))

        collector.request = request
        deadline = self._timers.after(timeout, expired)
        try:
            return await collector.done
        finally:
            deadline.cancel()

    async def close(self) -> None:
        """Close every connection. Requests that wait or run fail. Returns when nothing is open any more."""
        self._closed = True
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.fail(self._shut())
        for connection in list(self._connections):
            connection.fail("The connection was closed on this side.")
        for connecting in list(self._connecting):
            connecting.cancel()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        if self._closing or self._connecting:
            self._drained = Deferred()
            await self._drained

    # -- what requests and connections call

    def abandoned(self, request: ClientRequest) -> None:
        """A request was cancelled."""
        if request._connection is not None:
            request._connection.leave()
        elif request in self._waiting:
            self._waiting.remove(request)

    def repeat(self, request: ClientRequest) -> None:
        """Send a request again, on a connection of its own."""
        if not self._closed:
            self._connect(request)
        else:
            request.fail(self._shut())

    def made(self, connection: _Connection) -> None:
        """A connection was opened."""
        self._connections.add(connection)
        self._watch()
        connection.mark = self.now
        if self._closed:
            connection.leave()

    def release(self, connection: _Connection) -> None:
        """A connection can take the next request."""
        if self._waiting:
            connection.start(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def drop(self, connection: _Connection) -> None:
        """A connection is of no use any more; it has been or is being closed."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._closing.add(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._open_more()

    def lost(self, connection: _Connection) -> None:
        """A connection is closed."""
        self._closing.discard(connection)
        self._check_drained()

    def learn_field(self, name: bytes) -> tuple[str, int]:
        """A field name of an answer as text, and what it means here."""
        text = name.decode("latin-1")
        found = (text, _MEANINGS.get(text.lower(), _PLAIN))
        if len(self.fields) < _REMEMBERED and len(name) <= _REMEMBERED_LENGTH:
            self.fields[name] = found
        return found

    # -- inside

    def _learn_name(self, name: str) -> str:
        if not _TOKEN.fullmatch(name) or name.lower() in _FRAMING:
            raise BadRequestError("A header name of the request is no HTTP token, or is about framing.")
        prefix = f"\r\n{name}: "
        if len(self._names) < _REMEMBERED and len(name) <= _REMEMBERED_LENGTH:
            self._names[name] = prefix
        return prefix

    def _shut(self) -> HttpClientError:
        return HttpClientError(f"The connections to {self.name} are being closed.", request_sent=False)

    def _enqueue(self, request: ClientRequest) -> None:
        if self._closed or len(self._waiting) >= self._queue:
            raise ServerBusyError(f"Too many requests wait for {self.name}; try again later.")
        self._watch()
        request._mark = self.now
        self._waiting.append(request)
        request.pause_body()
        self._open_more()

    def _open_more(self) -> None:
        """Open connections for those who wait, one for each, as far as the limit allows."""
        while (
            len(self._waiting) > len(self._connecting)
            and len(self._connections) + len(self._connecting) < self._limit
            and not self._closed
        ):
            self._connect(None)

    def _connect(self, request: ClientRequest | None) -> None:
        """Open a connection, for ``request`` or for whoever has waited longest."""
        opening: Deferred[None] = ensureDeferred(self._opened(request))
        if not opening.called:
            self._connecting.add(opening)
            opening.addBoth(self._connected, opening)

    def _connected(self, result: Failure | None, opening: Deferred[None]) -> None:
        self._connecting.discard(opening)
        self._check_drained()
        if isinstance(result, Failure) and not self._closed:
            result.raiseException()
        if not self._closed:
            self._open_more()

    async def _opened(self, request: ClientRequest | None) -> None:
        try:
            connection = await self._network.connect(
                lambda: _Connection(self), self._host, self._port, self._tls, self._connect_timeout
            )
        except (RelayError, ConfigError) as error:
            failed = HttpClientError(str(error), request_sent=False)
            failed.__cause__ = error
            if request is not None:
                request.fail(failed)
            elif self._connections:
                if self._waiting:
                    self._waiting.popleft().fail(failed)
            else:
                # Nothing is open: what one met, all would meet, one connect_timeout after the other.
                waiting, self._waiting = self._waiting, deque()
                for each in waiting:
                    each.fail(failed)
            return
        if connection not in self._connections:
            return
        if request is not None and not request._over:
            connection.start(request)
        else:
            self.release(connection)

    def _watch(self) -> None:
        if self._sweeping is None and not self._closed:
            self.now = self._network.seconds()
            self._sweeping = self._timers.after(self._interval, self._sweep)

    def _sweep(self) -> None:
        now = self.now = self._network.seconds()
        self._sweeping = None
        for connection in list(self._closing):
            connection.transport.abort()
        for connection in list(self._connections):
            waited = now - connection.mark
            if connection.busy:
                connection.check(waited - self._slack)
            elif waited + self._slack > connection.idle:
                self.drop(connection)
                connection.transport.close()
        waiting = self._waiting
        while waiting and now - waiting[0]._mark - self._slack >= self.head_timeout:
            waiting.popleft().fail(
                HttpTimeoutError(
                    f"No connection to {self.name} was free within {self.head_timeout:g} s.", request_sent=False
                )
            )
        if self._connections or self._closing or waiting:
            self._watch()

    def _check_drained(self) -> None:
        if self._drained is not None and not self._closing and not self._connecting:
            # Not from inside connection_lost: the loop closes the socket after it.
            drained, self._drained = self._drained, None
            self._network.call_soon(lambda: drained.callback(None))


class _Collector:
    """Takes an answer whole, for :meth:`HttpPool.fetch`."""

    def __init__(self, limit: int, server: str) -> None:
        self.done: Deferred[FetchedResponse] = Deferred(lambda _: self._cancel())
        self.request: ClientRequest | None = None
        self._limit = limit
        self._server = server
        self._size = 0
        self._head: tuple[int, str, list[tuple[str, str]]] = (0, "", [])
        self._body: list[bytes] = []

    def _cancel(self) -> None:
        if self.request is not None:
            self.request.cancel()

    def response_started(self, status: int, reason: str, headers: list[tuple[str, str]], length: int | None) -> None:
        self._head = (status, reason, headers)

    def response_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            assert self.request is not None
            self.request.cancel()
            self.response_failed(HttpClientError(f"{self._server} answered with more than {self._limit} bytes."))
        else:
            self._body.append(data)

    def response_ended(self) -> None:
        self.done.callback(FetchedResponse(*self._head, b"".join(self._body)))

    def response_failed(self, error: HttpClientError) -> None:
        if not self.done.called:
            self.done.errback(error)

    def pause_request(self) -> None:
        pass

    def resume_request(self) -> None:
        pass
