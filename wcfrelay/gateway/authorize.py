"""Who may do what: SAS tokens against the rules of an entity, its ancestors and the namespace.

A token that was found good for a relay is remembered by its text until it expires, so that the next call with it costs
a look-up; rules that change empty that memory. Source: sas-and-authorization.md §3, §5.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator

from wcfrelay.errors import MissingTokenError
from wcfrelay.sas import Grant, Right, Rule, verify

__all__ = ["Authorizer"]

_REMEMBERED = 16_384


class Authorizer:
    """Judges tokens. ``now`` gives Unix seconds, ``hosts`` the names accepted in audiences (None: any),
    ``grace`` the seconds a token is still good after its expiry."""

    def __init__(self, now: Callable[[], float], hosts: Container[str] | None, grace: float) -> None:
        self._now = now
        self._hosts = hosts
        self.grace = grace
        self._rules: dict[str, tuple[Rule, ...]] = {}
        self.epoch = 0
        """Counts changes of the rules; a grant from before one may not hold after it."""
        self._good: dict[tuple[str, str, Right], tuple[Grant, bool]] = {}
        """Grants by token, entity and right; whether one covers the whole entity, or must be asked for each target."""

    def set_rules(self, path: str, rules: Iterable[Rule]) -> None:
        """Replace the rules at ``path`` ("" is the namespace)."""
        self._rules[path] = tuple(rules)
        self._good.clear()
        self.epoch += 1

    def authorize(self, token: str | None, entity: str, target: tuple[str, ...], right: Right) -> Grant:
        """The grant by which ``token`` allows ``right`` on ``target``, the segments of the relay path ``entity`` or of
        something below it.

        :raises AuthorizationError: no token, or a bad one. :raises ForbiddenError: a good one without the right.
        """
        if not token:
            raise MissingTokenError()
        remembered = self._good.get((token, entity, right))
        if remembered is not None:
            grant, whole = remembered
            grant.check_expiry(self._now(), self.grace)
            if not whole:
                grant.allows(target, right)
            return grant
        segments = tuple(entity.split("/"))
        grant = verify(
            token,
            now=self._now(),
            rules=lambda name: self._named(name, segments),
            hosts=self._hosts,
            grace=self.grace,
        )
        grant.allows(target, right)
        if len(self._good) >= _REMEMBERED:
            self._good.clear()
        self._good[(token, entity, right)] = grant, len(grant.segments) <= len(segments)
        return grant

    def still_good(self, grant: Grant) -> None:
        """:raises ExpiredTokenError: a grant given before has run out."""
        grant.check_expiry(self._now(), self.grace)

    def _named(self, name: str, entity: tuple[str, ...]) -> Iterator[Rule]:
        for count in range(len(entity), -1, -1):
            for rule in self._rules.get("/".join(entity[:count]), ()):
                if rule.name == name:
                    yield rule
