"""Options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wcfrelay.address import relay_path
from wcfrelay.errors import BadRequestError, ConfigError

__all__ = ["connection_options", "connection_string_options", "log_options", "path_from"]

_F = TypeVar("_F", bound=Callable[..., Any])


def connection_string_options(command: _F) -> _F:
    """``--connection-string`` and ``--connection-string-file``, for
    :func:`~wcfrelay.sender.connection.connection_from`."""
    command = click.option(
        "--connection-string-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file that holds the connection string.",
    )(command)
    return click.option(
        "--connection-string",
        help="Endpoint=sb://HOST:PORT/;SharedAccessKeyName=…;SharedAccessKey=… [env WCFRELAY_CONNECTION_STRING].",
    )(command)


def connection_options(command: _F) -> _F:
    """``--connection-string``, ``--connection-string-file``, ``--ca-file``."""
    command = click.option(
        "--ca-file",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="WCFRELAY_CA_FILE",
        help="PEM file of the CA that signed the gateway's certificate [env WCFRELAY_CA_FILE].",
    )(command)
    return connection_string_options(command)


def log_options(command: _F) -> _F:
    """``--log-format`` and ``-v``."""
    command = click.option("-v", "--verbose", is_flag=True, help="Log at level debug.")(command)
    return click.option(
        "--log-format", type=click.Choice(["text", "json"]), default=None, help="Form of the log on standard error."
    )(command)


def path_from(text: str) -> str:
    """A relay path that an argument names, in canonical form.

    :raises ConfigError: it is none.
    """
    try:
        return relay_path(text)
    except BadRequestError as error:
        raise ConfigError(error.message) from None
