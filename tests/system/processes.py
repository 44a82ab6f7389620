"""The processes that system tests start, each stopped by its own id whatever happens, and what they write."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest

from wcfrelay.testing import Gateway

APPS = Path(__file__).with_name("apps")

_START = 20.0
_STOP = 10.0


class Running:
    """A running process and the lines it has written: ``output`` on standard output, ``log`` on standard error."""

    def __init__(
        self, command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.output: list[str] = []
        self.log: list[str] = []
        self._written = threading.Condition()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=args, daemon=True)
            for args in ((self.process.stdout, self.output), (self.process.stderr, self.log))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, start: str, *, count: int = 1, after: int = 0, seconds: float = _START) -> str:
        """The ``count``-th line of output behind the first ``after`` ones that begins with ``start``."""
        deadline = time.monotonic() + seconds
        with self._written:
            while True:
                found = [line for line in self.output[after:] if line.startswith(start)]
                if len(found) >= count:
                    return found[count - 1]
                if self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers):
                    raise AssertionError(f"ended with {self.process.returncode}:\n{self._told()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"no {start!r} in {seconds:g} s:\n{self._told()}")
                self._written.wait(min(left, 0.2))

    def stop(self, seconds: float = _STOP) -> int:
        """Stop it as an operator would; its exit code, or that of a kill after ``seconds``."""
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        return self._gone()

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self._gone()

    def _gone(self) -> int:
        code = self.process.wait()
        with contextlib.suppress(ProcessLookupError):  # workers that it left behind; the group is ours alone
            os.killpg(self.process.pid, signal.SIGKILL)
        for reader in self._readers:
            reader.join(_STOP)
        return code

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        with stream:
            for line in stream:
                with self._written:
                    lines.append(line.rstrip("\n"))
                    self._written.notify_all()

    def _told(self) -> str:
        return "\n".join([*self.output[-10:], *self.log[-20:]])


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    process = Running(command, cwd=cwd, env=env)
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def listener(
    gateway: Gateway, command: str, service: str, path: str, *options: str, tls: bool = False, connection: str = ""
) -> Iterator[Running]:
    """``wcfrelay expose`` or ``wcfrelay host`` that is Online at ``gateway``; with ``tls`` it came by the HTTPS port.

    ``connection`` is a connection string, if not the gateway's own.
    """
    arguments, env = _listener(gateway, command, service, path, options, tls, connection)
    with running(arguments, cwd=APPS, env=env) as process:
        process.wait_for("Online:")
        yield process


def refused_listener(gateway: Gateway, service: str, path: str, connection: str) -> tuple[int, str]:
    """Exit code and standard error of a listener that does not come Online."""
    arguments, env = _listener(gateway, "expose", service, path, (), False, connection)
    done = subprocess.run(arguments, env={**os.environ, **env}, capture_output=True, text=True, timeout=_START)
    return done.returncode, done.stderr


def _listener(
    gateway: Gateway, command: str, service: str, path: str, options: Sequence[str], tls: bool, connection: str
) -> tuple[list[str], dict[str, str]]:
    env = {"WCFRELAY_CONNECTION_STRING": connection or gateway.connection_string}
    if tls:
        env = {
            "WCFRELAY_CONNECTION_STRING": gateway.tls_connection_string,
            "WCFRELAY_CA_FILE": str(gateway.ca_file),
        }
    arguments = [sys.executable, "-m", "wcfrelay", command, service, "--relay", path, "--grace", "5", *options]
    return arguments, env


class Backend:
    """The service in ``apps/backend.py``; its addresses are below ``/svc``."""

    def __init__(self, process: Running, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/svc"

    def wait_until_begun(self, what: str, count: int = 1) -> None:
        """Until ``count`` requests are in whose target has ``what`` in it."""
        deadline = time.monotonic() + _START
        while sum(what in line for line in self.process.output) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"the service has not seen {count} of {what}: {self.process.output[-20:]}")
            time.sleep(0.01)


@contextlib.contextmanager
def backend() -> Iterator[Backend]:
    with running([sys.executable, APPS / "backend.py"]) as process:
        yield Backend(process, int(process.wait_for("port ").split()[1]))


@contextlib.contextmanager
def php(script: Path, *, workers: int = 1, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """PHP's own server with ``script`` for every path; its port."""
    port = free_port()
    command: list[str | Path] = ["php", "-d", "soap.wsdl_cache_enabled=0", "-S", f"127.0.0.1:{port}", script]
    # The server takes one connection after the other; only in workers of its own does it look at several.
    extra = {"PHP_CLI_SERVER_WORKERS": str(workers)} if workers > 1 else {}
    with running(command, cwd=script.parent, env={**extra, **(env or {})}) as process:
        deadline = time.monotonic() + _START
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"php does not serve:\n{process.log[-5:]}") from None
                time.sleep(0.02)
        yield port


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def memory(pid: int) -> int:
    """Bytes of resident memory of a process; from here on its peak is measured."""
    resident = _memory(pid, "VmRSS")
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return resident


def peak_memory(pid: int) -> int:
    """The most bytes of resident memory since :func:`memory` was asked."""
    return _memory(pid, "VmHWM")


def _memory(pid: int, name: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        pytest.skip("resident memory is read from /proc, which is not here")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(f"{name}:"))
