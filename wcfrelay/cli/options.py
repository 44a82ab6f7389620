"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wcfrelay.address import ConnectionString
from wcfrelay.errors import ConfigError
from wcfrelay.net.tls import ClientTls

__all__ = ["connection_options", "connection_string", "log_options", "trust"]

_F = TypeVar("_F", bound=Callable[..., Any])


def connection_options(command: _F) -> _F:
    """``--connection-string``, ``--connection-string-file``, ``--ca-file``."""
    for option in (
        click.option(
            "--ca-file",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="WCFRELAY_CA_FILE",
            help="PEM file of the CA that signed the gateway's certificate [env WCFRELAY_CA_FILE].",
        ),
        click.option(
            "--connection-string-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A file that holds the connection string.",
        ),
        click.option(
            "--connection-string",
            envvar="WCFRELAY_CONNECTION_STRING",
            help="Endpoint=sb://HOST:PORT/;SharedAccessKeyName=…;SharedAccessKey=… [env WCFRELAY_CONNECTION_STRING].",
        ),
    ):
        command = option(command)
    return command


def log_options(command: _F) -> _F:
    """``--log-format`` and ``-v``."""
    command = click.option("-v", "--verbose", is_flag=True, help="Log at level debug.")(command)
    return click.option(
        "--log-format", type=click.Choice(["text", "json"]), default=None, help="Form of the log on standard error."
    )(command)


def connection_string(text: str | None, file: Path | None) -> ConnectionString:
    """The connection string that the options or the environment give; the file wins over the environment.

    :raises ConfigError: there is none, or it is wrong.
    """
    if file is not None:
        try:
            text = file.read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"The connection string file {os.fspath(file)} cannot be read: {error.strerror}"
            ) from None
    if not text:
        raise ConfigError(
            "A connection string is needed: give --connection-string or --connection-string-file, or set "
            "WCFRELAY_CONNECTION_STRING. `wcfrelay serve` shows one when it starts for the first time."
        )
    return ConnectionString.parse(text)


def trust(ca_file: Path | None) -> ClientTls | None:
    """How the gateway's certificate is checked; None: by the system's trust store."""
    return None if ca_file is None else ClientTls(ca_file=ca_file)
