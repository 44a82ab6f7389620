"""The HTTP face: senders' requests, from the address to the listener that answers.

Order of decisions (hybrid-connections.md §6, wcf-http-relay.md §10): ``/$hc`` goes to the hybrid face; otherwise the
path selects a relay, the token is judged, a listener is chosen, and the exchange is its own from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from wcfrelay.errors import EndpointNotFoundError, ListenerGoneError, NoListenerError, RelayError
from wcfrelay.gateway.authorize import Authorizer
from wcfrelay.gateway.metrics import Recorder
from wcfrelay.gateway.relays import Relay, Relays
from wcfrelay.gateway.rendezvous import Ids
from wcfrelay.net.http1.exchange import ServerExchange
from wcfrelay.sas import Grant, Right
from wcfrelay.wire.hybrid import strip_relay_query
from wcfrelay.wire.soap import error_answer

__all__ = ["HttpFace", "Plan", "refuse", "sender_token", "tracking_suffix"]

_RELAY_HEADER = frozenset({"servicebusauthorization"})
_BOTH_HEADERS = frozenset({"servicebusauthorization", "authorization"})
"""Header fields that a listener must not see, by where the token was (sas-and-authorization.md §3)."""


@dataclass(slots=True)
class Plan:
    """What was decided about a request, good for every other with the same head until relays or rules change."""

    epochs: tuple[int, int]
    relay: Relay
    grant: Grant | None
    target: str
    drop: frozenset[str]
    command: tuple[bytes, bytes] | None = None
    """The parts of its `request` command that are the same each time."""


class HttpFace:
    """Takes every exchange of the sender ports.

    ``hybrid`` takes those under ``/$hc``. ``no_listener_status`` is the status for a known relay without listeners (404
    or 502; the specification's sources disagree, hybrid-connections.md §10). ``name`` stands for this gateway where a
    request does not say whom it calls.
    """

    def __init__(
        self,
        relays: Relays,
        authorizer: Authorizer,
        ids: Ids,
        recorder: Recorder,
        hybrid: Callable[[ServerExchange], None],
        *,
        pending_per_listener: int,
        no_listener_status: int = 404,
        name: str = "localhost",
    ) -> None:
        self._relays = relays
        self._authorizer = authorizer
        self._ids = ids
        self._recorder = recorder
        self._hybrid = hybrid
        self._pending = pending_per_listener
        self._name = name
        self._no_listener: type[RelayError] = NoListenerError if no_listener_status == 404 else _NoListenerAtPath

    def take(self, exchange: ServerExchange) -> None:
        """Decide where an exchange goes. Called by the HTTP front when its head is complete."""
        exchange.tracking_id = self._ids.new()
        target = exchange.target
        if not exchange.host:  # HTTP/1.0 need not say whom it calls
            exchange.host = self._name
        if target.startswith("/$hc"):
            self._hybrid(exchange)
            return
        relay: Relay | None = None
        head = exchange.head
        try:
            plan = head.plan if head is not None else None
            if plan is not None and plan.epochs == (self._relays.epoch, self._authorizer.epoch):
                relay = plan.relay
                if plan.grant is not None:
                    self._authorizer.still_good(plan.grant)
                link = relay.choose(self._pending)
                self._recorder.begun(exchange, relay, link.id)
                link.carry(exchange, plan.target, plan.drop)
                return
            query_token = None
            if "?" in target:
                target, query_token = strip_relay_query(target)
            relay, segments = self._relays.route(target.partition("?")[0])
            if relay is None:
                raise EndpointNotFoundError()
            grant = None
            token, drop = sender_token(exchange, query_token, relay)
            if relay.requires_client_authorization:
                grant = self._authorizer.authorize(token, relay.path, segments, Right.SEND)
            if head is not None:
                head.plan = Plan((self._relays.epoch, self._authorizer.epoch), relay, grant, target, drop)
            link = relay.choose(self._pending)
        except NoListenerError:
            refuse(exchange, self._no_listener(), relay.path if relay else "")
            self._recorder.refused(exchange, relay)
            return
        except RelayError as error:
            refuse(exchange, error, relay.path if relay else "")
            self._recorder.refused(exchange, relay)
            return
        self._recorder.begun(exchange, relay, link.id)
        link.carry(exchange, target, drop)


def sender_token(exchange: ServerExchange, query_token: str | None, relay: Relay) -> tuple[str | None, frozenset[str]]:
    """A sender's token by the order of its places, and the header fields that the listener must not see.

    ``query_token`` is the one that the query carried. ``Authorization`` is the sender's own wherever the token is in
    another place, or none is needed (hybrid-connections.md §6).
    """
    lower, token = exchange.lower, query_token
    if token is None and "servicebusauthorization" in lower:
        token = lower["servicebusauthorization"][1]
    if token is None and relay.requires_client_authorization and "authorization" in lower:
        return lower["authorization"][1], _BOTH_HEADERS
    return token, _RELAY_HEADER


class _NoListenerAtPath(NoListenerError):
    """There are no listeners connected for the endpoint."""

    status = 502
    code = ListenerGoneError.code


def refuse(exchange: ServerExchange, error: RelayError, path: str) -> None:
    """Answer with a relay error: a SOAP fault to a SOAP request, JSON to any other. An answer that has begun is cut."""
    if exchange.status:
        exchange.abort(error.message)
        return
    suffix = tracking_suffix(exchange.tracking_id, exchange.host, path)
    status, reason, headers, body = error_answer(error, exchange.headers, suffix=suffix)
    exchange.respond(status, reason, headers, body)


def tracking_suffix(tracking_id: str, host: str, path: str) -> str:
    """What every error text ends with (hybrid-connections.md §10)."""
    tracker = f"sb://{host}/{path}" if path else "NoSystemTracker"
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f" TrackingId:{tracking_id}, SystemTracker:{tracker}, Timestamp:{now}"
