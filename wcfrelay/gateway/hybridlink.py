"""A listener of the hybrid dialect: its control channel, and what all such links of a node share.

Source: hybrid-connections.md §4, §7, §8. How a call travels::

    small (length known, headers + body ≤ 64 KiB) ──▶ `request` + body on the control channel
    anything else             ──▶ `request` with only the address; the listener dials; the whole `request` and the
                                  streamed body go over that rendezvous
    the answer                ◀── `response` + body on the control channel, or, when the listener dials the request's
                                  address, streamed over that rendezvous
    a later request of a sender connection that has a rendezvous ──▶ there, until either side closes it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from twisted.logger import Logger

from wcfrelay.errors import ProtocolError
from wcfrelay.gateway.hybridcall import HybridCall
from wcfrelay.gateway.relays import Relay
from wcfrelay.gateway.rendezvous import Rendezvous
from wcfrelay.net.exchange import header
from wcfrelay.net.http1.exchange import ServerExchange, answer_head
from wcfrelay.net.timers import Deadline, Timers
from wcfrelay.net.websocket import BINARY, TEXT, WebSocket
from wcfrelay.wire.hybrid import (
    MESSAGE_LIMIT,
    Command,
    HybridTarget,
    Response,
    decode_command,
    rendezvous_query,
    response_parts,
)

if TYPE_CHECKING:
    from wcfrelay.gateway.join import WaitingSender

__all__ = ["HybridLink", "KnownAnswer", "LinkServices", "Overdue"]

log = Logger()

_KNOWN_ANSWERS = 1024
_KNOWN_LENGTH = 2048
_KNOWN_HOSTS = 16
"""Heads of answers that are remembered, bytes of one, and hosts for each."""


@dataclass(frozen=True, slots=True)
class LinkServices:
    """What every link of a node shares. ``now`` is the reactor's clock; ``rendezvous_seconds`` how long an address to
    dial is good."""

    timers: Timers
    now: Callable[[], float]
    rendezvous: Rendezvous[HybridCall]
    senders: Rendezvous[WaitingSender]
    rendezvous_seconds: float
    pending_limit: int
    overdue: Overdue
    answers: dict[bytes, KnownAnswer] = field(default_factory=dict)
    """Heads of answers by their text behind the request's id: services answer many requests with the very same."""
    sockets: set[WebSocket] = field(default_factory=set)
    """All open WebSockets of listeners."""

    def learn(self, text: bytes, response: Response) -> KnownAnswer | None:
        """Remember the head of an answer, unless it is long."""
        if len(text) > _KNOWN_LENGTH:
            return None
        if len(self.answers) >= _KNOWN_ANSWERS:
            self.answers.clear()
        known = self.answers[text] = KnownAnswer(response)
        return known


class KnownAnswer:
    """The head of an answer that may come again, and how it reads as HTTP, by the host that the sender called."""

    __slots__ = ("heads", "response", "status")

    def __init__(self, response: Response) -> None:
        self.response = response
        self.status = 0
        self.heads: dict[str, bytes] = {}

    def prepare(self, host: str, status: int, reason: str, headers: list[tuple[str, str]]) -> None:
        """Render the head, where its body decides its length and it has its own Date."""
        if status in (204, 304) or header(headers, "date") is None or len(self.heads) >= _KNOWN_HOSTS:
            return
        self.status = status
        self.heads[host] = answer_head(status, reason, headers)


class Overdue:
    """Looks after the deadlines of all calls, four times a second while there are any: a call costs no timer."""

    _TICK = 0.25

    def __init__(self, timers: Timers, now: Callable[[], float]) -> None:
        self._timers = timers
        self._now = now
        self._calls: dict[HybridCall, None] = {}
        self._next: Deadline | None = None

    def watch(self, call: HybridCall) -> None:
        self._calls[call] = None
        if self._next is None:
            self._next = self._timers.after(self._TICK, self._look)

    def forget(self, call: HybridCall) -> None:
        self._calls.pop(call, None)

    def _look(self) -> None:
        now = self._now()
        for call in list(self._calls):
            try:
                call.check(now)
            except Exception:
                log.failure("A call could not be ended in time.", tracking_id=call.id)
                self.forget(call)
        self._next = self._timers.after(self._TICK, self._look) if self._calls else None


class HybridLink:
    """One listener's control channel (a :class:`~wcfrelay.net.websocket.WebSocketApp`).

    ``base`` is ``ws(s)://host[:port]``, where the listener finds this node. ``on_command`` gets every command that is
    not a response, ``on_closed`` the end.
    """

    def __init__(
        self,
        services: LinkServices,
        relay: Relay,
        listener_id: str,
        websocket: WebSocket,
        base: str,
        on_command: Callable[[HybridLink, Command], None],
        on_closed: Callable[[HybridLink, int, str], None],
    ) -> None:
        self.services = services
        self.relay = relay
        self.id = listener_id
        self.blocked = False
        self.load = 0
        self.websocket = websocket
        self.calls: dict[str, HybridCall] = {}
        """Calls whose request went, or waits to go, over the control channel, and those waiting to be dialled."""
        self.waiting: dict[str, WaitingSender] = {}
        """WebSocket senders that this listener was asked to accept."""
        self._base = base
        self._address = f"{base}/$hc/{quote(relay.path)}?{rendezvous_query('request')}"
        self.opening = self._address.encode()
        """The rendezvous address up to the id."""
        self._on_command = on_command
        self._on_closed = on_closed
        self._backlog: dict[str, HybridCall] = {}
        self._text: list[bytes] = []
        self._size = 0
        self._answering: tuple[HybridCall | None, Response, KnownAnswer | None] | None = None
        """The response whose binary message is expected next; its call is None when nobody waits any more."""
        self._binary = False
        self.gone = False
        """The listener has left, or is being told to: it gets nothing more."""

    # -- towards the listener

    def carry(self, exchange: ServerExchange, target: str, drop: frozenset[str]) -> None:
        self.load += 1
        HybridCall(self, exchange, target, drop).start()

    def close(self, code: int, reason: str) -> None:
        """From here on nothing is read from the listener, so nothing more is given to it."""
        self.websocket.close(code, reason)
        self._leave(code, reason)

    def address(self, rendezvous_id: str) -> str:
        """Where the listener may dial for the call with this id."""
        return self._address + rendezvous_id

    def accept_address(self, target: HybridTarget, rendezvous_id: str) -> str:
        """Where the listener may dial to accept a WebSocket sender: what the sender asked for is kept."""
        query = f"{target.query}&" if target.query else ""
        return f"{self._base}/$hc{target.path}?{query}{rendezvous_query('accept')}{rendezvous_id}"

    def send(self, call: HybridCall) -> None:
        """Send the call's message now, or when the channel takes messages again."""
        if self.blocked:
            self._backlog[call.id] = call
        else:
            call.transmit(self.websocket)

    def forget(self, call: HybridCall) -> None:
        """The call is over, or has found another way."""
        self.calls.pop(call.id, None)
        self._backlog.pop(call.id, None)

    # -- what the WebSocket calls

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        if opcode == TEXT:
            self._binary = False
            if fin and len(data) <= MESSAGE_LIMIT:  # nearly always
                self._command(data)
                return
        elif opcode == BINARY:
            self._binary = True
            if fin and self._answering is not None and len(data) <= MESSAGE_LIMIT:
                self._answered(data)
                return
        self._text.append(data)
        self._size += len(data)
        if self._size > MESSAGE_LIMIT:
            self._text.clear()
            self.close(1009, "the message is too big for the control channel; use the rendezvous address")
            return
        if fin:
            whole = b"".join(self._text)
            self._text.clear()
            self._size = 0
            if self._binary:
                self._answered(whole)
            else:
                self._command(whole)

    def _command(self, data: bytes) -> None:
        parts = response_parts(data)
        if parts is not None and self._answering is None:
            known = self.services.answers.get(parts[1])
            if known is not None:
                call = self.calls.get(parts[0].decode("ascii", "replace"))
                if known.response.body:
                    self._answering = (call, known.response, known)
                elif call is not None:
                    call.answer(known.response, b"", known)
                return
        try:
            command = decode_command(data)
        except ProtocolError as error:
            self.close(1002, error.message[:100])
            return
        response = command.response
        if response is None:
            self._on_command(self, command)
            return
        if self._answering is not None:
            self.close(1002, "the binary message of the response before is missing")
            return
        call = self.calls.get(response.requestId)
        plain = parts is not None and parts[0] == response.requestId.encode()
        known = self.services.learn(parts[1], response) if parts is not None and plain else None
        if response.body:
            self._answering = (call, response, known)
        elif call is not None:
            call.answer(response, b"", known)

    def _answered(self, body: bytes) -> None:
        answering, self._answering = self._answering, None
        if answering is None:
            self.close(1002, "a binary message without a response before it")
            return
        call, response, known = answering
        if call is not None:
            call.answer(response, body, known)

    def closed(self, code: int, reason: str) -> None:
        self.services.sockets.discard(self.websocket)
        self._leave(code, reason)

    def _leave(self, code: int, reason: str) -> None:
        if self.gone:
            return
        self.gone = True
        self._backlog.clear()
        self._on_closed(self, code, reason)
        for call in list(self.calls.values()):
            call.listener_gone()
        self.calls.clear()
        for sender in list(self.waiting.values()):
            sender.listener_gone()

    def pause_sending(self) -> None:
        self.blocked = True

    def resume_sending(self) -> None:
        self.blocked = False
        while self._backlog and not self.blocked:
            self._backlog.pop(next(iter(self._backlog))).transmit(self.websocket)
