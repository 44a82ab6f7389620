"""In-memory stand-ins for a network: a clock, a transport that remembers, a responder that records."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from wcfrelay.net.exchange import Exchange
from wcfrelay.net.network import Network


class MemoryNetwork(Network):
    """A :class:`Network` on a :class:`Clock`; nothing can be dialled."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)


class MemoryTransport:
    """Remembers what is written; ``core`` is whoever is told what happens."""

    def __init__(self, core: Any = None) -> None:
        self.core = core
        self.written = b""
        self.closed = False
        self.aborted = False
        self.reading = True

    def write(self, data: bytes) -> None:
        if not self.closed and not self.aborted:
            self.written += bytes(data)

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: Any) -> None:
        self.core = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 40000) if name == "peername" else default

    def taken(self) -> bytes:
        """What was written since the last call."""
        written, self.written = self.written, b""
        return written


class Recording:
    """A responder that records what it is told."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.body = b""
        self.ended = 0
        self.error: Exception | None = None
        self.paused = False

    def body_received(self, data: bytes) -> None:
        assert data and not self.ended
        self.body += data

    def body_ended(self) -> None:
        self.ended += 1

    def cancelled(self, error: Exception) -> None:
        assert self.error is None
        self.error = error

    def pause_response(self) -> None:
        self.paused = True

    def resume_response(self) -> None:
        self.paused = False
