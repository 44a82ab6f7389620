"""100 MB bodies in both directions: whole, and with little memory."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Callable, Iterator

import pytest

from tests.system.apps.backend import pattern
from tests.system.processes import Running, memory, peak_memory
from tests.system.senders import ask, connected, token
from wcfrelay.testing import Gateway

pytestmark = pytest.mark.system

_SIZE = 100 * 1024 * 1024
_GROWTH = 40 * 1024 * 1024


@pytest.fixture(scope="module")
def digest() -> str:
    whole = hashlib.sha256()
    for piece in pattern(_SIZE):
        whole.update(piece)
    return whole.hexdigest()


@pytest.fixture(params=[False, True], ids=["http", "https"])
def connection(
    request: pytest.FixtureRequest, gateway: Gateway, exposed: Running
) -> Iterator[http.client.HTTPConnection]:
    with connected(gateway, tls=request.param, timeout=60) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _memory_stays(
    request: pytest.FixtureRequest,
    gateway: Gateway,
    exposed: Running,
    connection: http.client.HTTPConnection,
    report: Callable[[str], None],
) -> Iterator[None]:
    """Neither process may need more than before the transfer, but for a few buffers."""
    assert gateway.process is not None
    pids = {"gateway": gateway.process.pid, "listener": exposed.pid}
    _upload(gateway, connection, b"".join(pattern(1024 * 1024)))  # what a first call makes both load is no growth
    before = {name: memory(pid) for name, pid in pids.items()}
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    grown = {name: peak_memory(pid) - before[name] for name, pid in pids.items()}
    shown = ", ".join(f"{name} {size / 2**20:+.1f} MiB" for name, size in grown.items())
    report(f"100 MiB, {request.node.name}: {seconds:.2f} s; peak memory {shown}")
    assert max(grown.values()) < _GROWTH, grown


def _upload(
    gateway: Gateway, connection: http.client.HTTPConnection, body: bytes | Iterator[bytes], **headers: str
) -> object:
    fields = {"ServiceBusAuthorization": token(gateway, "svc"), **headers}
    answer = ask(connection, "POST", "/svc/digest", body, fields)
    assert answer.status == 200
    return answer.json()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_upload(gateway: Gateway, connection: http.client.HTTPConnection, digest: str, framing: str) -> None:
    length = {"Content-Length": str(_SIZE)} if framing == "length" else {}
    seen = _upload(gateway, connection, pattern(_SIZE), **length)
    assert seen == {"bytes": _SIZE, "sha256": digest, "length": length.get("Content-Length")}


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_download(gateway: Gateway, connection: http.client.HTTPConnection, digest: str, framing: str) -> None:
    headers = {"ServiceBusAuthorization": token(gateway, "svc")}
    connection.request("GET", f"/svc/bulk?bytes={_SIZE}&framing={framing}", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Length") == (str(_SIZE) if framing == "length" else None)
    received, size = hashlib.sha256(), 0
    while piece := answer.read(256 * 1024):
        received.update(piece)
        size += len(piece)
    assert (size, received.hexdigest()) == (_SIZE, digest)


def test_a_slow_reader_holds_the_service_back(gateway: Gateway, connection: http.client.HTTPConnection) -> None:
    """Nobody reads for a while: what the service sends waits with it, not in the relay (see the memory)."""
    headers = {"ServiceBusAuthorization": token(gateway, "svc")}
    connection.request("GET", f"/svc/bulk?bytes={_SIZE}&framing=length", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert len(answer.read(1024)) == 1024
    time.sleep(0.5)
    connection.close()
