"""The processes of a benchmark: started in a folder of their own, measured, and stopped whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

__all__ = ["BenchError", "Child", "Lab", "free_port"]

_ROOT = Path(__file__).parents[1]
_START = 30.0
_STOP = 10.0
_POLL = 0.005
_PORTS_FROM = 10_000
_PORT_TRIES = 100


class BenchError(Exception):
    """A measurement is impossible or would be wrong; the text says why."""


class Child:
    """A process with its output and its log in files. It leads a session, so that a Ctrl-C meant for the benchmark does
    not reach it, and so that its own children can be told from all others."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.output = folder / f"{name}.out"
        self.log = folder / f"{name}.log"
        with self.output.open("wb") as output, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                cwd=_ROOT,
                env=os.environ | env,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def cpu_seconds(self) -> float:
        """Scheduler time of the process and its children so far, user and system, to the nanosecond."""
        # Linux's encoding of "CPU clock of all threads of a process", see clock_getcpuclockid(3).
        return sum(time.clock_gettime((~pid) << 3 | 2) for pid in self._session())

    def resident_bytes(self) -> int:
        """Resident memory of the process itself."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _session(self) -> list[int]:
        members = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == self.pid:
                        members.append(int(entry.name))
                except ProcessLookupError:
                    continue
        return members

    def wait_for(self, pattern: str, timeout: float = _START, count: int = 1) -> re.Match[str]:
        """The match number ``count`` of ``pattern`` (``^`` and ``$`` are those of a line) in its output.

        :raises BenchError: as :meth:`wait_until`.
        """
        found: list[re.Match[str]] = []

        def there() -> bool:
            found[:] = re.finditer(pattern, self.output.read_text("utf-8", "replace"), re.MULTILINE)
            return len(found) >= count

        self.wait_until(there, timeout)
        return found[count - 1]

    def wait_until(self, done: Callable[[], bool], timeout: float = _START) -> None:
        """Return when ``done()``.

        :raises BenchError: it ended before, or ``timeout`` seconds went by; the text has the end of its log.
        """
        deadline = time.monotonic() + timeout
        while True:
            ended = self._process.poll() is not None
            if done():
                return
            if ended or time.monotonic() > deadline:
                what = f"ended with {self._process.returncode}" if ended else f"did not get there in {timeout:g} s"
                raise BenchError(f"{self.name} {what}.\n{self._log_tail()}")
            time.sleep(_POLL)

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])

    def terminate(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """``kill -9``, and wait."""
        self._process.kill()
        self._process.wait()

    def wait_stopped(self) -> None:
        """Wait until it is gone after :meth:`terminate`; what does not go is killed."""
        try:
            self._process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.kill()


class Lab:
    """A folder and the children started in it; both are gone when the block ends."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="wcfrelay-bench-")
        self.folder = Path(self._temporary.name)
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An impatient second Ctrl-C must not leave half of the children behind.
        before = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for child in reversed(self._children):
                child.terminate()
            for child in self._children:
                child.wait_stopped()
            self._temporary.cleanup()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> Child:
        child = Child(name, command, self.folder, env or {})
        self._children.append(child)
        return child

    def start_python(self, name: str, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        return self.start(name, [sys.executable, "-m", module, *arguments], env)

    def stop(self, child: Child) -> None:
        child.terminate()
        child.wait_stopped()
        self._children.remove(child)

    def trim_logs(self) -> None:
        """Empty all logs: an access log of a run at full speed grows by megabytes a second."""
        for log in self.folder.glob("*.log"):
            os.truncate(log, 0)  # whoever writes it has it open for appending


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def free_port() -> int:
    """A port on 127.0.0.1 for a program that cannot choose one itself: nobody has it now, and it is none of those that
    the kernel hands out, so that nobody gets it by chance before the program does."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(_PORT_TRIES):
        port = random.randrange(_PORTS_FROM, max(lowest, 2 * _PORTS_FROM))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BenchError("No free port was found on 127.0.0.1.")
