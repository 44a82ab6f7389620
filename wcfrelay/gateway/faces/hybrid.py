"""The hybrid face: everything under ``/$hc``. Listeners register here and dial their rendezvous here.

Source: hybrid-connections.md §3 (control channel), §7, §8 (rendezvous), §11 (token renewal).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from wcfrelay.address import path_segments, relay_path
from wcfrelay.errors import (
    BadRequestError,
    EndpointNotFoundError,
    ForbiddenError,
    RelayError,
)
from wcfrelay.gateway.authorize import Authorizer
from wcfrelay.gateway.faces.http import refuse, sender_token
from wcfrelay.gateway.hybridcall import HybridCall, RendezvousSocket
from wcfrelay.gateway.hybridlink import HybridLink, LinkServices
from wcfrelay.gateway.join import WaitingSender
from wcfrelay.gateway.metrics import Recorder
from wcfrelay.gateway.relays import Relay, Relays
from wcfrelay.net.exchange import Responder
from wcfrelay.net.handshake import server_handshake
from wcfrelay.net.http1.exchange import ServerExchange
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Deadline
from wcfrelay.net.websocket import WebSocket
from wcfrelay.sas import Right
from wcfrelay.store import GatewayStore, Registration
from wcfrelay.wire.hybrid import Command, HybridTarget, parse_target

__all__ = ["HybridFace", "HybridSettings"]

log = Logger()


@dataclass(frozen=True, slots=True)
class HybridSettings:
    """What the configuration says of listeners. Seconds, counts; ``advertise`` is "" or ``host[:port]`` to dial."""

    dynamic: bool
    response_timeout: float
    listeners_per_relay: int
    relays: int
    ping_interval: float
    ping_timeout: float
    advertise: str
    node: str


class HybridFace:
    """Takes exchanges under ``/$hc``."""

    def __init__(
        self,
        network: Network,
        relays: Relays,
        authorizer: Authorizer,
        store: GatewayStore,
        services: LinkServices,
        recorder: Recorder,
        settings: HybridSettings,
        unix_time: Callable[[], float],
    ) -> None:
        self._network = network
        self._relays = relays
        self._authorizer = authorizer
        self._store = store
        self._services = services
        self._recorder = recorder
        self._settings = settings
        self._unix_time = unix_time
        self._expiries: dict[HybridLink, Deadline] = {}

    def take(self, exchange: ServerExchange) -> None:
        """Serve one exchange; the handshake may be decided later."""
        path = ""
        try:
            target = parse_target(exchange.target)
            path = target.path.strip("/")
            if not exchange.opens_websocket:
                raise BadRequestError(
                    "Addresses under /$hc speak WebSocket only; call the relay by its path without /$hc."
                )
            if target.action == "connect":
                self._connect(exchange, target)
            elif target.action == "listen":
                self._listen(exchange, target)
            elif target.action == "request":
                self._rendezvous(exchange, target)
            elif target.action == "accept":
                self._accept(exchange, target)
            else:
                raise BadRequestError("sb-hc-action must be listen, connect, accept or request.")
        except RelayError as error:
            self._refuse(exchange, error, path)

    # -- listen

    def _listen(self, exchange: ServerExchange, target: HybridTarget) -> None:
        path = relay_path(target.path)
        segments = path_segments("/" + target.path.strip("/"))
        settings = self._settings
        relay = self._relays.get(segments)
        if relay is None and not settings.dynamic:
            raise EndpointNotFoundError(
                "Endpoint does not exist. Relays of this gateway are named in its configuration, and this one is not."
            )
        lower = exchange.lower
        token = target.token
        for name in ("servicebusauthorization", "authorization"):
            if not token and name in lower:
                token = lower[name][1]
        grant = self._authorizer.authorize(token, path, segments, Right.LISTEN)
        if relay is None and len(self._relays) >= settings.relays:
            raise ForbiddenError("The gateway has reached its number of relays.")
        headers = server_handshake(exchange.headers, exchange.target, _first_protocol(exchange))
        responder = _Handshaking()
        exchange.begin(responder)
        listener_id = target.id or exchange.tracking_id
        Deferred.fromCoroutine(
            self._register(exchange, responder, headers, path, segments, listener_id, grant.expiry)
        ).addErrback(self._failed, exchange, path)

    async def _register(
        self,
        exchange: ServerExchange,
        responder: _Handshaking,
        headers: list[tuple[str, str]],
        path: str,
        segments: tuple[str, ...],
        listener_id: str,
        expiry: float,
    ) -> None:
        settings = self._settings
        registration = Registration(listener_id=exchange.tracking_id, node=settings.node, address=exchange.origin)
        await self._store.register(path, registration, limit=settings.listeners_per_relay)
        if responder.gone:
            await self._store.unregister(path, registration.listener_id)
            return
        relay = self._relays.get(segments)
        if relay is None:
            relay = self._relays.add(segments, dynamic=True, response_timeout=settings.response_timeout)
        websocket = WebSocket(self._network, self._services.timers, client=False)
        host = settings.advertise or exchange.host
        base = f"{'wss' if exchange.origin.startswith('https') else 'ws'}://{host}"

        def closed(link: HybridLink, code: int, reason: str) -> None:
            self._unregister(link, relay, registration, code, reason)

        link = HybridLink(self._services, relay, listener_id, websocket, base, self._command, closed)
        websocket.app = link
        relay.listeners.append(link)
        relay.stats.listener_success += 1
        self._watch_expiry(link, expiry)
        log.info(
            "Listener connected to {path} from {remote}.",
            path=path,
            remote=exchange.remote[0],
            listener=listener_id,
            tracking_id=exchange.tracking_id,
        )
        self._switch(exchange, websocket, headers)
        websocket.keep_alive(settings.ping_interval, settings.ping_timeout)

    def _unregister(self, link: HybridLink, relay: Relay, registration: Registration, code: int, reason: str) -> None:
        relay.listeners.remove(link)
        relay.stats.listener_disconnects += 1
        self._expiries.pop(link).cancel()
        if relay.dynamic and not relay.listeners:
            self._relays.remove(relay)
        log.info(
            "Listener disconnected from {path}: {code} {reason}",
            path=relay.path,
            code=code,
            reason=reason,
            listener=link.id,
        )
        Deferred.fromCoroutine(self._store.unregister(relay.path, registration.listener_id)).addErrback(
            lambda failure: log.failure("Could not unregister a listener.", failure)
        )

    def _watch_expiry(self, link: HybridLink, expiry: float) -> None:
        """Close with 1008 when the listener's token has expired and was not renewed (§11)."""
        earlier = self._expiries.pop(link, None)
        if earlier is not None:
            earlier.cancel()
        left = max(expiry + self._authorizer.grace - self._unix_time(), 0.0)

        def expired() -> None:
            log.info("The token of a listener on {path} has expired.", path=link.relay.path, listener=link.id)
            link.close(1008, "the token has expired")

        self._expiries[link] = self._services.timers.after(left, expired)

    def _command(self, link: HybridLink, command: Command) -> None:
        if command.renewToken is None:
            return  # a command of a later day
        relay = link.relay
        try:
            grant = self._authorizer.authorize(command.renewToken.token, relay.path, relay.segments, Right.LISTEN)
        except RelayError as error:
            log.warn("A renewed token was refused: {error}", error=error.message, listener=link.id)
            return
        self._watch_expiry(link, grant.expiry)

    # -- rendezvous

    def _rendezvous(self, exchange: ServerExchange, target: HybridTarget) -> None:
        headers = server_handshake(exchange.headers, exchange.target, None)
        call = self._services.rendezvous.take(target.id) or self._offered(target)
        if call is None:
            raise ForbiddenError("The rendezvous address is not known here, was used already, or has expired.")
        websocket = WebSocket(self._network, self._services.timers, client=False)
        socket = RendezvousSocket(websocket, call)
        websocket.app = socket
        exchange.begin(_Handshaking())
        self._switch(exchange, websocket, headers)
        websocket.keep_alive(self._settings.ping_interval, self._settings.ping_timeout)
        call.joined(socket)

    def _offered(self, target: HybridTarget) -> HybridCall | None:
        """The call in work under this id, whose listener may open a rendezvous for its answer."""
        relay = self._relays.get(path_segments(target.path))
        for link in relay.listeners if relay is not None else ():
            if isinstance(link, HybridLink) and (call := link.calls.get(target.id)) is not None and call.sent:
                return call
        return None

    # -- WebSocket senders

    def _connect(self, exchange: ServerExchange, target: HybridTarget) -> None:
        relay = None
        try:
            server_handshake(exchange.headers, exchange.target, None)
            relay, segments = self._relays.route(target.path)
            if relay is None:
                raise EndpointNotFoundError()
            token, drop = sender_token(exchange, target.token or None, relay)
            if relay.requires_client_authorization:
                self._authorizer.authorize(token, relay.path, segments, Right.SEND)
            link = relay.choose(self._services.pending_limit)
        except RelayError as error:
            refuse(exchange, error, relay.path if relay is not None else "")
            self._recorder.refused(exchange, relay)
            return
        assert isinstance(link, HybridLink)
        self._recorder.begun(exchange, relay, link.id)
        ping = self._settings.ping_interval, self._settings.ping_timeout
        WaitingSender(self._network, link, exchange, target, drop, ping).start()

    def _accept(self, exchange: ServerExchange, target: HybridTarget) -> None:
        protocol = _first_protocol(exchange)
        headers = server_handshake(exchange.headers, exchange.target, protocol)
        sender = self._services.senders.take(target.id)
        if sender is None:
            raise ForbiddenError("The rendezvous address is not known here, was used already, or has expired.")
        if target.status is not None:
            sender.rejected(target.status, target.description)
            exchange.respond(410, "", [], b"")
            return
        exchange.begin(_Handshaking())
        sender.accepted(exchange, headers, protocol)

    # -- both

    def _switch(self, exchange: ServerExchange, websocket: WebSocket, headers: list[tuple[str, str]]) -> None:
        self._services.sockets.add(websocket)
        transport, rest = exchange.switch_protocols(headers)
        websocket.attach(transport, rest)

    def _failed(self, failure: Any, exchange: ServerExchange, path: str) -> None:
        if isinstance(failure.value, RelayError):
            self._refuse(exchange, failure.value, path)
        else:
            log.failure("A listener could not be registered.", failure)
            self._refuse(exchange, RelayError(), path)

    def _refuse(self, exchange: ServerExchange, error: RelayError, path: str) -> None:
        """A refused handshake: the reason phrase matters, .NET clients show it (§3)."""
        stats = self._recorder.unrouted
        if error.status < 500:
            stats.listener_client_error += 1
        else:
            stats.listener_server_error += 1
        log.info("Handshake refused: {error}", error=error.message, tracking_id=exchange.tracking_id)
        refuse(exchange, error, path)


class _Handshaking(Responder):
    """Waits on an exchange whose handshake is not decided yet."""

    def __init__(self) -> None:
        self.gone = False

    def body_received(self, data: bytes) -> None:
        pass

    def body_ended(self) -> None:
        pass

    def cancelled(self, error: Exception) -> None:
        self.gone = True

    def pause_response(self) -> None:
        pass

    def resume_response(self) -> None:
        pass


def _first_protocol(exchange: ServerExchange) -> str | None:
    """Listeners offer no sub-protocol of meaning; one that is offered is accepted, or some stacks give up."""
    offered = exchange.lower.get("sec-websocket-protocol")
    return offered[1].split(",")[0].strip() if offered else None
