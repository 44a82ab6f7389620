"""Microsoft's own Hybrid Connections packages for Node, unmodified, against the gateway."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wcfrelay.testing import Gateway, relay

pytestmark = pytest.mark.system

_RELAY = '[[relays]]\npath = "a2"\n'


@pytest.fixture(scope="module")
def packages(shared: Path) -> Path:
    """The folder with the peers' scripts and their packages installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are needed for the hyco packages")
    peers = shared / "peers" / "hyco"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "wcfrelay-tests" / "hyco"
    installed = cache / "node_modules" / "hyco-ws"
    if not installed.is_dir():
        shutil.copytree(peers, cache, dirs_exist_ok=True)
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund"], cwd=cache, capture_output=True, text=True, timeout=300
        )
        if done.returncode or not installed.is_dir():
            pytest.skip(f"the hyco packages could not be installed: {done.stderr.strip()[-300:]}")
    return cache


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with relay(_RELAY) as made:
        yield made


def key(gateway: Gateway) -> str:
    return gateway.connection_string.partition("SharedAccessKey=")[2]


def test_the_suite_that_ships_with_hyco_https(packages: Path) -> None:
    """39 tests; the packages know port 443 only."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 443))
        except OSError as error:
            pytest.skip(f"port 443 cannot be opened here: {error.strerror}")
    with relay(_RELAY, https_port=443) as gateway:
        done = subprocess.run(
            ["sh", "./run-suite.sh", "localhost", "a2", "RootManageSharedAccessKey", key(gateway), gateway.ca_file],
            cwd=packages,
            capture_output=True,
            text=True,
            timeout=150,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Tests:       39 passed, 39 total" in done.stderr


def test_a_hyco_ws_sender_and_a_hyco_ws_listener(packages: Path, gateway: Gateway) -> None:
    """Text and 70,000 bytes of binary, echoed; the sender exits with 0 when both came back and it was closed."""
    address = f"ws://127.0.0.1:{gateway.http_port}/$hc/a2?sb-hc-action="
    rule = ["RootManageSharedAccessKey", key(gateway)]
    listener = subprocess.Popen(
        ["node", "ws_listener.js", address + "listen", *rule], cwd=packages, stdout=subprocess.PIPE, text=True
    )
    try:
        assert listener.stdout is not None and listener.stdout.readline() == "LISTENING\n"
        sender = subprocess.run(
            ["node", "ws_sender.js", address + "connect", *rule],
            cwd=packages,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert sender.returncode == 0, sender.stdout + sender.stderr
        assert sender.stdout == "echo string 5\necho object 70000\nclose 1000\n"
    finally:
        listener.kill()
        listener.communicate()
