"""A real gateway for your tests, on free loopback ports.

In a test::

    from wcfrelay.testing import relay

    with relay() as gateway:
        client = relay_client("orders", connection_string=gateway.connection_string)

With pytest, name this module in ``conftest.py`` (``pytest_plugins = ["wcfrelay.testing"]``) and take the fixture
``relay_gateway``, which lives as long as the session. The gateway is a process of its own, ``wcfrelay serve``, so
it works whatever reactor or event loop the tests have.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

import pytest

__all__ = ["Gateway", "relay", "relay_gateway"]

_START = 30.0
_STOP = 15.0


@dataclass
class Gateway:
    """A running gateway. ``state`` is its folder; the ports are on 127.0.0.1."""

    state: Path
    config: Path
    http_port: int = 0
    https_port: int = 0
    admin_port: int = 0
    log: list[str] = field(default_factory=list)
    """Lines of its standard error so far."""
    process: subprocess.Popen[str] | None = None

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def https_url(self) -> str:
        return f"https://localhost:{self.https_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def ca_file(self) -> Path:
        """The CA of the development certificate, for the HTTPS port."""
        return self.state / "tls" / "ca.pem"

    @property
    def connection_string(self) -> str:
        """For the plain HTTP port, with every right."""
        return self._connection_string(f"http://127.0.0.1:{self.http_port}/")

    @property
    def tls_connection_string(self) -> str:
        """For the HTTPS port, with every right; clients must trust :attr:`ca_file`."""
        return self._connection_string(f"sb://localhost:{self.https_port}/")

    def _connection_string(self, endpoint: str) -> str:
        kept = (self.state / "connection-string").read_text().strip()
        return f"Endpoint={endpoint};{kept.split(';', 1)[1]}"

    def start(self) -> None:
        """Start the process; a second time on the ports of the first.

        :raises RuntimeError: it did not become ready; the text has its log.
        """
        command = [sys.executable, "-m", "wcfrelay", "serve", "--config", str(self.config), "--state", str(self.state)]
        for option, port in (("http", self.http_port), ("https", self.https_port), ("admin", self.admin_port)):
            command += [f"--{option}-port", str(port)]
        self.process = process = subprocess.Popen(
            [*command, "--bind", "127.0.0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines: Queue[str | None] = Queue()
        threading.Thread(target=self._read_output, args=(process, lines), daemon=True).start()
        threading.Thread(target=self._read_log, args=(process,), daemon=True).start()
        deadline = time.monotonic() + _START
        while True:
            try:
                line = lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except Empty:
                line = None
            if line is None:
                self.kill()
                raise RuntimeError("the gateway did not start:\n" + "".join(self.log[-20:]))
            if line.startswith("listening: "):
                name, _, address = line.removeprefix("listening: ").rpartition("://")
                setattr(self, {"http": "http_port", "https": "https_port"}.get(name, "admin_port"), _port(address))
            elif line.strip() == "ready":
                return

    def stop(self) -> None:
        """Stop it as an operator would, and wait until it is gone."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(_STOP)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """``kill -9``."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @staticmethod
    def _read_output(process: subprocess.Popen[str], lines: Queue[str | None]) -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                self.log.append(line)


def _port(address: str) -> int:
    return int(address.strip().rstrip("/").rpartition(":")[2])


@contextlib.contextmanager
def relay(config: str = "", *, https_port: int = 0) -> Iterator[Gateway]:
    """A gateway that is ready when the block begins and gone when it ends.

    ``config`` is TOML for it; the ports are free ones, but for ``https_port`` where a client knows one port only.
    """
    with tempfile.TemporaryDirectory(prefix="wcfrelay-") as folder:
        file = Path(folder) / "gateway.toml"
        file.write_text(config, "utf-8")
        gateway = Gateway(state=Path(folder) / "state", config=file, https_port=https_port)
        gateway.start()
        try:
            yield gateway
        finally:
            gateway.stop()


@pytest.fixture(scope="session")
def relay_gateway() -> Iterator[Gateway]:
    """A gateway with the default configuration, for the whole session."""
    with relay() as gateway:
        yield gateway
