"""What tests of the hybrid listener have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

CONTINUATION, TEXT, BINARY = 0, 1, 2
LIMIT = 64 * 1024


class FakeSocket:
    """A WebSocket whose peer is the test."""

    def __init__(self) -> None:
        self.app: Any = None
        self.sent: list[tuple[int, bytes, bool]] = []
        self.close_code: int | None = None
        self.reading = True
        self.keep_alive_args: tuple[float, float] | None = None

    def send(self, opcode: int, data: bytes, fin: bool = True) -> None:
        if self.close_code is None:
            self.sent.append((opcode, data, fin))

    def send_text(self, data: bytes) -> None:
        self.send(TEXT, data)

    def send_binary(self, data: bytes) -> None:
        self.send(BINARY, data)

    def keep_alive(self, interval: float, timeout: float) -> None:
        self.keep_alive_args = (interval, timeout)

    def close(self, code: int = 1000, reason: str = "") -> None:
        if self.close_code is None:
            self.close_code = code

    def abort(self) -> None:
        self.close(1006)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    # -- the peer

    def text(self, command: dict[str, Any] | bytes) -> None:
        self.frame(TEXT, command if isinstance(command, bytes) else json.dumps(command).encode())

    def frame(self, opcode: int, data: bytes, fin: bool = True) -> None:
        if self.close_code is None:
            self.app.frame_received(opcode, data, fin)

    def response(self, at: int = 0) -> dict[str, Any]:
        opcode, data, fin = self.sent[at]
        assert (opcode, fin) == (TEXT, True)
        answer = json.loads(data)["response"]
        assert isinstance(answer, dict)
        return answer


class Responder:
    """Records what it is told; ``events`` in order."""

    def __init__(self) -> None:
        self.body = b""
        self.events: list[str] = []
        self.error: Exception | None = None

    def body_received(self, data: bytes) -> None:
        self.body += data
        self.events.append("data")

    def body_ended(self) -> None:
        self.events.append("end")

    def cancelled(self, error: Exception) -> None:
        self.events.append("cancelled")
        self.error = error

    def pause_response(self) -> None:
        self.events.append("pause")

    def resume_response(self) -> None:
        self.events.append("resume")


def request(**members: Any) -> dict[str, Any]:
    base = {"address": "wss://g/$hc/p?r", "id": "i1", "requestTarget": "/p/x?a=1", "method": "GET", "body": False}
    return {"request": {**base, **members}}


def failures(logs: Sequence[Any]) -> list[type[BaseException]]:
    """The kinds of failures that were logged."""
    return [event["log_failure"].type for event in logs if "log_failure" in event]
