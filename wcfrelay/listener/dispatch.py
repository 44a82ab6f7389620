"""What a listener does with the exchanges that reach it."""

from __future__ import annotations

from typing import Protocol

from wcfrelay.net.exchange import Exchange

__all__ = ["Dispatcher"]


class Dispatcher(Protocol):
    """Answers exchanges: a service host in this process, or an existing service elsewhere."""

    def dispatch(self, exchange: Exchange) -> None:
        """Take the exchange: call its ``begin`` exactly once, at once or later, and see to its answer."""

    async def close(self) -> None:
        """Give back what the dispatcher holds. Called once, after the calls in flight have ended."""
