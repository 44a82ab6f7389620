"""Streams on both kinds of reactor: the adapter in memory, and the same scenarios on real sockets in both worlds."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener, ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import directlyProvides

from tests.net.fakes import MemoryNetwork
from wcfrelay.errors import GatewayUnreachableError
from wcfrelay.net.network import Listening, Network, ReactorAdapter, tune_transport
from wcfrelay.net.tls import ClientTls, ServerTls, development_certificate


class Core:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.data = b""
        self.marks: list[str] = []
        self.lost: list[Exception | None] = []
        self.keeps_half_open = False
        self.on_change: Callable[[], None] = lambda: None

    def connection_made(self, transport: Any) -> None:
        assert self.transport is None
        self.transport = transport
        self.on_change()

    def data_received(self, data: bytes) -> None:
        assert isinstance(data, bytes) and data and not self.lost
        self.data += data
        self.on_change()

    def eof_received(self) -> bool | None:
        self.marks.append("eof")
        return self.keeps_half_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)
        assert len(self.lost) == 1
        self.on_change()

    def pause_writing(self) -> None:
        self.marks.append("pause")
        self.on_change()

    def resume_writing(self) -> None:
        self.marks.append("resume")
        self.on_change()


# -- time


def test_time_comes_from_the_reactor() -> None:
    network = MemoryNetwork()
    calls: list[str] = []
    network.call_soon(lambda: calls.append("soon"))
    network.call_later(2, calls.append, "later")
    assert not calls
    network.clock.advance(0)
    assert calls == ["soon"] and network.seconds() == 0
    network.clock.advance(2)
    assert calls == ["soon", "later"] and network.seconds() == 2


def test_sleep_ends_or_is_cancelled() -> None:
    network = MemoryNetwork()
    ended: list[Any] = []
    Deferred.fromCoroutine(network.sleep(3)).addCallback(lambda _: ended.append("slept"))
    network.clock.advance(2.9)
    assert not ended
    network.clock.advance(0.1)
    assert ended == ["slept"]
    sleeping = Deferred.fromCoroutine(network.sleep(3))
    sleeping.addErrback(lambda problem: ended.append(problem.type))
    sleeping.cancel()
    assert ended == ["slept", CancelledError] and not network.clock.getDelayedCalls()


# -- the adapter


class Twisted(StringTransport):
    """Knows what was called, and which producer is registered."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


# Twisted leaves these without annotations.
new_transport: Any = Twisted
failure: Any = Failure


def adapted(tls: bool = False) -> tuple[Core, ReactorAdapter, Any]:
    core, transport = Core(), new_transport()
    if tls:
        directlyProvides(transport, ISSLTransport)
    adapter: Any = ReactorAdapter(core)
    adapter.makeConnection(transport)
    return core, adapter, transport


def test_a_core_on_a_twisted_transport() -> None:
    core, adapter, transport = adapted()
    assert core.transport is adapter and adapter.ready.called
    adapter.dataReceived(b"abc")
    for data in (b"one", bytearray(b"two"), memoryview(b"three")):
        adapter.write(data)
    adapter.writelines([b"4", bytearray(b"5")])
    assert core.data == b"abc" and transport.value() == b"onetwothree45"
    adapter.pause_reading()
    assert transport.producerState == "paused"
    adapter.resume_reading()
    assert transport.producerState == "producing"
    assert transport.producer is adapter and transport.streaming
    adapter.pauseProducing()
    adapter.resumeProducing()
    adapter.stopProducing()
    assert core.marks == ["pause", "resume"]


def test_under_tls_the_core_hears_of_a_connection_after_the_handshake() -> None:
    core, adapter, _ = adapted(tls=True)
    assert core.transport is None and not adapter.ready.called
    assert IHandshakeListener.providedBy(adapter)
    adapter.handshakeCompleted()
    assert core.transport is adapter and adapter.ready.called
    assert adapter.get_extra_info("ssl_object") is not None


def test_a_handshake_that_fails_is_not_the_cores_business() -> None:
    core, adapter, _ = adapted(tls=True)
    failures: list[Any] = []
    adapter.ready.addErrback(failures.append)
    adapter.connectionLost(failure(ConnectionLost("no shared cipher")))
    assert failures[0].check(ConnectionLost) and core.transport is None and not core.lost
    adapter.abort()


@pytest.mark.parametrize(("reason", "kind"), [(ConnectionDone(), type(None)), (ConnectionLost(), ConnectionLost)])
def test_the_end(reason: Exception, kind: type[Exception]) -> None:
    core, adapter, transport = adapted()
    adapter.connectionLost(failure(reason))
    assert isinstance(core.lost[0], kind) and adapter.is_closing()
    for call in (adapter.pauseProducing, adapter.resumeProducing, adapter.close, adapter.abort):
        call()
    adapter.write(b"late")
    assert not core.marks and transport.value() == b"" and not transport.aborted


def test_closing_writes_nothing_more_and_waits_for_the_transport() -> None:
    core, adapter, transport = adapted()
    adapter.write(b"last")
    adapter.close()
    adapter.close()
    adapter.write(b"late")
    adapter.pause_reading()
    assert transport.disconnecting and transport.value() == b"last" and adapter.is_closing() and not core.lost
    assert transport.producer is None and transport.producerState == "producing"
    adapter.abort()
    assert transport.aborted


@pytest.mark.parametrize("keeps", [True, False])
def test_a_half_closed_connection_is_the_cores_choice(keeps: bool) -> None:
    core, adapter, transport = adapted()
    core.keeps_half_open = keeps
    adapter.readConnectionLost()
    assert core.marks == ["eof"] and transport.disconnecting is not keeps
    adapter.writeConnectionLost()
    assert transport.aborted


def test_another_core_may_take_over() -> None:
    core, adapter, _ = adapted()
    other = Core()
    adapter.set_protocol(other)
    adapter.dataReceived(b"abc")
    adapter.pauseProducing()
    adapter.connectionLost(failure(ConnectionDone()))
    assert (core.data, core.marks, core.lost) == (b"", [], [])
    assert (other.data, other.marks, other.lost) == (b"abc", ["pause"], [None])


def test_what_is_known_of_a_connection() -> None:
    _, adapter, transport = adapted()
    assert adapter.get_extra_info("peername") == ("192.168.1.1", 54321)
    assert adapter.get_extra_info("socket", "none") == "none" and adapter.get_extra_info("other", 5) == 5
    assert adapter.get_extra_info("ssl_object") is None
    transport.getPeer = object  # neither host nor port, as of a UNIX socket
    assert adapter.get_extra_info("peername", "unix") == "unix"


# -- real sockets, in both worlds


class World:
    """A scenario's network, and waiting for things to become true."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.cores: list[Core] = []
        self.ports: list[Listening] = []

    def core(self) -> Core:
        self.cores.append(Core())
        return self.cores[-1]

    async def until(self, true: Callable[[], object], seconds: float = 5.0) -> None:
        end = self.network.seconds() + seconds
        while not true():
            assert self.network.seconds() < end, "this took too long"
            await self.network.sleep(0.002)

    async def listen(self, tls: ServerTls | None = None, host: str = "127.0.0.1", port: int = 0) -> Listening:
        self.ports.append(await self.network.listen(self.core, host, port, tls))
        return self.ports[-1]

    async def received(self, core: Core, data: bytes) -> None:
        await self.until(lambda: core.data == data)

    async def pair(self, port: int, tls: ClientTls | None = None) -> tuple[Core, Core]:
        """A client's core and the server's."""
        known = len(self.cores)
        client = await self.network.connect(self.core, "127.0.0.1", port, tls)
        await self.until(lambda: len(self.cores) == known + 2 and all(core.transport for core in self.cores[known:]))
        return client, next(core for core in self.cores[known:] if core is not client)

    async def end(self) -> None:
        for port in self.ports:
            await port.close()
        for core in self.cores:
            if core.transport is not None:
                core.transport.abort()
        await self.until(lambda: all(core.lost for core in self.cores if core.transport is not None))


async def talking(world: World, _: Path) -> None:
    port = await world.listen()
    client, server = await world.pair(port.port)
    client.transport.write(b"ping")
    await world.until(lambda: server.data == b"ping")
    server.transport.writelines([b"po", b"ng"])
    await world.until(lambda: client.data == b"pong")
    assert client.transport.get_extra_info("peername")[:2] == ("127.0.0.1", port.port)
    tune_transport(client.transport)
    sock = client.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    other = world.core()
    other.transport = server.transport
    server.transport.set_protocol(other)
    client.transport.write(b"again")
    await world.until(lambda: other.data == b"again")
    client.transport.close()
    client.transport.write(b"late")
    await world.until(lambda: client.lost and other.lost)
    assert client.lost == [None] and other.marks == ["eof"] and not server.lost and other.data == b"again"
    server.lost = [None]


async def closing_sends_what_is_written(world: World, _: Path) -> None:
    port = await world.listen()
    client, server = await world.pair(port.port)
    server.transport.write(b"x" * 3_000_000)
    server.transport.close()
    await world.until(lambda: len(client.data) == 3_000_000 and client.lost)


async def aborting_does_not(world: World, _: Path) -> None:
    port = await world.listen()
    client, server = await world.pair(port.port)
    client.transport.pause_reading()
    server.transport.write(b"x" * 30_000_000)
    server.transport.abort()
    assert server.transport.is_closing()
    client.transport.resume_reading()
    await world.until(lambda: client.lost and server.lost)
    assert len(client.data) < 30_000_000


async def pausing(world: World, _: Path) -> None:
    port = await world.listen()
    client, server = await world.pair(port.port)
    client.transport.pause_reading()
    written = 0
    while server.marks[-1:] != ["pause"]:
        server.transport.write(b"x" * 1_000_000)
        written += 1_000_000
        await world.network.sleep(0.02)  # what fits into the kernel's buffers goes there
    assert written < 50_000_000 and len(client.data) < written
    client.transport.resume_reading()
    await world.until(lambda: len(client.data) == written)
    await world.until(lambda: server.marks[-2:] == ["pause", "resume"])
    assert server.marks == ["pause", "resume"] * (len(server.marks) // 2)


async def closed_ports_keep_their_connections(world: World, _: Path) -> None:
    port = await world.listen()
    client, server = await world.pair(port.port)
    await port.close()
    with pytest.raises(GatewayUnreachableError, match=rf"^No connection to 127\.0\.0\.1:{port.port}: "):
        await world.network.connect(world.core, "127.0.0.1", port.port)
    client.transport.write(b"still")
    await world.until(lambda: server.data == b"still")


async def a_port_that_is_taken(world: World, _: Path) -> None:
    port = await world.listen()
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port.port}: Address already in use"):
        await world.listen(port=port.port)


async def ipv6(world: World, _: Path) -> None:
    try:
        port = await world.listen(host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    client = await world.network.connect(world.core, "::1", port.port)
    client.transport.write(b"six")
    await world.until(lambda: any(core.data == b"six" for core in world.cores))


async def tls(world: World, folder: Path) -> None:
    ca, certificate, key = development_certificate(folder, ["localhost", "127.0.0.1"], datetime.now(UTC))
    port = await world.listen(ServerTls(certificate, key))
    for trust in (ClientTls(ca_file=ca), ClientTls(ca_file=ca, server_name="localhost"), ClientTls(verify=False)):
        client, server = await world.pair(port.port, trust)
        assert client.transport.get_extra_info("ssl_object") is not None
        client.transport.write(b"x" * 200_000)
        await world.received(server, b"x" * 200_000)
        server.transport.write(b"back")
        await world.received(client, b"back")
        client.transport.close()
        await world.until(lambda: all(core.lost for core in world.cores))
    for trust in (ClientTls(), ClientTls(ca_file=ca, server_name="elsewhere.test")):
        with pytest.raises(GatewayUnreachableError, match=r"certificate|TLS handshake"):
            await world.network.connect(world.core, "127.0.0.1", port.port, trust)
        await world.until(lambda: all(core.transport is None or core.lost for core in world.cores))
    with pytest.raises(GatewayUnreachableError):  # no TLS spoken there
        plain = await world.listen()
        await world.network.connect(world.core, "127.0.0.1", plain.port, ClientTls(verify=False), timeout=0.2)


async def giving_up(world: World, _: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        number = silent.getsockname()[1]
        with pytest.raises(GatewayUnreachableError, match=rf"^No connection to 127\.0\.0\.1:{number} within 0\.1 s"):
            await world.network.connect(world.core, "127.0.0.1", number, ClientTls(verify=False), timeout=0.1)
        dialling = Deferred.fromCoroutine(
            world.network.connect(world.core, "127.0.0.1", number, ClientTls(verify=False), timeout=5)
        )
        await world.network.sleep(0.02)
        dialling.cancel()
        with pytest.raises(CancelledError):
            await dialling


Scenario = Callable[[World, Path], Awaitable[None]]
SCENARIOS: list[Scenario] = [
    *(talking, closing_sends_what_is_written, aborting_does_not, pausing, closed_ports_keep_their_connections),
    *(a_port_that_is_taken, ipv6, tls, giving_up),
]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_on_twisteds_reactor(scenario: Scenario, tmp_path: Path) -> None:
    world = World(Network(reactor))
    assert world.network.loop is None
    try:
        await scenario(world, tmp_path)
    finally:
        await world.end()


class LoopReactor:
    """What :class:`Network` asks of Twisted's asyncio reactor."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncioEventloop = loop
        self.seconds = loop.time

    def callLater(self, seconds: float, call: Callable[..., Any], *args: Any) -> Any:
        return self._asyncioEventloop.call_later(seconds, call, *args)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_a_loop(scenario: Scenario, make_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    loop = make_loop()
    world = World(Network(LoopReactor(loop)))

    async def whole() -> None:
        try:
            await scenario(world, tmp_path)
        finally:
            await world.end()

    try:
        loop.run_until_complete(asyncio.wait_for(Deferred.fromCoroutine(whole()).asFuture(loop), 20))
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def test_a_clock_alone_is_enough_for_what_does_not_dial() -> None:
    network = Network(Clock())
    assert network.loop is None


@pytest.mark.parametrize("family", [None, socket.AF_UNIX])
def test_only_tcp_is_tuned(family: int | None) -> None:
    class Transport:
        def get_extra_info(self, name: str) -> Any:
            return sock

    sock = None if family is None else socket.socket(family)
    tune_transport(Transport())
    if sock is not None:
        sock.close()
