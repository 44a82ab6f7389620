"""Where a relay is: connection strings, relay paths and the segments of a request target.

Source: sas-and-authorization.md §7 (connection strings) and hybrid-connections.md §1 (path matching) of the
specification.

A connection string::

    Endpoint=sb://host[:port]/;SharedAccessKeyName=…;SharedAccessKey=…;EntityPath=…        keys in any order and case

A path has three forms here. A *request target* is what stands in an HTTP request line: percent-encoded, with its
query. A *relay path* is the canonical name of a relay: ``orders/new``. *Segments* are what both become for comparison:
decoded, lower-case, a tuple. A relay is found by the longest registered path whose segments begin those of the target.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote_to_bytes

from wcfrelay.errors import BadRequestError, ConfigError

__all__ = ["ConnectionString", "path_segments", "quote_path", "relay_path", "strip_segments"]

_PATH_LIMIT = 260
"""Characters of a relay path, as the service has it."""
_TEXT_LIMIT = 256
"""Characters of a key name and of a key (sas-and-authorization.md §1)."""
_STRING_LIMIT = 16 * 1024
"""Characters of a connection string."""

# Everything else than what most targets are made of: those need only be cut and lower-cased.
_UNUSUAL = re.compile(r'[^!"$&-\[\]-~]|/\.')
_MALFORMED = re.compile(rb"%(?![0-9A-Fa-f]{2})|#")
_REFUSED_IN_SEGMENT = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")
_REFUSED_IN_RELAY_PATH = re.compile(r"[?#%]")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def path_segments(target: str) -> tuple[str, ...]:
    """The segments of a request target in matching form: percent-decoded, lower-case, without the query.

    ``target`` is the request target as it came, its octets as latin-1 code points. A trailing slash gives no segment;
    an empty inner segment stays as "", which no relay path has.

    :raises BadRequestError: the target does not begin with a slash; or its path has a dot segment, a backslash, an
        encoded slash, a control character, a ``#``, a malformed percent escape or escapes that are no UTF-8.
    """
    path = target.partition("?")[0]
    if path[:1] != "/":
        raise BadRequestError("The request target must begin with a slash.")
    if len(path) == 1:
        return ()
    body = path[1:-1] if path[-1] == "/" else path[1:]
    if _UNUSUAL.search(path) is None:
        return tuple(body.lower().split("/"))
    try:
        return _decoded(body.encode("latin-1"))
    except UnicodeEncodeError:
        raise BadRequestError("The request target must be percent-encoded.") from None


def _decoded(path: bytes) -> tuple[str, ...]:
    if _MALFORMED.search(path):
        raise BadRequestError("The path has a malformed percent escape or a fragment.")
    try:
        segments = tuple(unquote_to_bytes(raw).decode("utf-8").lower() for raw in path.split(b"/"))
    except UnicodeDecodeError:
        raise BadRequestError("The path is not UTF-8.") from None
    for segment in segments:
        if segment in (".", "..") or _REFUSED_IN_SEGMENT.search(segment):
            raise BadRequestError("The path has a dot segment, a backslash, an encoded slash or a control character.")
    return segments


def strip_segments(target: str, count: int) -> str:
    """What is left of a request target behind its first ``count`` segments, exactly as it came.

    The result is empty or begins with ``/`` or ``?``. ``target`` has passed :func:`path_segments`.
    """
    end = target.find("?")
    if end < 0:
        end = len(target)
    start = 0
    for _ in range(count):
        start = target.find("/", start + 1, end)
        if start < 0:
            return target[end:]
    return target[start:]


def relay_path(text: str) -> str:
    """The canonical form of a configured or registered relay path: decoded, lower-case, no slash at either end.

    The canonical form of a canonical form is itself, and ``tuple(path.split("/"))`` are its segments.

    :raises BadRequestError: empty, over 260 characters, an empty or a dot segment, a first segment that begins with
        ``$``, or a backslash, ``?``, ``#``, ``%``, encoded slash or unprintable character in its decoded form.
    """
    path = text.removeprefix("/").removesuffix("/")
    if not path:
        raise BadRequestError("The relay path is empty; give a name such as orders or orders/new.")
    # A lone surrogate passes here and is refused as not UTF-8.
    segments = _decoded(path.encode("utf-8", "surrogatepass"))
    result = "/".join(segments)
    if "" in segments:
        raise BadRequestError("The relay path has an empty segment; write single slashes.")
    if result.startswith("$"):
        raise BadRequestError("A relay path cannot begin with $; such paths belong to the relay itself.")
    if _REFUSED_IN_RELAY_PATH.search(result) or not result.isprintable():
        raise BadRequestError("The relay path has a ?, #, % or unprintable character in it.")
    if len(result) > _PATH_LIMIT:
        raise BadRequestError(f"The relay path is longer than {_PATH_LIMIT} characters.")
    return result


def quote_path(path: str) -> str:
    """A path as it must be written in a URL. Percent escapes that are there already stay."""
    return quote(_STRAY_PERCENT.sub("%25", path), safe="/%:@!$&'()*+,;=", errors="surrogatepass")


_DEFAULT_PORTS = {"sb": 443, "https": 443, "wss": 443, "http": 80, "ws": 80}
_ENDPOINT = re.compile(
    r"(sb|https|wss|http|ws)://(?:([a-z0-9._-]+)|\[([0-9a-f:.]+)\])(?::([0-9]{1,5}))?/?", re.IGNORECASE
)
_TIMESPAN = re.compile(r"(?:([0-9]{1,3})\.)?([0-9]{1,2}):([0-9]{1,2})(?::([0-9]{1,2})(?:\.([0-9]{1,7}))?)?", re.ASCII)
_TICKS = 10_000_000
_DEFAULT_TIMEOUT = 60.0

_USED = {
    name.lower(): name
    for name in (
        "Endpoint",
        "SharedAccessKeyName",
        "SharedAccessKey",
        "SharedAccessSignature",
        "EntityPath",
        "OperationTimeout",
    )
}
# Keys of Microsoft.ServiceBus and Microsoft.Azure.Relay that mean nothing to a relay of one's own.
_IGNORED = frozenset(
    {
        "authentication",
        "enableamqplinkredirect",
        "managementport",
        "oauthdomain",
        "oauthpassword",
        "oauthusername",
        "publisher",
        "runtimeport",
        "sharedsecretissuer",
        "sharedsecretvalue",
        "stsendpoint",
        "transporttype",
        "windowsdomain",
        "windowspassword",
        "windowsusername",
    }
)
# An unknown key is named only when it looks like one: it could be a piece of a secret with a semicolon in it.
_KEY_LIKE = re.compile(r"[A-Za-z]{1,30}")


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """A connection string taken apart; text that was not given is "".

    ``scheme`` is ``sb``, ``https`` or ``wss`` for TLS, and ``http`` or ``ws`` (ours) for a gateway without TLS.
    ``host`` is lower-case, an IPv6 address without brackets. ``entity_path`` is as written, without slash at either
    end; ``operation_timeout`` is in seconds.
    """

    scheme: str
    host: str
    port: int | None = None
    shared_access_key_name: str = ""
    shared_access_key: str = field(default="", repr=False)
    shared_access_signature: str = field(default="", repr=False)
    entity_path: str = ""
    operation_timeout: float = _DEFAULT_TIMEOUT

    @classmethod
    def parse(cls, text: str) -> ConnectionString:
        """Take a connection string apart.

        Of a comma-separated ``Endpoint`` the first address counts. Keys that only Microsoft's libraries use are
        ignored.

        :raises ConfigError: it cannot be used; the text says what to do and quotes no value.
        """
        values = _members(text)
        endpoint = values.get("Endpoint", "")
        if not endpoint:
            raise ConfigError("The connection string has no Endpoint; add Endpoint=sb://<host>/.")
        scheme, host, port = _endpoint(endpoint.partition(",")[0].strip())
        name, key = values.get("SharedAccessKeyName", ""), values.get("SharedAccessKey", "")
        signature = values.get("SharedAccessSignature", "")
        if signature and (name or key):
            raise ConfigError(
                "The connection string has a SharedAccessSignature and also a SharedAccessKey or its name; keep one."
            )
        if bool(name) != bool(key):
            given, missing = (
                ("SharedAccessKeyName", "SharedAccessKey") if name else ("SharedAccessKey", "SharedAccessKeyName")
            )
            raise ConfigError(f"The connection string has a {given} but no {missing}; add {missing}=….")
        if len(name) > _TEXT_LIMIT or len(key) > _TEXT_LIMIT:
            raise ConfigError(
                f"SharedAccessKeyName and SharedAccessKey are limited to {_TEXT_LIMIT} characters; check the text."
            )
        timeout, entity = values.get("OperationTimeout", ""), values.get("EntityPath", "")
        return cls(
            scheme=scheme,
            host=host,
            port=port,
            shared_access_key_name=name,
            shared_access_key=key,
            shared_access_signature=signature,
            entity_path=_entity_path(entity) if entity else "",
            operation_timeout=_seconds(timeout) if timeout else _DEFAULT_TIMEOUT,
        )

    @property
    def tls(self) -> bool:
        return self.scheme in ("sb", "https", "wss")

    @property
    def port_number(self) -> int:
        """The port to dial: the given one, else 443 with TLS and 80 without."""
        return self.port or _DEFAULT_PORTS[self.scheme]

    @property
    def authority(self) -> str:
        """``host[:port]`` as it is written in a URL and in ``Host``: without the default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port_number == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def http_url(self, path: str) -> str:
        """The address of ``path`` (a path alone, its query is the caller's to add) for an HTTP sender."""
        return f"{'https' if self.tls else 'http'}://{self.authority}/{quote_path(path.removeprefix('/'))}"

    def hybrid_url(self, path: str, query: str) -> str:
        """The ``$hc`` address of ``path``; ``query`` is already encoded and has no question mark in front."""
        url = f"{'wss' if self.tls else 'ws'}://{self.authority}/$hc/{quote_path(path.removeprefix('/'))}"
        return f"{url}?{query}" if query else url

    def with_entity(self, path: str) -> ConnectionString:
        """The same with another ``EntityPath``.

        :raises ConfigError: it is no relay path.
        """
        return replace(self, entity_path=_entity_path(path))

    def format(self) -> str:
        """The text form, with its secrets; :meth:`parse` gives an equal object back."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        members = [f"Endpoint={self.scheme}://{host}{'' if self.port is None else f':{self.port}'}/"]
        for name, value in (
            ("SharedAccessKeyName", self.shared_access_key_name),
            ("SharedAccessKey", self.shared_access_key),
            ("SharedAccessSignature", self.shared_access_signature),
            ("EntityPath", self.entity_path),
        ):
            if value:
                members.append(f"{name}={value}")
        if self.operation_timeout != _DEFAULT_TIMEOUT:
            members.append(f"OperationTimeout={_timespan(self.operation_timeout)}")
        return ";".join(members)


def _members(text: str) -> dict[str, str]:
    if len(text) > _STRING_LIMIT:
        raise ConfigError(f"The connection string is longer than {_STRING_LIMIT} characters; check what was pasted.")
    values: dict[str, str] = {}
    for number, part in enumerate(text.split(";"), 1):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not name and not equals:
            continue
        known = _USED.get(name.lower())
        if not equals:
            raise ConfigError(f"Part {number} of the connection string is not Key=Value; parts are separated by ';'.")
        if known is None and name.lower() in _IGNORED:
            continue
        if known is None:
            which = name if _KEY_LIKE.fullmatch(name) else f"in part {number}"
            raise ConfigError(
                f"The connection string has an unknown key {which}; known are {', '.join(_USED.values())}."
            )
        if known in values:
            raise ConfigError(f"The connection string has {known} twice; keep one.")
        values[known] = value.strip()
    return values


def _endpoint(text: str) -> tuple[str, str, int | None]:
    match = _ENDPOINT.fullmatch(text)
    if match is not None:
        scheme, name, address, port = match.groups()
        if (address is None or _is_ipv6(address)) and (port is None or 0 < int(port) < 65536):
            return scheme.lower(), (name or address).lower(), int(port) if port else None
    raise ConfigError(
        "Endpoint of the connection string must be sb://<host>[:port]/ (also https, wss; http or ws without TLS); "
        "a path belongs into EntityPath."
    )


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _entity_path(text: str) -> str:
    try:
        relay_path(text)
    except BadRequestError as error:
        raise ConfigError(f"EntityPath of the connection string cannot be used: {error.message}") from None
    if ";" in text:
        raise ConfigError("EntityPath of the connection string cannot be used: write a semicolon as %3B.")
    return text.removeprefix("/").removesuffix("/")


def _seconds(text: str) -> float:
    match = _TIMESPAN.fullmatch(text)
    if match is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
        ticks = int((match[5] or "").ljust(7, "0"))
        whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        if hours < 24 and minutes < 60 and seconds < 60 and whole + ticks > 0:
            return (whole * _TICKS + ticks) / _TICKS
    raise ConfigError(
        "OperationTimeout of the connection string must be a time above zero as hh:mm:ss, for instance 00:01:00."
    )


def _timespan(seconds: float) -> str:
    whole, ticks = divmod(round(seconds * _TICKS), _TICKS)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour:02}:{minute:02}:{second:02}"
    if days:
        text = f"{days}.{text}"
    return f"{text}.{ticks:07}" if ticks else text
