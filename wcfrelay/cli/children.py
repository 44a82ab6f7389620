"""Processes of ours, started, read and stopped, and the signals that ask to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, Queue

__all__ = ["Child", "ChildError", "Interrupts"]

_START = 20.0
"""Seconds for a process to be ready."""
_STOP = 15.0
"""Seconds for a process to end by itself; a gateway gives exchanges in work 10."""
_LOG = 1000
"""Lines of a log that are kept."""


class ChildError(Exception):
    """A child did not become ready; the text has the end of its log."""


class Child:
    """A Python module that runs as a process: its standard output is read line by line, the end of its log kept."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.log: deque[str] = deque(maxlen=_LOG)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUTF8": "1", **environment},
        )
        self.pid = self._popen.pid
        self._lines: Queue[str | None] = Queue()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_log)]
        for reader in self._readers:
            reader.start()

    def lines_until(self, found: Callable[[str], bool]) -> list[str]:
        """Its output up to the first line that is ``found``."""
        lines: list[str] = []
        deadline = time.monotonic() + _START
        while not lines or not found(lines[-1]):
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except Empty:
                raise ChildError(f"the {self.name} was not ready within {_START:g} s{self._last_words()}") from None
            if line is None:
                raise ChildError(f"the {self.name} ended by itself{self._last_words()}")
            lines.append(line.strip())
        return lines

    def ask_to_stop(self) -> None:
        if self._popen.poll() is None:
            self._popen.terminate()

    def stop(self) -> bool:
        """Wait for its end; whether it ended by itself."""
        try:
            self._popen.wait(_STOP)
            return True
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
            return False
        finally:
            for reader in self._readers:
                reader.join(1.0)

    def _last_words(self) -> str:
        text = "".join(f"\n    {line.rstrip()}" for line in list(self.log)[-8:])
        return f"; its log ends:{text}" if text else ""

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            for line in stream:
                self._lines.put(line)
        self._lines.put(None)

    def _read_log(self) -> None:
        assert self._popen.stderr is not None
        with self._popen.stderr as stream:
            for line in stream:
                self.log.append(line)


class Interrupts:
    """Makes the first signal that asks to stop a KeyboardInterrupt, and ignores those behind it."""

    def __init__(self) -> None:
        self._held = self._came = self._done = False
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._take)

    def _take(self, *_: object) -> None:
        self._came = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self._came and not (self._held or self._done):
            self._done = True
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """One that comes inside the block takes effect at its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._interrupt()

    def ignore(self) -> None:
        self._done = True
