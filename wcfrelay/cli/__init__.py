"""The command line. The only room that touches the process: reactor, signals, standard streams, exit codes.

Exit codes: 0 done; 1 an unexpected error; 2 wrong usage or configuration; 3 the relay refused (token, right, path,
malformed request); 4 nobody answered now and the same call may succeed later; 5 the service answered with a fault, or
with something that is no SOAP.
"""

from __future__ import annotations

from typing import ClassVar

import click

from wcfrelay import __version__

__all__ = ["main"]


class _Commands(click.Group):
    """Loads a command's module when it is named, so that ``--help`` and short commands start quickly."""

    _WHERE: ClassVar = {
        "call": "wcfrelay.cli.call",
        "demo": "wcfrelay.cli.demo",
        "expose": "wcfrelay.cli.listen",
        "host": "wcfrelay.cli.listen",
        "serve": "wcfrelay.cli.serve",
        "token": "wcfrelay.cli.call",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._WHERE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from importlib import import_module

        where = self._WHERE.get(cmd_name)
        if where is None:
            return None
        command: click.Command = getattr(import_module(where), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="wcfrelay %(version)s")
def main() -> None:
    """A self-hosted relay: on-premises listeners hold outbound connections, senders call the gateway."""
