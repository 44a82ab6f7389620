"""WebSocket senders: held until a listener takes them, then joined with it, frame by frame.

Source: hybrid-connections.md §5. The sender's handshake stays open while a listener is asked (`accept`) to dial the
rendezvous; what the listener does there decides it: the sub-protocol and the headers of its dial, or a status to refuse
with. After the join the gateway only unmasks: types, fragments, close codes and reasons pass as they come. Each leg
answers its own pings, and a leg that takes no more stops the reading of the other.
"""

from __future__ import annotations

from wcfrelay.errors import ListenerGoneError, ListenerTimeoutError, RelayError
from wcfrelay.gateway.faces.http import refuse
from wcfrelay.gateway.hybridlink import HybridLink, LinkServices
from wcfrelay.gateway.relays import RelayStats
from wcfrelay.net.handshake import server_handshake
from wcfrelay.net.http1.exchange import ServerExchange
from wcfrelay.net.network import Network
from wcfrelay.net.websocket import WebSocket
from wcfrelay.wire.hybrid import Accept, Command, HybridTarget, RemoteEndpoint, connect_headers, encode_command

__all__ = ["WaitingSender"]

_OF_THE_DIAL = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cache-control",
        "connection",
        "content-length",
        "host",
        "origin",
        "pragma",
        "relay-user-agent",
        "servicebusauthorization",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "via",
    }
)
"""Headers of a listener's dial that say nothing to the sender; all but these and Sec-WebSocket-* go into its 101."""
_LOST = 1006
_GONE = 1001


class WaitingSender:
    """A WebSocket sender whose handshake a listener is to decide (a :class:`~wcfrelay.net.exchange.Responder`).

    ``drop`` are the header fields that the listener must not see, ``ping`` interval and time-out of pings on each leg.
    """

    def __init__(
        self,
        network: Network,
        link: HybridLink,
        exchange: ServerExchange,
        target: HybridTarget,
        drop: frozenset[str],
        ping: tuple[float, float],
    ) -> None:
        self.id = exchange.tracking_id
        self.link = link
        self._network = network
        self._exchange = exchange
        self._target = target
        self._drop = drop
        self._ping = ping
        self._over = False

    def start(self) -> None:
        """Ask the listener to dial, and wait for it as long as a rendezvous is good."""
        link, exchange = self.link, self._exchange
        services = link.services
        link.load += 1
        link.waiting[self.id] = self
        services.senders.wait(self.id, self, services.rendezvous_seconds, self._not_dialled)
        exchange.begin(self)
        if self._over:
            return
        host, port = exchange.remote
        accept = Accept(
            address=link.accept_address(self._target, self.id),
            id=self._target.id or self.id,
            connectHeaders=connect_headers(exchange.headers, exchange.lower, self._drop),
            remoteEndpoint=RemoteEndpoint(host, port),
        )
        link.websocket.send_text(encode_command(Command(accept=accept)))

    # -- what the listener does

    def accepted(self, listener: ServerExchange, to_listener: list[tuple[str, str]], protocol: str | None) -> None:
        """The listener has dialled: answer both handshakes (``to_listener`` for its own) and join the two.

        :raises RelayError: what the listener wants cannot be answered to the sender, who is told so.
        """
        sender = self._exchange
        extra = [
            (name, value)
            for name, value in listener.headers
            if name.lower() not in _OF_THE_DIAL and not name.lower().startswith("sec-websocket-")
        ]
        self._end()
        try:
            to_sender = server_handshake(sender.headers, sender.target, protocol, extra)
        except RelayError as error:
            refuse(
                sender, ListenerGoneError("The listener's handshake does not fit the sender's."), self.link.relay.path
            )
            raise error
        services, stats = self.link.services, self.link.relay.stats
        listener_leg, sender_leg = (WebSocket(self._network, services.timers, client=False) for _ in range(2))
        listener_leg.app = _Leg(listener_leg, sender_leg, services, stats)
        sender_leg.app = _Leg(sender_leg, listener_leg, services, stats)
        stats.active_connections += 1
        for leg, exchange, headers in ((listener_leg, listener, to_listener), (sender_leg, sender, to_sender)):
            services.sockets.add(leg)
            leg.attach(*exchange.switch_protocols(headers))
            leg.keep_alive(*self._ping)

    def rejected(self, status: int, description: str) -> None:
        """The listener refuses: the sender gets its status and reason."""
        self._end()
        body = f"{description}\n".encode() if description else b""
        reason = description if description.isprintable() else ""
        self._exchange.respond(status, reason, [("Content-Type", "text/plain; charset=utf-8")], body)

    def listener_gone(self) -> None:
        """The control channel is lost before the listener has dialled: another listener may take the sender."""
        self._end()
        try:
            link = self.link.relay.choose(self.link.services.pending_limit)
        except RelayError:
            refuse(self._exchange, ListenerGoneError(), self.link.relay.path)
            return
        assert isinstance(link, HybridLink)
        WaitingSender(self._network, link, self._exchange, self._target, self._drop, self._ping).start()

    def _not_dialled(self) -> None:
        self._end()
        refuse(
            self._exchange,
            ListenerTimeoutError("The listener was asked to accept the connection but did not in the required time."),
            self.link.relay.path,
        )

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self.link.load -= 1
            self.link.waiting.pop(self.id, None)
            self.link.services.senders.withdraw(self.id)

    # -- Responder: a handshake has no body, and its answer nothing to pause

    def cancelled(self, error: Exception) -> None:
        self._end()

    def body_received(self, data: bytes) -> None:
        pass

    def body_ended(self) -> None:
        pass

    def pause_response(self) -> None:
        pass

    def resume_response(self) -> None:
        pass


class _Leg:
    """One side of a joined connection (a WebSocketApp): everything goes to the other."""

    __slots__ = ("_other", "_own", "_services", "_stats")

    def __init__(self, own: WebSocket, other: WebSocket, services: LinkServices, stats: RelayStats) -> None:
        self._own = own
        self._other = other
        self._services = services
        self._stats = stats

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        self._stats.bytes_transferred += len(data)
        self._other.send(opcode, data, fin)

    def closed(self, code: int, reason: str) -> None:
        sockets = self._services.sockets
        sockets.discard(self._own)
        if self._other in sockets:  # the first of the two
            self._stats.active_connections -= 1
        self._other.close(_GONE if code == _LOST else code, reason)

    def pause_sending(self) -> None:
        self._other.pause_reading()

    def resume_sending(self) -> None:
        self._other.resume_reading()
