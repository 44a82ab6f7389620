"""A gateway node: the one place that knows every part and puts them together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from wcfrelay.address import ConnectionString, path_segments
from wcfrelay.config import Config, state_folder
from wcfrelay.gateway.authorize import Authorizer
from wcfrelay.gateway.faces.admin import AdminFace
from wcfrelay.gateway.faces.http import HttpFace
from wcfrelay.gateway.faces.hybrid import HybridFace, HybridSettings
from wcfrelay.gateway.hybridcall import HybridCall
from wcfrelay.gateway.hybridlink import LinkServices, Overdue
from wcfrelay.gateway.metrics import Recorder, RelayCollector
from wcfrelay.gateway.relays import Relays
from wcfrelay.gateway.rendezvous import Ids, Rendezvous
from wcfrelay.log import AccessLog
from wcfrelay.net.http1.server import HttpFront, ServerLimits
from wcfrelay.net.network import Listening, Network
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ServerTls, development_certificate
from wcfrelay.sas import Right, Rule, generate_key
from wcfrelay.store import GatewayStore
from wcfrelay.store.memory import MemoryStore
from wcfrelay.store.sqlite import SqliteStore

__all__ = ["ROOT_RULE", "GatewayNode"]

ROOT_RULE = "RootManageSharedAccessKey"
"""The rule that a new namespace comes with (sas-and-authorization.md §6)."""

_GOODBYE = 1.0
"""Seconds for listeners to answer the close of their control channels."""

log = Logger()


class GatewayNode:
    """One gateway process. :meth:`start` opens its ports, :meth:`stop` drains and closes them.

    ``reactor`` is Twisted's; ``random_bytes`` a cryptographic source; ``unix_time`` the clock of tokens.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        *,
        access_log: AccessLog | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.state = state_folder(config.gateway, os.environ)
        self.connection_string: ConnectionString | None = None
        """For the rule made on first start; None when the configuration has rules of its own."""
        self.first_start = False
        self.ca_file: Path | None = None
        """The development CA, when no certificate is configured."""
        self.http_port = self.https_port = self.admin_port = 0
        """The open ports, 0 where there is none."""
        gateway = config.gateway
        limits = gateway.limits
        self._random_bytes = random_bytes
        self._network = Network(reactor)
        self._timers = Timers(reactor)
        self._store: GatewayStore = MemoryStore()
        self._authorizer = Authorizer(unix_time, frozenset(gateway.hosts) or None, limits.token_grace)
        self._relays = Relays()
        self._recorder = Recorder(self._network.seconds, access_log)
        self._ids = Ids(random_bytes)
        rendezvous: Rendezvous[HybridCall] = Rendezvous(self._timers)
        self._services = LinkServices(
            timers=self._timers,
            now=self._network.seconds,
            rendezvous=rendezvous,
            senders=Rendezvous(self._timers),
            rendezvous_seconds=limits.rendezvous,
            pending_limit=limits.pending_per_listener,
            overdue=Overdue(self._timers, self._network.seconds),
        )
        self._server_limits = ServerLimits(
            request_line=limits.request_line,
            header_count=limits.header_count,
            header_bytes=limits.header_bytes,
            connections=limits.connections,
            request_head=limits.request_head,
            body_idle=limits.body_idle,
            request_total=limits.request_total,
            keep_alive=limits.keep_alive,
        )
        self._unix_time = unix_time
        self._fronts: list[HttpFront] = []
        self._ports: list[Listening] = []
        self._admin: tuple[Listening, HttpFront] | None = None
        """Open to the end, so that readyz can be asked while the node drains."""
        self._ready = False

    async def start(self) -> None:
        """Open the store and the ports.

        :raises ConfigError: a certificate or the store can not be used. :raises OSError: a port can not be opened.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop(0)
            raise

    async def _start(self) -> None:
        config, gateway = self.config, self.config.gateway
        if gateway.store == "sqlite":
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = SqliteStore(self.state / "wcfrelay.db")
        tls = self._server_tls() if gateway.https.enabled else None
        root_key = await self._load_rules()
        await self._load_relays()
        hybrid = HybridFace(
            self._network,
            self._relays,
            self._authorizer,
            self._store,
            self._services,
            self._recorder,
            HybridSettings(
                dynamic=gateway.relays.dynamic,
                response_timeout=gateway.relays.response_timeout,
                listeners_per_relay=gateway.limits.listeners_per_relay,
                relays=gateway.limits.relays,
                ping_interval=gateway.limits.ping_interval,
                ping_timeout=gateway.limits.ping_timeout,
                advertise=gateway.advertise,
                node="local",
            ),
            self._unix_time,
        )
        face = HttpFace(
            self._relays,
            self._authorizer,
            self._ids,
            self._recorder,
            hybrid.take,
            pending_per_listener=gateway.limits.pending_per_listener,
            no_listener_status=gateway.relays.no_listener_status,
            name=gateway.hosts[0] if gateway.hosts else gateway.advertise or socket.gethostname(),
        )
        if gateway.http.enabled:
            self.http_port = await self._serve(face, gateway.http.bind, gateway.http.port)
        if tls is not None:
            self.https_port = await self._serve(face, gateway.https.bind, gateway.https.port, tls)
        if gateway.admin.enabled:
            registry = CollectorRegistry()
            registry.register(RelayCollector(self._relays, self._recorder))
            for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
                registry.register(collector)
            admin = AdminFace(registry, lambda: self._ready)
            listening, front = await self._open(admin.take, gateway.admin.bind, gateway.admin.port)
            self._admin = listening, front
            self.admin_port = listening.port
        if root_key:
            self._publish_connection_string(root_key)
        self._ready = True
        log.info("Gateway ready with {count} relays.", count=len(config.relays))

    async def stop(self, seconds: float = 10.0) -> None:
        """Accept no more, let exchanges in work finish for at most ``seconds``, then close everything."""
        self._ready = False
        for port in self._ports:
            await port.close()
        self._ports.clear()
        fronts, self._fronts = self._fronts, []
        await gatherResults([Deferred.fromCoroutine(front.drain(seconds)) for front in fronts])
        for relay in list(self._relays):
            for link in list(relay.listeners):
                link.close(1001, "the gateway is shutting down")
        waited = 0.0
        while self._services.sockets and waited < min(seconds, _GOODBYE):
            await self._network.sleep(0.05)
            waited += 0.05
        for websocket in list(self._services.sockets) if seconds else ():
            websocket.abort()
        if self._admin is not None:
            port, front = self._admin
            self._admin = None
            await port.close()
            await front.drain(0)
        self._timers.stop()
        await self._store.close()

    async def _serve(self, face: HttpFace, bind: str, port: int, tls: ServerTls | None = None) -> int:
        listening, front = await self._open(face.take, bind, port, tls)
        self._fronts.append(front)
        self._ports.append(listening)
        return listening.port

    async def _open(
        self, take: Callable[[Any], None], bind: str, port: int, tls: ServerTls | None = None
    ) -> tuple[Listening, HttpFront]:
        scheme = "https" if tls is not None else "http"
        front = HttpFront(self._network, self._timers, self._server_limits, take, scheme=scheme)
        listening = await self._network.listen(front.make, bind, port, tls)
        return listening, front

    def _server_tls(self) -> ServerTls:
        https = self.config.gateway.https
        if https.certificate:
            return ServerTls(Path(https.certificate), Path(https.key))
        names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *self.config.gateway.hosts]
        names.append(_host_of(self.config.gateway.advertise))
        folder = self.state / "tls"
        self.ca_file, certificate, key = development_certificate(
            folder, [name for name in dict.fromkeys(names) if name], datetime.now(UTC)
        )
        return ServerTls(certificate, key)

    async def _load_rules(self) -> str:
        """Fill the authorizer; the key of the root rule if it is ours to publish, else ""."""
        by_path: dict[str, list[Rule]] = {"": await self._store.rules("")}
        for relay in await self._store.relays():
            by_path[relay.path] = await self._store.rules(relay.path)
        root_key = ""
        if not self.config.rules:
            if not by_path[""]:
                self.first_start = True
                root = Rule(
                    ROOT_RULE,
                    Right.LISTEN | Right.SEND | Right.MANAGE,
                    generate_key(self._random_bytes),
                    generate_key(self._random_bytes),
                )
                await self._store.put_rule("", root)
                by_path[""] = [root]
            root_key = next((rule.primary_key for rule in by_path[""] if rule.name == ROOT_RULE), "")
        for rule in self.config.rules:
            made = Rule(
                rule.name,
                Right.from_names(rule.rights),
                rule.primary_key,
                rule.secondary_key or rule.primary_key,
                path_segments("/" + rule.path) if rule.path else (),
            )
            by_path.setdefault(rule.path.lower(), []).append(made)
        for path, rules in by_path.items():
            self._authorizer.set_rules(path, rules)
        return root_key

    async def _load_relays(self) -> None:
        default = self.config.gateway.relays.response_timeout
        for record in await self._store.relays():
            self._relays.add(
                path_segments("/" + record.path),
                dynamic=False,
                response_timeout=record.response_timeout or default,
                requires_client_authorization=record.requires_client_authorization,
            )
        for relay in self.config.relays:
            self._relays.add(
                path_segments("/" + relay.path),
                dynamic=False,
                response_timeout=relay.response_timeout or default,
                requires_client_authorization=relay.requires_client_authorization,
            )

    def _publish_connection_string(self, key: str) -> None:
        """Keep the connection string of the root rule beside the state, readable by its owner only."""
        gateway = self.config.gateway
        host = gateway.hosts[0] if gateway.hosts else _host_of(gateway.advertise) or "localhost"
        if ":" in host:
            host = f"[{host}]"
        scheme, port = ("sb", self.https_port) if self.https_port else ("http", self.http_port)
        self.connection_string = ConnectionString.parse(
            f"Endpoint={scheme}://{host}:{port}/;SharedAccessKeyName={ROOT_RULE};SharedAccessKey={key}"
        )
        if gateway.store == "memory":
            return
        file = self.state / "connection-string"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(self.connection_string.format() + "\n")


def _host_of(authority: str) -> str:
    """The host of ``host[:port]``, an IPv6 address without its brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]
