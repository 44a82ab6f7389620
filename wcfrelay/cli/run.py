"""Runs a coroutine on a reactor of its own, from a command to an exit code."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import click
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from wcfrelay.errors import ConfigError, RelayError

__all__ = [
    "FAULT",
    "REFUSED",
    "UNEXPECTED",
    "UNREACHABLE",
    "USAGE",
    "install_reactor",
    "report",
    "run",
    "tune_collector",
]

UNEXPECTED, USAGE, REFUSED, UNREACHABLE, FAULT = 1, 2, 3, 4, 5

Work = Callable[[Any, "Deferred[None]"], Coroutine[Any, Any, int]]


def install_reactor(kind: str = "auto") -> Any:
    """Install and return the reactor: ``asyncio`` (on uvloop where there is one), ``default``, or ``auto``, which is
    asyncio where uvloop is and the platform's default elsewhere."""
    uvloop = importlib.util.find_spec("uvloop") if kind != "default" else None
    if uvloop is not None or kind == "asyncio":
        from twisted.internet import asyncioreactor

        loops: Any = importlib.import_module("uvloop" if uvloop is not None else "asyncio")
        asyncioreactor.install(loops.new_event_loop())  # type: ignore[no-untyped-call]
    from twisted.internet import reactor

    return reactor


def run(work: Work, kind: str = "auto") -> None:
    """Run ``work(reactor, stopping)`` until it returns, and exit with what it returned.

    ``stopping`` fires at the first SIGINT or SIGTERM; ``work`` then finishes by itself, in bounded time. Errors that
    a person can act on are shown as one line.
    """
    reactor = install_reactor(kind)
    code = [UNEXPECTED]

    def start() -> None:
        stopping: Deferred[None] = Deferred()
        finished: Deferred[None] = Deferred()

        def stop() -> Deferred[None] | None:
            if not stopping.called:
                stopping.callback(None)
            return None if finished.called else finished

        def done(result: int | Failure) -> None:
            try:
                code[0] = report(_raised(result)) if isinstance(result, Failure) else result
            finally:  # whatever happens to the report, the process ends
                finished.callback(None)
                if reactor.running and not reactor._stopped:
                    reactor.stop()

        reactor.addSystemEventTrigger("before", "shutdown", stop)
        Deferred.fromCoroutine(work(reactor, stopping)).addBoth(done)

    reactor.callWhenRunning(start)
    reactor.run()
    sys.exit(code[0])


def _raised(failure: Failure) -> BaseException:
    assert failure.value is not None
    return failure.value


def tune_collector() -> None:
    """For a process that serves: what start-up made is never looked at again, and calls make no cycles, so the
    collector need not look often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def report(error: BaseException) -> int:
    """Show an error as a person can use it; the exit code for it."""
    if isinstance(error, ConfigError):
        click.echo(f"wcfrelay: {error}", err=True)
        return USAGE
    if isinstance(error, RelayError):
        click.echo(f"wcfrelay: {error}", err=True)
        return UNREACHABLE if error.transient else REFUSED
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        click.echo(f"wcfrelay: {file}{error.strerror or error}", err=True)
        return UNEXPECTED
    traceback.print_exception(error)
    return UNEXPECTED
