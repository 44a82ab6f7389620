"""Sending through a relay: SOAP clients that call a service behind it, blocking or on the Twisted reactor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wcfrelay.sender.zeep import AsyncRelayClient, async_relay_client, relay_client

__all__ = ["AsyncRelayClient", "async_relay_client", "relay_client"]


def __getattr__(name: str) -> Any:
    # zeep and requests are half of a listener's start; commands that only need a connection string do without.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from wcfrelay.sender import zeep

    return getattr(zeep, name)
