"""One HTTP exchange, whatever carries it: a request with its body, and its one answer.

Two things carry exchanges: an HTTP/1.1 connection (:mod:`wcfrelay.net.http1.server`) and a hybrid control channel or
rendezvous at the listener (:mod:`wcfrelay.listener.exchange`). Whoever answers one is a :class:`Responder` and
cannot tell which of the two it has. Nothing here does I/O.

Flow of calls::

    carrier                     Exchange                       Responder
    head parsed   ───────────▶  begin(responder)  ◀── whoever answers takes it, at once or later
    body bytes    ───────────▶                     ─▶ body_received(data)* ─▶ body_ended()
                  ◀───────────  respond() or start() write()* finish()   ◀── the answer, any time after the head
    peer gone     ───────────▶                     ─▶ cancelled(error)

Ownership: the carrier owns the exchange until ``finish``, ``respond`` or ``abort`` was called, or ``cancelled`` was
delivered; after that every call on it is ignored, so that late answers are harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

__all__ = ["Exchange", "Headers", "Responder", "header"]

Headers = Sequence[tuple[str, str]]
"""Header fields in order, names as received, values without surrounding white space (latin-1 code points)."""


class Responder(Protocol):
    """Who answers an exchange."""

    def body_received(self, data: bytes) -> None:
        """The next piece of the request body, never empty."""

    def body_ended(self) -> None:
        """The request body is complete. Called exactly once, also for a request without body."""

    def cancelled(self, error: Exception) -> None:
        """Nobody waits for the answer any more (the peer went away, or a deadline passed). Called at most once, and
        never after the answer was finished."""

    def pause_response(self) -> None:
        """The buffer towards the peer is full: write no more until ``resume_response``."""

    def resume_response(self) -> None:
        """The buffer towards the peer has drained."""


class Exchange(Protocol):
    """A request and the place to put its answer."""

    method: str
    target: str
    """The request target as it came, percent-encoding untouched: path and query."""
    headers: Headers
    length: int | None
    """Body length in bytes; 0 when there is none, None when it is not known before the end."""
    origin: str
    """``scheme://host[:port]`` under which the sender addressed the relay, "" when not known."""
    tracking_id: str

    def begin(self, responder: Responder) -> None:
        """Take the exchange. The body is delivered from here on (a short one may be delivered inside this call)."""

    def pause(self) -> None:
        """Deliver no more of the request body until :meth:`resume`; at most what is already in memory still comes."""

    def resume(self) -> None: ...

    def respond(self, status: int, reason: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """The whole answer at once. The carrier sets the length."""

    def start(self, status: int, reason: str, headers: Iterable[tuple[str, str]], length: int | None) -> None:
        """Begin a streamed answer of ``length`` bytes, or of unknown length (None)."""

    def write(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def abort(self, reason: str) -> None:
        """Give the answer up in the middle, so that the peer sees that it is incomplete. Before ``start`` it means
        that there will be no answer at all; answer with an error instead where one can be given."""


def header(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """The value of the first field called ``name`` (given in lower case), or None."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None
