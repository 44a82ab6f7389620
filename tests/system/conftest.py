"""What the system tests share: a gateway, a service and listeners that live as long as the session, and the report."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.processes import Backend, Running, backend, listener, php
from wcfrelay.testing import Gateway, relay

_REPORT = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[_REPORT]
    if lines:
        terminalreporter.section("measured by the system tests")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to what is shown behind the tests."""
    return request.config.stash[_REPORT].append


@pytest.fixture(scope="session")
def gateway() -> Iterator[Gateway]:
    """A gateway with the default configuration. Tests that harm one start their own."""
    with relay() as started:
        yield started


@pytest.fixture(scope="session")
def service() -> Iterator[Backend]:
    """The service in ``apps/backend.py``."""
    with backend() as started:
        yield started


@pytest.fixture(scope="session")
def exposed(gateway: Gateway, service: Backend) -> Iterator[Running]:
    """The listener that exposes ``service`` as the relay ``svc``."""
    with listener(gateway, "expose", service.url, "svc") as started:
        yield started


@pytest.fixture(scope="session")
def hosted(gateway: Gateway) -> Iterator[Running]:
    """The listener that hosts the calculator in ``apps`` as the relay ``hosted/calculator``."""
    with listener(gateway, "host", "calculator:application", "hosted/calculator") as started:
        yield started


@pytest.fixture(scope="session")
def php_installed() -> None:
    if shutil.which("php") is None:
        pytest.skip("php is not installed (Debian: php-cli php-soap)")
    if subprocess.run(["php", "-r", 'exit((int) !extension_loaded("soap"));'], timeout=20).returncode:
        pytest.skip("php has no soap extension (Debian: php-soap)")


@pytest.fixture(scope="session")
def php_calculator(php_installed: None, shared: Path) -> Iterator[int]:
    """The port of PHP's SoapServer with the calculator of the peers."""
    with php(shared / "peers" / "php-calc" / "server.php") as port:
        yield port
