"""The SOAP requests of the W3C's and the SOAPBuilders' test collections to PHP's SoapServer, direct and relayed."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.system.phpsource import soap_tests
from tests.system.processes import listener, php
from tests.system.senders import Answer, ask, token
from wcfrelay.testing import Gateway

pytestmark = pytest.mark.system

_AT_A_TIME = 4


@pytest.fixture(scope="module")
def pairs(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "vectors" / "soap_interop_pairs.json").read_bytes())
    return found


@pytest.fixture(scope="module")
def soap_server(php_installed: None, shared: Path, pairs: dict[str, Any]) -> Iterator[int]:
    """The port of PHP's SoapServer with the services of the pairs."""
    release = re.search(r"\d+\.\d+\.\d+", pairs["source"])
    assert release is not None
    env = {"SOAPROOT": str(soap_tests(release[0]))}
    with php(shared / "peers" / "soap-pairs" / "router.php", workers=_AT_A_TIME, env=env) as port:
        yield port


@pytest.fixture(scope="module")
def relayed(gateway: Gateway, soap_server: int) -> Iterator[str]:
    """The path of the relay in front of ``soap_server``."""
    with listener(gateway, "expose", f"http://127.0.0.1:{soap_server}/tests", "php/soap"):
        yield "php/soap"


def _all(port: int, path: str, tests: list[dict[str, Any]], headers: dict[str, str]) -> list[Answer]:
    def one(test: dict[str, Any]) -> Answer:
        fields = {"Content-Type": "application/soap+xml; charset=utf-8"}
        if test["soap"] == "1.1":
            fields = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": f'"{test["soapaction"]}"'}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            return ask(connection, "POST", f"/{path}/{test['endpoint']}", test["request"].encode(), fields | headers)
        finally:
            connection.close()

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(one, tests))


def test_every_pair_is_answered_byte_for_byte_as_by_the_service(
    gateway: Gateway,
    pairs: dict[str, Any],
    soap_server: int,
    relayed: str,
    report: Callable[[str], None],
    record_property: Callable[[str, object], None],
) -> None:
    tests = pairs["tests"]
    direct = _all(soap_server, "tests", tests, {})
    through = _all(gateway.http_port, relayed, tests, {"ServiceBusAuthorization": token(gateway, relayed)})

    def essence(answer: Answer) -> tuple[int, str | None, bytes]:
        return answer.status, answer.field("Content-Type"), answer.body

    wrong = [
        (test["id"], one, other)
        for test, one, other in zip(tests, direct, through, strict=True)
        if essence(one) != essence(other)
    ]
    right = len(tests) - len(wrong)
    told = f"SOAP pairs: {right} of {len(tests)} answers are byte for byte those of the service"
    report(told)
    record_property("soap_pairs", told)
    assert not wrong, wrong[0]
    assert len(tests) == pairs["count"] == 160
    assert {answer.status for answer in direct} == {200, 500}  # the faults are among them
    assert all(answer.field("Via") for answer in through)


def test_the_peer_that_knows_the_expected_answers_is_content(
    gateway: Gateway, shared: Path, pairs: dict[str, Any], relayed: str
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            shared / "peers" / "soap-pairs" / "run.py",
            f"{gateway.http_url}/{relayed}",
            str(_AT_A_TIME),
            f"ServiceBusAuthorization: {token(gateway, relayed)}",
        ],
        env={**os.environ, "PAIRS": str(shared / "vectors" / "soap_interop_pairs.json")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"{pairs['count']} passed, 0 failed" in done.stdout, done.stdout + done.stderr
