"""A whole gateway node in memory: its own wiring over a clock, senders and listeners on connections without sockets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, capturedLogs, formatEvent

from tests.net.fakes import MemoryNetwork
from wcfrelay.address import path_segments
from wcfrelay.config import load
from wcfrelay.gateway.node import GatewayNode
from wcfrelay.gateway.relays import Relay, RelayStats
from wcfrelay.log import AccessLog
from wcfrelay.net.timers import Timers
from wcfrelay.net.websocket import BINARY, CONTINUATION, TEXT, WebSocket
from wcfrelay.sas import make_token

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
EPOCH = 1_700_000_000
HOST = "relay.test"
RULES = [
    {"name": "root", "rights": ["Listen", "Send", "Manage"], "primary_key": KEY},
    {"name": "listen", "rights": ["Listen"], "primary_key": KEY},
    {"name": "send", "rights": ["Send"], "primary_key": KEY},
]
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class End:
    """One end of a connection in memory, with the calls and the marks of asyncio's transports.

    A mark is passed once: ``pause_writing`` is not called again before ``resume_writing`` was.
    """

    HIGH, LOW = 64 * 1024, 16 * 1024

    def __init__(self, core: Any, port: int) -> None:
        self.core = core
        self.other: End
        self.reading = True
        self.closing = self.lost = self.paused = False
        self.waiting = bytearray()
        self.wrote = 0
        self._port = port

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing or self.lost:
            return
        self.waiting += data
        self.wrote += len(data)
        if len(self.waiting) > self.HIGH and not self.paused:
            self.paused = True
            self.core.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True
        self.waiting.clear()

    def is_closing(self) -> bool:
        return self.closing or self.lost

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_protocol(self, protocol: Any) -> None:
        self.core = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("203.0.113.7", self._port) if name == "peername" else default

    def step(self) -> bool:
        """Move one read's worth of bytes to the other end, or the end of the connection; whether anything moved."""
        other = self.other
        if self.lost:
            return False
        if other.lost:
            self.waiting.clear()
        if self.waiting and other.reading and not other.closing:
            data = bytes(self.waiting[:65536])
            del self.waiting[:65536]
            other.core.data_received(data)
        elif other.lost or (self.closing and (not self.waiting or other.closing)):
            self._lose()
        else:
            return False
        if self.paused and not self.lost and len(self.waiting) <= self.LOW:
            self.paused = False
            self.core.resume_writing()
        return True

    def _lose(self) -> None:
        self.lost = True
        self.core.connection_lost(None)


@dataclass
class Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def error(self) -> dict[str, str]:
        detail = json.loads(self.body)["error"]
        assert isinstance(detail, dict)
        return detail


class Client:
    """The far end of a connection to the gateway."""

    def __init__(self, gateway: Gateway, port: int = 0) -> None:
        self.gateway = gateway
        self.received = b""
        self.lost = False
        server = gateway.network.opened[port]()
        self.end, self.server_end = End(self, gateway.next_port()), End(server, gateway.next_port())
        self.end.other, self.server_end.other = self.server_end, self.end
        self.server_end._port = self.end._port
        gateway.ends += [self.end, self.server_end]
        gateway.clients.append(self)
        server.connection_made(self.server_end)

    def send(self, data: bytes) -> None:
        self.end.write(data)
        self.gateway.turn()

    def leave(self) -> None:
        """Be gone without a word, as a connection that broke."""
        self.end.abort()
        self.gateway.turn()

    # -- what the connection calls

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass


class Sender(Client):
    """An HTTP sender with one connection."""

    def __init__(self, gateway: Gateway, port: int = 0) -> None:
        super().__init__(gateway, port)
        self.methods: list[str] = []

    def ask(
        self,
        target: str = "/orders",
        method: str = "GET",
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        token: str | None = "root",
        version: str = "1.1",
    ) -> None:
        """Send a request with a length; ``token`` is the name of a rule, None for no token."""
        self.head(target, method, headers, None if body is None else len(body), token, version)
        if body:
            self.send(body)

    def head(
        self,
        target: str = "/orders",
        method: str = "POST",
        headers: Iterable[tuple[str, str]] = (),
        length: int | None = None,
        token: str | None = "root",
        version: str = "1.1",
    ) -> None:
        """Send a head; ``length`` -1 is chunked."""
        self.methods.append(method)
        fields = [("Host", HOST), *headers]
        if token is not None:
            fields.append(("ServiceBusAuthorization", self.gateway.token(rule=token)))
        if length == -1:
            fields.append(("Transfer-Encoding", "chunked"))
        elif length is not None:
            fields.append(("Content-Length", str(length)))
        text = "".join(f"{name}: {value}\r\n" for name, value in fields)
        self.send(f"{method} {target} HTTP/{version}\r\n{text}\r\n".encode("latin-1"))

    def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body, b"" for its end."""
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    @property
    def answers(self) -> list[Answer]:
        """The answers so far, without 1xx ones; the last may be incomplete."""
        return list(_answers(self.received, list(self.methods), self.lost))

    @property
    def answer(self) -> Answer:
        """The last answer."""
        return self.answers[-1]


def _answers(data: bytes, methods: list[str], ended: bool) -> Iterator[Answer]:
    while b"\r\n\r\n" in data:
        head, _, data = data.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        _, status, reason = line.split(" ", 2)
        headers = [(name, value) for name, _, value in (field.partition(": ") for field in fields)]
        answer = Answer(int(status), reason, headers, b"", True)
        if answer.status < 200:
            continue
        method = methods.pop(0) if methods else ""
        if method == "HEAD" or answer.status in (204, 304):
            pass
        elif answer.header("transfer-encoding") is not None:
            answer.complete = False
            while b"\r\n" in data:
                size, _, rest = data.partition(b"\r\n")
                length = int(size, 16)
                if len(rest) < length + 2:
                    break
                answer.body, data = answer.body + rest[:length], rest[length + 2 :]
                if not length:
                    answer.complete = True
                    break
        else:
            given = answer.header("content-length")
            length = int(given) if given is not None else len(data)
            answer.body, data = data[:length], data[length:]
            answer.complete = len(answer.body) == length if given is not None else ended
        yield answer


class Dialled(Client):
    """A listener's WebSocket: a control channel or a rendezvous. ``messages`` are objects for text, bytes for binary
    ones; ``closed_with`` is the gateway's close code."""

    def __init__(
        self, gateway: Gateway, target: str, headers: Iterable[tuple[str, str]] = (), tail: bytes = b""
    ) -> None:
        super().__init__(gateway)
        self.status = 0
        self.reason = ""
        self.answer: Answer | None = None
        self.socket: WebSocket
        self.messages: list[Any] = []
        self.closed_with: tuple[int, str] | None = None
        self._pieces: list[bytes] = []
        self._opcode = 0
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.send(f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}{fields}\r\n".encode() + tail)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if b"\r\n\r\n" not in self.received or self.status:
            return
        (answer,) = _answers(self.received.replace(b"HTTP/1.1 101 ", b"HTTP/1.1 204 ", 1), [], False)
        self.status, self.reason = int(self.received[9:12]), answer.reason
        self.answer = answer
        if self.status == 101:
            rest = self.received.partition(b"\r\n\r\n")[2]
            self.socket = WebSocket(self.gateway.network, self.gateway.peer_timers, client=True)
            self.socket.app = self
            self.socket.attach(self.end, rest)

    # -- what the WebSocket calls

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        if opcode != CONTINUATION:
            assert not self._pieces
            self._opcode = opcode
        self._pieces.append(data)
        if fin:
            whole = b"".join(self._pieces)
            self._pieces.clear()
            self.messages.append(json.loads(whole) if self._opcode == TEXT else whole)

    def closed(self, code: int, reason: str) -> None:
        assert self.closed_with is None
        self.closed_with = (code, reason)

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass

    # -- what the test calls

    @property
    def partial(self) -> bytes:
        """What has come of the message that is being received."""
        return b"".join(self._pieces)

    def text(self, message: Any) -> None:
        self.socket.send_text(message if isinstance(message, bytes) else json.dumps(message).encode())
        self.gateway.turn()

    def binary(self, data: bytes, fin: bool = True, opcode: int = BINARY) -> None:
        self.socket.send(opcode, data, fin)
        self.gateway.turn()

    def hang_up(self, code: int = 1000) -> None:
        self.socket.close(code)
        self.gateway.turn()

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [message["request"] for message in self.messages if isinstance(message, dict) and "request" in message]

    @property
    def request(self) -> dict[str, Any]:
        """The last request."""
        return self.requests[-1]

    def respond(
        self, body: bytes | None = b"", status: int | str = 200, request: dict[str, Any] | None = None, **members: Any
    ) -> None:
        """Answer ``request`` (the last one) here; ``body`` None: without, else in one message."""
        self.start(body is not None, status, request, **members)
        if body is not None:
            self.binary(body)

    def start(
        self, body: bool = True, status: int | str = 200, request: dict[str, Any] | None = None, **members: Any
    ) -> None:
        """Send the head of an answer."""
        response = {"requestId": (request or self.request)["id"], "statusCode": status, "body": body, **members}
        self.text({"response": response})

    def dial(self, request: dict[str, Any] | None = None, **options: Any) -> Dialled:
        """Open the rendezvous of ``request`` (the last one)."""
        scheme, _, rest = (request or self.request)["address"].partition("://")
        assert scheme == "ws" and rest.startswith(f"{HOST}/$hc/")
        return Dialled(self.gateway, rest.removeprefix(HOST), **options)


class _Network(MemoryNetwork):
    """Ports that are opened are kept, the HTTP port first."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Callable[[], Any]] = []
        self.closed = 0

    async def listen(self, make: Any, host: str, port: int, tls: Any = None) -> Any:
        self.opened.append(make)
        return _Port(self, 1000 + len(self.opened))


class _Port:
    def __init__(self, network: _Network, port: int) -> None:
        self._network = network
        self.port = port

    async def close(self) -> None:
        self._network.closed += 1


class Gateway:
    """A started :class:`GatewayNode` with one HTTP port and the admin port. ``settings`` are dotted paths of the
    configuration with ``__`` for the dots."""

    def __init__(self, **settings: Any) -> None:
        self.network = _Network()
        self.clock = self.network.clock
        self.peer_timers = Timers(self.clock)
        self.ends: list[End] = []
        self.clients: list[Client] = []
        self.links: list[Any] = []
        self.log = io.StringIO()
        self._ports = 40000
        self.access_log = AccessLog(self.log, "json", self.clock, now=self.unix_time)
        given = {name.replace("__", "."): value for name, value in settings.items()}
        config = load(
            None,
            {
                "gateway.store": "memory",
                "gateway.https.enabled": False,
                "gateway.limits.ping_interval": 100_000.0,
                "rules": RULES,
                **given,
            },
        )
        with mock.patch("wcfrelay.gateway.node.Network", lambda reactor: self.network):
            self.node = GatewayNode(config, self.clock, access_log=self.access_log, unix_time=self.unix_time)
        self.run(self.node.start())

    def next_port(self) -> int:
        self._ports += 1
        return self._ports

    def unix_time(self) -> float:
        return EPOCH + self.clock.seconds()

    def run(self, work: Any, seconds: float = 0.0) -> Any:
        """The result of a coroutine, after ``seconds``."""
        done: list[Any] = []
        failed: list[Any] = []
        Deferred.fromCoroutine(work).addCallbacks(done.append, failed.append)
        if seconds:
            self.advance(seconds)
        if failed:
            failed[0].raiseException()
        assert done, "not done yet"
        return done[0]

    # -- time

    def turn(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(10_000):
            moved = any([end.step() for end in self.ends])
            due = [call for call in self.clock.getDelayedCalls() if call.getTime() <= self.clock.seconds()]
            if due:
                self.clock.advance(0)
            elif not moved:
                self.ends = [end for end in self.ends if not end.lost]
                return
        raise AssertionError("there is no rest")

    def advance(self, seconds: float, step: float = 0.25) -> None:
        self.turn()
        steps = max(1, min(round(seconds / step), 400))
        for _ in range(steps):
            self.clock.advance(seconds / steps)
            self.turn()

    # -- people

    def token(self, path: str = "", rule: str = "root", lifetime: float = 3600, key: str = KEY) -> str:
        return make_token(f"http://{HOST}/{path}", rule, key, int(self.unix_time() + lifetime))

    def sender(self) -> Sender:
        return Sender(self)

    def listener(
        self, path: str = "orders", token: str | None = "", headers: Iterable[tuple[str, str]] = (), query: str = ""
    ) -> Dialled:
        """Register a listener; ``token`` "" is a good one."""
        fields = [*headers]
        if token is not None:
            fields.append(("ServiceBusAuthorization", token or self.token()))
        dialled = Dialled(self, f"/$hc/{path}?sb-hc-action=listen{query}", fields)
        if dialled.status == 101:
            relay = self.relay(path)
            assert relay is not None
            self.links.append(relay.listeners[-1])
        return dialled

    # -- inside

    def relay(self, path: str = "orders") -> Relay | None:
        return self.node._relays.get(path_segments(f"/{path}"))

    def stats(self, path: str = "orders") -> RelayStats:
        return self.node._relays.stats[path]

    @property
    def rendezvous(self) -> int:
        return len(self.node._services.rendezvous)

    @property
    def access_lines(self) -> list[dict[str, Any]]:
        self.advance(1)
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def deadlines(self) -> int:
        return sum(len(bucket) for bucket in self.node._timers._buckets.values())

    def assert_at_rest(self) -> None:
        """No exchange is in work."""
        self.turn()
        assert self.rendezvous == 0
        for link in self.links:
            assert not link.calls and not link._backlog
        for relay in self.node._relays:
            assert [link.load for link in relay.listeners] == [0] * len(relay.listeners)
        for path, stats in self.node._relays.stats.items():
            assert stats.active_connections == 0, path

    def assert_clean(self) -> None:
        """When everybody has left, nothing is left of them."""
        for client in self.clients:
            client.end.abort()
        self.advance(6)
        self.assert_at_rest()
        assert not self.ends, [type(end.core).__name__ for end in self.ends]
        for relay in self.node._relays:
            assert not relay.listeners and not relay.dynamic
            assert not self.run(self.node._store.registrations(relay.path))
        assert not self.node._store._registrations  # type: ignore[attr-defined]
        assert all(not front.connections for front in self.node._fronts)
        assert not self.node._services.sockets
        assert self.deadlines() == 0


@contextmanager
def gateway(failures: int | None = 0, **settings: Any) -> Iterator[Gateway]:
    """A gateway that is clean at the end, has logged ``failures`` failures (None: some), and never a token."""
    with capturedLogs() as events:
        made = Gateway(**settings)
        yield made
        made.assert_clean()
    logged = len([event for event in events if "log_failure" in event])
    assert logged == failures or (failures is None and logged), _texts(events)
    for text in [*_texts(events), made.log.getvalue()]:
        assert "sig=" not in text and "sig%3d" not in text.lower() and KEY not in text


def _texts(events: Iterable[LogEvent]) -> list[str]:
    return [
        formatEvent(event) + (event["log_failure"].getTraceback() if "log_failure" in event else "") for event in events
    ]
