"""HTTP/1.1 client: a pool of keep-alive connections to one server.

What a connection does and refuses, and when a request is sent again, is said in :mod:`wcfrelay.net.http1.client`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from wcfrelay.errors import BadRequestError, ConfigError, RelayError, ServerBusyError
from wcfrelay.net.http1.client import (
    CODING,
    KEEP,
    LENGTH,
    PLAIN,
    ClientConnection,
    ClientRequest,
    HttpClientError,
    HttpTimeoutError,
    KnownHead,
    ResponseReceiver,
)
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Deadline, Timers
from wcfrelay.net.tls import ClientTls

__all__ = ["FetchedResponse", "HttpPool"]

_REMEMBERED = 1024
_REMEMBERED_LENGTH = 64
"""Field names remembered in each direction, and characters of one. Few names make up nearly all fields."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_IN_TARGET = re.compile(r"[\x00-\x20\x7f]")
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_METHODS = _WITH_BODY | {"GET", "HEAD", "OPTIONS", "TRACE", "DELETE"}
_FRAMING = frozenset({"content-length", "transfer-encoding"})
_MEANINGS = {"content-length": LENGTH, "transfer-encoding": CODING, "keep-alive": KEEP}


@dataclass(frozen=True, slots=True)
class FetchedResponse:
    """A whole answer. ``headers`` as received."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


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
        self.heads: dict[bytes, KnownHead] = {}
        """Heads of answers as they came, whose body came with them: a service sends the very same again and again."""
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
        self._connections: set[ClientConnection] = set()
        self._closing: set[ClientConnection] = set()
        """Closed by us, not yet reported as lost."""
        self._connecting: set[Deferred[None]] = set()
        self._idle: list[ClientConnection] = []
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
        head = self.head(method, target, headers, length if body is None else len(body))
        return self.send(method, head, receiver, body=body, length=length)

    def head(self, method: str, target: str, headers: Iterable[tuple[str, str]], length: int | None) -> bytes:
        """The head of a request with a body of ``length`` bytes (None: chunked), for :meth:`send`.

        :raises BadRequestError: as :meth:`request`.
        """
        if length is None:
            tail = "\r\nTransfer-Encoding: chunked\r\n\r\n"
            breaks = 3
        elif length or method in _WITH_BODY:
            tail = f"\r\nContent-Length: {length}\r\n\r\n"
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
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise BadRequestError("The request has a character beyond U+00FF in its line or in a header.") from None

    def send(
        self, method: str, head: bytes, receiver: ResponseReceiver, *, body: bytes | None, length: int | None
    ) -> ClientRequest:
        """:meth:`request` with a head from :meth:`head`.

        :raises ServerBusyError: as :meth:`request`.
        """
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

    def made(self, connection: ClientConnection) -> None:
        """A connection was opened."""
        self._connections.add(connection)
        self._watch()
        connection.mark = self.now
        if self._closed:
            connection.leave()

    def release(self, connection: ClientConnection) -> None:
        """A connection can take the next request."""
        if self._waiting:
            connection.start(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def drop(self, connection: ClientConnection) -> None:
        """A connection is of no use any more; it has been or is being closed."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._closing.add(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self._open_more()

    def lost(self, connection: ClientConnection) -> None:
        """A connection is closed."""
        self._closing.discard(connection)
        self._check_drained()

    def learn_head(self, head: bytes, known: KnownHead) -> None:
        """Remember the head of an answer."""
        if len(self.heads) >= _REMEMBERED:
            self.heads.clear()
        self.heads[head] = known

    def learn_field(self, name: bytes) -> tuple[str, int]:
        """A field name of an answer as text, and what it means here."""
        text = name.decode("latin-1")
        found = (text, _MEANINGS.get(text.lower(), PLAIN))
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
                lambda: ClientConnection(self), self._host, self._port, self._tls, self._connect_timeout
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
