"""Metrics and the access log: what is counted about a call, and how it is shown.

On the way of a call counters are plain integers of the relay (:class:`~wcfrelay.gateway.relays.RelayStats`); the names
and meanings of Azure's metrics (management.md §8) and the Prometheus text come only when somebody scrapes. The only
labels are the relay's path, of which at most ``label_limit`` are shown (the rest are summed up as ``$other``), and the
result.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from wcfrelay.gateway.relays import LATENCY_BUCKETS, Relay, Relays, RelayStats
from wcfrelay.log import AccessLog
from wcfrelay.net.http1.exchange import ServerExchange

__all__ = ["Recorder", "RelayCollector"]

_OTHER = "$other"
"""No relay can be called so."""


class Recorder:
    """Counts each exchange when it ends, and writes its line in the access log. ``now`` is the reactor's clock."""

    def __init__(self, now: Callable[[], float], access_log: AccessLog | None) -> None:
        self._now = now
        self._access_log = access_log
        self.unrouted = RelayStats()
        """Counters of requests that reached no relay."""

    def begun(self, exchange: ServerExchange, relay: Relay, listener_id: str) -> None:
        """An exchange goes to a listener; it is counted when it is over."""
        relay.stats.active_connections += 1
        exchange.note = (relay, listener_id)
        exchange.done = self._over

    def refused(self, exchange: ServerExchange, relay: Relay | None) -> None:
        """An exchange was answered by the gateway itself."""
        stats = relay.stats if relay is not None else self.unrouted
        if exchange.status < 500:
            stats.sender_client_error += 1
        else:
            stats.sender_server_error += 1
        self._line(exchange, relay.path if relay is not None else "", "")

    def _over(self, exchange: ServerExchange) -> None:
        relay, listener_id = exchange.note
        stats = relay.stats
        stats.active_connections -= 1
        if exchange.sender_left:
            stats.sender_disconnects += 1
        elif not exchange.answered or exchange.status >= 500:
            stats.sender_server_error += 1
        elif exchange.status >= 400:
            stats.sender_client_error += 1
        else:
            stats.sender_success += 1
        stats.bytes_transferred += exchange.received + exchange.sent
        seconds = self._now() - exchange.started_at
        stats.duration_sum += seconds
        stats.duration_buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self._line(exchange, relay.path, listener_id)

    def _line(self, exchange: ServerExchange, path: str, listener_id: str) -> None:
        if self._access_log is not None:
            self._access_log.record(
                exchange.tracking_id,
                exchange.remote[0],
                exchange.method,
                exchange.target.partition("?")[0],  # a query may hold a token
                exchange.status,
                exchange.received,
                exchange.sent,
                self._now() - exchange.started_at,
                path,
                listener_id,
            )


class RelayCollector:
    """A collector for a prometheus_client registry."""

    def __init__(self, relays: Relays, recorder: Recorder, label_limit: int = 500) -> None:
        self._relays = relays
        self._recorder = recorder
        self._label_limit = label_limit

    def collect(self) -> Iterator[Metric]:
        listener = CounterMetricFamily(
            "wcfrelay_listener_connections", "Listener connections by result.", labels=("relay", "result")
        )
        sender = CounterMetricFamily(
            "wcfrelay_sender_connections", "Sender connections and requests by result.", labels=("relay", "result")
        )
        gone = CounterMetricFamily("wcfrelay_listener_disconnects", "Listeners that went away.", labels=("relay",))
        left = CounterMetricFamily(
            "wcfrelay_sender_disconnects", "Senders that went away before their answer.", labels=("relay",)
        )
        moved = CounterMetricFamily("wcfrelay_bytes_transferred", "Body bytes, both ways.", labels=("relay",))
        active = GaugeMetricFamily("wcfrelay_active_connections", "Exchanges in work.", labels=("relay",))
        listeners = GaugeMetricFamily("wcfrelay_active_listeners", "Connected listeners.", labels=("relay",))
        duration = HistogramMetricFamily(
            "wcfrelay_request_seconds", "From the head of a request to the end of its answer.", labels=("relay",)
        )
        online = {relay.path: len(relay.listeners) for relay in self._relays}
        for path, stats, connected in self._rows(online):
            listener.add_metric((path, "success"), stats.listener_success)
            listener.add_metric((path, "client_error"), stats.listener_client_error)
            listener.add_metric((path, "server_error"), stats.listener_server_error)
            sender.add_metric((path, "success"), stats.sender_success)
            sender.add_metric((path, "client_error"), stats.sender_client_error)
            sender.add_metric((path, "server_error"), stats.sender_server_error)
            gone.add_metric((path,), stats.listener_disconnects)
            left.add_metric((path,), stats.sender_disconnects)
            moved.add_metric((path,), stats.bytes_transferred)
            active.add_metric((path,), stats.active_connections)
            listeners.add_metric((path,), connected)
            duration.add_metric((path,), _cumulative(stats.duration_buckets), stats.duration_sum)
        yield from (listener, sender, gone, left, moved, active, listeners, duration)

    def _rows(self, online: dict[str, int]) -> Iterator[tuple[str, RelayStats, int]]:
        other, other_online = RelayStats(), 0
        for number, (path, stats) in enumerate(self._relays.stats.items()):
            if number < self._label_limit:
                yield path, stats, online.get(path, 0)
            else:
                _add(other, stats)
                other_online += online.get(path, 0)
        _add(other, self._recorder.unrouted)
        yield _OTHER, other, other_online


def _add(total: RelayStats, part: RelayStats) -> None:
    for item in fields(RelayStats):
        value = getattr(part, item.name)
        if isinstance(value, list):
            total.duration_buckets = [a + b for a, b in zip(total.duration_buckets, value, strict=True)]
        else:
            setattr(total, item.name, getattr(total, item.name) + value)


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    rows, seen = [], 0
    for bound, count in zip((*LATENCY_BUCKETS, float("inf")), buckets, strict=True):
        seen += count
        rows.append(("+Inf" if bound == float("inf") else str(bound), float(seen)))
    return rows
