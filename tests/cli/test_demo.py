"""``wcfrelay demo`` as a person sees it, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

_DEMO = [sys.executable, "-m", "wcfrelay", "demo"]


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )


def _nothing_is_left(demo: subprocess.Popen[str], folder: Path) -> None:
    """No process of its group, no file of its own."""
    deadline = time.monotonic() + 5  # an ended child of an ended process is there until somebody collects it
    while True:
        try:
            os.killpg(demo.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline, "a process of the demo is left"
        time.sleep(0.05)
    assert list(folder.iterdir()) == []


def test_it_shows_the_main_job_and_ends_by_itself(tmp_path: Path) -> None:
    begun = time.monotonic()
    with _start(_DEMO, tmp_path) as demo:
        output, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (0, ""), output
    assert time.monotonic() - begun < 30  # about three seconds where nothing else runs
    for piece in (
        "calculator.Add(a=1.5, b=2.25)                       3.75 ",
        "fault Client.DivideByZero: The divisor is zero.",
        "receipt 1001: 12 bolt, 4.20",
        "There are no listeners connected for the endpoint.",
        "(exit code 4)",
        "\nDone in ",
    ):
        assert piece in output
    assert "Traceback" not in output and "SharedAccessKey" not in output
    _nothing_is_left(demo, tmp_path)


@pytest.mark.parametrize("moment", ["a gateway ", "Called with zeep"])
def test_it_can_be_interrupted(tmp_path: Path, moment: str) -> None:
    with _start(_DEMO, tmp_path) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if moment in line:
                break
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert errors == "\nInterrupted; everything that was started is stopped.\n"
    _nothing_is_left(demo, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("_ORDERS", "wcfrelay.demo.nothing", "the orders service ended by itself; its log ends:"),
        ("_CALCULATOR", "wcfrelay.demo.nothing:application", "the listener of calculator ended by itself"),
        ("_NOBODY", "orders", "the exit code should be 4"),
    ],
)
def test_a_step_that_fails_ends_it_with_the_reason(tmp_path: Path, name: str, value: str, reason: str) -> None:
    script = f"from wcfrelay.cli import demo; demo.{name} = {value!r}; demo.demo()"
    with _start([sys.executable, "-c", script], tmp_path) as demo:
        output, errors = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert f"FAILED: {reason}" in errors
    assert "Done" not in output and "Traceback" not in output + errors.partition("its log ends:")[0]
    _nothing_is_left(demo, tmp_path)
