"""Deadlines by the thousand for the price of one reactor timer.

A call, a ping and a rendezvous each have a deadline that nearly always is cancelled before it comes. Twisted's
``callLater`` costs several microseconds each; here a deadline is one entry in the bucket of its tick, and one reactor
timer waits for the earliest bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

__all__ = ["Deadline", "Timers"]


class Deadline:
    """One pending deadline. ``cancel`` may be called at any time, any number of times."""

    __slots__ = ("_bucket", "call")

    def __init__(self, call: Callable[[], None], bucket: set[Deadline]) -> None:
        self.call = call
        self._bucket = bucket

    def cancel(self) -> None:
        self._bucket.discard(self)
        self.call = _nothing


def _nothing() -> None:
    """What a deadline does that was cancelled by another of the same tick."""


class Timers:
    """Deadlines with the resolution of a tick: never early, at most two ticks late.

    ``reactor`` gives ``seconds()`` and ``callLater``; ``tick`` is in seconds.
    """

    def __init__(self, reactor: Any, tick: float = 0.1) -> None:
        self._reactor = reactor
        self._tick = tick
        self._buckets: dict[int, set[Deadline]] = {}
        self._slots: list[int] = []
        self._timer: Any = None
        self._scheduled = 0

    def after(self, seconds: float, call: Callable[[], None]) -> Deadline:
        """Call ``call`` once, ``seconds`` from now, unless cancelled. It must not raise."""
        now = self._reactor.seconds()
        slot = int((now + seconds) / self._tick) + 1
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = set()
            heappush(self._slots, slot)
            if self._timer is None or slot < self._scheduled:
                self._schedule(now)
        deadline = Deadline(call, bucket)
        bucket.add(deadline)
        return deadline

    def _schedule(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._scheduled = self._slots[0]
        self._timer = self._reactor.callLater(max(self._scheduled * self._tick - now, 0.0), self._run)

    def _run(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        due: list[Deadline] = []
        while self._slots and self._slots[0] * self._tick <= now + 1e-6:
            due.extend(self._buckets.pop(heappop(self._slots)))
        if self._slots:
            self._schedule(now)
        for deadline in due:
            deadline.call()

    def stop(self) -> None:
        """Forget every deadline."""
        self._buckets.clear()
        self._slots.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
