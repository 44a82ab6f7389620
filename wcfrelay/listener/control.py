"""The lifecycle of a listener: registered at its gateway as long as it is wanted.

Source: hybrid-connections.md of the specification, §3 (control channel), §11 (token renewal). ::

    open() ─▶ CONNECTING ─ 101 ─▶ ONLINE ─ lost ─▶ CONNECTING ─ 401, 403, 404 ─▶ OFFLINE ─ next try ─▶ CONNECTING …
                                                                                    any ─ close() ─▶ OFFLINE

Tries are 0, 1, 2, 5, 10, 30, 30, … seconds apart, and begin at 0 again after a time Online. Only what the first try of
all shows, and time cannot mend, ends a listener by itself.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable, Coroutine
from enum import Enum
from functools import partial
from random import Random
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from wcfrelay.address import ConnectionString
from wcfrelay.errors import (
    EndpointNotFoundError,
    ExpiredTokenError,
    GatewayUnreachableError,
    RelayError,
)
from wcfrelay.listener.channel import KEEP_ALIVE, Calls, ControlChannel, Rendezvous
from wcfrelay.listener.dispatch import Dispatcher
from wcfrelay.net.handshake import connect_websocket
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ClientTls
from wcfrelay.net.websocket import WebSocket
from wcfrelay.sas import TokenProvider
from wcfrelay.wire.hybrid import Command, RenewToken, encode_command

__all__ = ["RelayListener", "Status"]

_T = TypeVar("_T")
_BACK_OFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_JITTER = 0.2
_STEADY = 10.0
"""Seconds Online after which the next loss is a new trouble, not the last one again."""
_REFUSED = frozenset({400, 401, 403, 404})
"""Handshake statuses that the same try gets again until somebody changes something."""
_HANG_UP = 10.0
"""Seconds for closing handshakes; each WebSocket gives up earlier by itself."""

_log = Logger("wcfrelay.listener")


class Status(Enum):
    CONNECTING = "Connecting"
    ONLINE = "Online"
    OFFLINE = "Offline"


class RelayListener:
    """Listens on one relay and gives every request to ``dispatcher``, which it owns and closes.

    ``path`` is the relay's. ``response_timeout`` (seconds) is what a dispatcher has for an answer, ``max_calls`` how
    many may be in flight; above that senders get 503. ``token_lifetime`` is in seconds, ``now()`` in Unix seconds.

    :raises ConfigError: the connection string can make no token.
    """

    def __init__(
        self,
        connection: ConnectionString,
        path: str,
        dispatcher: Dispatcher,
        *,
        reactor: Any,
        tls: ClientTls | None = None,
        response_timeout: float = 60.0,
        max_calls: int = 1000,
        token_lifetime: int = 3600,
        now: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        self.status = Status.OFFLINE
        self.last_error: Exception | None = None
        """Why the listener is not Online, None while it is."""
        self.on_status: Callable[[Status, Exception | None], None] | None = None
        """Called at every change of ``status`` or ``last_error``."""
        self.listener_id = str(uuid.uuid4())
        """What senders name in AllowedListeners (§9)."""
        self._connection = connection
        self._path = path
        self._dispatcher = dispatcher
        self._network = Network(reactor)
        self._timers = Timers(reactor)
        self._tls = tls
        self._token_lifetime = token_lifetime
        self._now = now
        self._random = random or Random()
        self._tokens = self._new_tokens()
        self._calls = Calls(
            dispatcher,
            self._timers,
            self._open_rendezvous,
            origin=f"{'https' if connection.tls else 'http'}://{connection.authority}",
            response_timeout=response_timeout,
            max_calls=max_calls,
        )
        self._socket: WebSocket | None = None
        self._renewal: Any = None
        self._keeping: Deferred[None] | None = None
        self._pending: Deferred[Any] | None = None
        self._opened: Deferred[None] | None = None
        self._stopping = False
        self._closing = False
        self._ended = False
        self._waiting: list[Deferred[None]] = []

    async def open(self, timeout: float | None = None) -> None:
        """Return when Online; to be called once. The listener stays until :meth:`close`, which is due in any case.

        :raises RelayError: the first try was refused in a way that time cannot mend (401, 403, 404), or the listener
            was not Online after ``timeout`` seconds (None: there is no end), or was closed.
        :raises ConfigError: the trust in ``tls`` cannot be loaded.
        """
        opened = self._opened = Deferred()
        self._keeping = Deferred.fromCoroutine(self._keep_online())
        deadline = None if timeout is None else self._timers.after(timeout, lambda: self._settle(self._late(timeout)))
        try:
            await opened
        except BaseException:
            self._stop()
            raise
        finally:
            if deadline is not None:
                deadline.cancel()

    async def close(self, grace: float = 30.0) -> None:
        """Take no new calls, let those in flight finish for at most ``grace`` seconds, then leave. May be called
        again."""
        if self._closing:
            await self.wait_closed()
            return
        self._closing = True
        try:
            await self._leave(grace)
        finally:
            self._become(Status.OFFLINE, None)
            self._timers.stop()
            self._end()

    async def _leave(self, grace: float) -> None:
        self._stop()
        try:
            await self._calls.drain(grace)
            await self._calls.hang_up(_HANG_UP)
            if self._socket is not None:
                self._socket.close(1000)
            if self._keeping is not None:
                await self._keeping
        finally:
            await self._dispatcher.close()

    async def wait_closed(self) -> None:
        """Return when the listener is closed, or Offline for good (then ``last_error`` tells why)."""
        if not self._ended:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting

    # -- the control channel, try after try

    async def _keep_online(self) -> None:
        outcome: Exception = GatewayUnreachableError("The listener was closed before it was Online.")
        try:
            await self._try_and_try()
        except CancelledError:
            pass  # by _stop
        except Exception as problem:
            outcome = problem
            self._become(Status.OFFLINE, problem)
            if self._opened is None:
                _log.failure("The listener of {path} ended.", path=self._path)
        self._stopping = True
        self._become(Status.OFFLINE, self.last_error)
        if not self._closing:
            self._end()
        self._settle(outcome)

    async def _try_and_try(self) -> None:
        """Until :meth:`_stop`. Raises what the first try shows and time cannot mend."""
        first, failures = True, 0
        while True:
            self._become(Status.CONNECTING, self.last_error)
            lost: Deferred[tuple[int, str]] = Deferred()
            try:
                socket = await self._unless_stopped(partial(self._dial, lost))
            except CancelledError:
                raise
            except Exception as problem:
                refused = getattr(problem, "handshake_status", 0) in _REFUSED
                self._become(Status.OFFLINE if refused else Status.CONNECTING, problem)
                if first and (refused or not isinstance(problem, RelayError)):
                    raise
                failures += 1
            else:
                since = self._network.seconds()
                self._online(socket)
                code, reason = await lost
                self._lost()
                if self._stopping:
                    return
                if code == 1008:
                    self._tokens = self._new_tokens()
                failures = 0 if self._network.seconds() - since >= _STEADY else failures + 1
                self._become(Status.CONNECTING, _loss(code, reason))
            first = False
            delay = _BACK_OFF[min(failures, len(_BACK_OFF) - 1)]
            delay *= self._random.uniform(1 - _JITTER, 1 + _JITTER)
            await self._unless_stopped(partial(self._network.sleep, delay))

    async def _unless_stopped(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What ``work()`` gives.

        :raises CancelledError: :meth:`_stop` was called, before or meanwhile.
        """
        if self._stopping:
            raise CancelledError
        pending: Deferred[_T] = Deferred.fromCoroutine(work())
        self._pending = pending
        try:
            return await pending
        except (Exception, asyncio.CancelledError):
            if self._stopping:
                raise CancelledError from None  # whatever the layers below made of it
            raise
        finally:
            self._pending = None

    def _stop(self) -> None:
        """Try no more; a control channel that is open stays."""
        self._stopping = True
        if self._pending is not None:
            self._pending.cancel()

    async def _dial(self, lost: Deferred[tuple[int, str]]) -> WebSocket:
        def make_app(socket: WebSocket) -> ControlChannel:
            return ControlChannel(self._calls, socket, lambda code, reason: lost.callback((code, reason)))

        socket = await connect_websocket(
            self._network,
            self._timers,
            self._connection.hybrid_url(self._path, f"sb-hc-action=listen&sb-hc-id={self.listener_id}"),
            headers=[("ServiceBusAuthorization", self._tokens.token(self._path))],
            tls=self._tls,
            make_app=make_app,
        )
        if self._stopping:  # too late to be cancelled
            socket.abort()
            raise CancelledError
        return socket

    async def _open_rendezvous(self, address: str, make_app: Callable[[WebSocket], Rendezvous]) -> WebSocket:
        return await connect_websocket(self._network, self._timers, address, tls=self._tls, make_app=make_app)

    def _online(self, socket: WebSocket) -> None:
        self._socket = socket
        socket.keep_alive(*KEEP_ALIVE)
        self._plan_renewal()
        self._become(Status.ONLINE, None)
        self._settle(None)

    def _lost(self) -> None:
        self._socket = None
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    def _new_tokens(self) -> TokenProvider:
        return TokenProvider(self._connection, self._now, self._token_lifetime)

    def _plan_renewal(self) -> None:
        left = self._tokens.renew_at(self._path) - self._now()
        if left < math.inf:
            self._renewal = self._network.call_later(max(left, 1.0), self._renew)

    def _renew(self) -> None:
        self._renewal = None
        if self._socket is not None:
            token = self._tokens.token(self._path)
            self._socket.send_text(encode_command(Command(renewToken=RenewToken(token))))
            self._plan_renewal()

    # -- the outcome of open(), and the end

    def _late(self, timeout: float) -> Exception:
        return self.last_error or GatewayUnreachableError(f"The listener was not Online within {timeout:g} s.")

    def _settle(self, problem: Exception | None) -> None:
        opened, self._opened = self._opened, None
        if opened is None or opened.called:
            return
        if problem is None:
            opened.callback(None)
        else:
            opened.errback(problem)

    def _end(self) -> None:
        self._ended = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def _become(self, status: Status, error: Exception | None) -> None:
        if status is self.status and error is self.last_error:
            return
        self.status, self.last_error = status, error
        if error is None:
            _log.info("The listener of {path} is {status}.", path=self._path, status=status.value)
        else:
            _log.warn("The listener of {path} is {status}: {error}", path=self._path, status=status.value, error=error)
        if self.on_status is not None:
            try:
                self.on_status(status, error)
            except Exception:
                _log.failure("on_status of the listener failed.")


def _loss(code: int, reason: str) -> RelayError:
    """The error that the end of a control channel stands for (§3)."""
    text = f" ({code} {reason})" if reason else f" ({code})"
    if code == 1001:
        return EndpointNotFoundError(f"The gateway stopped, or the relay was deleted or disabled{text}.")
    if code == 1008:
        return ExpiredTokenError(f"ExpiredToken: the gateway closed the control channel{text}.")
    return GatewayUnreachableError(f"The control channel was lost{text}.")
