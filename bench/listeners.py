"""Idle listeners by the thousand: control channels that do no more than stay open, and come back when they are lost.

``python -m bench.listeners COUNT PATH ADDRESS [CA-FILE]``, the token in ``BENCH_TOKEN``. Each time when all of them are
online it writes a line with what happened since the last one::

    online AT LOST FAILED       AT: when the last came online, s of the monotonic clock; LOST: when the first was lost;
                                FAILED: when each failed try was, with commas between

They come back as listeners do: after 0, 1, 2, 5, 10, 30 s, with jitter.
"""

from __future__ import annotations

import os
import random
import sys
import time
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from wcfrelay.address import ConnectionString
from wcfrelay.cli.run import run
from wcfrelay.errors import RelayError
from wcfrelay.net.handshake import connect_websocket
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers
from wcfrelay.net.tls import ClientTls
from wcfrelay.net.websocket import WebSocketApp

__all__ = ["PER_RELAY"]

PER_RELAY = 25
"""Listeners of one relay; the default of a gateway allows no more."""
_BACK_OFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_JITTER = 0.2


class _Idle(WebSocketApp):
    def __init__(self, lost: Deferred[None]) -> None:
        self._lost = lost

    def frame_received(self, opcode: int, data: bytes, fin: bool) -> None:
        pass

    def closed(self, code: int, reason: str) -> None:
        self._lost.callback(None)

    def pause_sending(self) -> None:
        pass

    def resume_sending(self) -> None:
        pass


class _Crowd:
    def __init__(self, reactor: Any, count: int, path: str, address: str, tls: ClientTls | None) -> None:
        self._network = Network(reactor)
        self._timers = Timers(reactor)
        self._address = ConnectionString.parse(f"Endpoint={address}")
        self._headers = [("ServiceBusAuthorization", os.environ["BENCH_TOKEN"])]
        self._tls = tls
        self._missing = count
        self._lost_at = time.monotonic()
        self._failed: list[float] = []
        self.running = [
            Deferred.fromCoroutine(self._keep_online(f"{path}-{number // PER_RELAY}", number))
            for number in range(count)
        ]

    async def _keep_online(self, path: str, number: int) -> None:
        url = self._address.hybrid_url(path, f"sb-hc-action=listen&sb-hc-id={number}")
        while True:
            lost: Deferred[None] = Deferred()
            await self._come_online(url, lost)
            self._missing -= 1
            if not self._missing:
                failed = ",".join(f"{at:.3f}" for at in self._failed)
                print(f"online {time.monotonic():.3f} {self._lost_at:.3f} {failed}", flush=True)
                self._failed.clear()
            await lost
            if not self._missing:
                self._lost_at = time.monotonic()
            self._missing += 1

    async def _come_online(self, url: str, lost: Deferred[None]) -> None:
        for pause in chain(_BACK_OFF, repeat(_BACK_OFF[-1])):
            await self._network.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))
            try:
                await connect_websocket(
                    self._network,
                    self._timers,
                    url,
                    headers=self._headers,
                    tls=self._tls,
                    make_app=lambda socket: _Idle(lost),
                )
                return
            except RelayError as error:
                print(error, file=sys.stderr)
                self._failed.append(time.monotonic())


def _report(failure: Failure) -> None:
    print(failure.getTraceback(), file=sys.stderr)


async def _work(reactor: Any, stopping: Deferred[None]) -> int:
    count, path, address, *ca_file = sys.argv[1:]
    crowd = _Crowd(reactor, int(count), path, address, ClientTls(ca_file=Path(ca_file[0])) if ca_file else None)
    for each in crowd.running:
        each.addErrback(_report)
    await stopping
    return 0


if __name__ == "__main__":
    run(_work)
