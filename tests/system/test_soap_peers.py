"""zeep, PHP's SoapClient and curl call PHP's SoapServer and a hosted spyne service through the relay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import etree

from tests.system.processes import Running, listener, php
from tests.system.senders import CALCULATOR, SOAP11, SOAP12, Form, call, request, token
from wcfrelay.testing import Gateway

pytestmark = pytest.mark.system

_ADDRESSES = {f"http://schemas.xmlsoap.org/wsdl/{name}/" for name in ("soap", "soap12", "http")}
_HOSTED, _PHP, _PHP12 = "hosted/calculator", "php/calculator", "php/calculator12"

SERVICES = pytest.mark.parametrize("path", [_PHP, _HOSTED])
SCHEMES = pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])


@pytest.fixture(autouse=True, scope="module")
def _calculators(gateway: Gateway, hosted: Running, php_calculator: int) -> Iterator[None]:
    """The listener in front of PHP came over TLS, the one that hosts spyne did not; senders cannot tell."""
    with listener(gateway, "expose", f"http://127.0.0.1:{php_calculator}/calc", _PHP, tls=True):
        yield


def _address(gateway: Gateway, path: str, tls: bool) -> str:
    return f"{gateway.https_url if tls else gateway.http_url}/{path}"


def _run(command: list[str | Path], **env: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, errors="replace", timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@SCHEMES
@SERVICES
def test_the_wsdl_names_the_relay(gateway: Gateway, path: str, tls: bool) -> None:
    answer = call(gateway, f"/{path}?wsdl", None, method="GET", tls=tls)
    assert (answer.status, (answer.field("Content-Type") or "")[:8]) == (200, "text/xml")
    root = etree.fromstring(answer.body)
    addresses = [node.get("location") for node in root.iter("{*}address") if etree.QName(node).namespace in _ADDRESSES]
    assert addresses and set(addresses) == {_address(gateway, path, tls)}


@SCHEMES
@SERVICES
def test_zeep(gateway: Gateway, shared: Path, path: str, tls: bool) -> None:
    address = _address(gateway, path, tls)
    ca = {"CA": str(gateway.ca_file)} if tls else {}
    script = shared / "peers" / "zeep" / "client.py"
    said = _run([sys.executable, script, address, f"{address}?wsdl"], SBAUTH=token(gateway, path), **ca)
    assert said.count("PASS") == 5


@SCHEMES
@SERVICES
def test_php_soap_client(gateway: Gateway, shared: Path, path: str, tls: bool) -> None:
    address = _address(gateway, path, tls)
    script = shared / "peers" / "php-client" / "client.php"
    ca: list[str | Path] = [gateway.ca_file] if tls else []
    said = _run(["php", script, address, f"{address}?wsdl", "11", *ca], SBAUTH=token(gateway, path))
    assert said.count("PASS") == 5


@pytest.mark.parametrize("path", [_PHP12, _HOSTED])
def test_php_soap_client_with_soap_1_2(gateway: Gateway, shared: Path, path: str) -> None:
    peers = shared / "peers"
    command: list[str | Path] = ["php", peers / "php-client" / "client.php", f"{gateway.http_url}/{path}", "", "12"]
    authorization = token(gateway, path)
    if path == _HOSTED:
        assert _run(command, SBAUTH=authorization).count("PASS") == 5
        return
    with (
        php(peers / "php-calc" / "server.php", env={"SOAP12": "1"}) as port,
        listener(gateway, "expose", f"http://127.0.0.1:{port}/calc", path),
    ):
        assert _run(command, SBAUTH=authorization).count("PASS") == 5


@SCHEMES
@pytest.mark.parametrize(("path", "version"), [(_PHP, "1.1"), (_HOSTED, "1.1"), (_HOSTED, "1.2")])
def test_curl(gateway: Gateway, path: str, tls: bool, version: Form) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body, headers = request(version)
    command: list[str | Path] = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20"]
    if tls:
        command += ["--cacert", gateway.ca_file]
    for name, value in {**headers, "ServiceBusAuthorization": token(gateway, path)}.items():
        command += ["--header", f"{name}: {value}"]
    shown = ["--data-binary", body.decode(), "--write-out", "\n%{http_code}", _address(gateway, path, tls)]
    document, _, status = _run([*command, *shown]).rpartition("\n")
    envelope = SOAP11 if version == "1.1" else SOAP12
    result = etree.fromstring(document.encode()).findtext(f"{{{envelope}}}Body/*/{{{CALCULATOR}}}AddResult")
    assert (status, float(result or "nan")) == ("200", 3.75)
