"""A memory for what follows from the fields of a message that comes again and again.

Heads of messages repeat: the same client asks for the same thing, the same service answers in the same way. Where a
head is recognised by its bytes, everybody is handed the very same :class:`RepeatedFields`, and what was made of them
can be found by their identity, without a look at the fields.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

__all__ = ["RepeatedFields", "Repeats"]

_V = TypeVar("_V")


class RepeatedFields(list[tuple[str, str]]):
    """Header fields of a head that was recognised, or follow from one. They must not change."""


class Repeats(Generic[_V]):
    """Values by the identity of :class:`RepeatedFields` and further keys; other fields are not remembered. At most
    ``limit`` are kept, and the fields with them."""

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._known: dict[tuple[Any, ...], tuple[object, _V]] = {}

    def get(self, fields: object, *keys: Any) -> _V | None:
        if type(fields) is not RepeatedFields:
            return None
        found = self._known.get((id(fields), *keys))
        return found[1] if found is not None else None

    def keep(self, value: _V, fields: object, *keys: Any) -> _V:
        """Remember ``value``; returns it."""
        if type(fields) is not RepeatedFields:
            return value
        if len(self._known) >= self._limit:
            self._known.clear()
        self._known[(id(fields), *keys)] = (fields, value)
        return value
