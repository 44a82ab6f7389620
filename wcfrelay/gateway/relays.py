"""The relays of a node and the listeners that hold them open.

``Relays.select`` is what every face asks: longest registered prefix on whole segments, as the specification says
(hybrid-connections.md §1). A relay named in the configuration or the store lives without listeners; a dynamic one comes
with its first listener and goes with its last (management.md §7).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from wcfrelay.address import path_segments
from wcfrelay.errors import NoListenerError, ServerBusyError
from wcfrelay.net.http1.exchange import ServerExchange

__all__ = ["LATENCY_BUCKETS", "ListenerLink", "Relay", "RelayStats", "Relays"]

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, in seconds, of the request duration histogram."""

_ROUTES = 16_384
_ROUTE_LENGTH = 256
"""Request paths whose relay is remembered, and characters of one."""


class ListenerLink(Protocol):
    """A listener as the gateway sees it: its control channel, in whichever dialect."""

    id: str
    load: int
    """Exchanges and connections it is working on."""
    blocked: bool
    """Its control channel takes no more at the moment."""

    def carry(self, exchange: ServerExchange, target: str, drop: frozenset[str]) -> None:
        """Let this listener answer the exchange.

        ``target`` is the request target without what is the relay's own, ``drop`` the header fields (lower case) that
        the listener must not see.
        """

    def close(self, code: int, reason: str) -> None:
        """End the control channel with a WebSocket close code (hybrid-connections.md §3)."""


@dataclass(slots=True)
class RelayStats:
    """Counters of one relay, under the names of Azure's metrics (management.md §8)."""

    listener_success: int = 0
    listener_client_error: int = 0
    listener_server_error: int = 0
    sender_success: int = 0
    sender_client_error: int = 0
    sender_server_error: int = 0
    listener_disconnects: int = 0
    sender_disconnects: int = 0
    bytes_transferred: int = 0
    active_connections: int = 0
    duration_sum: float = 0.0
    duration_buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))


@dataclass(slots=True)
class Relay:
    """A path that listeners hold open."""

    path: str
    segments: tuple[str, ...]
    dynamic: bool
    response_timeout: float
    """Seconds a listener has for the head of its answer, and between fragments of it."""
    requires_client_authorization: bool
    stats: RelayStats
    listeners: list[ListenerLink] = field(default_factory=list)

    def choose(self, limit: int) -> ListenerLink:
        """One of the listeners at random; of two random ones the one with less to do (best-effort fairness).

        :raises NoListenerError: there is none.
        :raises ServerBusyError: each has ``limit`` exchanges or more in work.
        """
        listeners = self.listeners
        if not listeners:
            raise NoListenerError()
        link = listeners[0] if len(listeners) == 1 else min(random.sample(listeners, 2), key=_burden)
        if link.load >= limit or (link.blocked and len(listeners) > 1):
            with_room = [link for link in listeners if link.load < limit]
            if not with_room:
                raise ServerBusyError("All listeners of this relay are busy; try again, or connect another listener.")
            link = min(with_room, key=_burden)
        return link


def _burden(link: ListenerLink) -> tuple[bool, int]:
    return link.blocked, link.load


class Relays:
    """All relays of this node, by path."""

    def __init__(self, stats_limit: int = 10_000) -> None:
        self._relays: dict[tuple[str, ...], Relay] = {}
        self._routes: dict[str, tuple[Relay, tuple[str, ...]]] = {}
        self._stats: dict[str, RelayStats] = {}
        self._stats_limit = stats_limit
        self.epoch = 0
        """Counts changes; what was found before one may not hold after it."""
        self._depths: Counter[int] = Counter()
        """How many relays have how many segments: no request needs a longer prefix tried."""

    def __iter__(self) -> Iterator[Relay]:
        return iter(self._relays.values())

    def __len__(self) -> int:
        return len(self._relays)

    @property
    def stats(self) -> dict[str, RelayStats]:
        """Counters by path, also of dynamic relays that are gone (bounded)."""
        return self._stats

    def get(self, segments: tuple[str, ...]) -> Relay | None:
        """The relay at exactly this path."""
        return self._relays.get(segments)

    def add(
        self,
        segments: tuple[str, ...],
        *,
        dynamic: bool,
        response_timeout: float,
        requires_client_authorization: bool = True,
    ) -> Relay:
        """A new relay at a path that has none."""
        path = "/".join(segments)
        stats = self._stats.get(path)
        if stats is None:
            if len(self._stats) >= self._stats_limit:
                living = {relay.path for relay in self._relays.values()}
                for gone in [path for path in self._stats if path not in living]:
                    if len(self._stats) < self._stats_limit:
                        break
                    del self._stats[gone]
            stats = self._stats[path] = RelayStats()
        relay = Relay(path, segments, dynamic, response_timeout, requires_client_authorization, stats)
        self._relays[segments] = relay
        self.epoch += 1
        self._depths[len(segments)] += 1
        self._routes.clear()
        return relay

    def remove(self, relay: Relay) -> None:
        if self._relays.pop(relay.segments, None) is not None:
            self.epoch += 1
            self._depths[len(relay.segments)] -= 1
            self._depths += Counter()  # forgets depths that no relay has
            self._routes.clear()

    def route(self, path: str) -> tuple[Relay | None, tuple[str, ...]]:
        """The relay for the path of a request target, and the path's segments.

        :raises BadRequestError: the path is malformed, or climbs with dot segments.
        """
        found = self._routes.get(path)
        if found is None:
            segments = path_segments(path)
            relay = self.select(segments)
            if relay is None:
                return None, segments
            found = relay, segments
            if len(path) <= _ROUTE_LENGTH:
                if len(self._routes) >= _ROUTES:
                    self._routes.clear()
                self._routes[path] = found
        return found

    def select(self, segments: tuple[str, ...]) -> Relay | None:
        """The relay with the longest prefix of these segments."""
        for count in range(min(len(segments), max(self._depths, default=0)), 0, -1):
            relay = self._relays.get(segments[:count])
            if relay is not None:
                return relay
        return None
