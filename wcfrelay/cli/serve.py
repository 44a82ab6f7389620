"""``wcfrelay serve``: run a gateway."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from wcfrelay.cli.options import log_options
from wcfrelay.cli.run import report, run, tune_collector
from wcfrelay.config import load, render
from wcfrelay.errors import ConfigError

__all__ = ["serve"]


@click.command()
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="Configuration file (TOML).")
@click.option("--http-port", type=int, help="Port for plain HTTP [8080; 0: a free one].")
@click.option("--https-port", type=int, help="Port for HTTPS [8443; 0: a free one].")
@click.option("--admin-port", type=int, help="Port for health and metrics [9090; 0: a free one].")
@click.option("--bind", help="Address to open the HTTP and HTTPS ports on [0.0.0.0].")
@click.option("--state", help="Folder of the store and of the development certificate.")
@click.option(
    "--print-config", is_flag=True, help="Print the effective configuration, each setting explained, and exit."
)
@log_options
def serve(
    config_file: Path | None,
    http_port: int | None,
    https_port: int | None,
    admin_port: int | None,
    bind: str | None,
    state: str | None,
    print_config: bool,
    log_format: str | None,
    verbose: bool,
) -> None:
    """Run a gateway. Without a configuration file everything has a default: no server to install.

    On first start a key is made and its connection string shown once; it is kept in the state folder.
    """
    try:
        config = load(
            config_file,
            {
                "gateway.http.port": http_port,
                "gateway.https.port": https_port,
                "gateway.admin.port": admin_port,
                "gateway.http.bind": bind,
                "gateway.https.bind": bind,
                "gateway.state": state,
                "log.format": log_format,
                "log.level": "debug" if verbose else None,
            },
        )
    except ConfigError as error:
        sys.exit(report(error))
    if print_config:
        click.echo(render(config), nl=False)
        return

    async def work(reactor: Any, stopping: Any) -> int:
        from wcfrelay.gateway.node import GatewayNode
        from wcfrelay.log import AccessLog, start_logging

        start_logging(sys.stderr, config.log.format, config.log.level)
        access_log = AccessLog(sys.stderr, config.log.format, reactor) if config.log.access else None
        node = GatewayNode(config, reactor, access_log=access_log)
        await node.start()
        _announce(node)
        tune_collector()
        await stopping
        await node.stop()
        if access_log is not None:
            access_log.stop()
        return 0

    run(work, config.gateway.reactor)


def _announce(node: Any) -> None:
    """Say where the gateway is, on standard output, for people and for programs that started it."""
    gateway = node.config.gateway
    for scheme, settings, port in (
        ("http", gateway.http, node.http_port),
        ("https", gateway.https, node.https_port),
        ("admin http", gateway.admin, node.admin_port),
    ):
        if port:
            click.echo(f"listening: {scheme}://{settings.bind}:{port}/")
    click.echo(f"state: {node.state}")
    if node.ca_file is not None:
        click.echo(f"development CA, for clients to trust: {node.ca_file}")
    if node.connection_string is not None:
        if gateway.store == "memory" or node.first_start:
            click.echo(f"connection string, shown this once: {node.connection_string.format()}")
        if gateway.store != "memory":
            click.echo(f"connection string kept in: {node.state / 'connection-string'}")
    click.echo("ready")
    sys.stdout.flush()
