"""``expose`` on Twisted's default reactor, which the command line does not offer: default_reactor.py URL PATH."""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet.defer import Deferred

from wcfrelay.address import ConnectionString
from wcfrelay.cli.run import run
from wcfrelay.listener import RelayListener
from wcfrelay.listener.forward import ForwardDispatcher
from wcfrelay.net.network import Network
from wcfrelay.net.timers import Timers


async def listen(reactor: Any, stopping: Deferred[None]) -> int:
    url, path = sys.argv[1:]
    connection = ConnectionString.parse(os.environ["WCFRELAY_CONNECTION_STRING"])
    dispatcher = ForwardDispatcher(Network(reactor), Timers(reactor), url, path)
    listener = RelayListener(connection, path, dispatcher, reactor=reactor)
    try:
        await listener.open(timeout=20)
        print(f"Online: {type(reactor).__name__}", flush=True)
        await stopping
    finally:
        await listener.close(2)
    return 0


run(listen, "default")
