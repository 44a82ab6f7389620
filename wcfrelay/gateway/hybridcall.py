"""The calls that a listener of the hybrid dialect carries, and the rendezvous sockets it opens for them.

Source: hybrid-connections.md §4, §7, §8. How a call travels is told in :mod:`wcfrelay.gateway.hybridlink`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from wcfrelay.errors import (
    ListenerGoneError,
    ListenerTimeoutError,
    ProtocolError,
    RelayError,
)
from wcfrelay.gateway.faces.http import refuse
from wcfrelay.net.http1.exchange import ServerExchange
from wcfrelay.net.websocket import BINARY, CONTINUATION, TEXT, WebSocket
from wcfrelay.wire.hybrid import (
    CONTROL_LIMIT,
    HEADERS_LIMIT,
    MESSAGE_LIMIT,
    Command,
    RemoteEndpoint,
    Request,
    Response,
    decode_command,
    encode_command,
    listed_headers,
    remote_text,
    repeated_request,
    request_headers,
    request_parts,
)

if TYPE_CHECKING:
    from wcfrelay.gateway.hybridlink import HybridLink, KnownAnswer

__all__ = ["HybridCall", "RendezvousSocket"]


class HybridCall:
    """One HTTP exchange on its way to a listener and back (a :class:`~wcfrelay.net.exchange.Responder`)."""

    socket: RendezvousSocket | None = None
    sent = False
    """The whole request has left, so the listener may have executed it."""
    dialled = False
    """The listener was, or will be, told to dial."""
    over = False
    _size = 0
    _held_up = False
    """The listener does not read what goes over the rendezvous."""
    _sender_slow = False
    """The sender does not read its answer."""

    def __init__(self, link: HybridLink, exchange: ServerExchange, target: str, drop: frozenset[str]) -> None:
        self.link = link
        self.exchange = exchange
        self.id = exchange.tracking_id
        self._target = target
        self._drop = drop
        self._body: list[bytes] = []
        services = link.services
        self.since = services.now()
        """When something last moved, by the reactor's clock."""
        self._timeout = link.relay.response_timeout
        services.overdue.watch(self)

    def start(self) -> None:
        """Choose the way of the request by what is known of its size."""
        exchange = self.exchange
        slot = exchange.connection.slot
        if slot is not None and slot.serves(self.link):
            slot.carry(self)
            return
        self.link.calls[self.id] = self
        length = exchange.length
        if length is None or exchange.head_bytes > HEADERS_LIMIT or exchange.head_bytes + length > CONTROL_LIMIT:
            self.dialled = True
            services = self.link.services
            services.rendezvous.wait(self.id, self, services.rendezvous_seconds, self._not_dialled)
            exchange.pause()  # the body waits for the rendezvous; begun, the exchange tells when the sender leaves
            exchange.begin(self)
            if not self.over:
                self.link.send(self)
        elif exchange.body_at_hand:
            self._body.append(exchange.take_body(self))
            if not self.over:
                self.link.send(self)
        else:
            exchange.begin(self)

    def transmit(self, websocket: WebSocket) -> None:
        """Write the request, or where to dial for it, to the control channel."""
        link = self.link
        address = link.address(self.id)
        if self.dialled:
            websocket.send_text(encode_command(Command(request=Request(address=address, id=self.id))))
            return
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self.sent = True
        self.since = link.services.now()
        head = self.exchange.head
        if head is not None and head.plan is not None:
            plan = head.plan
            if plan.command is None:
                plan.command = request_parts(self._request(address, len(body) > 0))
            remote = remote_text(self.exchange.remote)
            websocket.send_text(repeated_request(link.opening, self.id.encode(), remote, plan.command))
        else:
            websocket.send_text(encode_command(Command(request=self._request(address, len(body) > 0))))
        if body:
            websocket.send_binary(body)

    def _request(self, address: str, body: bool) -> Request:
        exchange = self.exchange
        host, port = exchange.remote
        return Request(
            address=address,
            id=self.id,
            requestTarget=self._target,
            method=exchange.method,
            remoteEndpoint=RemoteEndpoint(host, port),
            requestHeaders=request_headers(exchange.headers, exchange.lower, self._drop, f"1.1 {exchange.host}"),
            body=body,
            origin=exchange.origin,
        )

    # -- the request body

    def body_received(self, data: bytes) -> None:
        socket = self.socket
        if socket is None:
            self._body.append(data)
            return
        self.since = self.link.services.now()
        socket.websocket.send(CONTINUATION if self._size else BINARY, data, fin=False)
        self._size += len(data)

    def body_ended(self) -> None:
        socket = self.socket
        if socket is None:
            self.link.send(self)
            return
        self.sent = True
        self.since = self.link.services.now()
        if self.exchange.length != 0:
            socket.websocket.send(CONTINUATION if self._size else BINARY, b"", fin=True)

    def joined(self, socket: RendezvousSocket) -> None:
        """The rendezvous for this call is open: the listener wants to answer there, or was told to dial."""
        self.socket = socket
        self.link.forget(self)
        if self._sender_slow:
            socket.websocket.pause_reading()
        if self.sent:
            return
        exchange = self.exchange
        request = self._request(self.link.address(self.id), exchange.length != 0)
        request.bodyLength = exchange.length or None
        socket.websocket.send_text(encode_command(Command(request=request)))
        if not self.dialled:  # it comes straight to a rendezvous that was there
            exchange.pause()
            exchange.begin(self)
        if not self._held_up:
            exchange.resume()

    # -- the answer

    def answer(self, response: Response, body: bytes, known: KnownAnswer | None = None) -> None:
        """The whole answer came over the control channel."""
        exchange = self.exchange
        if known is not None and exchange.plain:
            prepared = known.heads.get(exchange.host)
            if prepared is not None:
                exchange.respond_prepared(known.status, prepared, body)
                self.end()
                return
        try:
            status, reason, headers = self._head(response)
        except RelayError as error:
            self.fail(error)
            return
        if known is not None:
            known.prepare(exchange.host, status, reason, headers)
        if exchange.method == "HEAD":
            exchange.start(status, reason, headers, response.bodyLength)
            exchange.finish()
        else:
            exchange.respond(status, reason, headers, body)
        self.end()

    def answer_started(self, response: Response) -> None:
        """The head of an answer came over the rendezvous."""
        self.since = self.link.services.now()
        try:
            status, reason, headers = self._head(response)
        except RelayError as error:
            self.fail(error)
            return
        length = response.bodyLength
        if length is None and not response.body and self.exchange.method != "HEAD":
            length = 0
        self.exchange.start(status, reason, headers, length)
        if not response.body:
            self.exchange.finish()

    def answer_data(self, data: bytes) -> None:
        self.since = self.link.services.now()
        self.exchange.write(data)

    def _head(self, response: Response) -> tuple[int, str, list[tuple[str, str]]]:
        status = response.statusCode
        if isinstance(status, str):
            status = int(status) if status.isascii() and status.isdigit() and len(status) == 3 else 0
        if not 200 <= status <= 599:
            raise _bad_answer("its status is not from 200 to 599")
        try:
            headers = listed_headers(response.responseHeaders)
        except ProtocolError as error:
            raise _bad_answer(error.message) from None
        reason = response.statusDescription or ""
        if not reason.isprintable():
            reason = ""
        headers.append(("Via", f"1.1 {self.exchange.host}"))
        return status, reason, headers

    def pause_request(self) -> None:
        """The listener takes no more of the body."""
        self._held_up = True
        self.since = self.link.services.now()
        self.exchange.pause()

    def resume_request(self) -> None:
        self._held_up = False
        self.exchange.resume()

    def pause_response(self) -> None:
        self._sender_slow = True
        if self.socket is not None:
            self.socket.websocket.pause_reading()

    def resume_response(self) -> None:
        self._sender_slow = False
        self.since = self.link.services.now()
        if self.socket is not None:
            self.socket.websocket.resume_reading()

    # -- the end

    def cancelled(self, error: Exception) -> None:
        """The sender is gone: the listener sees its rendezvous close."""
        socket = self.socket
        self.end()
        if socket is not None:
            socket.hang_up(1001, "the sender disconnected")

    def listener_gone(self) -> None:
        """The control channel is lost. What the listener has not seen goes to another listener."""
        if self.sent or self.over:
            self.fail(ListenerGoneError())
            return
        try:
            link = self.link.relay.choose(self.link.services.pending_limit)
        except RelayError:
            self.fail(ListenerGoneError())
            return
        self.link = link = cast("HybridLink", link)
        link.load += 1
        link.calls[self.id] = self
        if self.dialled or self.exchange.body_at_hand:
            link.send(self)

    def _not_dialled(self) -> None:
        self.fail(ListenerTimeoutError("The listener was asked to open a rendezvous but did not in the required time."))

    def check(self, now: float) -> None:
        """The deadline is the listener's: the time of a sender that writes or reads slowly does not count."""
        to_dial = self.dialled and self.socket is None
        if not (self._held_up or to_dial or (self.exchange.body_at_hand and not self._sender_slow)):
            self.since = now
        elif now - self.since >= self._timeout:
            self.fail(ListenerTimeoutError())

    def fail(self, error: RelayError) -> None:
        """Answer with an error, or cut an answer that has begun."""
        if self.over:
            return
        socket = self.socket
        self.end()
        refuse(self.exchange, error, self.link.relay.path)
        if socket is not None:
            socket.hang_up(1011, error.message[:100])

    def end(self) -> None:
        """Nothing more happens here."""
        if self.over:
            return
        self.over = True
        link = self.link
        link.load -= 1
        link.forget(self)
        if self.dialled:
            link.services.rendezvous.withdraw(self.id)
        link.services.overdue.forget(self)


def _bad_answer(what: str) -> RelayError:
    return ListenerGoneError(f"The listener's answer is not valid: {what}.")


class RendezvousSocket:
    """A rendezvous that a listener opened for the requests of one sender connection (a WebSocketApp)."""

    def __init__(self, websocket: WebSocket, call: HybridCall) -> None:
        self.websocket = websocket
        self.link = call.link
        self.call: HybridCall | None = call
        self._connection = call.exchange.connection
        self._text: list[bytes] = []
        self._size = 0
        self._open = True
        self._in_body = False
        self._blocked = False
        earlier, self._connection.slot = self._connection.slot, self
        if earlier is not None:
            earlier.sender_gone()

    def serves(self, link: HybridLink) -> bool:
        """Whether the next request of the sender's connection may come this way: not to a listener that has left."""
        return self._open and self.call is None and self.link.relay is link.relay and not self.link.gone

    def carry(self, call: HybridCall) -> None:
        """A further request of the same sender connection."""
        self.call = call
        if self._blocked:
            call.pause_request()
        call.joined(self)

    def hang_up(self, code: int, reason: str) -> None:
        """The call ended badly, and the rendezvous with it; the sender's connection may live on."""
        self.call = None
        self._retire()
        self.websocket.close(code, reason)

    def _retire(self) -> None:
        self._open = False
        if self._connection.slot is self:
            self._connection.slot = None

    def sender_gone(self) -> None:
        """The sender's connection is closed."""
        self._open = False
        self.websocket.close(1001, "the sender disconnected")

    # -- what the WebSocket calls

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        call = self.call
        if opcode == TEXT or self._text:
            self._text.append(data)
            self._size += len(data)
            if self._size > MESSAGE_LIMIT:
                self._give_up(1009, _bad_answer("its head is too large"))
            elif fin:
                text = b"".join(self._text)
                self._text.clear()
                self._size = 0
                self._command(text)
            return
        if call is None:
            return  # the tail of an answer that nobody waits for
        if not self._in_body:
            self._give_up(1002, _bad_answer("its body comes before its head"))
            return
        if data:
            call.answer_data(data)
        if fin and self.call is call:
            self._in_body = False
            call.exchange.finish()
            self._done(call)

    def _command(self, text: bytes) -> None:
        call = self.call
        try:
            command = decode_command(text)
        except ProtocolError as error:
            self._give_up(1002, _bad_answer(error.message))
            return
        response = command.response
        if response is None or call is None:
            return
        if self._in_body:
            self._give_up(1002, _bad_answer("a second head comes before the end of the body"))
            return
        if response.requestId != call.id:
            self._give_up(1002, _bad_answer("it is for another request"))
            return
        call.answer_started(response)
        if self.call is not call:
            return
        if response.body:
            self._in_body = True
        else:
            self._done(call)

    def _done(self, call: HybridCall) -> None:
        self.call = None
        call.end()
        self.websocket.resume_reading()  # the sender may have been slow to the last
        if not call.sent:  # answered before the request was read: its body can not be ended in order
            self._retire()
            self.websocket.close(1000, "")

    def _give_up(self, code: int, error: RelayError) -> None:
        self._open = False
        self._text.clear()
        call, self.call = self.call, None
        if call is not None:
            call.socket = None
            call.fail(error)
        self.websocket.close(code, error.message[:100])

    def closed(self, code: int, reason: str) -> None:
        self.link.services.sockets.discard(self.websocket)
        self._open = False
        call, self.call = self.call, None
        if self._connection.slot is self:
            self._connection.slot = None
            self._connection.close_when_idle()
        if call is not None:
            call.socket = None
            call.fail(ListenerGoneError())

    def pause_sending(self) -> None:
        self._blocked = True
        if self.call is not None:
            self.call.pause_request()

    def resume_sending(self) -> None:
        self._blocked = False
        if self.call is not None:
            self.call.resume_request()
