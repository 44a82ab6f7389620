"""A gateway store that forgets everything with its process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wcfrelay.errors import QuotaExceededError
from wcfrelay.sas import Rule
from wcfrelay.store import Registration, RelayRecord

__all__ = ["MemoryStore"]


class MemoryStore:
    """:class:`~wcfrelay.store.GatewayStore` in dictionaries."""

    def __init__(self) -> None:
        self._rules: dict[str, dict[str, Rule]] = {}
        self._relays: dict[str, RelayRecord] = {}
        self._registrations: dict[str, dict[str, Registration]] = {}

    async def rules(self, path: str) -> list[Rule]:
        rules = self._rules.get(path, {})
        return [rules[name] for name in sorted(rules)]

    async def put_rule(self, path: str, rule: Rule) -> None:
        scope = tuple(path.split("/")) if path else ()
        self._rules.setdefault(path, {})[rule.name] = replace(rule, scope=scope)

    async def delete_rule(self, path: str, name: str) -> bool:
        rules = self._rules.get(path, {})
        found = rules.pop(name, None) is not None
        if found and not rules:
            del self._rules[path]
        return found

    async def relays(self) -> list[RelayRecord]:
        return [self._relays[path] for path in sorted(self._relays)]

    async def relay(self, path: str) -> RelayRecord | None:
        return self._relays.get(path)

    async def put_relay(self, record: RelayRecord, *, limit: int | None = None) -> None:
        self._check_relays(record, limit)
        self._relays[record.path] = record

    def _check_relays(self, record: RelayRecord, limit: int | None) -> None:
        if limit is not None and record.path not in self._relays and len(self._relays) >= limit:
            raise QuotaExceededError(f"There are {limit} relays, which is the most that this gateway may have.")

    async def delete_relay(self, path: str) -> bool:
        record = self._relays.pop(path, None)
        if record is not None and not record.dynamic:
            self._rules.pop(path, None)
        return record is not None

    async def register(self, path: str, registration: Registration, *, limit: int) -> int:
        present = self._registrations.get(path, {})
        if registration.listener_id not in present and len(present) >= limit:
            raise QuotaExceededError(
                f"MaximumListenersPerEndpoint: {limit} listeners are registered, which is the most a relay may have."
            )
        present[registration.listener_id] = registration
        self._registrations[path] = present
        return len(present)

    async def unregister(self, path: str, listener_id: str) -> int:
        present = self._registrations.get(path, {})
        if present.pop(listener_id, None) is not None and not present:
            del self._registrations[path]
        return len(present)

    async def registrations(self, path: str) -> list[Registration]:
        return list(self._registrations.get(path, {}).values())

    async def find(self, paths: Sequence[str]) -> tuple[str, list[Registration]] | None:
        for path in paths:
            present = self._registrations.get(path)
            if present:
                return path, list(present.values())
        return None

    async def close(self) -> None:
        pass
