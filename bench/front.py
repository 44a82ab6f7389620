"""The HTTP front of the gateway alone: ``python -m bench.front`` answers every call by itself.

Certificate and key are its arguments; it writes its port to standard output and runs until it is terminated.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

from bench.peers import ANSWER
from wcfrelay.cli.run import run
from wcfrelay.net.exchange import Headers, Responder
from wcfrelay.net.http1.exchange import ServerExchange
from wcfrelay.net.http1.server import HttpFront, ServerLimits
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ServerTls

_HEADERS: Headers = [("Content-Type", "text/xml; charset=utf-8")]


class _Answer(Responder):
    def __init__(self, exchange: ServerExchange) -> None:
        self._exchange = exchange

    def body_received(self, data: bytes) -> None:
        pass

    def body_ended(self) -> None:
        self._exchange.respond(200, "OK", _HEADERS, ANSWER)

    def cancelled(self, error: Exception) -> None:
        pass

    def pause_response(self) -> None:
        pass

    def resume_response(self) -> None:
        pass


async def _work(reactor: Any, stopping: Any) -> int:
    network, timers = Network(reactor), Timers(reactor)
    tls = ServerTls(Path(sys.argv[1]), Path(sys.argv[2]))
    front = HttpFront(
        network, timers, ServerLimits(), lambda exchange: exchange.begin(_Answer(exchange)), scheme="https"
    )
    port = await network.listen(front.make, "127.0.0.1", 0, tls)
    print(f"port {port.port}", flush=True)
    gc.freeze()
    await stopping
    await port.close()
    await front.drain(1.0)
    timers.stop()
    return 0


if __name__ == "__main__":
    run(_work)
