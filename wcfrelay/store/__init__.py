"""What a gateway remembers: authorization rules, relays, and which listeners are registered where.

Two stores keep this contract, :class:`~wcfrelay.store.memory.MemoryStore` and
:class:`~wcfrelay.store.sqlite.SqliteStore`. A path is always canonical (:func:`wcfrelay.address.relay_path`) and is
compared as it stands; for rules, ``""`` is the namespace. Dynamic relays and quotas: management.md §7 and §9 of the
specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wcfrelay.sas import Rule

__all__ = ["GatewayStore", "Registration", "RelayRecord"]


@dataclass(frozen=True, slots=True)
class RelayRecord:
    """A relay that exists.

    ``dynamic``: it was brought into being by a listener and goes with the last one. ``response_timeout`` is in seconds,
    None: what the gateway has for all. ``created_at`` and ``updated_at`` are Unix seconds; the caller sets them.
    """

    path: str
    dynamic: bool
    created_at: float
    updated_at: float
    requires_client_authorization: bool = True
    response_timeout: float | None = None
    user_metadata: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """A listener's lease on a path at a node.

    ``node`` is the id of the gateway that holds the control channel, ``address`` where other gateways reach it.
    """

    listener_id: str
    node: str
    address: str


class GatewayStore(Protocol):
    """The gateway store. A change is kept when the awaited call has returned.

    Every method raises :class:`~wcfrelay.errors.RelayError` when the store itself fails.
    """

    async def rules(self, path: str) -> list[Rule]:
        """The rules on exactly this path, by name; empty also where there is no such path."""

    async def put_rule(self, path: str, rule: Rule) -> None:
        """Add the rule, or replace the one of the same name on this path. Its scope becomes ``path``."""

    async def delete_rule(self, path: str, name: str) -> bool:
        """Whether there was such a rule."""

    async def relays(self) -> list[RelayRecord]:
        """All relays, by path."""

    async def relay(self, path: str) -> RelayRecord | None:
        """The relay with exactly this path."""

    async def put_relay(self, record: RelayRecord, *, limit: int | None = None) -> None:
        """Add the relay, or replace the one with this path.

        :raises QuotaExceededError: it is new and there are ``limit`` relays already (None: no limit).
        """

    async def delete_relay(self, path: str) -> bool:
        """Whether there was such a relay. The rules on it go too, unless it was dynamic: those are meant for the
        next listener. Registrations stay; whoever holds the control channels closes them."""

    async def register(self, path: str, registration: Registration, *, limit: int) -> int:
        """Enter the listener, or renew what it has on this path; how many the path then has.

        Exact under any number of concurrent calls: of two for the last place, one gets it.

        :raises QuotaExceededError: the listener is new and there are ``limit`` already.
        """

    async def unregister(self, path: str, listener_id: str) -> int:
        """Remove the listener, if it is there; how many the path has left."""

    async def registrations(self, path: str) -> list[Registration]:
        """Who listens on exactly this path, longest there first."""

    async def find(self, paths: Sequence[str]) -> tuple[str, list[Registration]] | None:
        """The first of ``paths`` (longest first) that anybody listens on, and who."""

    async def close(self) -> None:
        """Let go of files and connections. Nothing may be called afterwards."""
