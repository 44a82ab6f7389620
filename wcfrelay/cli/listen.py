"""``wcfrelay expose`` and ``wcfrelay host``: listeners in front of a service."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wcfrelay.cli.options import connection_options, log_options, path_from
from wcfrelay.cli.run import report, run, tune_collector
from wcfrelay.errors import ConfigError
from wcfrelay.net.tls import ClientTls

__all__ = ["expose", "host"]

_path_option = click.option("--relay", "path", required=True, metavar="PATH", help="Path of the relay, such as orders.")
_grace_option = click.option(
    "--grace", default=30.0, show_default=True, help="Seconds that calls in flight may take when stopping."
)
_MARGIN = 2.0
"""Seconds by which the dispatcher's own deadline comes before the listener's, because it can name the service."""

_timeout_option = click.option(
    "--response-timeout", default=60.0, show_default=True, help="Seconds that the service may take to answer."
)


@click.command()
@click.argument("url")
@_path_option
@_timeout_option
@_grace_option
@click.option(
    "--public-url", default="", help="Address of the relay as senders see it, if it is not the gateway's own."
)
@click.option(
    "--alias", "aliases", multiple=True, metavar="URL", help="Another base URL by which the service names itself."
)
@click.option("--preserve-host", is_flag=True, help="Pass the sender's Host on instead of the service's own.")
@click.option(
    "--service-ca-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM file of the CA that signed the service's certificate.",
)
@connection_options
@log_options
def expose(
    url: str,
    path: str,
    response_timeout: float,
    grace: float,
    public_url: str,
    aliases: tuple[str, ...],
    preserve_host: bool,
    service_ca_file: Path | None,
    connection_string: str | None,
    connection_string_file: Path | None,
    ca_file: Path | None,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Put an HTTP service behind a relay.

    The service at URL stays as it is and needs to know of nothing.

    \b
    wcfrelay expose http://127.0.0.1:8000/Orders.svc --relay orders
    """

    def make(reactor: Any, network: Any, timers: Any) -> Any:
        from wcfrelay.listener.forward import ForwardDispatcher

        return ForwardDispatcher(
            network,
            timers,
            url,
            path,
            tls=ClientTls(ca_file=service_ca_file) if service_ca_file else None,
            public_url=public_url,
            aliases=aliases,
            preserve_host=preserve_host,
            timeout=response_timeout,
        )

    _listen(
        make, path, response_timeout, grace, connection_string, connection_string_file, ca_file, log_format, verbose
    )


@click.command()
@click.argument("application", metavar="MODULE:APPLICATION")
@_path_option
@_timeout_option
@_grace_option
@connection_options
@log_options
def host(
    application: str,
    path: str,
    response_timeout: float,
    grace: float,
    connection_string: str | None,
    connection_string_file: Path | None,
    ca_file: Path | None,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Host a spyne application behind a relay.

    It runs in this process, without an HTTP server. Modules are looked for in the current folder too.

    \b
    wcfrelay host calculator:application --relay calculator
    """

    def make(reactor: Any, network: Any, timers: Any) -> Any:
        from wcfrelay.listener.spyne import SpyneDispatcher, load_application

        return SpyneDispatcher(load_application(application), relay_path=path, reactor=reactor)

    _listen(
        make, path, response_timeout, grace, connection_string, connection_string_file, ca_file, log_format, verbose
    )


def _listen(
    make: Callable[[Any, Any, Any], Any],
    path: str,
    response_timeout: float,
    grace: float,
    text: str | None,
    file: Path | None,
    ca_file: Path | None,
    log_format: str | None,
    verbose: bool,
) -> None:
    from wcfrelay.sender.connection import connection_from

    try:
        path = path_from(path)
        connection = connection_from(text, os.environ, file=file)
    except ConfigError as error:
        sys.exit(report(error))

    async def work(reactor: Any, stopping: Any) -> int:
        from twisted.internet.defer import Deferred

        from wcfrelay.listener import RelayListener, Status
        from wcfrelay.log import start_logging
        from wcfrelay.net.network import Network
        from wcfrelay.net.timers import Timers

        start_logging(sys.stderr, log_format or "text", "debug" if verbose else "info")  # type: ignore[arg-type]
        dispatcher = make(reactor, Network(reactor), Timers(reactor))
        listener = RelayListener(
            connection,
            path,
            dispatcher,
            reactor=reactor,
            tls=None if ca_file is None else ClientTls(ca_file=ca_file),
            response_timeout=response_timeout + _MARGIN,
        )

        def told(status: Status, error: Exception | None) -> None:
            line = f"{status.value}: {connection.http_url(path)}" + (f" ({error})" if error is not None else "")
            with contextlib.suppress(OSError):  # whoever read our output is gone; the listener is not about that
                click.echo(line)
                sys.stdout.flush()

        listener.on_status = told
        opening = Deferred.fromCoroutine(listener.open())
        stopping.addCallback(lambda _: opening.cancel())
        try:
            await opening
            tune_collector()
            stopped: Deferred[None] = Deferred()
            stopping.addCallback(lambda _: None if stopped.called else stopped.callback(None))
            gone = Deferred.fromCoroutine(listener.wait_closed())
            gone.addBoth(lambda _: None if stopped.called else stopped.callback(None))
            await stopped
        finally:
            await listener.close(grace)
        return 0

    run(work)
