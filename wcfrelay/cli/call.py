"""``wcfrelay call`` and ``wcfrelay token``: a sender at the command line."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from wcfrelay.cli.options import connection_options, connection_string_options, path_from
from wcfrelay.cli.run import FAULT, UNEXPECTED, USAGE, report
from wcfrelay.errors import ConfigError, RelayError
from wcfrelay.sas import TokenProvider

__all__ = ["call", "token"]


@click.command()
@click.argument("path")
@click.argument("operation", required=False)
@click.argument("arguments", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--list", "listing", is_flag=True, help="Show the operations; so does leaving OPERATION out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--wsdl", help="Another WSDL than ?wsdl of the relay: a file, a URL, or a path or ?query at the relay.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.1),
    help="Seconds to wait for an answer [OperationTimeout of the connection string; 60].",
)
@connection_options
def call(
    path: str,
    operation: str | None,
    arguments: tuple[str, ...],
    listing: bool,
    as_json: bool,
    wsdl: str | None,
    timeout: float | None,
    connection_string: str | None,
    connection_string_file: Path | None,
    ca_file: Path | None,
) -> None:
    """Call a SOAP service through its relay.

    Calls OPERATION of the service at PATH and prints its result. A value is text, or JSON for a complex type or a
    list. A name may come several times for a list.

    \b
    wcfrelay call calculator                       shows the operations
    wcfrelay call calculator Add a=1.5 b=2
    wcfrelay call orders Place 'order={"Item": "bolt", "Count": 12}'
    """
    from zeep.exceptions import Error, Fault, TransportError

    from wcfrelay.cli.values import ArgumentError
    from wcfrelay.sender import relay_client

    try:
        with relay_client(
            path,
            connection_string=connection_string,
            connection_string_file=connection_string_file,
            ca_file=ca_file,
            wsdl=wsdl,
            timeout=timeout,
        ) as client:
            if listing or operation is None:
                click.echo(_listing(client))
            else:
                result = _call(client, path, operation, arguments, as_json)
                if result:
                    click.echo(result)
    except (ConfigError, RelayError) as error:
        sys.exit(report(error))
    except ArgumentError as error:
        click.echo(f"wcfrelay: {error}", err=True)
        sys.exit(USAGE)
    except Fault as fault:
        click.echo(_fault(fault), err=True)
        sys.exit(FAULT)
    except TransportError as error:
        click.echo(f"wcfrelay: {error}", err=True)
        sys.exit(FAULT if error.status_code else UNEXPECTED)
    except Error as error:
        click.echo(f"wcfrelay: zeep cannot use {wsdl or 'the WSDL'}, or the answer: {error}", err=True)
        sys.exit(UNEXPECTED)
    except OSError as error:
        sys.exit(report(error))


def _operations(client: Any) -> dict[str, tuple[str, str, Any]]:
    """Operations by name with the service and port that have them; the first port counts."""
    found: dict[str, tuple[str, str, Any]] = {}
    for service in client.wsdl.services.values():
        for port in service.ports.values():
            for name, operation in port.binding.all().items():
                found.setdefault(name, (service.name, port.name, operation))
    return found


def _listing(client: Any) -> str:
    from wcfrelay.cli.values import types_of

    operations = [operation for _, _, operation in _operations(client).values()]
    lines = [str(operation) for operation in sorted(operations, key=lambda operation: str(operation.name))]
    types = types_of(operations, client.wsdl.types)
    return "\n".join([*lines, "", "where", *(f"  {line}" for line in types)] if types else lines)


def _call(client: Any, path: str, name: str, given: tuple[str, ...], as_json: bool) -> str:
    from wcfrelay.cli import values

    operations = _operations(client)
    if name not in operations:
        raise values.ArgumentError(f"{path} has no operation {name!r}; {values.nearest(name, operations)}")
    service, port, operation = operations[name]
    proxy = client.bind(service, port)
    try:
        arguments = values.arguments(operation, given)
        client.create_message(proxy, name, **arguments)
    except Exception as error:  # zeep has many kinds for what does not fit
        raise values.ArgumentError(f"{error}\n  {operation}") from None
    result = proxy[name](**arguments)
    return values.as_json(result) if as_json else values.as_text(result)


def _fault(fault: Any) -> str:
    from wcfrelay.cli.values import as_text

    lines = ["wcfrelay: the service answered with a fault", f"  code:   {fault.code}", f"  text:   {fault.message}"]
    if fault.subcodes:
        lines.insert(2, f"  within: {', '.join(str(code.localname) for code in fault.subcodes)}")
    detail = [] if fault.detail is None else [as_text(child) for child in fault.detail] or [fault.detail.text or ""]
    for number, line in enumerate(line for text in detail for line in text.split("\n") if line.strip()):
        lines.append(f"  {'detail: ' if number == 0 else '        '}{line}")
    return "\n".join(lines)


@click.command()
@click.argument("path", required=False, default="")
@click.option(
    "--minutes", default=60, show_default=True, type=click.IntRange(1, 525_600), help="How long it will be good."
)
@connection_string_options
def token(path: str, minutes: int, connection_string: str | None, connection_string_file: Path | None) -> None:
    """Print a SAS token, for curl and the like.

    It is good for the relay at PATH and everything below it. Without PATH it is for the EntityPath of the connection
    string, and without that for all relays.

    \b
    curl -H "ServiceBusAuthorization: $(wcfrelay token orders)" https://localhost:8443/orders?wsdl
    """
    from wcfrelay.sender.connection import connection_from

    try:
        connection = connection_from(connection_string, os.environ, file=connection_string_file)
        path = path or connection.entity_path
        text = TokenProvider(connection, time.time, minutes * 60).token(path_from(path) if path else "")
    except ConfigError as error:
        sys.exit(report(error))
    click.echo(text)
