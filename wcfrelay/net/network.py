"""Opening and accepting byte streams on whichever reactor runs.

Protocol cores in :mod:`wcfrelay.net` are written once, against the calls of :class:`asyncio.Protocol` and a small
part of :class:`asyncio.Transport` (:class:`Transport` below). Two adapters carry them:

* inside Twisted's asyncio reactor the loop's own transports (uvloop's, when the reactor runs on it): the hot path;
* on every other reactor, and in in-memory tests, a Twisted protocol.

TLS comes from :mod:`wcfrelay.net.tls` in the form that each of the two takes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from twisted.internet import defer, error, interfaces
from twisted.internet.protocol import Factory
from twisted.internet.protocol import Protocol as TwistedProtocol
from zope.interface import implementer

from wcfrelay.errors import GatewayUnreachableError
from wcfrelay.net.tls import ClientTls, ServerTls

__all__ = ["Listening", "Network", "Stream", "Transport", "Writer", "direct_writer", "tune_transport"]

_T = TypeVar("_T", bound="Stream")
_BACKLOG = 4096
_TLS_SHUTDOWN = 2.0
"""Seconds for a peer to answer the end of TLS; the default of 30 would hold a closing connection that long."""
_NOTSENT_LOWAT = 128 * 1024


class Transport(Protocol):
    """What a protocol core may do to its connection (the names are asyncio's)."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    def set_protocol(self, protocol: Any) -> None: ...


class Stream(Protocol):
    """A protocol core: what a connection calls."""

    def connection_made(self, transport: Any) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Listening(Protocol):
    """An open listening port."""

    port: int

    async def close(self) -> None:
        """Accept no more; connections already open go on."""


class Network:
    """The way to the network for one reactor.

    ``reactor`` is Twisted's. ``call_soon(f)`` runs ``f`` in the next turn, ``call_later`` is the reactor's.
    """

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.loop: asyncio.AbstractEventLoop | None = getattr(reactor, "_asyncioEventloop", None)
        self.seconds: Callable[[], float] = reactor.seconds
        """The reactor's clock, in seconds since an epoch of its own."""
        self._contexts: dict[ClientTls, ssl.SSLContext] = {}
        self.call_soon: Callable[[Callable[[], None]], Any]
        if self.loop is not None:
            self.call_soon = self.loop.call_soon
        else:
            self.call_soon = lambda f: reactor.callLater(0, f)

    def call_later(self, seconds: float, call: Callable[..., Any], *args: Any) -> interfaces.IDelayedCall:
        return self.reactor.callLater(seconds, call, *args)  # type: ignore[no-any-return]

    async def sleep(self, seconds: float) -> None:
        done: defer.Deferred[None] = defer.Deferred(lambda _: call.cancel())
        call = self.reactor.callLater(seconds, done.callback, None)
        await done

    async def listen(self, make: Callable[[], Stream], host: str, port: int, tls: ServerTls | None = None) -> Listening:
        """Accept connections on ``host:port`` (0: a free one), each served by a new ``make()``.

        :raises OSError: the port is taken or may not be opened; the text names it.
        """
        sock = _listening_socket(host, port)
        actual = sock.getsockname()[1]
        if self.loop is not None:
            context = tls.ssl_context() if tls is not None else None
            server = await _from_loop(
                self.loop,
                self.loop.create_server(
                    make,  # type: ignore[arg-type]
                    sock=sock,
                    backlog=_BACKLOG,
                    ssl=context,
                    ssl_shutdown_timeout=None if context is None else _TLS_SHUTDOWN,
                ),
            )
            return _LoopPort(actual, server)
        factory = _ReactorFactory(make, awaited=False)
        if tls is not None:
            from twisted.protocols.tls import TLSMemoryBIOFactory

            wrapped: Any = TLSMemoryBIOFactory(tls.twisted_options(), False, factory)
        else:
            wrapped = factory
        try:
            accepted = self.reactor.adoptStreamPort(sock.fileno(), sock.family, wrapped)
        finally:
            sock.close()
        return _ReactorPort(actual, accepted)

    async def connect(
        self,
        make: Callable[[], _T],
        host: str,
        port: int,
        tls: ClientTls | None = None,
        timeout: float = 30.0,
    ) -> _T:
        """Open a connection and return its core, after its ``connection_made``.

        :raises GatewayUnreachableError: refused, unresolvable, a TLS failure, or not open after ``timeout`` seconds.
        """
        try:
            if self.loop is not None:
                context = self._context(tls) if tls is not None else None
                opening = self.loop.create_connection(
                    make,  # type: ignore[type-var]
                    host,
                    port,
                    ssl=context,
                    server_hostname=tls.name_for(host) if tls is not None else None,
                    ssl_shutdown_timeout=None if context is None else _TLS_SHUTDOWN,
                )
                _, core = await _from_loop(self.loop, asyncio.wait_for(opening, timeout))
                return core  # type: ignore[no-any-return]
            return await self._connect_reactor(make, host, port, tls, timeout)
        except asyncio.CancelledError:  # no Exception, and unknown to whoever cancelled a Deferred
            raise defer.CancelledError from None
        except (TimeoutError, error.TimeoutError, defer.TimeoutError):
            raise GatewayUnreachableError(
                f"No connection to {host}:{port} within {timeout:g} s; check the address and the firewall."
            ) from None
        except (
            OSError,
            error.ConnectError,
            error.ConnectionLost,
            error.ConnectionDone,
            error.DNSLookupError,
        ) as exc:
            raise GatewayUnreachableError(f"No connection to {host}:{port}: {_reason(exc)}") from exc

    def _context(self, tls: ClientTls) -> ssl.SSLContext:
        """The context of a trust, made once: reading the system's certificates takes tens of milliseconds."""
        context = self._contexts.get(tls)
        if context is None:
            context = self._contexts[tls] = tls.ssl_context()
        return context

    async def _connect_reactor(
        self, make: Callable[[], _T], host: str, port: int, tls: ClientTls | None, timeout: float
    ) -> _T:
        from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS

        endpoint: Any = HostnameEndpoint(self.reactor, host, port, timeout=timeout)
        if tls is not None:
            endpoint = wrapClientTLS(tls.twisted_options(tls.name_for(host)), endpoint)
        opening = endpoint.connect(_ReactorFactory(make))
        opening.addTimeout(timeout, self.reactor)
        adapter = await opening
        try:
            await adapter.ready.addTimeout(timeout, self.reactor)
        except (defer.CancelledError, defer.TimeoutError):
            adapter.abort()
            raise
        except Exception as problem:
            raise OSError(f"the TLS handshake failed: {_reason(problem)}") from problem
        return adapter.core  # type: ignore[no-any-return]


def _reason(exc: BaseException) -> str:
    return str(exc).strip() or type(exc).__name__


def _listening_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"cannot listen on {host}:{port}: {exc.strerror}") from None
    return sock


def tune_transport(transport: Any) -> None:
    """No Nagle, and a short unsent queue in the kernel, so that small calls overtake bulk. Cores call it from
    ``connection_made``."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if lowat is not None:
        sock.setsockopt(socket.IPPROTO_TCP, lowat, _NOTSENT_LOWAT)


class Writer(Protocol):
    """The writing part of a :class:`Transport`."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None: ...


def direct_writer(transport: Any, call_soon: Callable[[Callable[[], None]], Any]) -> Writer:
    """A writer for the transport that sends at once what the kernel takes, where that is possible.

    A loop's transport writes at the end of the turn, after all that was read has been worked through. On a connection
    that carries many calls, the peer then waits for the whole turn, and we for its: the two processes take turns
    instead of working side by side (measured: a tenth to a half more calls per second at 32 connections). Whoever uses
    the writer sends everything through it.
    """
    sock = transport.get_extra_info("socket")
    plain = transport.get_extra_info("sslcontext") is None
    if sock is None or not plain or os.name != "posix" or isinstance(transport, ReactorAdapter):
        return transport  # type: ignore[no-any-return]
    return _DirectWriter(transport, sock.fileno(), call_soon)


class _DirectWriter:
    __slots__ = ("_call_soon", "_descriptor", "_spilled", "_transport")

    def __init__(self, transport: Any, descriptor: int, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._transport = transport
        self._descriptor = descriptor
        self._call_soon = call_soon
        self._spilled = False
        """Something went through the transport in this turn; until the next, uvloop does not count it as waiting."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        transport, pieces = self._transport, tuple(list_of_data)
        if self._spilled or transport.get_write_buffer_size() or transport.is_closing():
            transport.writelines(pieces)
            return
        try:
            sent = os.writev(self._descriptor, pieces)
        except OSError:  # full, or broken: the transport waits, or finds out
            sent = 0
        if sent < sum(map(len, pieces)):
            self._spilled = True
            transport.write(memoryview(b"".join(pieces))[sent:])
            self._call_soon(self._settled)

    def _settled(self) -> None:
        self._spilled = False


async def _from_loop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> Any:
    return await defer.Deferred.fromFuture(asyncio.ensure_future(work, loop=loop))


class _LoopPort:
    def __init__(self, port: int, server: asyncio.AbstractServer) -> None:
        self.port = port
        self._server = server

    async def close(self) -> None:
        self._server.close()


class _ReactorPort:
    def __init__(self, port: int, accepted: interfaces.IListeningPort) -> None:
        self.port = port
        self._accepted = accepted

    async def close(self) -> None:
        await defer.maybeDeferred(self._accepted.stopListening)


class _ReactorFactory(Factory):
    noisy = False

    def __init__(self, make: Callable[[], Any], awaited: bool = True) -> None:
        self._make = make
        self._awaited = awaited

    def buildProtocol(self, addr: object) -> ReactorAdapter:
        adapter = ReactorAdapter(self._make())
        if not self._awaited:
            adapter.ready.addErrback(lambda _: None)  # a client that failed its handshake is no news
        return adapter


@implementer(interfaces.IPushProducer, interfaces.IHalfCloseableProtocol, interfaces.IHandshakeListener)
class ReactorAdapter(TwistedProtocol):
    """A core on a Twisted transport: a Twisted protocol to the reactor, a :class:`Transport` to the core.

    Under TLS the core hears of the connection when the handshake is complete, as on the loop's transports. ``ready``
    fires then, or fails with what ended the connection before.
    """

    def __init__(self, core: Any) -> None:
        self.core = core
        self.ready: defer.Deferred[None] = defer.Deferred()
        self._made = False
        self._closing = False
        self._lost = False

    # -- what the reactor calls

    def connectionMade(self) -> None:
        assert self.transport is not None
        if not interfaces.ISSLTransport.providedBy(self.transport):
            self.handshakeCompleted()

    def handshakeCompleted(self) -> None:
        self._made = True
        self.transport.registerProducer(self, True)  # type: ignore[union-attr]
        self.core.connection_made(self)
        self.ready.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.core.data_received(data)

    def readConnectionLost(self) -> None:
        if not self.core.eof_received():
            self.close()

    def writeConnectionLost(self) -> None:
        self.abort()

    def connectionLost(self, reason: Any = None) -> None:
        self._lost = self._closing = True
        if not self._made:
            self.ready.errback(reason)
            return
        clean = reason is None or reason.check(error.ConnectionDone)
        self.core.connection_lost(None if clean else reason.value)

    def pauseProducing(self) -> None:
        if not self._lost:
            self.core.pause_writing()

    def resumeProducing(self) -> None:
        if not self._lost:
            self.core.resume_writing()

    def stopProducing(self) -> None:
        pass

    # -- what the core calls

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            assert self.transport is not None
            self.transport.write(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            assert self.transport is not None
            self.transport.unregisterProducer()  # type: ignore[attr-defined]
            self.transport.loseConnection()

    def abort(self) -> None:
        if not self._lost:
            self._closing = True
            assert self.transport is not None
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if not self._closing:
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def resume_reading(self) -> None:
        if not self._closing:
            self.transport.resumeProducing()  # type: ignore[union-attr]

    def set_protocol(self, protocol: Any) -> None:
        self.core = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        transport: Any = self.transport
        if name == "peername":
            peer = transport.getPeer()
            return (peer.host, peer.port) if hasattr(peer, "port") else default
        if name == "socket":
            handle = getattr(transport, "socket", None) or getattr(transport, "getHandle", lambda: None)()
            return handle if isinstance(handle, socket.socket) else default
        if name == "ssl_object":
            return transport if interfaces.ISSLTransport.providedBy(transport) else default
        return default
