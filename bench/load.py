"""Load: ``wrk`` with a SOAP call on keep-alive connections."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.lab import BenchError, Lab
from bench.peers import CALL, Target

__all__ = ["Load", "load", "wrk"]

_SCRIPT = Path(__file__).with_name("call.lua")


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk showed: latencies in ms, CPU time of the target's processes in µs a call."""

    calls_per_second: float
    p50: float
    p99: float
    cpu_per_call: float


def wrk() -> str | None:
    return shutil.which("wrk")


def load(lab: Lab, target: Target, connections: int, seconds: float) -> Load:
    """Call ``target`` for ``seconds``, which is rounded up to whole ones: wrk knows no others.

    :raises BenchError: a call failed, or none was made.
    """
    program = wrk()
    if program is None:
        raise BenchError("wrk is not installed.")
    body = lab.folder / "call.xml"
    if not body.exists():
        body.write_bytes(CALL)
    command = [program, "-t1", f"-c{connections}", f"-d{seconds:g}", "--timeout=10", "-s", str(_SCRIPT), target.url]
    before = target.cpu_seconds()
    done = subprocess.run(
        command,
        env=os.environ | {"BENCH_BODY": str(body), "BENCH_TOKEN": target.token},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    )
    used = target.cpu_seconds() - before
    if done.returncode:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    seen = json.loads(done.stdout.splitlines()[-1])
    failed = seen["refused"] + seen["broken"] + seen["late"]
    if failed or not seen["calls"]:
        raise BenchError(
            f"{target.name}, {connections} connections: of {seen['calls']} calls {seen['refused']} were refused, "
            f"{seen['broken']} broken, {seen['late']} too late."
        )
    return Load(seen["calls"] / seen["seconds"], seen["p50"] / 1000, seen["p99"] / 1000, used / seen["calls"] * 1e6)
