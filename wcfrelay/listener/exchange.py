"""One HTTP exchange that reached a listener over the hybrid dialect, and the way its answer takes.

Source: hybrid-connections.md of the specification, §7 (`request`), §8 (`response`). The sockets are in
:mod:`wcfrelay.listener.channel`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from twisted.logger import Logger

from wcfrelay.errors import (
    ListenerGoneError,
    ListenerTimeoutError,
    PayloadTooLargeError,
    RelayError,
    ServerBusyError,
)
from wcfrelay.net.exchange import Headers, Responder
from wcfrelay.net.repeats import RepeatedFields
from wcfrelay.net.timers import Deadline
from wcfrelay.wire.hybrid import (
    CONTROL_LIMIT,
    Command,
    Request,
    Response,
    encode_command,
    joined_headers,
    repeated_response,
    response_parts,
)
from wcfrelay.wire.soap import error_answer

if TYPE_CHECKING:
    from wcfrelay.listener.channel import Calls, ControlChannel, Rendezvous

__all__ = ["RelayedExchange"]

_ROOM_FOR_ID = 1024
"""Bytes of a `response` command before its text that repeats, at most; longer ids take the general way."""
_COALESCING = 2.0
"""Seconds that a streamed answer may take to end before it takes a rendezvous (§2)."""
_BODY_QUOTA = CONTROL_LIMIT + 4 * 1024
"""Bytes of a request body on the control channel."""
_BODILESS = frozenset({204, 304})

_log = Logger("wcfrelay.listener")


class _Answer(Enum):
    """How far the answer of an exchange is."""

    NONE = 0
    BUFFERED = 1
    """Begun; still hoped to be whole in time for the control channel."""
    DIALLING = 2
    """Begun or whole; waits for the rendezvous that was dialled for it."""
    STREAMED = 3
    DONE = 4
    """Answered, given up or cancelled: every later call is ignored."""


class RelayedExchange:
    """An :class:`~wcfrelay.net.exchange.Exchange` on a control channel (``channel``) or on a rendezvous."""

    __slots__ = (
        "_address",
        "_answer",
        "_calls",
        "_channel",
        "_deadline",
        "_dispatched",
        "_early",
        "_early_bytes",
        "_ended",
        "_finished",
        "_held",
        "_pieces",
        "_pieces_bytes",
        "_progress",
        "_rendezvous",
        "_repeats",
        "_responder",
        "_response",
        "headers",
        "length",
        "method",
        "origin",
        "target",
        "tracking_id",
    )

    def __init__(
        self,
        calls: Calls,
        request: Request,
        *,
        channel: ControlChannel | None = None,
        rendezvous: Rendezvous | None = None,
        headers: Headers | None = None,
    ) -> None:
        self._repeats = headers is not None
        """The request came before, so its id has no characters that JSON escapes."""
        if headers is None:
            headers = list(request.requestHeaders.items()) if request.requestHeaders else []
        self.method: str = request.method
        self.target: str = request.requestTarget
        self.headers: Headers = headers
        self.length: int | None = request.bodyLength if request.body is True else 0
        self.origin: str = request.origin or calls.origin
        self.tracking_id: str = request.id
        self._address = request.address
        self._calls = calls
        self._channel = channel
        self._rendezvous = rendezvous
        self._responder: Responder | None = None
        self._answer = _Answer.NONE
        self._deadline: Deadline | None = None
        self._progress = False
        self._dispatched = False
        self._ended = False
        # Of the request, what came before begin(); of the answer, what waits for its end or its rendezvous.
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._response: Response | None = None
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._finished = False
        self._held = False

    # -- the request, from the socket

    def admit(self) -> None:
        """Count the call in and start its deadline."""
        calls = self._calls
        calls.running.add(self)
        self._deadline = calls.timers.after(calls.response_timeout, self._expired)

    def refuse(self) -> None:
        """Answer that the listener takes no more calls."""
        busy = "is closing" if self._calls.closing else "has too many calls in flight"
        self.fail(ServerBusyError(f"The listener {busy}; try again later."))

    def receive(self, data: bytes) -> None:
        """A piece of the request body.

        :raises PayloadTooLargeError: the body is too large for the control channel.
        """
        if self._answer is _Answer.DONE:
            return
        self._progress = True
        if self._responder is not None:
            self._tell(self._responder.body_received, data)
            return
        self._early_bytes += len(data)
        if self._channel is not None and self._early_bytes > _BODY_QUOTA:
            raise PayloadTooLargeError("A request body on the control channel is larger than 64 KiB.")
        self._early.append(data)

    def ended(self) -> None:
        """The request body is complete."""
        if self._answer is _Answer.DONE:
            return
        self._ended = True
        if not self._dispatched:
            self.length = self._early_bytes
            self.dispatch()
            return
        if self._rendezvous is not None:
            self._rendezvous.resume_reading()
        if self._responder is not None:
            self._tell(self._responder.body_ended)

    def dispatch(self) -> None:
        if self._answer is _Answer.DONE:
            return
        self._dispatched = True
        try:
            self._calls.dispatcher.dispatch(self)
        except Exception:
            self._blame("dispatch")
            return
        if not self._ended and self._responder is None and self._answer is _Answer.NONE:
            # Nobody has taken the exchange yet, so nobody holds its body back.
            assert self._rendezvous is not None
            self._rendezvous.pause_reading()

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception:
            self._blame(call.__name__)

    def _blame(self, where: str) -> None:
        _log.failure("The dispatcher failed in {where}. TrackingId:{id}", where=where, id=self.tracking_id)
        self.fail(RelayError("The listener failed to handle the request."))

    def _expired(self) -> None:
        if self._progress and not self._ended:
            # A long upload is not a silent dispatcher.
            self._progress = False
            self._deadline = self._calls.timers.after(self._calls.response_timeout, self._expired)
            return
        self.fail(ListenerTimeoutError())

    # -- the request, to the responder

    def begin(self, responder: Responder) -> None:
        if self._answer is _Answer.DONE:
            self._tell(responder.cancelled, ListenerGoneError("Nobody waits for the answer any more."))
            return
        self._responder = responder
        if self._rendezvous is not None and not self._ended:
            self._rendezvous.resume_reading()
        early, self._early = self._early, []
        for data in early:
            if self._responder is not None:
                self._tell(responder.body_received, data)
        if self._ended and self._responder is not None:
            self._tell(responder.body_ended)

    def pause(self) -> None:
        if self._rendezvous is not None and not self._ended and self._answer is not _Answer.DONE:
            self._rendezvous.pause_reading()

    def resume(self) -> None:
        if self._rendezvous is not None and not self._ended and self._answer is not _Answer.DONE:
            self._rendezvous.resume_reading()

    # -- the answer

    def respond(self, status: int, reason: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        if self._answer is not _Answer.NONE:
            return
        answers = self._calls.answers
        tail = answers.get(headers, status, reason)
        channel = self._channel if self._repeats and self.method != "HEAD" else None
        if tail is not None and body and channel and len(tail) + len(body) <= CONTROL_LIMIT - _ROOM_FOR_ID:
            channel.send_response(repeated_response(self.tracking_id.encode(), tail), body)
            self._complete()
            return
        response = self._head(status, reason, headers, len(body))
        if tail is None and response.body and type(headers) is RepeatedFields:
            parts = response_parts(encode_command(Command(response=replace(response, bodyLength=None))))
            if parts is not None:
                answers.keep(parts[1], headers, status, reason)
        self._send_whole(response, body)

    def start(self, status: int, reason: str, headers: Iterable[tuple[str, str]], length: int | None) -> None:
        if self._answer is not _Answer.NONE:
            return
        response = self._head(status, reason, headers, length)
        if not response.body:
            self._send_whole(response, b"")
            return
        self._response = response
        self._stop_clock()
        if self._rendezvous is not None:
            self._answer = _Answer.STREAMED
            self._rendezvous.send_response(encode_command(Command(response=response)))
            if self._rendezvous.congested:
                self.hold()
            return
        self._answer = _Answer.BUFFERED
        if length is not None and length > CONTROL_LIMIT:
            self._take_rendezvous()
        else:
            self._deadline = self._calls.timers.after(_COALESCING, self._take_rendezvous)

    def write(self, data: bytes) -> None:
        if self._answer is _Answer.STREAMED:
            assert self._rendezvous is not None
            if data:
                self._rendezvous.send_piece(data, False)
        elif self._response is not None and not self._finished and self._answer is not _Answer.DONE:
            self._pieces.append(data)
            self._pieces_bytes += len(data)
            if self._answer is _Answer.BUFFERED and self._pieces_bytes > CONTROL_LIMIT:
                self._take_rendezvous()

    def finish(self) -> None:
        if self._answer is _Answer.STREAMED:
            assert self._rendezvous is not None
            self._rendezvous.send_piece(b"", True)
            self._complete()
        elif self._answer is _Answer.BUFFERED:
            assert self._response is not None
            self._send_whole(self._response, b"".join(self._pieces))
        elif self._answer is _Answer.DIALLING:
            self._finished = True
            self._responder = None

    def abort(self, reason: str) -> None:
        if self._answer is _Answer.DONE or self._finished:
            return
        _log.info("An answer was given up: {reason} TrackingId:{id}", reason=reason, id=self.tracking_id)
        self._responder = None
        self.fail(ListenerGoneError("The listener gave the answer up."))

    def fail(self, error: RelayError) -> None:
        """Answer with ``error`` where nothing of the answer is on its way yet, else cut it off; the responder is
        told that nobody waits."""
        if self._answer is _Answer.DONE or self._finished:
            return
        responder, self._responder = self._responder, None
        error.tracking_id = error.tracking_id or self.tracking_id
        if self._answer is _Answer.STREAMED:
            assert self._rendezvous is not None
            self._rendezvous.close(1011)
            self._complete()
        else:
            status, reason, headers, body = error_answer(error, self.headers)
            self._send_whole(self._head(status, reason, headers, len(body)), body)
        if responder is not None:
            self._tell(responder.cancelled, error)

    def cancel(self, error: RelayError) -> None:
        """Nobody can be answered any more."""
        if self._answer is _Answer.DONE:
            return
        responder = self._responder
        self._complete()
        if responder is not None:
            self._tell(responder.cancelled, error)

    def _head(self, status: int, reason: str, headers: Iterable[tuple[str, str]], length: int | None) -> Response:
        head = self.method == "HEAD"
        body = not head and length != 0 and status not in _BODILESS
        return Response(
            requestId=self.tracking_id,
            statusCode=status,
            statusDescription=reason or None,
            responseHeaders=joined_headers(headers),
            body=body,
            bodyLength=length if body or (head and status not in _BODILESS) else None,
        )

    def _send_whole(self, response: Response, body: bytes) -> None:
        if response.body:
            response.body = len(body) > 0
            response.bodyLength = len(body) if self._rendezvous is not None and body else None
        else:
            body = b""
        if self._answer is not _Answer.DIALLING:
            socket = self._rendezvous or self._channel
            assert socket is not None
            command = encode_command(Command(response=response))
            if self._rendezvous is not None or len(command) + len(body) <= CONTROL_LIMIT:
                socket.send_response(command, body)
                self._complete()
                return
        self._response, self._pieces, self._finished = response, [body], True
        self._responder = None
        if self._answer is not _Answer.DIALLING:
            self._take_rendezvous()

    # -- a rendezvous for the answer

    def _take_rendezvous(self) -> None:
        self._stop_clock()
        self._answer = _Answer.DIALLING
        self.hold()
        self._calls.dial(self._address, self, self.unreachable)

    def flush(self, rendezvous: Rendezvous) -> None:
        """The rendezvous is open: send what has waited for it."""
        response, body = self._response, b"".join(self._pieces)
        assert response is not None
        self._rendezvous = rendezvous
        self._pieces.clear()
        if self._finished:
            response.body = len(body) > 0
            if body:
                response.bodyLength = len(body)
            rendezvous.send_response(encode_command(Command(response=response)), body)
            self._complete()
            return
        self._answer = _Answer.STREAMED
        rendezvous.send_response(encode_command(Command(response=response)))
        if body:
            rendezvous.send_piece(body, False)
        if not rendezvous.congested:
            self.release()

    def unreachable(self, error: BaseException) -> None:
        """The rendezvous cannot be opened. The control channel, where it is still there, can tell so."""
        _log.warn("A rendezvous could not be opened: {error} TrackingId:{id}", error=error, id=self.tracking_id)
        self._answer = _Answer.NONE
        self._finished = False
        self.fail(ListenerGoneError("The listener could not open a rendezvous."))

    def channel_lost(self, channel: ControlChannel) -> None:
        if self._channel is channel and self._answer in (_Answer.NONE, _Answer.BUFFERED):
            self.cancel(ListenerGoneError("The control channel was lost before the answer was sent."))

    def hold(self) -> None:
        """The way of the answer is congested."""
        if not self._held:
            self._held = True
            if self._responder is not None:
                self._tell(self._responder.pause_response)

    def release(self) -> None:
        if self._held:
            self._held = False
            if self._responder is not None:
                self._tell(self._responder.resume_response)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _complete(self) -> None:
        self._answer = _Answer.DONE
        self._responder = None
        self._stop_clock()
        self._early.clear()
        self._pieces.clear()
        calls = self._calls
        calls.running.discard(self)
        if self._rendezvous is not None:
            self._rendezvous.resume_reading()
            self._rendezvous.answered()
        if calls.closing:
            calls.changed()
