"""``spyne``: zeep → relay → spyne hosted behind it, against zeep → the same Application as WSGI.

``wcfrelay host bench.echo:application`` is the one service, ``python -m bench.echo`` the other: as lean as WSGI gets,
one thread and connections kept alive. (Twisted's WSGI container would be no fair peer: its handing over to a thread and
back costs up to 5 ms on a busy machine.) It writes its port to standard output.
"""

# zeep is typed in part only.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from statistics import median
from typing import IO, Any, cast
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import zeep
from zeep.transports import Transport

from bench.lab import BenchError, Lab
from bench.peers import gateway
from bench.report import Goal, Row, Table
from bench.settings import Settings, progress
from wcfrelay.sender.zeep import relay_client

__all__ = ["application", "spyne"]

_NAMESPACE = "urn:bench:echo"
_TEXT = "x" * 700
"""Makes an envelope of about 1 KiB."""
_WARM = 20
_TIMEOUT = 10.0


def application() -> Any:
    """The spyne Application."""
    import wcfrelay.listener.spyne  # noqa: F401  makes spyne importable on Python 3.12 and later

    from spyne import Application, ServiceBase, Unicode, rpc  # isort: skip
    from spyne.protocol.soap import Soap11  # isort: skip

    class Echoes(ServiceBase):  # type: ignore[misc]
        @rpc(Unicode, _returns=Unicode)  # type: ignore[untyped-decorator]
        def Echo(ctx: Any, text: str) -> str:
            return text

    return Application([Echoes], _NAMESPACE, in_protocol=Soap11(validator="lxml"), out_protocol=Soap11())


def spyne(settings: Settings) -> list[Row]:
    """The latency of one zeep client's calls, one after the other."""
    table = Table("spyne")
    with Lab() as lab:
        service = lab.start_python("wsgi", "bench.echo")
        port = service.wait_for(r"^port (\d+)$")[1]
        node = gateway(lab)
        host = lab.start_python(
            "host",
            "wcfrelay",
            "host",
            "bench.echo:application",
            "--relay=echo",
            env={"WCFRELAY_CONNECTION_STRING": node.connection_string()},
        )
        host.wait_for("^Online: ")
        with (
            zeep.Client(
                f"http://127.0.0.1:{port}/?wsdl", transport=Transport(timeout=_TIMEOUT, operation_timeout=_TIMEOUT)
            ) as direct,
            relay_client("echo", connection_string=node.connection_string(), timeout=_TIMEOUT) as relayed,
        ):
            clients = {"direct": direct.service.Echo, "relay": relayed.service.Echo}
            for call in clients.values():
                for _ in range(_WARM):
                    _seconds(call)
            for number in range(settings.rounds):
                progress(f"spyne: round {number + 1} of {settings.rounds}")
                for name, call in clients.items():
                    end = time.monotonic() + settings.seconds
                    seen = []
                    while time.monotonic() < end:
                        seen.append(_seconds(call))
                    table.add("zeep call of Echo", name, "p50 ms", median(seen) * 1000)
    return table.rows({"relay": "direct"}, {("relay", "p50 ms"): Goal(1.25, at_most=True)})


def _seconds(call: Callable[[str], Any]) -> float:
    began = time.perf_counter()
    if call(_TEXT) != _TEXT:
        raise BenchError("The answer of Echo is wrong.")
    return time.perf_counter() - began


class _Answering(SimpleHandler):
    http_version = "1.1"

    def _flush(self) -> None:
        """Not after each field: the connection flushes when the answer is complete."""


class _KeptAlive(WSGIRequestHandler):
    """One connection, any number of requests, an answer in one piece; wsgiref's own is HTTP/1.0."""

    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True
    server: WSGIServer

    def handle(self) -> None:
        BaseHTTPRequestHandler.handle(self)

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(8192)
        self.close_connection = True
        if self.raw_requestline and self.parse_request():
            answering = _Answering(self.rfile, cast(IO[bytes], self.wfile), sys.stderr, self.get_environ(), False)
            answering.run(self.server.get_app())  # type: ignore[arg-type]
            self.wfile.flush()


def _serve() -> None:
    hosted = application()
    from spyne.server.wsgi import WsgiApplication

    with WSGIServer(("127.0.0.1", 0), _KeptAlive) as server:
        server.set_app(WsgiApplication(hosted))
        print(f"port {server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    _serve()
