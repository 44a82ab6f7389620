"""How a sender reaches a relay: connection string, token, and what the answers of the relay itself mean.

Sources, in the specification: hybrid-connections.md §6 (address and token of HTTP senders), §8 (``Via`` tells the
listener's answers from those of the gateway), §10 (body of an error); sas-and-authorization.md §3 and §7.

An answer of the relay's origin with a status from 400 on is the relay's own error when it has no ``Via``: the gateway
made it. With ``Via`` it is the service's, unless the listener says in it that it answered in the service's place: a
SOAP fault with ``{urn:wcfrelay}Code`` in its detail, or the JSON of §10 with one of the relay's codes.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from wcfrelay import errors
from wcfrelay.address import ConnectionString, quote_path, relay_path
from wcfrelay.errors import (
    AuthorizationError,
    BadRequestError,
    ConfigError,
    EndpointNotFoundError,
    ExpiredTokenError,
    ForbiddenError,
    GatewayUnreachableError,
    InvalidAudienceError,
    InvalidSignatureError,
    ListenerGoneError,
    ListenerTimeoutError,
    MissingTokenError,
    NoListenerError,
    ProtocolError,
    RelayError,
    error_for,
)
from wcfrelay.net.exchange import header
from wcfrelay.net.tls import ClientTls
from wcfrelay.sas import TokenProvider
from wcfrelay.wire.soap import ENVELOPE, RELAY, parse_message

__all__ = ["CA_FILE", "CONNECTION_STRING", "SenderConnection", "connection_from", "reason"]

CONNECTION_STRING = "WCFRELAY_CONNECTION_STRING"
"""Environment variable: the connection string where none is given."""
CA_FILE = "WCFRELAY_CA_FILE"
"""Environment variable: the CA file where none is given."""

_FILE_LIMIT = 64 * 1024
"""Bytes of a file with a connection string."""
_EXPLAINED = 256 * 1024
"""Bytes of an answer up to which an error of the relay is looked for in it."""
_TEXT_LIMIT = 2048
"""Characters kept of what an error says."""
_TRACKING = re.compile(r"[^\s,]{1,200}")
_UNTRUSTED = re.compile("certificate|VerificationError")
"""How OpenSSL and service-identity say that a certificate does not do."""
_CODES = frozenset(getattr(getattr(errors, name), "code", "") for name in errors.__all__) - {""}
_DEFAULT_PORTS = {"http": 80, "https": 443}


def connection_from(
    connection_string: str | None, environ: Mapping[str, str], *, file: str | os.PathLike[str] | None = None
) -> ConnectionString:
    """The connection string to use: that of ``file``, else the given text, else that of the environment.

    :raises ConfigError: there is none, the file cannot be read, or the text cannot be used; nothing of it is quoted.
    """
    if file is not None:
        try:
            with open(file, encoding="utf-8-sig") as opened:
                text = opened.read(_FILE_LIMIT).strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"{os.fspath(file)}: cannot read the connection string ({why}).") from None
        if not text:
            raise ConfigError(f"{os.fspath(file)}: the file is empty; write a connection string into it.")
    else:
        text = (connection_string or environ.get(CONNECTION_STRING, "")).strip()
    if not text:
        raise ConfigError(
            f"There is no connection string: give one, or set {CONNECTION_STRING}. It looks like "
            "Endpoint=sb://<gateway>/;SharedAccessKeyName=<rule>;SharedAccessKey=<key>;EntityPath=<relay>."
        )
    return ConnectionString.parse(text)


class SenderConnection:
    """One relay, as a sender has it.

    ``path`` is that of the relay or one below it; where it is empty, ``EntityPath`` is the path. ``ca_file`` (PEM)
    replaces the default trust. ``timeout`` is in seconds, the default the connection string's OperationTimeout.
    A connection string without key and signature sends no token, for relays that want none. ``now()`` is the time in
    Unix seconds.

    :raises ConfigError: no path, a path that cannot be one, or a CA file that cannot be used.
    """

    def __init__(
        self,
        connection: ConnectionString,
        path: str = "",
        *,
        ca_file: Path | None = None,
        timeout: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        path = path or connection.entity_path
        if not path:
            raise ConfigError(
                "There is no path of a relay: give one, such as orders, or add EntityPath=… to the connection string."
            )
        try:
            relay_path(path)
        except BadRequestError as error:
            raise ConfigError(error.message) from None
        self.connection = connection
        self.path = path.strip("/")
        self.url = connection.http_url(self.path)
        """The relay as HTTP senders address it."""
        self.ca_file = ca_file
        self.tls = ClientTls(ca_file) if connection.tls else None
        if self.tls is not None and ca_file is not None:
            self.tls.ssl_context()
        self.timeout = connection.operation_timeout if timeout is None else timeout
        known = connection.shared_access_key or connection.shared_access_signature
        self._tokens = TokenProvider(connection, now) if known else None

    def authorization(self) -> dict[str, str]:
        """The header with the current token. It may go to :meth:`own` addresses only."""
        return {} if self._tokens is None else {"ServiceBusAuthorization": self._tokens.token(self.path)}

    def own(self, url: str) -> str | None:
        """``url`` when it is on the relay's own origin, None when it is somebody else's.

        The result begins with the relay's own scheme, host and port. ``http`` means ``https`` here when the relay has
        TLS, since services behind it write that into their documents; ``https`` never means ``http``.
        """
        connection = self.connection
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return None
        scheme = parts.scheme
        if scheme not in _DEFAULT_PORTS or "@" in parts.netloc or (scheme == "https" and not connection.tls):
            return None
        ours = connection.port_number if connection.port_number != (443 if connection.tls else 80) else None
        theirs = port if port != _DEFAULT_PORTS[scheme] else None
        if parts.hostname != connection.host or theirs != ours:
            return None
        query = f"?{quote_path(parts.query)}" if parts.query else ""
        return f"{connection.http_url('')}{quote_path(parts.path.removeprefix('/'))}{query}"

    def at(self, place: str) -> str:
        """The address that a user means: a URL as it is, ``?query`` and anything else at or below the relay."""
        if "://" in place:
            return place
        return self.url + place if place.startswith("?") else f"{self.url}/{place.removeprefix('/')}"

    # -- errors

    def refusal(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> RelayError | None:
        """The relay's own error in an answer from its origin; None when the answer is the service's."""
        if status < 400:
            return None
        code, text, from_relay = _explanation(body)
        if header(headers, "via") is not None and not from_relay:
            return None
        text, _, suffix = text.partition("TrackingId:")
        tracking = _TRACKING.match(suffix)
        text = text.strip()[:_TEXT_LIMIT]
        kind = type(error_for(status, text, code=code))
        if not text:
            text = f"{self.connection.authority} answered with status {status} and gave no reason"
            if not code:
                text += "; is it a gateway?"
        return kind(self._advised(text, kind), tracking_id=tracking[0] if tracking is not None else "")

    def unreachable(self, error: BaseException) -> GatewayUnreachableError:
        """There was no connection to the gateway."""
        gateway = self.connection.authority
        why = reason(error)
        if _UNTRUSTED.search(why):
            return GatewayUnreachableError(
                f"The certificate of the gateway {gateway} was refused: {why}. Give the file of the CA that "
                f"signed it as ca_file or in {CA_FILE}; the certificate must be valid for {self.connection.host}."
            )
        return GatewayUnreachableError(
            f"The gateway {gateway} could not be reached: {why}. "
            "Check Endpoint in the connection string, that the gateway runs, and the firewall."
        )

    def timed_out(self, seconds: float) -> ListenerTimeoutError:
        """There was no complete answer in time."""
        return ListenerTimeoutError(
            f"{self.url} did not answer within {seconds:g} s; whether the call was executed is not known. "
            "Check the listener and the service behind it, or allow more time (timeout, or OperationTimeout)."
        )

    def broken(self, why: str) -> GatewayUnreachableError:
        """The connection was lost, or unusable, after the request had been sent."""
        return GatewayUnreachableError(
            f"No complete answer came from the gateway: {why.rstrip('. ')}; whether the call was executed is not known."
        )

    def _advised(self, text: str, kind: type[RelayError]) -> str:
        for cause in kind.__mro__:
            if cause in _ADVICE:
                return (
                    f"{text.rstrip('. ')}. {_ADVICE[cause].format(path=self.path, gateway=self.connection.authority)}"
                )
        return text


_ADVICE: dict[type, str] = {
    NoListenerError: "Start the listener of {path!r}, or check the path.",
    EndpointNotFoundError: "Start its listener, or check the path {path!r} and that {gateway} is its gateway.",
    MissingTokenError: "Add SharedAccessKeyName and SharedAccessKey of a rule with Send to the connection string.",
    InvalidSignatureError: "Check SharedAccessKeyName and SharedAccessKey in the connection string.",
    ExpiredTokenError: "Set this machine's clock; a SharedAccessSignature in the connection string must be replaced.",
    InvalidAudienceError: "Give the gateway's own host name in Endpoint, and a key that is for the path {path!r}.",
    AuthorizationError: "Check the key or signature in the connection string.",
    ForbiddenError: "Use a rule that has the right Send.",
    ListenerGoneError: "Whether the call was executed is not known; the listener comes back by itself.",
    ListenerTimeoutError: "Whether the call was executed is not known; look at the service behind the listener.",
}


def _explanation(body: bytes) -> tuple[str, str, bool]:
    """(code, text, whether it can only be the relay's) of an error's body; ("", "", False) when it explains nothing."""
    if len(body) <= _EXPLAINED:
        opening = body.lstrip()[:1]
        if opening == b"{":
            return _json_error(body)
        if opening:
            return _soap_fault(body)
    return "", "", False


def _json_error(body: bytes) -> tuple[str, str, bool]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return "", "", False
    error = document.get("error")
    if not isinstance(error, dict):
        return "", "", False
    code, text = error.get("code"), error.get("message")
    code = code if isinstance(code, str) else ""
    return code, text if isinstance(text, str) else "", code in _CODES


def _soap_fault(body: bytes) -> tuple[str, str, bool]:
    try:
        root = parse_message(body, None)
    except ProtocolError:
        return "", "", False
    for namespace in ENVELOPE.values():
        fault = root.find(f"{{{namespace}}}Body/{{{namespace}}}Fault")
        if fault is not None:
            text = fault.findtext("faultstring") or fault.findtext(f"{{{namespace}}}Reason/{{{namespace}}}Text") or ""
            code = fault.findtext(f"detail/{{{RELAY}}}Code") or fault.findtext(f"{{{namespace}}}Detail/{{{RELAY}}}Code")
            return code or "", text, code is not None
    return "", "", False


def reason(error: BaseException) -> str:
    """The text of what caused what caused the error, as libraries wrap errors of the system."""
    text = type(error).__name__
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = str(current).rstrip(". ") or text
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return text
