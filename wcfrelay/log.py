"""The log of a process, as text or as JSON lines, and the access log.

Everything goes through twisted.logger; what libraries give to :mod:`logging` is forwarded there. Nothing here knows a
relay, but everything written passes :func:`redact`, so that a token which slipped into a message stays unusable.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Literal, TextIO

import msgspec
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    formatEvent,
    globalLogBeginner,
)
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["AccessLog", "Observer", "redact", "start_logging"]

Format = Literal["text", "json"]

_MARKERS = ("sig", "sharedaccesskey", "sb-hc-token", "access_token")
_SECRET = re.compile(
    r"""(?<![a-z])(sig|SharedAccessKey|sb-hc-token|access_token)(=|%3d)(?:(\\?["']).*?(?:\3|$)|[^&;,\s"'\\]+)""",
    re.IGNORECASE,
)
_RANK = {level: rank for rank, level in enumerate(LogLevel.iterconstants())}


def redact(text: str) -> str:
    """``text`` with ``***`` for every value of ``sig``, ``SharedAccessKey``, ``sb-hc-token`` and ``access_token``."""
    lowered = text.lower()
    for marker in _MARKERS:
        if marker in lowered:
            return _SECRET.sub(r"\1\2***", text)
    return text


def start_logging(stream: TextIO, format: Format, level: str) -> None:
    """Write the log of this process to ``stream``, from ``level`` (debug, info, warn, error) up. Once a process.

    Debug messages of libraries are left out at every level: they show frames and bodies.
    """
    globalLogBeginner.beginLoggingTo([Observer(stream, format, level)], redirectStandardIO=False)
    root = logging.getLogger()
    root.addHandler(_Forwarder())
    root.setLevel(max(logging.INFO, logging.getLevelName(level.upper())))


class _Stamp:
    """ISO 8601 in UTC with milliseconds; most calls fall into the second of the one before."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def __call__(self, seconds: float) -> str:
        second = int(seconds)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((seconds - second) * 1000):03d}Z"


@implementer(ILogObserver)
class Observer:
    """Writes events of twisted.logger from ``level`` up.

    text: time, level, logger, message on a line; what follows a line break in the message is indented.
    json: an object a line with ``time``, ``level``, ``logger``, ``message``, ``failure`` (the traceback), and the
    event's own text, numbers and booleans.
    """

    def __init__(self, stream: TextIO, format: Format, level: str) -> None:
        self._stream = stream
        self._line = _text_line if format == "text" else _json_line
        self._least = _RANK[LogLevel.levelWithName(level)]
        self._stamp = _Stamp()

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level") or LogLevel.info
        if _RANK[level] >= self._least:
            line = self._line(event, self._stamp(event["log_time"]), level.name)
            self._stream.write(line + "\n")
            self._stream.flush()


def _text_line(event: LogEvent, at: str, level: str) -> str:
    message = formatEvent(event)
    tracking_id = event.get("tracking_id")
    if tracking_id and tracking_id not in message:
        message = f"{message} TrackingId:{tracking_id}"
    failure = event.get("log_failure")
    if failure is not None:
        message = f"{message}\n{failure.getTraceback().rstrip()}"
    message = redact(message)
    if not message.isprintable():
        # Remote text must not forge a line or steer a terminal.
        shown = (c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in message)
        message = "".join(shown).replace("\n", "\n    ")
    return f"{at} {level:5} {event.get('log_namespace', '-')}: {message}"


def _json_line(event: LogEvent, at: str, level: str) -> str:
    item: dict[str, Any] = {
        "time": at,
        "level": level,
        "logger": event.get("log_namespace", ""),
        "message": redact(formatEvent(event)),
    }
    failure = event.get("log_failure")
    if failure is not None:
        item["failure"] = redact(failure.getTraceback())
    for key, value in event.items():
        if not key.startswith("log_") and key not in item:
            if isinstance(value, str):
                item[key] = redact(value)
            elif value is None or isinstance(value, (bool, int, float)):
                item[key] = value
    try:
        return msgspec.json.encode(item).decode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(item)


class _Forwarder(logging.Handler):
    """Hands the records of :mod:`logging` to twisted.logger."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            failure: dict[str, Any] = {}
            if record.exc_info and record.exc_info[1] is not None:
                kind, value, trace = record.exc_info
                failure = {"log_failure": Failure(value, kind, trace)}  # type: ignore[no-untyped-call]
            Logger(record.name).emit(_level(record.levelno), "{log_text}", log_text=record.getMessage(), **failure)
        except Exception:
            self.handleError(record)


def _level(number: int) -> Any:
    if number >= logging.ERROR:
        return LogLevel.error
    if number >= logging.WARNING:
        return LogLevel.warn
    return LogLevel.info if number >= logging.INFO else LogLevel.debug


class _Entry(msgspec.Struct, tag_field="logger", tag="access"):
    time: str
    tracking_id: str
    remote: str
    method: str
    path: str
    status: int
    request_bytes: int
    response_bytes: int
    milliseconds: float
    relay: str
    listener_id: str


class AccessLog:
    """One line for each exchange, formatted and written in batches outside the exchange.

    Lines appear at most half a second late. When the entries outrun the writing, or the stream fails, entries are
    dropped and a warning tells how many. ``clock`` is the reactor; ``now`` gives Unix seconds.

    text: time, ``access``, then the arguments of :meth:`record` in their order, the duration in milliseconds, ``-`` for
    what is empty. json: an object a line with ``"logger": "access"`` and the same by name, ``milliseconds`` for the
    duration.
    """

    _BATCH = 512  # at most so many in one turn of the reactor: about a millisecond
    _WAITING = 16 * 1024
    _DELAY = 0.5
    _SPACES = 11  # in a line of text

    def __init__(
        self, stream: TextIO, format: Format, clock: IReactorTime, now: Callable[[], float] = time.time
    ) -> None:
        self._stream = stream
        self._lines = self._text if format == "text" else self._json
        self._clock = clock
        self._now = now
        self._stamp = _Stamp()
        self._entries: deque[tuple[Any, ...]] = deque()
        self._encoder = msgspec.json.Encoder()
        self._timer: IDelayedCall | None = None
        self._dropped = 0
        self._logger = Logger("wcfrelay.log")

    def record(
        self,
        tracking_id: str,
        remote: str,
        method: str,
        path: str,
        status: int,
        request_bytes: int,
        response_bytes: int,
        seconds: float,
        relay: str,
        listener_id: str,
    ) -> None:
        """Enter an exchange that has ended. ``path`` has no query: that may hold a token. What is unknown is ``""``."""
        entries = self._entries
        entries.append(
            (
                self._now(),
                tracking_id,
                remote,
                method,
                path,
                status,
                request_bytes,
                response_bytes,
                seconds,
                relay,
                listener_id,
            )
        )
        if self._timer is None:
            self._timer = self._clock.callLater(self._DELAY, self._write)
        waiting = len(entries)
        if waiting >= self._BATCH:
            self._crowded(waiting)

    def _crowded(self, waiting: int) -> None:
        if waiting == self._BATCH and self._timer is not None:
            self._timer.reset(0)
        elif waiting > self._WAITING:
            self._entries.pop()
            self._dropped += 1

    def stop(self) -> None:
        """Write what waits. Nothing may be recorded afterwards."""
        while self._timer is not None:
            self._timer.cancel()
            self._write()

    def _write(self) -> None:
        self._timer = None
        entries = self._entries
        batch = list(islice(entries, self._BATCH))
        if len(batch) == len(entries):
            entries.clear()
        else:
            for _ in batch:
                entries.popleft()
        try:
            self._stream.write(self._lines(batch))
            self._stream.flush()
        except OSError:
            self._dropped += len(batch)
        if self._dropped:
            self._logger.warn("{count} entries of the access log were dropped", count=self._dropped)
            self._dropped = 0
        if entries:
            self._timer = self._clock.callLater(0 if len(entries) >= self._BATCH else self._DELAY, self._write)

    def _text(self, batch: list[tuple[Any, ...]]) -> str:
        stamp = self._stamp
        lines = []
        for at, tracking_id, remote, method, path, status, asked, given, seconds, relay, listener_id in batch:
            line = (
                f"{stamp(at)} access {tracking_id or '-'} {remote or '-'} {method} {path} {status} {asked} {given}"
                f" {seconds * 1000:.1f} {relay or '-'} {listener_id or '-'}"
            )
            if line.count(" ") != self._SPACES or not line.isprintable():
                words = (tracking_id, remote, method, path, status, asked, given, seconds * 1000, relay, listener_id)
                line = f"{stamp(at)} access {' '.join(map(_word, words))}"
            lines.append(line)
        return "\n".join(lines) + "\n"

    def _json(self, batch: list[tuple[Any, ...]]) -> str:
        stamp = self._stamp
        entries = [
            _Entry(
                stamp(at), tracking_id, remote, method, path, status, asked, given, round(seconds * 1000, 1), relay, by
            )
            for at, tracking_id, remote, method, path, status, asked, given, seconds, relay, by in batch
        ]
        try:
            return self._encoder.encode_lines(entries).decode()
        except UnicodeEncodeError:  # a lone surrogate
            return "".join(json.dumps(msgspec.to_builtins(entry)) + "\n" for entry in entries)


def _word(value: object) -> str:
    """One word for a field of the access log, whatever a remote put into it."""
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value) or "-"
    return text if text.isprintable() and " " not in text else ascii(text).replace(" ", "\\x20")
