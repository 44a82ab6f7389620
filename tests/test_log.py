"""The log's two forms, redaction, and the access log."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

import wcfrelay
from wcfrelay.log import AccessLog, Observer, redact

SECRET = "abc%2fDEF+g/h="
TIME = 1893456000.25
STAMP = "2030-01-01T00:00:00.250Z"


def written(format: Literal["text", "json"], level: str, template: str, **fields: Any) -> str:
    stream = io.StringIO()
    event = {"log_time": TIME, "log_level": LogLevel.levelWithName(level), "log_namespace": "wcfrelay.test"}
    Observer(stream, format, "info")({**event, "log_format": template, **fields})
    return stream.getvalue()


def test_text_is_a_line_an_event() -> None:
    assert written("text", "info", "up on {port}", port=80) == f"{STAMP} info  wcfrelay.test: up on 80\n"
    assert written("text", "debug", "quiet") == ""
    assert written("text", "warn", "gone", tracking_id="t1") == f"{STAMP} warn  wcfrelay.test: gone TrackingId:t1\n"
    assert written("text", "warn", "gone {tracking_id}", tracking_id="t1").endswith("gone t1\n")


def test_json_is_an_object_an_event() -> None:
    line = written("json", "error", "up on {port}", port=80, tracking_id="t1", ok=True, none=None, other=object())
    assert line.endswith("\n")
    assert json.loads(line) == {
        "time": STAMP,
        "level": "error",
        "logger": "wcfrelay.test",
        "message": "up on 80",
        "port": 80,
        "tracking_id": "t1",
        "ok": True,
        "none": None,
    }
    assert json.loads(written("json", "info", "a", message="b", time=1))["message"] == "a"
    assert json.loads(written("json", "info", "{a}", a="\ud800"))["message"] == "\ud800"


def failure() -> Failure:
    try:
        raise ValueError(f"bad sig={SECRET}")
    except ValueError:
        return Failure()  # type: ignore[no-untyped-call]


def test_a_failure_brings_its_traceback() -> None:
    text = written("text", "error", "broken", log_failure=failure())
    first, *rest = text.splitlines()
    assert first == f"{STAMP} error wcfrelay.test: broken"
    assert rest and all(line.startswith("    ") for line in rest)
    assert rest[-1].endswith("ValueError: bad sig=***")
    item = json.loads(written("json", "error", "broken", log_failure=failure()))
    assert item["message"] == "broken"
    assert item["failure"].endswith("ValueError: bad sig=***\n")


@given(st.text())
def test_remote_text_cannot_forge_a_line_or_steer_a_terminal(text: str) -> None:
    line = written("text", "info", "got {text}", text=text)
    assert line.startswith(f"{STAMP} info  wcfrelay.test: got ")
    first, *rest = line.removesuffix("\n").split("\n")
    assert first.isprintable() and all(line.startswith("    ") and line.isprintable() for line in rest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"SharedAccessSignature sr=h&sig={SECRET}&se=1&skn=root", "SharedAccessSignature sr=h&sig=***&se=1&skn=root"),
        (f"SharedAccessSignature SIG={SECRET}", "SharedAccessSignature SIG=***"),
        (
            f"Endpoint=sb://h/;SharedAccessKeyName=root;SharedAccessKey={SECRET};EntityPath=a",
            "Endpoint=sb://h/;SharedAccessKeyName=root;SharedAccessKey=***;EntityPath=a",
        ),
        (
            f"GET /$hc/a?sb-hc-action=listen&sb-hc-token={SECRET}&x=1",
            "GET /$hc/a?sb-hc-action=listen&sb-hc-token=***&x=1",
        ),
        (f'WRAP access_token="a b {SECRET}" more', "WRAP access_token=*** more"),
        (f'{{"header": "WRAP access_token=\\"a b {SECRET}\\""}}', '{"header": "WRAP access_token=***"}'),
        (f'WRAP access_token="a b {SECRET}', "WRAP access_token=***"),
        (f"SharedAccessSignature%20sr%3Dh%26sig%3D{SECRET}", "SharedAccessSignature%20sr%3Dh%26sig%3D***"),
        ("a signal, design=1, assign = 2", "a signal, design=1, assign = 2"),
        ("nothing here", "nothing here"),
    ],
)
def test_tokens_and_keys_are_redacted(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert expected in written("text", "info", "{text}", text=text)
    item = json.loads(written("json", "info", "{text}", text=text))
    assert item["message"] == item["text"] == expected


SCRIPT = """
import logging, sys
from twisted.logger import Logger
from wcfrelay.log import start_logging
Logger("early").info("before")
start_logging(sys.stderr, "json", sys.argv[1])
logging.getLogger("zeep.wsdl").warning("found %s", "it")
logging.getLogger("websockets").debug("a frame")
logging.getLogger("spyne").warning("one argument too few %s %s", 1)
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("spyne").exception("failed")
Logger("wcfrelay").debug("detail")
print("to standard output")
"""


@pytest.mark.parametrize("level", ["debug", "warn"])
def test_the_log_of_a_process(level: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(wcfrelay.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, level], capture_output=True, text=True, env=environment, timeout=20
    )
    assert done.stdout == "to standard output\n"
    items = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    seen = [(item["level"], item["logger"], item["message"]) for item in items]
    expected = [("warn", "zeep.wsdl", "found it"), ("error", "spyne", "failed")]
    if level == "debug":
        expected = [("info", "early", "before"), *expected, ("debug", "wcfrelay", "detail")]
    assert seen == expected
    assert "ZeroDivisionError" in items[-1 if level == "warn" else -2]["failure"]
    assert "a frame" not in done.stderr
    assert "Logging error" in done.stderr


class Access:
    """An access log on a clock of its own, and what it wrote."""

    def __init__(self, format: Literal["text", "json"] = "text") -> None:
        self.clock = Clock()
        self.stream = io.StringIO()
        self.log = AccessLog(self.stream, format, self.clock, lambda: TIME)

    def record(self, path: str = "/orders", relay: str = "orders", listener_id: str = "l1") -> None:
        self.log.record("t1", "10.0.0.1", "POST", path, 200, 12, 345, 0.00125, relay, listener_id)

    def lines(self) -> list[str]:
        return self.stream.getvalue().split("\n")[:-1]


def test_access_lines_in_text() -> None:
    access = Access()
    access.record()
    access.log.record("", "", "GET", "/", 404, 0, 0, 0.0, "", "")
    access.clock.advance(0.4)
    assert access.lines() == []
    access.clock.advance(0.2)
    assert access.lines() == [
        f"{STAMP} access t1 10.0.0.1 POST /orders 200 12 345 1.2 orders l1",
        f"{STAMP} access - - GET / 404 0 0 0.0 - -",
    ]
    assert access.clock.getDelayedCalls() == []
    access.record()
    access.clock.advance(0.6)
    assert len(access.lines()) == 3


def test_access_lines_in_json() -> None:
    access = Access("json")
    access.record()
    access.record(listener_id="\ud800")
    access.clock.advance(0.6)
    first, second = map(json.loads, access.lines())
    assert first == {
        "logger": "access",
        "time": STAMP,
        "tracking_id": "t1",
        "remote": "10.0.0.1",
        "method": "POST",
        "path": "/orders",
        "status": 200,
        "request_bytes": 12,
        "response_bytes": 345,
        "milliseconds": 1.2,
        "relay": "orders",
        "listener_id": "l1",
    }
    assert second == {**first, "listener_id": "\ud800"}


@given(st.text(), st.text())
def test_an_access_line_has_the_same_fields_whatever_remotes_send(path: str, listener_id: str) -> None:
    access = Access()
    access.record("/" + path, "with space", listener_id)
    access.clock.advance(0.6)
    [line] = access.lines()
    assert line.isprintable()
    assert len(line.split(" ")) == 12


class Batches(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, text: str) -> int:
        self.sizes.append(text.count("\n"))
        return super().write(text)


def test_a_burst_is_written_at_once_in_batches() -> None:
    access = Access()
    stream = Batches()
    access.log = AccessLog(stream, "text", access.clock, lambda: TIME)
    for _ in range(1300):
        access.record()
    assert stream.sizes == []
    access.clock.advance(0)
    assert stream.sizes == [512, 512]
    access.clock.advance(0.5)
    assert stream.sizes == [512, 512, 276]
    assert access.clock.getDelayedCalls() == []


def test_stopping_writes_what_waits() -> None:
    access = Access()
    access.log.stop()
    for _ in range(1300):
        access.record()
    access.log.stop()
    assert len(access.lines()) == 1300
    assert access.clock.getDelayedCalls() == []


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_dropped_entries_are_counted() -> None:
    warnings: list[int] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        if event.get("log_namespace") == "wcfrelay.log":
            warnings.append(event["count"])

    access = Access()
    globalLogPublisher.addObserver(observe)
    try:
        for _ in range(16 * 1024 + 7):
            access.record()
        access.log.stop()
        assert len(access.lines()) == 16 * 1024
        assert warnings == [7]
        broken = AccessLog(Full(), "text", access.clock)
        for _ in range(3):
            broken.record("t1", "10.0.0.1", "GET", "/", 200, 0, 0, 0.0, "", "")
        access.clock.advance(0.5)
        assert warnings == [7, 3]
    finally:
        globalLogPublisher.removeObserver(observe)
