"""``wcfrelay demo``: a SOAP call crosses the relay, with everything it takes, on this machine and for a few seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from lxml import etree

from wcfrelay.cli.children import Child, ChildError, Interrupts
from wcfrelay.cli.run import UNREACHABLE
from wcfrelay.cli.sockets import sockets

__all__ = ["demo"]

_CALL = 10.0
"""Seconds for a call, or for a command that makes one."""
_DIGITS = 200_000
"""Characters of the large answer: more than a control channel carries."""
_INTERRUPTED = 130

_CALCULATOR = "wcfrelay.demo.calculator:application"
_ORDERS = "wcfrelay.demo.orders"
_NOBODY = "warehouse"
_SOAP_ADDRESS = "{http://schemas.xmlsoap.org/wsdl/soap/}address"


@click.command()
def demo() -> None:
    """Show calls cross a relay, in seconds.

    Two SOAP services behind a relay, called with zeep, and what travelled where. Starts a gateway, two listeners and
    a SOAP service on free ports of this machine, and stops them again.
    """
    begun = time.monotonic()
    interrupts = Interrupts()
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1"
    stuck: list[str] = []
    code = 1
    with tempfile.TemporaryDirectory(prefix="wcfrelay-demo-") as folder:
        show = _Demo(Path(folder), interrupts)
        try:
            show.start()
            show.call()
            show.refuse()
            show.connections()
            stuck = show.stop()
            show.exchanges()
            code = 0
        except KeyboardInterrupt:
            code = _INTERRUPTED
        except Exception as error:
            reason = str(error) if isinstance(error, (_FailedError, ChildError)) else f"{type(error).__name__}: {error}"
            click.echo(f"\nFAILED: {reason}", err=True)
        finally:
            interrupts.ignore()
            stuck += show.stop()
    if stuck:
        click.echo(f"FAILED: had to be killed: {', '.join(stuck)}", err=True)
        code = code or 1
    if code == _INTERRUPTED:
        click.echo("\nInterrupted; everything that was started is stopped.", err=True)
    elif code == 0:
        click.echo(f"\nDone in {time.monotonic() - begun:.1f} s. Everything that was started is stopped.")
    sys.exit(code)


class _FailedError(Exception):
    """A step did not do what it should."""


class _Demo:
    """The parts of the demonstration, in the order of its methods. Each raises what makes it fail."""

    def __init__(self, folder: Path, interrupts: Interrupts) -> None:
        self._folder = folder
        self._interrupts = interrupts
        self._processes: list[Child] = []
        self._ca_file = folder / "state" / "tls" / "ca.pem"
        self._connection_string = ""
        self._gateway_url = ""
        self._service_url = ""
        self._clients: list[Any] = []

    def start(self) -> None:
        click.echo("Two SOAP services behind a relay. Everything runs on this machine, and nothing of it is kept.")
        _title("Started")
        config = self._folder / "gateway.toml"
        config.write_text(f'[[relays]]\npath = "{_NOBODY}"\n', "utf-8")
        serve = ["serve", "--http-port", "0", "--https-port", "0", "--admin-port", "0", "--bind", "127.0.0.1"]
        serve += ["--log-format", "json", "--config", str(config), "--state", str(self._folder / "state")]
        gateway = self._run("gateway", ["wcfrelay", *serve])
        service = self._run("orders service", [_ORDERS, "0"])
        for line in gateway.lines_until(lambda line: line == "ready"):
            if line.startswith("connection string, shown"):
                self._connection_string = line.partition(": ")[2]
        endpoint = self._connection_string.partition(";")[0].partition("://")[2].rstrip("/")
        self._gateway_url = f"https://{endpoint}"
        _process("a gateway", self._gateway_url, "wcfrelay serve")
        self._service_url = service.lines_until(lambda line: line.startswith("http://"))[-1]
        _process("an existing service", self._service_url, f"python -m {_ORDERS}")
        commands = {
            "a listener before it": ["expose", self._service_url, "--relay", "orders"],
            "a listener hosting": ["host", _CALCULATOR, "--relay", "calculator"],
        }
        started = {
            what: self._run(f"listener of {command[-1]}", ["wcfrelay", *command], listening=True)
            for what, command in commands.items()
        }
        for what, listener in started.items():
            online = listener.lines_until(lambda line: line.startswith("Online: "))[-1]
            _process(what, online, f"wcfrelay {' '.join(commands[what])}")

    def call(self) -> None:
        from zeep.exceptions import Fault

        _title("Called with zeep, at the gateway")
        calculator = self._client("calculator")
        _step("calculator.Add(a=1.5, b=2.25)", lambda: calculator.Add(a=1.5, b=2.25), lambda sum: sum == 3.75)
        _step(
            f"calculator.Digits(count={_DIGITS})",
            lambda: calculator.Digits(count=_DIGITS),
            lambda digits: digits.startswith("142857") and len(digits) == _DIGITS,
            lambda digits: f"{len(digits)} characters",
        )

        def divide() -> Any:
            try:
                return calculator.Divide(a=1, b=0)
            except Fault as fault:
                return fault.with_traceback(None)  # which would keep the answer, and that its connection

        _step(
            "calculator.Divide(a=1, b=0)",
            divide,
            lambda fault: isinstance(fault, Fault) and str(fault.code).endswith("Client.DivideByZero"),
            lambda fault: f"fault {fault.code.rpartition(':')[2]}: {fault.message}",
        )
        orders = self._client("orders")
        _step(
            'orders.Place(order={"Item": "bolt", "Count": 12})',
            lambda: orders.Place(order={"Item": "bolt", "Count": 12}),
            lambda receipt: receipt.Order.Item == "bolt" and receipt.Total == Decimal("4.20"),
            lambda receipt: f"receipt {receipt.Number}: {receipt.Order.Count} {receipt.Order.Item}, {receipt.Total}",
        )
        _step("orders.HowMany()", lambda: orders.HowMany(), lambda count: count == 1)

        _title("The address of orders in its WSDL")
        direct = urllib.request.urlopen(f"{self._service_url}?wsdl", timeout=_CALL).read()
        _check("fetched from the service", _address(direct), self._service_url)
        relayed = f"{self._gateway_url}/orders"
        _check("fetched through the relay", _address(self._clients[-1].transport.load(f"{relayed}?wsdl")), relayed)

    def refuse(self) -> None:
        _title("Called where nobody listens")
        command = [sys.executable, "-m", "wcfrelay", "call", _NOBODY]
        environment = {**os.environ, **self._environment()}
        with self._interrupts.held():
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_CALL)
        click.echo(f"  $ wcfrelay call {_NOBODY}\n  {done.stderr.strip()}\n  (exit code {done.returncode})")
        if done.returncode != UNREACHABLE:
            raise _FailedError(f"the exit code should be {UNREACHABLE}")

    def connections(self) -> None:
        _title("Who dialled whom")
        click.echo(
            "  zeep --https--> gateway <--wss-- listener of calculator, the service in it\n"
            "                  gateway <--wss-- listener of orders --http--> orders service\n"
        )
        pids = {process.name: process.pid for process in self._processes} | {"zeep, in this process": os.getpid()}
        found = {name: sockets(pid) for name, pid in pids.items()}
        owners = {port: name for name, each in found.items() if each is not None for port in each.listening}
        _row("", "listens on ports", "is connected to")
        for name, each in found.items():
            if each is None:
                click.echo("  (this system does not tell the sockets of a process)")
                return
            dialled = Counter(owners[port] for port in each.dialled() if port in owners)
            _row(
                name,
                " ".join(map(str, sorted(each.listening))) or "none",
                ", ".join(f"{peer} ({count})" for peer, count in dialled.items()) or "nobody by itself",
            )
            if name.startswith("listener") and (each.listening or "gateway" not in dialled):
                raise _FailedError(f"the {name} should listen on no port and be connected to the gateway")

    def stop(self) -> list[str]:
        """End what was started and still runs; the names of the processes that had to be killed."""
        for client in self._clients:
            client.transport.close()
        for process in self._processes:
            process.ask_to_stop()
        return [process.name for process in self._processes if not process.stop()]

    def exchanges(self) -> None:
        """Once the gateway has ended: then its log is complete."""
        _title("What travelled through the gateway, by its access log")
        _columns("relay", "", "request", "answer", "status", "time")
        gateway = self._processes[0]
        entries = [entry for line in gateway.log if '"access"' in line and (entry := json.loads(line))["relay"]]
        for entry in entries:
            _columns(
                entry["relay"],
                entry["method"],
                _size(entry["request_bytes"]),
                _size(entry["response_bytes"]),
                str(entry["status"]),
                f"{entry['milliseconds']:.1f} ms",
            )
        if not entries:
            raise _FailedError("the gateway logged no exchange")

    def _run(self, name: str, arguments: list[str], *, listening: bool = False) -> Child:
        with self._interrupts.held():
            process = Child(name, arguments, self._environment() if listening else {})
            self._processes.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        # The key goes this way because arguments can be read by every user of the machine.
        return {"WCFRELAY_CONNECTION_STRING": self._connection_string, "WCFRELAY_CA_FILE": str(self._ca_file)}

    def _client(self, path: str) -> Any:
        from wcfrelay.sender import relay_client

        client = relay_client(path, connection_string=self._connection_string, ca_file=self._ca_file, timeout=_CALL)
        self._clients.append(client)
        return client.service


def _title(text: str) -> None:
    click.echo(f"\n{text}")


def _process(what: str, where: str, command: str) -> None:
    click.echo(f"  {what:<22}{where}\n{'':24}$ {command}")


def _row(first: str, second: str, third: str) -> None:
    click.echo(f"  {first:<24}{second:<36}{third}".rstrip())


def _columns(relay: str, method: str, asked: str, answered: str, status: str, took: str) -> None:
    click.echo(f"  {relay:<14}{method:<6}{asked:>12}{answered:>12}{status:>10}{took:>12}")


def _step(text: str, call: Callable[[], Any], right: Callable[[Any], bool], shown: Callable[[Any], str] = str) -> None:
    begun = time.monotonic()
    result = call()
    took = (time.monotonic() - begun) * 1000
    if not right(result):
        raise _FailedError(f"{text} gave {result!r}")
    click.echo(f"  {text:<52}{shown(result):<46}{took:5.0f} ms")


def _check(text: str, found: str | None, wanted: str) -> None:
    if found != wanted:
        raise _FailedError(f"the address {text} is {found}, and should be {wanted}")
    click.echo(f"  {text:<28}{found}")


def _address(wsdl: bytes) -> str | None:
    """The address in the first port of a WSDL."""
    element = next(etree.fromstring(wsdl).iter(_SOAP_ADDRESS), None)
    return None if element is None else element.get("location")


def _size(count: int) -> str:
    return f"{count} B" if count < 1024 else f"{count / 1024:.1f} KiB"
