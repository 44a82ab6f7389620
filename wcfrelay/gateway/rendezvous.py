"""Rendezvous: what waits at this node for a listener to dial in, by an id that only the listener was told.

The id is the whole secret of a rendezvous address, so it is long and random; it is good once, and for a limited time
(hybrid-connections.md §2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from wcfrelay.net.timers import Deadline, Timers

__all__ = ["Ids", "Rendezvous"]

_T = TypeVar("_T")


class Ids:
    """Random ids in the shape of a GUID with the node's mark: ``xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx_G0``.

    ``random_bytes`` must be a cryptographic source; it is read in blocks, because every request needs an id.
    """

    def __init__(self, random_bytes: Callable[[int], bytes], mark: str = "G0") -> None:
        self._random_bytes = random_bytes
        self._mark = f"_{mark}"
        self._pool = ""
        self._at = 0

    def new(self) -> str:
        at = self._at
        if at == len(self._pool):
            self._pool = self._random_bytes(4096).hex()
            at = 0
        self._at = at + 32
        raw = self._pool[at : at + 32]
        return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}{self._mark}"


class Rendezvous(Generic[_T]):
    """Waiting senders by rendezvous id."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._waiting: dict[str, tuple[_T, Deadline]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, rendezvous_id: str, waiting: _T, seconds: float, expired: Callable[[], None]) -> None:
        """Keep ``waiting`` for at most ``seconds``; then it is dropped and ``expired`` is called."""

        def late() -> None:
            if self._waiting.pop(rendezvous_id, None) is not None:
                expired()

        self._waiting[rendezvous_id] = (waiting, self._timers.after(seconds, late))

    def take(self, rendezvous_id: str) -> _T | None:
        """What waits under the id, once; None when it is unknown, used or expired."""
        found = self._waiting.pop(rendezvous_id, None)
        if found is None:
            return None
        waiting, deadline = found
        deadline.cancel()
        return waiting

    def withdraw(self, rendezvous_id: str) -> None:
        """Nobody waits any more."""
        self.take(rendezvous_id)
