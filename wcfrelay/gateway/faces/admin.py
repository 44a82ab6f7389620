"""The admin face: health and metrics, on an address of its own that no sender reaches."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, generate_latest

from wcfrelay.net.http1.exchange import ServerExchange

__all__ = ["AdminFace"]

_TEXT = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]


class AdminFace:
    """``/healthz``: the process works; ``/readyz``: it takes work (503 while it starts or drains); ``/metrics``."""

    def __init__(self, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready

    def take(self, exchange: ServerExchange) -> None:
        path = exchange.target.partition("?")[0]
        if exchange.method not in ("GET", "HEAD"):
            exchange.respond(405, "", [("Allow", "GET, HEAD"), *_TEXT], b"only GET is answered here\n")
        elif path == "/healthz":
            exchange.respond(200, "", _TEXT, b"ok\n")
        elif path == "/readyz":
            ready = self._ready()
            exchange.respond(200 if ready else 503, "", _TEXT, b"ready\n" if ready else b"not ready\n")
        elif path == "/metrics":
            kind = "text/plain; version=0.0.4; charset=utf-8"
            exchange.respond(200, "", [("Content-Type", kind)], generate_latest(self._registry))
        else:
            exchange.respond(404, "", _TEXT, b"here are /healthz, /readyz and /metrics\n")
