"""Shared access signatures: rules, tokens, and what a verified token allows.

Source: sas-and-authorization.md §1 (token), §3 (accepted syntaxes), §5 (check order, scope) of the specification. ::

    SharedAccessSignature sr=<enc(audience)>&sig=<enc(signature)>&se=<expiry>&skn=<enc(rule name)>
    signature = base64(HMAC-SHA256(key, sr LF se))

The pairs come in any order. What is signed is ``sr`` exactly as written, so nothing here ever re-encodes one. The key
is the text of the key, not what it decodes to. Every client spells the audience its own way (scheme, port, case,
trailing slash, query, ``$hc``); a :class:`Token` holds what all spellings have in common: host and path segments.

Nothing here reads a clock: times are arguments, in Unix seconds.
"""

from __future__ import annotations

import base64
import enum
import hmac
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from urllib.parse import quote_plus, unquote, unquote_plus

from wcfrelay.address import ConnectionString, path_segments, quote_path
from wcfrelay.errors import (
    BadRequestError,
    ConfigError,
    ExpiredTokenError,
    ForbiddenError,
    InvalidAudienceError,
    InvalidSignatureError,
    MalformedTokenError,
    MissingTokenError,
)

__all__ = [
    "Grant",
    "Right",
    "Rule",
    "Token",
    "TokenProvider",
    "generate_key",
    "make_token",
    "parse_token",
    "verify",
]

_TOKEN_LIMIT = 8 * 1024
"""Characters of a token, in every syntax."""
_PROVIDER_LIMIT = 256
"""Paths whose token a provider keeps."""


class Right(enum.Flag):
    """What a rule allows. ``MANAGE`` contains the other two."""

    LISTEN = 1
    SEND = 2
    MANAGE = 7

    @property
    def wire_names(self) -> tuple[str, ...]:
        """The rights in this set as the wire and the configuration name them."""
        return tuple(name for name, right in _RIGHTS.items() if right in self)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Right:
        """The set with these names.

        :raises ConfigError: a name is none of ``Listen``, ``Send``, ``Manage``.
        """
        rights = cls(0)
        for name in names:
            right = _RIGHTS.get(name)
            if right is None:
                raise ConfigError(f"{name!r} is no right; use {', '.join(_RIGHTS)}.")
            rights |= right
        return rights


_RIGHTS = {"Listen": Right.LISTEN, "Send": Right.SEND, "Manage": Right.MANAGE}


@dataclass(frozen=True, slots=True)
class Rule:
    """An authorization rule. ``scope`` are the segments of the entity that holds it, () for the namespace."""

    name: str
    rights: Right
    primary_key: str = field(repr=False)
    secondary_key: str = field(default="", repr=False)
    scope: tuple[str, ...] = ()


# Stands for a rule that does not exist, so that its refusal costs what that of a wrong key costs.
_NOBODY = Rule("", Right(0), "")


def generate_key(random_bytes: Callable[[int], bytes]) -> str:
    """A new key: 44 base64 characters. ``random_bytes(n)`` must be a cryptographic source (``os.urandom``)."""
    return base64.b64encode(random_bytes(32)).decode("ascii")


def make_token(resource: str, key_name: str, key: str, expiry: int) -> str:
    """A token for ``resource`` (an address with any scheme or none), written as Microsoft.Azure.Relay writes it:
    scheme http, no port, no query, case of the path kept, a slash at the end."""
    host, path = _host_and_path(resource)
    if ":" in host:
        host = f"[{host}]"
    path = quote_path(path.removesuffix("/"))
    audience = _encode(f"http://{host}/{path}/" if path else f"http://{host}/")
    signature = _signature(key, f"{audience}\n{expiry}".encode()).decode("ascii")
    return f"SharedAccessSignature sr={audience}&sig={_encode(signature)}&se={expiry}&skn={_encode(key_name)}"


def _encode(text: str) -> str:
    return quote_plus(text, safe="!*()").replace("~", "%7E")


def _signature(key: str, signed: bytes) -> bytes:
    return base64.b64encode(hmac.digest(key.encode("utf-8", "surrogatepass"), signed, "sha256"))


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def _host_and_path(address: str) -> tuple[str, str]:
    """Host in lower case without brackets, and the path without its leading slash; scheme, port and query dropped."""
    address = address.partition("?")[0]
    scheme = _SCHEME.match(address)
    authority, _, path = address[scheme.end() if scheme else 0 :].partition("/")
    host = authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
    return host.lower(), path


@dataclass(frozen=True, slots=True)
class Token:
    """A token taken apart, not verified. ``expiry`` is in Unix seconds.

    ``key_names`` are the rule names that it can mean, most likely first: most clients encode the name, the Node clients
    write it raw, and a plus sign or a percent sign does not tell which it was.
    """

    host: str
    segments: tuple[str, ...]
    expiry: int
    key_names: tuple[str, ...]
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @property
    def key_name(self) -> str:
        return self.key_names[0]

    def signed_by(self, key: str) -> bool:
        """Whether ``key`` made the signature, in constant time. The empty key (no second one in the rule) made none."""
        # Texts are compared, not decoded bytes: base64 has several spellings of the same bytes, a token has one.
        return hmac.compare_digest(_signature(key, self.signed), self.signature) and key != ""


_PAIR_NAMES = ("sr", "sig", "se", "skn")
_WRAP = re.compile(r'WRAP\s+access_token="([^"]*)"', re.IGNORECASE)
_SCHEME_WORD = "sharedaccesssignature"
_EXPIRY = re.compile(r"[0-9]{1,15}")
_HOST = re.compile(r"[\w.:-]+")


def parse_token(text: str) -> Token:
    """Take a token apart: ``SharedAccessSignature …``, or one in ``WRAP access_token="…"``.

    :raises MalformedTokenError: it is not well-formed, or longer than 8 KiB.
    """
    if len(text) > _TOKEN_LIMIT:
        raise MalformedTokenError(f"MalformedToken: the token is longer than {_TOKEN_LIMIT} characters.")
    words = text.split(None, 1)
    if words and words[0].lower() == "wrap":
        wrapped = _WRAP.fullmatch(text.strip())
        inner = wrapped[1] if wrapped else ""
        # The value is URL-encoded; one that has its space is not, and a second decoding would change its sr.
        words = (inner if " " in inner else unquote_plus(inner)).split(None, 1)
    if len(words) != 2 or words[0].lower() != _SCHEME_WORD:
        raise MalformedTokenError
    pairs = _pairs(words[1].strip())
    if not _EXPIRY.fullmatch(pairs["se"]):
        raise MalformedTokenError("MalformedToken: se of the token is no number of seconds.")
    host, segments = _audience(pairs["sr"])
    name = pairs["skn"]
    decoded = unquote_plus(name)
    return Token(
        host=host,
        segments=segments,
        expiry=int(pairs["se"]),
        key_names=(name,) if decoded == name else (decoded, name),
        signed=f"{pairs['sr']}\n{pairs['se']}".encode("utf-8", "surrogatepass"),
        signature=unquote(pairs["sig"]).encode("utf-8", "surrogatepass"),
    )


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    name = ""
    for part in text.split("&"):
        key, _, value = part.partition("=")
        key = key.lower()
        if key in _PAIR_NAMES:
            if key in pairs:
                raise MalformedTokenError(f"MalformedToken: the token has {key} twice.")
            name = key
            pairs[name] = value
        elif not part:
            continue
        elif name == "skn":
            # The Node clients write a rule name raw, also one with an ampersand in it.
            pairs[name] += f"&{part}"
        else:
            raise MalformedTokenError("MalformedToken: the token has a pair that is none of sr, sig, se, skn.")
    for key in _PAIR_NAMES:
        if not pairs.get(key):
            raise MalformedTokenError(f"MalformedToken: the token has no {key}.")
    return pairs


def _audience(sr: str) -> tuple[str, tuple[str, ...]]:
    try:
        host, path = _host_and_path(unquote_plus(sr, errors="strict"))
        segments = path_segments(quote_path(f"/{path.rstrip('/')}"))
    except (BadRequestError, UnicodeError):
        raise MalformedTokenError("MalformedToken: sr of the token is no address.") from None
    if not _HOST.fullmatch(host):
        raise MalformedTokenError("MalformedToken: sr of the token has no host.")
    return host, segments[1:] if segments[:1] == ("$hc",) else segments


@dataclass(frozen=True, slots=True)
class Grant:
    """What a verified token allows: ``rights`` on everything at and below ``segments``, until ``expiry``.

    Good for every target while the rule lives, so it may be kept by the text of its token; whoever keeps it checks the
    expiry again at each use, and forgets it when a rule changes.
    """

    rule: str
    rights: Right
    expiry: int
    host: str
    segments: tuple[str, ...]

    def check_expiry(self, now: float, grace: float) -> None:
        """:raises ExpiredTokenError: it is more than ``grace`` seconds past its expiry."""
        if now > self.expiry + grace:
            raise ExpiredTokenError

    def allows(self, segments: tuple[str, ...], right: Right) -> None:
        """Return when the target with these segments may be used with this right.

        :raises InvalidAudienceError: the token is for another path, or for one below.
        :raises ForbiddenError: its rule lacks the right.
        """
        if segments[: len(self.segments)] != self.segments:
            raise InvalidAudienceError
        if right not in self.rights:
            needed = "Manage" if right == Right.MANAGE else " and ".join(right.wire_names)
            raise ForbiddenError(
                f"The token is valid but its rule {self.rule!r} lacks the right {needed} that this operation needs."
            )


def verify(
    text: str | None,
    *,
    now: float,
    rules: Callable[[str], Iterable[Rule]],
    hosts: Container[str] | None,
    grace: float,
) -> Grant:
    """Verify a token and tell what it allows.

    ``rules(name)`` gives the rules of that name on the target, then on its ancestors, then on the namespace; the first
    one with a key that made the signature counts. ``hosts`` are the names of this relay in lower case, without port,
    None for any. ``grace`` is the allowed clock skew in seconds.

    :raises MissingTokenError: there is none.
    :raises MalformedTokenError: see :func:`parse_token`.
    :raises ExpiredTokenError: it is more than ``grace`` seconds past its expiry.
    :raises InvalidSignatureError: no such rule, or none of its keys made the signature.
    :raises InvalidAudienceError: it is for another host, or for a path that its rule has no say in.
    """
    if not text or text.isspace():
        raise MissingTokenError
    token = parse_token(text)
    if now > token.expiry + grace:
        raise ExpiredTokenError
    candidates = [rule for name in token.key_names for rule in rules(name)] or [_NOBODY]
    for rule in candidates:
        if token.signed_by(rule.primary_key) or token.signed_by(rule.secondary_key):
            break
    else:
        raise InvalidSignatureError
    if hosts is not None and token.host not in hosts:
        raise InvalidAudienceError
    # A rule has no say above the entity that holds it, whatever the audience says. Both are prefixes of the target.
    narrow, wide = token.segments, rule.scope
    if len(narrow) < len(wide):
        narrow, wide = wide, narrow
    if narrow[: len(wide)] != wide:
        raise InvalidAudienceError
    return Grant(rule.name, rule.rights, token.expiry, token.host, narrow)


@dataclass(frozen=True, slots=True)
class _Issued:
    token: str = field(repr=False)
    renew_at: float


class TokenProvider:
    """Tokens for the relays behind one connection string.

    ``now()`` is the time in Unix seconds, ``lifetime`` of a token is in seconds. A token is used until a quarter of its
    lifetime is left.

    :raises ConfigError: the connection string has neither a key nor a signature.
    """

    def __init__(self, connection: ConnectionString, now: Callable[[], float], lifetime: int = 3600) -> None:
        if not (connection.shared_access_key or connection.shared_access_signature):
            raise ConfigError(
                "The connection string can make no token; add SharedAccessKeyName=…;SharedAccessKey=… of a rule, "
                "or a SharedAccessSignature=…."
            )
        self._connection = connection
        self._now = now
        self._lifetime = lifetime
        self._issued: OrderedDict[str, _Issued] = OrderedDict()

    def token(self, path: str) -> str:
        """A token for ``path`` and everything below it."""
        return self._current(path).token

    def renew_at(self, path: str) -> float:
        """When :meth:`token` will give another one for ``path``, in Unix seconds; infinite for a given signature."""
        return self._current(path).renew_at

    def _current(self, path: str) -> _Issued:
        connection = self._connection
        if connection.shared_access_signature:
            return _Issued(connection.shared_access_signature, math.inf)
        now = self._now()
        issued = self._issued.get(path)
        if issued is None or now >= issued.renew_at:
            expiry = int(now) + self._lifetime
            token = make_token(
                connection.http_url(path), connection.shared_access_key_name, connection.shared_access_key, expiry
            )
            issued = self._issued[path] = _Issued(token, expiry - self._lifetime / 4)
        self._issued.move_to_end(path)
        if len(self._issued) > _PROVIDER_LIMIT:
            self._issued.popitem(last=False)
        return issued
