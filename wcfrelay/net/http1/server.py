"""HTTP/1.1 servers: what the connections of a listening port share. :mod:`wcfrelay.net.http1.connection` is one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from wcfrelay.net.http1.connection import HttpConnection, Refused
from wcfrelay.net.http1.exchange import RequestHead, ServerExchange
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers

__all__ = ["HttpFront", "ServerLimits"]

_GOODBYE = 1.0
"""Seconds that closing connections are waited for."""
_REMEMBERED = 1024
_REMEMBERED_LENGTH = 64
"""Field names and hosts remembered, and characters of a name."""
_HOST = re.compile(r"[A-Za-z0-9._~-]{1,255}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Quotas (bytes, counts) and deadlines (seconds; ``request_total`` 0 = none) of server connections."""

    request_line: int = 8 * 1024
    header_count: int = 100
    header_bytes: int = 64 * 1024
    connections: int = 10_000
    request_head: float = 30.0
    body_idle: float = 60.0
    request_total: float = 0.0
    keep_alive: float = 75.0


class HttpFront:
    """Everything the connections of one listening port share.

    ``take`` receives every exchange when its head is complete; it must begin or answer it, at once or later.
    """

    def __init__(
        self,
        network: Network,
        timers: Timers,
        limits: ServerLimits,
        take: Callable[[ServerExchange], None],
        *,
        scheme: str = "http",
    ) -> None:
        self.network = network
        self.timers = timers
        self.limits = limits
        self.take = take
        self.scheme = scheme
        self.connections: set[HttpConnection] = set()
        self.draining = False
        self.names: dict[bytes, tuple[str, str]] = {}
        """Field names as text and in lower case, remembered because few names make up nearly all fields."""
        self.origins: dict[str, str] = {}
        """``scheme://host`` by the Host fields seen, all valid."""
        self.heads: dict[bytes, RequestHead] = {}
        """Heads of requests as they came. The next request of a client, or of its like, often has the very same one:
        nothing of it needs to be parsed, or decided, again."""
        self._date = (0, "")

    def make(self) -> HttpConnection:
        """A core for a new connection (for :meth:`Network.listen`)."""
        return HttpConnection(self)

    async def drain(self, seconds: float) -> None:
        """Close idle connections, let running exchanges finish for at most ``seconds``, then cut the rest. A connection
        whose peer does not see that it is closed is waited for ``_GOODBYE`` seconds only."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_when_idle()
        waited = closing = 0.0
        while self.connections and waited < seconds and closing < _GOODBYE:
            await self.network.sleep(0.05)
            waited += 0.05
            closing = 0.0 if any(connection.at_work for connection in self.connections) else closing + 0.05
        for connection in list(self.connections):
            connection.abort()

    def date(self) -> str:
        """The ``Date`` field of this second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, f"Date: {formatdate(now, usegmt=True)}\r\n")
        return self._date[1]

    def spelling(self, name: bytes) -> tuple[str, str]:
        """A field name as text and in lower case, for :attr:`names`."""
        text = name.decode("latin-1")
        found = (text, text.lower())
        if len(self.names) < _REMEMBERED and len(name) <= _REMEMBERED_LENGTH:
            self.names[name] = found
        return found

    def origin(self, host: str) -> str:
        """The origin for a Host field, for :attr:`origins`."""
        if not _HOST.fullmatch(host):
            raise Refused(400, "the Host header is malformed")
        found = f"{self.scheme}://{host}"
        if len(self.origins) < _REMEMBERED:
            self.origins[host] = found
        return found
