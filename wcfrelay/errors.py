"""The errors of a relay, one family.

Every failure that a sender, a listener or an operator can meet is one class here, and its attributes are the table
status ↔ code ↔ error that the gateway (writing an answer) and the clients (reading one) share. The first line
of a class's docstring is its default message. Sources: hybrid-connections.md §3, §5, §10 and sas-and-authorization.md
§10, §11 of the specification.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthorizationError",
    "BadRequestError",
    "ConfigError",
    "EndpointNotFoundError",
    "ExpiredTokenError",
    "ForbiddenError",
    "GatewayUnreachableError",
    "InvalidAudienceError",
    "InvalidSignatureError",
    "ListenerGoneError",
    "ListenerTimeoutError",
    "MalformedTokenError",
    "MissingTokenError",
    "NoListenerError",
    "PayloadTooLargeError",
    "ProtocolError",
    "QuotaExceededError",
    "RelayError",
    "ServerBusyError",
    "ServiceUnreachableError",
    "error_for",
]


class ConfigError(Exception):
    """The configuration is wrong; the text names the dotted path and what to do."""


class RelayError(Exception):
    """The relay could not do what was asked.

    ``status`` is the HTTP status that carries the error, ``code`` the symbol in the error body, ``transient``
    tells whether the same call may succeed later without anybody changing anything.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "InternalServerError"
    transient: ClassVar[bool] = False

    def __init__(self, message: str = "", *, tracking_id: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").split("\n", 1)[0]
        self.tracking_id = tracking_id
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} TrackingId:{self.tracking_id}" if self.tracking_id else self.message


class ProtocolError(RelayError):
    """The peer broke the protocol of the connection."""

    status = 400
    code = "BadRequest"


class BadRequestError(RelayError):
    """The request is malformed."""

    status = 400
    code = "BadRequest"


class PayloadTooLargeError(RelayError):
    """The message is larger than this relay accepts."""

    status = 413
    code = "MessageSizeExceeded"


class AuthorizationError(RelayError):
    """The token was refused."""

    status = 401
    code = "TokenMissingOrInvalid"


class MissingTokenError(AuthorizationError):
    """MissingToken: the relay requires a token; send one in the ServiceBusAuthorization header."""


class MalformedTokenError(AuthorizationError):
    """MalformedToken: the token is not a well-formed SharedAccessSignature."""


class InvalidSignatureError(AuthorizationError):
    """InvalidSignature: The token has an invalid signature."""


class ExpiredTokenError(AuthorizationError):
    """ExpiredToken: the token has expired; make a new one, and check this machine's clock."""


class InvalidAudienceError(AuthorizationError):
    """InvalidAudience: The authorization header contains a token with a wrong audience."""


class ForbiddenError(RelayError):
    """The token is valid but its rule lacks the right that this operation needs."""

    status = 403
    code = "Forbidden"


class EndpointNotFoundError(RelayError):
    """Endpoint does not exist."""

    status = 404
    code = "EndpointNotFound"


class NoListenerError(EndpointNotFoundError):
    """There are no listeners connected for the endpoint."""

    transient = True


class QuotaExceededError(RelayError):
    """A quota of the relay is exhausted."""

    status = 403
    code = "QuotaExceeded"


class ListenerGoneError(RelayError):
    """The listener disconnected before it had answered."""

    status = 502
    code = "BadGateway"
    transient = True


class ServiceUnreachableError(RelayError):
    """The listener could not reach the service behind it."""

    status = 502
    code = "ServiceUnreachable"
    transient = True


class ServerBusyError(RelayError):
    """The gateway is too busy; try again later."""

    status = 503
    code = "ServerBusy"
    transient = True


class ListenerTimeoutError(RelayError):
    """The request was routed to the listener but the listener did not respond in the required time."""

    status = 504
    code = "GatewayTimeout"
    transient = True


class GatewayUnreachableError(RelayError):
    """The gateway could not be reached."""

    status = 503
    code = "GatewayUnreachable"
    transient = True


_BY_STATUS: dict[int, type[RelayError]] = {
    400: BadRequestError,
    401: AuthorizationError,
    403: ForbiddenError,
    404: EndpointNotFoundError,
    408: ListenerTimeoutError,
    413: PayloadTooLargeError,
    502: ListenerGoneError,
    503: ServerBusyError,
    504: ListenerTimeoutError,
}
_BY_CODE: dict[str, type[RelayError]] = {kind.code: kind for kind in (QuotaExceededError, ServiceUnreachableError)}
_BY_PREFIX: tuple[type[RelayError], ...] = (
    MissingTokenError,
    MalformedTokenError,
    InvalidSignatureError,
    ExpiredTokenError,
    InvalidAudienceError,
    NoListenerError,
)


def error_for(status: int, message: str, *, code: str = "", tracking_id: str = "") -> RelayError:
    """The error that a gateway's answer stands for, from its status, the text it gave and its code where known."""
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, RelayError)
    for candidate in _BY_PREFIX:
        opening = (candidate.__doc__ or "").split("\n", 1)[0].split(":", 1)[0].rstrip(".")
        # A gateway may be set to say that nobody listens with 502.
        expected = (candidate.status, 502) if candidate is NoListenerError else (candidate.status,)
        if status in expected and message.startswith(opening):
            kind = candidate
            break
    return kind(message, tracking_id=tracking_id)
