"""The sockets of a listener in the hybrid dialect: its control channel, its rendezvous, and what is in flight on them.

Source: hybrid-connections.md of the specification, §2 (limits), §4 (commands), §7 (`request`), §8 (`response`).

Where an exchange comes from and where its answer goes::

    request with ``body``     control channel ─▶ dispatcher ─▶ control channel, when the answer is whole within 2 s and
                                                               64 KiB
                                                            ─▶ else a rendezvous, dialled for the answer
    request without ``body``  a rendezvous is dialled ─▶ the whole request there ─▶ the answer there
    later requests            of the same sender come on its rendezvous, one after the other, until a side closes it

Ownership: :class:`Calls` knows all that is in flight at one listener and outlives its control channels, so that a
rendezvous and its calls survive the loss of the control channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from msgspec import UNSET
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from wcfrelay.errors import ListenerGoneError, PayloadTooLargeError, ProtocolError, RelayError
from wcfrelay.listener.dispatch import Dispatcher
from wcfrelay.listener.exchange import RelayedExchange
from wcfrelay.net.exchange import Headers
from wcfrelay.net.repeats import RepeatedFields, Repeats
from wcfrelay.net.timers import Deadline, Timers
from wcfrelay.net.websocket import BINARY, CONTINUATION, TEXT, WebSocket
from wcfrelay.wire.hybrid import CONTROL_LIMIT, Accept, Command, Request, cut_request, decode_command

__all__ = ["KEEP_ALIVE", "Calls", "ControlChannel", "Rendezvous"]

KEEP_ALIVE = (30.0, 15.0)
"""Seconds of silence before a ping, and after it before the connection is given up."""

_ARRIVAL = 30.0
"""Seconds for the `request` to come on a rendezvous that was dialled for it."""
_COMMAND_QUOTA = 4 * CONTROL_LIMIT
"""Bytes of one command: 64 KiB of headers and target, and the escapes of JSON."""

_REPEATS, _REPEATED = 1024, 4096
"""Requests that are remembered, and bytes of one."""

_log = Logger("wcfrelay.listener")


class Calls:
    """What is in flight at one listener, its quota, and the way to the gateway's rendezvous.

    ``open_socket(address, make_app)`` opens a WebSocket. ``origin`` stands in where a `request` has none.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        timers: Timers,
        open_socket: Callable[[str, Callable[[WebSocket], Rendezvous]], Awaitable[WebSocket]],
        *,
        origin: str,
        response_timeout: float,
        max_calls: int,
    ) -> None:
        self.dispatcher = dispatcher
        self.timers = timers
        self.origin = origin
        self.response_timeout = response_timeout
        self.closing = False
        self.running: set[RelayedExchange] = set()
        self.arriving: set[Rendezvous] = set()
        """Dialled for a request that has not come yet."""
        self.rendezvous: set[Rendezvous] = set()
        """All, from dialling until closed."""
        self.requests: dict[bytes, KnownRequest] = {}
        """Requests by their text behind address and id: senders ask the very same again and again."""
        self.answers: Repeats[bytes] = Repeats()
        """The text of `response` commands behind the id, by their fields."""
        self._open_socket = open_socket
        self._max_calls = max_calls
        self._dials: set[Deferred[None]] = set()
        self._hung_up = False
        self._quiet: Callable[[], bool] = lambda: True
        self._waiting: Deferred[None] | None = None

    def full(self, unsent: int = 0) -> bool:
        """Whether one more call has to be refused; ``unsent`` answers still wait for the gateway to read them."""
        return self.closing or len(self.running) + len(self.arriving) + unsent >= self._max_calls

    def dial(
        self, address: str, exchange: RelayedExchange | None, unreachable: Callable[[BaseException], None]
    ) -> None:
        """Open a rendezvous: for the answer of ``exchange``, or (None) for a request that will come on it."""
        rendezvous = Rendezvous(self, exchange, unreachable)
        self.rendezvous.add(rendezvous)
        if exchange is None:
            self.arriving.add(rendezvous)
        dial = Deferred.fromCoroutine(self._dial(address, rendezvous))
        self._dials.add(dial)
        dial.addBoth(lambda _: self._dials.discard(dial))

    async def _dial(self, address: str, rendezvous: Rendezvous) -> None:
        try:
            socket = await self._open_socket(address, rendezvous.opened)
        except (Exception, asyncio.CancelledError) as error:
            if not isinstance(error, (RelayError, CancelledError, asyncio.CancelledError)):
                _log.failure("A rendezvous failed to open.")
            rendezvous.unreachable(error)
            return
        if self._hung_up:  # too late to be cancelled
            socket.close()
            return
        socket.keep_alive(*KEEP_ALIVE)
        rendezvous.ready()

    def changed(self) -> None:
        """Something ended: a call, or a rendezvous."""
        if self._waiting is not None and self._quiet():
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    async def _until(self, quiet: Callable[[], bool], seconds: float) -> None:
        if quiet():
            return
        self._quiet = quiet
        waiting = self._waiting = Deferred()
        deadline = self.timers.after(seconds, lambda: None if waiting.called else waiting.callback(None))
        try:
            await waiting
        finally:
            self._waiting = None
            deadline.cancel()

    def learn(self, text: bytes, request: Request) -> None:
        """Remember a request by its text behind address and id."""
        if len(self.requests) >= _REPEATS:
            self.requests.clear()
        self.requests[text] = KnownRequest(request)

    async def drain(self, grace: float) -> None:
        """Refuse new calls and wait, at most ``grace`` seconds, for those in flight; what is left then fails."""
        self.closing = True
        for rendezvous in list(self.rendezvous):
            rendezvous.close_if_idle()
        await self._until(lambda: not self.running and not self.arriving, grace)
        for exchange in list(self.running):
            exchange.fail(ListenerGoneError())

    async def hang_up(self, patience: float) -> None:
        """Close every rendezvous, give up every dial, and wait at most ``patience`` seconds until they are closed."""
        self._hung_up = True
        for dial in list(self._dials):
            dial.cancel()
        for rendezvous in list(self.rendezvous):
            rendezvous.close()
        await self._until(lambda: not self.rendezvous, patience)


class KnownRequest:
    """A whole request that may come again, and its header fields: the same list each time."""

    __slots__ = ("_request", "headers")

    def __init__(self, request: Request) -> None:
        self._request = request
        self.headers = RepeatedFields((request.requestHeaders or {}).items())

    def request(self, address: str, request_id: str) -> Request:
        known = self._request
        return Request(
            address=address,
            id=request_id,
            requestTarget=known.requestTarget,
            method=known.method,
            requestHeaders=known.requestHeaders,
            body=known.body,
            origin=known.origin,
            bodyLength=known.bodyLength,
        )


class _CommandSocket:
    """A WebSocket whose text messages are commands and whose binary messages are the bodies of requests."""

    def __init__(self, calls: Calls, socket: WebSocket | None) -> None:
        self.congested = False
        self.unsent = 0
        """Answers that were sent since the socket is congested."""
        self._calls = calls
        self._socket = socket
        self._text: bytearray | None = None
        self._receiving: RelayedExchange | None = None

    def send_response(self, command: bytes, body: bytes = b"") -> None:
        """A `response` and, where it is whole, its body: nothing may come between the two."""
        if self._socket is None:
            return
        if self.congested:
            self.unsent += 1
        self._socket.send_text(command)
        if body:
            self._socket.send_binary(body)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self._socket is not None:
            self._socket.close(code, reason)

    # -- WebSocketApp

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        try:
            if opcode == TEXT and fin:
                self._text_received(data)
            elif opcode == TEXT or self._text is not None:
                self._text_piece(data, fin)
            else:
                self._binary_piece(data, fin)
        except ProtocolError as error:
            self._break(1002, error)
        except PayloadTooLargeError as error:
            self._break(1009, error)

    def pause_sending(self) -> None:
        self.congested = True

    def resume_sending(self) -> None:
        self.congested = False
        self.unsent = 0

    # -- messages

    def _text_piece(self, data: bytes, fin: bool) -> None:
        text = self._text = bytearray() if self._text is None else self._text
        text += data
        if fin:
            self._text = None
            self._text_received(bytes(text))
        elif len(text) > _COMMAND_QUOTA:
            raise PayloadTooLargeError("A command is too large.")

    def _text_received(self, data: bytes) -> None:
        if len(data) > _COMMAND_QUOTA:
            raise PayloadTooLargeError("A command is too large.")
        if self._receiving is not None:
            raise ProtocolError("A command came before the end of a request body.")
        cut = cut_request(data)
        known = self._calls.requests.get(cut[2]) if cut is not None else None
        if cut is None or known is None:
            command = decode_command(data)
            request = command.request
            if cut is not None and request is not None and request.body is not UNSET and len(data) <= _REPEATED:
                self._calls.learn(cut[2], request)
            self._command(command)
        else:
            address, request_id, _ = cut
            self._known_request(known, address.decode(), request_id.decode())

    def _binary_piece(self, data: bytes, fin: bool) -> None:
        exchange = self._receiving
        if exchange is None:
            raise ProtocolError("A binary message came without a request that has a body.")
        if data:
            exchange.receive(data)
        if fin:
            self._receiving = None
            exchange.ended()

    def _command(self, command: Command) -> None:
        raise NotImplementedError

    def _known_request(self, known: KnownRequest, address: str, request_id: str) -> None:
        """A whole request that came before, but for its id."""
        self._command(Command(request=known.request(address, request_id)))

    def _break(self, code: int, error: RelayError) -> None:
        _log.error("The gateway broke the protocol of the listener: {error}", error=error)
        self.close(code, error.message)


class ControlChannel(_CommandSocket):
    """The listener's end of a control channel. ``lost(code, reason)`` is called once, when it is closed.

    It is read also while it is congested: were both ends to stop reading until the other reads, neither ever would.
    Answers that wait to be read count as calls instead, which bounds them.
    """

    def __init__(self, calls: Calls, socket: WebSocket, lost: Callable[[int, str], None]) -> None:
        super().__init__(calls, socket)
        self._lost = lost

    def closed(self, code: int, reason: str) -> None:
        self._socket = None
        for exchange in list(self._calls.running):
            exchange.channel_lost(self)
        self._lost(code, reason)

    def _command(self, command: Command) -> None:
        request, accept = command.request, command.accept
        if request is not None:
            if request.body is UNSET:
                self._large_request(request)
            else:
                self._small_request(request)
        if accept is not None and not self._calls.full(self.unsent):
            self._reject(accept)

    def _known_request(self, known: KnownRequest, address: str, request_id: str) -> None:
        self._small_request(known.request(address, request_id), known.headers)

    def _small_request(self, request: Request, headers: Headers | None = None) -> None:
        if not request.method:
            raise ProtocolError("A request has no method.")
        exchange = RelayedExchange(self._calls, request, channel=self, headers=headers)
        if self._calls.full(self.unsent):
            exchange.refuse()
        else:
            exchange.admit()
        if request.body:
            self._receiving = exchange
        else:
            exchange.ended()

    def _large_request(self, request: Request) -> None:
        # Until the whole request comes, this stands for it where there is an error to answer with.
        exchange = RelayedExchange(self._calls, request, channel=self)
        if self._calls.full(self.unsent):
            exchange.refuse()
        else:
            self._calls.dial(request.address, None, exchange.unreachable)

    def _reject(self, accept: Accept) -> None:
        """Turn a WebSocket sender away (§5): this listener serves HTTP requests."""
        reason = quote("The listener serves HTTP requests, not WebSockets.", safe="")
        address = f"{accept.address}&sb-hc-statusCode=501&sb-hc-statusDescription={reason}"
        self._calls.dial(address, None, lambda error: None)


class Rendezvous(_CommandSocket):
    """The listener's end of a rendezvous, from dialling on.

    ``exchange`` is the one whose answer it is dialled for, None where a request will come on it;
    ``unreachable(error)`` is called when it cannot be opened.
    """

    def __init__(
        self, calls: Calls, exchange: RelayedExchange | None, unreachable: Callable[[BaseException], None]
    ) -> None:
        super().__init__(calls, None)
        self._exchange = exchange
        self._unflushed = exchange
        self._unreachable = unreachable
        self._deadline: Deadline | None = None
        self._opcode = BINARY
        self._reading = True

    # -- dialling

    def opened(self, socket: WebSocket) -> Rendezvous:
        self._socket = socket
        return self

    def ready(self) -> None:
        """The handshake is over. A request may have come, and the socket may be closed, already."""
        exchange, self._unflushed = self._unflushed, None
        if exchange is not None:
            exchange.flush(self)
        elif self in self._calls.arriving:
            late = ProtocolError("No request came on the rendezvous.")
            self._deadline = self._calls.timers.after(_ARRIVAL, lambda: self._break(1002, late))

    def unreachable(self, error: BaseException) -> None:
        self._forget()
        self._unreachable(error)

    # -- what its exchange does

    def send_piece(self, data: bytes, fin: bool) -> None:
        if self._socket is not None:
            self._socket.send(self._opcode, data, fin)
            self._opcode = BINARY if fin else CONTINUATION

    def answered(self) -> None:
        self._exchange = None
        if self._calls.closing:
            self.close_if_idle()

    def pause_reading(self) -> None:
        if self._reading and self._socket is not None:
            self._reading = False
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading and self._socket is not None:
            self._reading = True
            self._socket.resume_reading()

    def close_if_idle(self) -> None:
        if self._exchange is None and self not in self._calls.arriving:
            self.close()

    # -- WebSocketApp

    def closed(self, code: int, reason: str) -> None:
        self._socket = self._unflushed = None
        if self._exchange is not None:
            self._exchange.cancel(
                ListenerGoneError(f"The rendezvous was closed ({code}) before the answer was complete.")
            )
        self._forget()

    def pause_sending(self) -> None:
        super().pause_sending()
        if self._exchange is not None:
            self._exchange.hold()

    def resume_sending(self) -> None:
        super().resume_sending()
        if self._exchange is not None:
            self._exchange.release()

    def _command(self, command: Command) -> None:
        request = command.request
        if request is None:
            return
        if self._exchange is not None:
            raise ProtocolError("A request came before the answer to the one before it.")
        if not request.method:
            raise ProtocolError("A request has no method.")
        exchange = self._exchange = RelayedExchange(self._calls, request, rendezvous=self)
        if self in self._calls.arriving or not self._calls.full():
            self._arrived()
            exchange.admit()
        else:
            exchange.refuse()
        if request.body is True:
            self._receiving = exchange
            exchange.dispatch()
        else:
            exchange.ended()

    def _arrived(self) -> None:
        self._calls.arriving.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def _forget(self) -> None:
        self._arrived()
        self._calls.rendezvous.discard(self)
        self._calls.changed()
