"""The configuration of a gateway: frozen dataclasses, read from TOML, written back as commented TOML.

Everything has a default, so an empty file is a configuration. Durations are seconds; sizes are bytes, and may be
written as text with a unit (``"64 KiB"``). A key that does not exist here is an error.
"""

# Annotations are evaluated here: cattrs drops the checks from those that are text.
# ruff: noqa: RUF009 _setting makes a dataclass field

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from cattrs import Converter
from cattrs.cols import homogenous_tuple_structure_factory
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from wcfrelay.address import relay_path
from wcfrelay.errors import BadRequestError, ConfigError

__all__ = [
    "AdminConfig",
    "Config",
    "GatewayConfig",
    "HttpConfig",
    "HttpsConfig",
    "LimitsConfig",
    "LogConfig",
    "RelayConfig",
    "RelayPolicy",
    "RuleConfig",
    "load",
    "render",
    "state_folder",
]

_T = TypeVar("_T")
_UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


# -- the kinds of values: each check takes what TOML gave and returns the value, or raises ValueError


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:56] + '…"'


def _whole(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be {low}..{high}, got {_shown(value)}")
        return value

    return check


def _seconds(zero: bool) -> Callable[[object], float]:
    def check(value: object) -> float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < 0 or (value == 0 and not zero):  # type: ignore[operator] # a number when good
            least = "0 or more" if zero else "more than 0"
            raise ValueError(f"must be a number of seconds, {least}, got {_shown(value)}")
        return float(value)  # type: ignore[arg-type] # as above

    return check


def _size(value: object) -> int:
    size = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,9}) ?(B|KiB|MiB|GiB)", value.strip())):
        size = int(match[1]) * _UNITS[match[2]]
    if size < 1:
        raise ValueError(f'must be a size in bytes or text such as "64 KiB", got {_shown(value)}')
    return size


def _size_text(size: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if size % _UNITS[unit] == 0:
            return f'"{size // _UNITS[unit]} {unit}"'
    return str(size)


def _choice(*choices: object) -> Callable[[object], Any]:
    def check(value: object) -> Any:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ValueError(f"must be one of {', '.join(map(_shown, choices))}, got {_shown(value)}")
        return value

    return check


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {_shown(value)}")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, got {_shown(value)}")
    return value


def _bind_address(value: object) -> str:
    if not re.fullmatch(r"[^\s/\[\]]+", _text(value)):
        raise ValueError(f"must be a host name or an IP address without a port, got {_shown(value)}")
    return _text(value)


def _advertised(value: object) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+)(?::(\d{1,5}))?", _text(value))
    if value != "" and (match is None or not 0 < int(match[2] or 1) < 65536):
        raise ValueError(f"must be host or host:port, got {_shown(value)}")
    return _text(value)


def _host(value: object) -> str:
    if not re.fullmatch(r"[^\s/:]+", _text(value)):
        raise ValueError(f"must be a host name without a scheme or port, got {_shown(value)}")
    return _text(value).lower()


def _relay_path(value: object) -> str:
    try:
        return relay_path(_text(value))
    except BadRequestError as exc:
        raise ValueError(f"{exc} Got {_shown(value)}") from None


def _rule_path(value: object) -> str:
    return _relay_path(value) if value != "" else ""


def _metadata(value: object) -> str:
    if len(_text(value)) > 1024:
        raise ValueError(f"must be at most 1024 characters, got {len(_text(value))}")
    return _text(value)


def _rule_name(value: object) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.~!*()-]{1,256}", _text(value)):
        raise ValueError(f"must be 1 to 256 URL-safe characters, got {_shown(value)}")
    return _text(value)


def _key(value: object) -> str:
    # The text of these errors must not show the value.
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise ValueError("must be text of 1 to 256 characters")
    return value


Port = Annotated[int, _whole(0, 65535)]
Count = Annotated[int, _whole(1, 2**31)]
Seconds = Annotated[float, _seconds(False)]
SecondsOrNone = Annotated[float, _seconds(True)]
Size = Annotated[int, _size]
Text = Annotated[str, _text]
Boolean = Annotated[bool, _boolean]
Bind = Annotated[str, _bind_address]
Right = Annotated[Literal["Listen", "Send", "Manage"], _choice("Listen", "Send", "Manage")]


def _setting(default: _T, doc: str, *, secret: bool = False) -> _T:
    result: _T = field(default=default, repr=not secret, metadata={"doc": doc, "secret": secret})
    return result


def _required(doc: str, *, secret: bool = False) -> Any:
    return field(repr=not secret, metadata={"doc": doc, "secret": secret})


# -- the tables


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """Plain HTTP and WebSocket."""

    enabled: Boolean = _setting(True, "whether the port is opened")
    bind: Bind = _setting("0.0.0.0", "address of the interface")
    port: Port = _setting(8080, "0: any free port")


@dataclass(frozen=True, slots=True)
class HttpsConfig:
    """HTTP and WebSocket under TLS."""

    enabled: Boolean = _setting(True, "whether the port is opened")
    bind: Bind = _setting("0.0.0.0", "address of the interface")
    port: Port = _setting(8443, "0: any free port")
    certificate: Text = _setting("", "PEM file: the certificate, then its chain; empty: a development certificate")
    key: Text = _setting("", "PEM file: the certificate's key, without a passphrase")


@dataclass(frozen=True, slots=True)
class AdminConfig:
    """Health and metrics."""

    enabled: Boolean = _setting(True, "whether the port is opened")
    bind: Bind = _setting("127.0.0.1", "address of the interface")
    port: Port = _setting(9090, "0: any free port")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Quotas and timeouts."""

    request_line: Size = _setting(8 * 1024, "longest request line")
    header_count: Count = _setting(100, "most header fields of a message")
    header_bytes: Size = _setting(64 * 1024, "largest header block of a message")
    connections: Count = _setting(10_000, "most open connections of this gateway")
    request_head: Seconds = _setting(30.0, "longest time from the first byte of a request to the end of its head")
    body_idle: Seconds = _setting(60.0, "longest pause inside a body")
    request_total: SecondsOrNone = _setting(0.0, "longest time of a whole exchange; 0: no limit")
    keep_alive: Seconds = _setting(75.0, "how long a connection may idle between two requests")
    listeners_per_relay: Count = _setting(25, "most listeners of one relay")
    relays: Count = _setting(10_000, "most relays, dynamic ones included")
    pending_per_listener: Count = _setting(1000, "most exchanges that wait for one listener")
    rendezvous: Seconds = _setting(30.0, "how long a sender waits for the listener to dial back")
    ping_interval: Seconds = _setting(30.0, "pause between two pings on a control channel")
    ping_timeout: Seconds = _setting(15.0, "how long the answer to a ping may take")
    token_grace: SecondsOrNone = _setting(300.0, "how long an expired token is still taken, for clocks that differ")


@dataclass(frozen=True, slots=True)
class RelayPolicy:
    """What holds for every relay."""

    dynamic: Boolean = _setting(True, "whether a listener may bring a relay into being")
    no_listener_status: Annotated[Literal[404, 502], _choice(404, 502)] = _setting(
        404, "status for a sender when nobody listens: 404 or 502"
    )
    response_timeout: Seconds = _setting(60.0, "how long a listener may take to answer a request")


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """One gateway node."""

    advertise: Annotated[str, _advertised] = _setting(
        "", "host or host:port that listeners dial for a rendezvous; empty: the address under which they came"
    )
    hosts: tuple[Annotated[str, _host], ...] = _setting(
        (), "host names of the namespace, accepted in the audience of a token; empty: any"
    )
    state: Text = _setting("", "folder of the store; empty: wcfrelay in the user's state folder")
    store: Annotated[Literal["sqlite", "memory"], _choice("sqlite", "memory")] = _setting(
        "sqlite", 'where relays and rules are kept: "sqlite" or "memory"'
    )
    reactor: Annotated[Literal["auto", "asyncio", "default"], _choice("auto", "asyncio", "default")] = _setting(
        "auto", '"asyncio" (on uvloop where there is one), "default" (Twisted\'s for the platform), "auto": the fastest'
    )
    http: HttpConfig = _setting(HttpConfig(), "plain HTTP and WebSocket")
    https: HttpsConfig = _setting(HttpsConfig(), "HTTP and WebSocket under TLS")
    admin: AdminConfig = _setting(AdminConfig(), "health and metrics")
    limits: LimitsConfig = _setting(LimitsConfig(), "quotas and timeouts")
    relays: RelayPolicy = _setting(RelayPolicy(), "what holds for every relay")


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """A relay that exists whether or not anybody listens. The path is canonical (:func:`relay_path`)."""

    path: Annotated[str, _relay_path] = _required("path below the namespace; case does not matter")
    response_timeout: Seconds | None = _setting(None, "how long its listeners may take; absent: gateway.relays")
    requires_client_authorization: Boolean = _setting(True, "whether senders need a token")
    user_metadata: Annotated[str, _metadata] = _setting("", "text of your own, at most 1024 characters")


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """An authorization rule, on a relay or (path "") on the namespace."""

    name: Annotated[str, _rule_name] = _required("the key name in a token (skn)")
    rights: tuple[Right, ...] = _required("Listen, Send, Manage; Manage needs the other two")
    primary_key: Annotated[str, _key] = _required("the key's text", secret=True)
    secondary_key: Annotated[str, _key] = _setting("", "a second key that is valid as well", secret=True)
    path: Annotated[str, _rule_path] = _setting("", "a relay or a parent of one; empty: the namespace")


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The log on standard error."""

    format: Annotated[Literal["text", "json"], _choice("text", "json")] = _setting("text", '"text" or "json"')
    level: Annotated[str, _choice("debug", "info", "warn", "error")] = _setting("info", "debug, info, warn or error")
    access: Boolean = _setting(True, "whether each exchange is logged")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration."""

    gateway: GatewayConfig = _setting(GatewayConfig(), "one gateway node")
    log: LogConfig = _setting(LogConfig(), "the log on standard error")
    relays: tuple[RelayConfig, ...] = _setting((), "relays that exist whether or not anybody listens")
    rules: tuple[RuleConfig, ...] = _setting((), "authorization rules")


# -- reading


def load(path: Path | None = None, overrides: Mapping[str, Any] = {}) -> Config:
    """The configuration from a TOML file (None: the defaults) with ``overrides`` laid over it.

    ``overrides`` has dotted paths (``gateway.http.port``); a value of None means not given.

    :raises ConfigError: the text has one line for every error, with its dotted path.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"{path}: cannot read the configuration ({exc.strerror})") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: must be UTF-8 text") from None
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"{path}: {exc}") from None
    for dotted, value in overrides.items():
        if value is not None:
            *tables, name = dotted.split(".")
            table = data
            for step in tables:
                table = table.setdefault(step, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"{dotted}: {step} is not a table")
            table[name] = value
    try:
        config: Config = _converter().structure(data, Config)
    except ClassValidationError as exc:
        problems = list(_problems(exc, ""))
    else:
        problems = list(_contradictions(config))
        if not problems:
            return config
    raise ConfigError("\n".join(problems) if path is None else "\n  ".join([f"{path}:", *problems]))


def state_folder(gateway: GatewayConfig, environ: Mapping[str, str]) -> Path:
    """``gateway.state``, or where the user's state belongs when that is empty."""
    if gateway.state:
        return Path(gateway.state).expanduser()
    home = environ.get("XDG_STATE_HOME", "")
    # The specification of the variable says to ignore a relative path.
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "state") / "wcfrelay"


def _is_checked(kind: Any) -> bool:
    return get_origin(kind) is Annotated and callable(kind.__metadata__[0])


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _converter() -> Converter:
    converter = Converter()

    def checked(value: object, kind: Any) -> Any:
        return kind.__metadata__[0](value)

    def several(kind: Any, converter: Any) -> Callable[[Any, Any], Any]:
        structure = homogenous_tuple_structure_factory(kind, converter)

        def items(value: object, kind: Any) -> Any:
            if not isinstance(value, list):
                raise ValueError(f"must be a list, got {_shown(value)}")
            return structure(value, kind)

        return items

    def table(kind: Any) -> Callable[[Any, Any], Any]:
        structure = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

        def fields(value: object, kind: Any) -> Any:
            if not isinstance(value, dict):
                raise ValueError(f"must be a table, got {_shown(value)}")
            return structure(value, kind)

        return fields

    converter.register_structure_hook_func(_is_checked, checked)
    converter.register_structure_hook_factory(_is_tuple, several)
    converter.register_structure_hook_factory(dataclasses.is_dataclass, table)
    return converter


def _problems(exc: Exception, path: str) -> Iterator[str]:
    """One line for each error in what cattrs raised for the value at ``path``."""
    if isinstance(exc, ClassValidationError):
        named, others = exc.group_exceptions()
        for error, note in named:
            yield from _problems(error, f"{path}.{note.name}" if path else note.name)
        for error in others:
            assert isinstance(error, ForbiddenExtraKeysError)
            known = [setting.name for setting in dataclasses.fields(error.cl)]
            for key in sorted(error.extra_fields):
                near = difflib.get_close_matches(key, known, 1)
                hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
                yield f"{path + '.' if path else ''}{key}: unknown key; {hint}"
    elif isinstance(exc, IterableValidationError):
        for error, item in exc.group_exceptions()[0]:
            yield from _problems(error, f"{path}[{item.index}]")
    elif isinstance(exc, KeyError):
        yield f"{path}: is required"
    else:
        yield f"{path}: {exc}"


def _contradictions(config: Config) -> Iterator[str]:
    https = config.gateway.https
    if https.certificate and not https.key:
        yield "gateway.https.key: the certificate needs its key"
    if https.key and not https.certificate:
        yield "gateway.https.certificate: the key needs its certificate"
    known = {""}
    seen: dict[str, int] = {}
    for index, relay in enumerate(config.relays):
        first = seen.setdefault(relay.path, index)
        if first != index:
            yield f'relays[{index}].path: "{relay.path}" is relays[{first}] already'
        steps = relay.path.split("/")
        known.update("/".join(steps[:count]) for count in range(1, len(steps) + 1))
    rules: dict[tuple[str, str], int] = {}
    for index, rule in enumerate(config.rules):
        if rule.path not in known:
            yield f'rules[{index}].path: there is no relay "{rule.path}"; add it to relays'
        first = rules.setdefault((rule.path, rule.name), index)
        if first != index:
            yield f'rules[{index}].name: "{rule.name}" on this path is rules[{first}] already'
        if not rule.rights:
            yield f"rules[{index}].rights: at least one of Listen, Send, Manage"
        if len(set(rule.rights)) != len(rule.rights):
            yield f"rules[{index}].rights: a right is named twice"
        if "Manage" in rule.rights and not {"Listen", "Send"} <= set(rule.rights):
            yield f"rules[{index}].rights: Manage requires Listen and Send as well"


# -- writing


def render(config: Config) -> str:
    """``config`` as TOML with a comment for every key. It loads back to the same configuration, except that the
    keys of rules are not shown and have to be filled in."""
    return "\n".join(_table(config, "")).lstrip("\n") + "\n"


def _table(table: Any, path: str) -> Iterator[str]:
    below: list[tuple[str, Any, str]] = []
    kinds = get_type_hints(type(table), include_extras=True)
    for setting in dataclasses.fields(table):
        value, doc = getattr(table, setting.name), setting.metadata["doc"]
        several = isinstance(value, tuple) and dataclasses.is_dataclass(get_args(kinds[setting.name])[0])
        if several or dataclasses.is_dataclass(value):
            below.append((f"{path}.{setting.name}" if path else setting.name, value, doc))
        elif setting.metadata["secret"]:
            if value:
                yield f"# {setting.name}: set; not shown"
        elif value is None:
            yield f"# {setting.name}: {doc}"
        else:
            yield f"# {doc}"
            yield f"{setting.name} = {_literal(value, kinds[setting.name])}"
    for name, value, doc in below:
        if isinstance(value, tuple):
            if not value:
                yield f"\n# [[{name}]] {doc}: none"
            for item in value:
                yield f"\n[[{name}]]"
                yield from _table(item, name)
        else:
            yield f"\n# {doc}\n[{name}]"
            yield from _table(value, name)


def _literal(value: object, kind: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's; only DEL must be escaped in addition.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(_literal(item, None) for item in value)}]"
    if kind == Size:
        return _size_text(cast(int, value))
    return repr(value)
