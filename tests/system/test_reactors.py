"""The same calls with gateway and listener on uvloop and on Twisted's default reactor; health and metrics."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.system.processes import APPS, Backend, Running, listener, running
from tests.system.senders import assert_refused, call, call_in_every_form
from wcfrelay.testing import Gateway, relay

pytestmark = pytest.mark.system

_MEGABYTE = bytes(range(256)) * 4096


@dataclass(frozen=True)
class Pair:
    gateway: Gateway
    listener: Running


@pytest.fixture(scope="module", params=["auto", "default"])
def pair(request: pytest.FixtureRequest, service: Backend) -> Iterator[Pair]:
    """A gateway and a listener at the relay ``smoke``, both on that reactor."""
    with relay(f'[gateway]\nreactor = "{request.param}"\n[[relays]]\npath = "quiet"\n') as gateway:
        if request.param == "auto":
            with listener(gateway, "expose", service.url, "smoke") as online:
                yield Pair(gateway, online)
            return
        env = {"WCFRELAY_CONNECTION_STRING": gateway.connection_string}
        with running([sys.executable, APPS / "default_reactor.py", service.url, "smoke"], env=env) as online:
            online.wait_for("Online:")
            yield Pair(gateway, online)


def _get(gateway: Gateway, path: str) -> tuple[int, str]:
    with build_opener(ProxyHandler({})).open(gateway.admin_url + path, timeout=10) as answer:
        return answer.status, answer.read().decode()


def _metrics(gateway: Gateway) -> dict[tuple[str, ...], float]:
    """The relay's own samples by name, relay and result."""
    families = text_string_to_metric_families(_get(gateway, "/metrics")[1])
    return {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key != "le")): sample.value
        for family in families
        if family.name.startswith("wcfrelay_")
        for sample in family.samples
    }


def test_each_reactor_is_the_one_asked_for(pair: Pair, request: pytest.FixtureRequest) -> None:
    assert pair.gateway.process is not None
    for pid in (pair.gateway.process.pid, pair.listener.pid):
        loaded = Path(f"/proc/{pid}/maps")
        if not loaded.exists():
            pytest.skip("what a process has loaded is read from /proc, which is not here")
        assert ("uvloop" in loaded.read_text()) == ("auto" in request.node.name)


def test_smoke(pair: Pair) -> None:
    before = _metrics(pair.gateway)
    assert call(pair.gateway, "/smoke/echo", b"small").body == b"small"
    assert call(pair.gateway, "/smoke/echo", _MEGABYTE).body == _MEGABYTE
    assert call(pair.gateway, "/smoke/echo", _MEGABYTE, tls=True).body == _MEGABYTE
    for form, answer in call_in_every_form(pair.gateway, "/quiet").items():
        assert_refused(form, answer, 404, "EndpointNotFound")
    assert call(pair.gateway, "/smoke/nothing").status == 404
    after = _metrics(pair.gateway)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert grown("wcfrelay_sender_connections_total", "smoke", "success") == 3
    assert grown("wcfrelay_sender_connections_total", "smoke", "client_error") == 1
    assert grown("wcfrelay_sender_connections_total", "quiet", "client_error") == 3
    assert grown("wcfrelay_request_seconds_count", "smoke") == 4
    assert grown("wcfrelay_bytes_transferred_total", "smoke") >= 4 * len(_MEGABYTE) + 10
    assert after["wcfrelay_active_listeners", "smoke"] == 1
    assert after["wcfrelay_active_connections", "smoke"] == 0
    assert after["wcfrelay_listener_connections_total", "smoke", "success"] == 1


def test_health(pair: Pair) -> None:
    assert _get(pair.gateway, "/healthz") == (200, "ok\n")
    assert _get(pair.gateway, "/readyz") == (200, "ready\n")


def test_the_default_reactor_of_the_gateway_stops_cleanly(service: Backend) -> None:
    with relay('[gateway]\nreactor = "default"\n') as gateway:
        assert gateway.process is not None
        gateway.stop()
        assert gateway.process.returncode == 0
