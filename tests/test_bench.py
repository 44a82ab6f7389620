"""The benchmarks run and their rows make sense; how fast anything was is not asserted."""

from __future__ import annotations

import json
import math
import socket
import sys
from pathlib import Path
from typing import cast

import pytest

import bench.__main__ as program
from bench.__main__ import BENCHMARKS, main
from bench.lab import BenchError
from bench.report import Goal, Row, Table, as_json, as_text
from bench.settings import Settings
from bench.stream import Message

_SHORT = Settings(rounds=1, seconds=1, connections=(8,), bulk_bytes=8 << 20, listeners=30)


@pytest.mark.system
@pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks run on Linux only")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_short_round_gives_plausible_rows(name: str) -> None:
    missing = BENCHMARKS[name].missing()
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    rows = BENCHMARKS[name].run(_SHORT)
    assert rows
    for row in rows:
        assert row.benchmark == name
        assert len(row.values) == 1
        assert all(math.isfinite(value) and value >= 0 for value in (*row.values, *row.ratios))
        if row.unit in ("calls/s", "MB/s", "p50 ms", "CPU µs/call", "MB"):
            assert row.values[0] > 0
    compared = {row.peer for row in rows if row.target in ("relay", "beside bulk")}
    assert (
        compared
        == {
            "calls": {"nginx proxy"},
            "bulk": {"nginx proxy"},
            "lone": {"nginx proxy"},
            "mixed": {"idle"},
            "memory": set(),
            "storm": set(),
            "spyne": {"direct"},
        }[name]
    )
    assert len(as_text(rows).splitlines()) == len(rows) + 2


def test_what_is_missing_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(program, "wrk", lambda: None)
    monkeypatch.setattr(program, "nginx", lambda: None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(["calls", "bulk", "--json", str(tmp_path / "out.json")]) == 0
    shown = capsys.readouterr().out
    assert "calls: left out, wrk and nginx not installed" in shown
    assert "bulk: left out, nginx not installed" in shown
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["rows"] == []


def test_a_benchmark_that_fails_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: Settings) -> list[Row]:
        raise BenchError("the backend is gone")

    def work(settings: Settings) -> list[Row]:
        return [Row("storm", "all", "gateway", "s", (1.0,))]

    monkeypatch.setitem(program.BENCHMARKS, "memory", program.Benchmark(fail))
    monkeypatch.setitem(program.BENCHMARKS, "storm", program.Benchmark(work))
    monkeypatch.setattr(sys, "platform", "linux")
    assert main(["memory", "storm"]) == 1
    shown = capsys.readouterr().out
    assert "memory: failed, the backend is gone" in shown
    assert "storm: all" in shown


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SystemExit):
        main(["cals"])
    assert "there is no benchmark 'cals'" in capsys.readouterr().err


def test_ratios_are_taken_round_by_round() -> None:
    table = Table("calls")
    for proxy, relay in ((100.0, 40.0), (50.0, 30.0), (200.0, 100.0)):
        table.add("1 connection", "proxy", "calls/s", proxy)
        table.add("1 connection", "relay", "calls/s", relay)
    proxy_row, relay_row = table.rows({"relay": "proxy"}, {("relay", "calls/s"): Goal(0.45)})
    assert (proxy_row.peer, proxy_row.ratios, proxy_row.met) == ("", (), None)
    assert (relay_row.peer, relay_row.ratios, relay_row.met) == ("proxy", (0.4, 0.6, 0.5), True)
    shown = as_json(relay_row)
    assert (shown["median"], shown["min"], shown["max"], shown["ratio"]) == (40.0, 30.0, 100.0, 0.5)


@pytest.mark.parametrize(
    ("goal", "values", "met"),
    [
        (Goal(2.5, at_most=True), (2.4, 2.5, 9.0), True),
        (Goal(2.5, at_most=True), (2.4, 2.6, 9.0), False),
        (Goal(0.8), (0.9,), True),
        (Goal(0.8), (0.7,), False),
    ],
)
def test_a_goal_without_a_peer_is_for_the_median(goal: Goal, values: tuple[float, ...], met: bool) -> None:
    row = Row("memory", "an idle listener", "WebSocket", "KB", values, goal=goal)
    assert row.met is met
    assert ("NOT MET" in as_text([row])) is not met


class _Trickle:
    """A socket that gives ``data`` in pieces of ``step`` bytes."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = data
        self._step = step

    def recv_into(self, buffer: memoryview) -> int:
        piece, self._data = self._data[: self._step], self._data[self._step :]
        buffer[: len(piece)] = piece
        return len(piece)


def _read(data: bytes, step: int) -> Message:
    message = Message(cast(socket.socket, _Trickle(data, step)))
    assert message.read_head()
    message.read_body()
    return message


_HEAD = b"HTTP/1.1 200 OK\r\nServer: x\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_CHUNKS = b"5\r\nhe\r\no\r\n1a;name=value\r\n" + b"y" * 26 + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("step", range(1, 40))
def test_a_body_is_counted_under_any_split(step: int) -> None:
    assert _read(_CHUNKED + _CHUNKS, step).body == 31
    assert _read(_HEAD + b"Content-Length: 30\r\n\r\n" + b"z" * 30, step).body == 30
    assert _read(_HEAD + b"Content-Length: 0\r\n\r\n", step).body == 0


@pytest.mark.parametrize("length", [5, 60, len(_CHUNKED), len(_CHUNKED + _CHUNKS) - 1])
def test_a_cut_message_is_an_error(length: int) -> None:
    with pytest.raises(BenchError, match="closed"):
        _read((_CHUNKED + _CHUNKS)[:length], 7)
