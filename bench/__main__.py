"""``python -m bench [NAME …]``: run benchmarks, print a table, write JSON."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.bulk import bulk, mixed
from bench.calls import calls, lone
from bench.echo import spyne
from bench.lab import BenchError
from bench.load import wrk
from bench.many import memory, storm
from bench.peers import nginx
from bench.report import Row, as_json, as_text
from bench.settings import Settings, progress

__all__ = ["BENCHMARKS", "Benchmark", "main"]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """``needs`` are programs without which it cannot run."""

    run: Callable[[Settings], list[Row]]
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        here = {"wrk": wrk(), "nginx": nginx()}
        return [program for program in self.needs if here[program] is None]


BENCHMARKS = {
    "calls": Benchmark(calls, ("wrk", "nginx")),
    "bulk": Benchmark(bulk, ("nginx",)),
    "lone": Benchmark(lone, ("wrk", "nginx")),
    "mixed": Benchmark(mixed, ("wrk", "nginx")),
    "memory": Benchmark(memory),
    "storm": Benchmark(storm),
    "spyne": Benchmark(spyne),
}


def main(arguments: Sequence[str] | None = None) -> int:
    if sys.platform != "linux":
        progress("The benchmarks read CPU times and memory as Linux has them: they run there only.")
        return 2
    chosen, settings, file = _parse(arguments)
    rows: list[Row] = []
    left_out: dict[str, str] = {}
    failed: dict[str, str] = {}
    began = time.time()
    try:
        for name in chosen:
            missing = BENCHMARKS[name].missing()
            if missing:
                left_out[name] = f"{' and '.join(missing)} not installed (apt-get install wrk nginx-light)"
                continue
            try:
                rows += BENCHMARKS[name].run(settings)
            except BenchError as error:
                failed[name] = str(error)
    except KeyboardInterrupt:
        progress("Interrupted; everything that was started is stopped.")
        return 130
    if rows:
        print(as_text(rows))
    for name, reason in left_out.items():
        print(f"{name}: left out, {reason}")
    for name, reason in failed.items():
        print(f"{name}: failed, {reason}")
    if file is not None:
        report = {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "machine": {"cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "rows": [as_json(row) for row in rows],
            "left_out": left_out,
            "failed": failed,
        }
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return 1 if failed else 0


def _parse(arguments: Sequence[str] | None) -> tuple[list[str], Settings, Path | None]:
    what = (f"  {name:8}{inspect.getdoc(each.run)}".replace("\n", "\n" + " " * 10) for name, each in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="The relay beside its peers on loopback. Only ratios inside one run mean anything.",
        epilog="benchmarks:\n" + "\n".join(what),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = Settings()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all without one")
    parser.add_argument("--rounds", type=_count, default=usual.rounds, help="interleaved rounds [%(default)s]")
    parser.add_argument("--seconds", type=_count, default=usual.seconds, help="of one measurement [%(default)s]")
    parser.add_argument(
        "--connections",
        type=lambda text: tuple(_count(part) for part in text.split(",")),
        default=usual.connections,
        metavar="N,N",
        help="of calls [1,32,128]",
    )
    parser.add_argument("--listeners", type=_count, default=usual.listeners, help="of memory and storm [%(default)s]")
    parser.add_argument("--tls", action="store_true", help="calls, memory: over TLS as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values there")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    settings = Settings(
        rounds=given.rounds,
        seconds=given.seconds,
        connections=given.connections,
        tls=given.tls,
        listeners=given.listeners,
    )
    return given.names or list(BENCHMARKS), settings, given.json


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _allow_open_files() -> None:
    """Children inherit it: a gateway with thousands of listeners needs as many descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    _allow_open_files()
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
