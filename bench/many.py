"""``memory`` and ``storm``: a thousand idle listeners, over plain WebSockets."""

from __future__ import annotations

import time

from bench.lab import Child, Lab
from bench.listeners import PER_RELAY
from bench.peers import Gateway, gateway
from bench.report import Goal, Row, Table
from bench.settings import Settings, progress

__all__ = ["memory", "storm"]

_FIRST = PER_RELAY
"""Listeners that come before the count: what the first ones cost, they cost once."""
_REST = 1.0
"""Seconds in which a gateway comes to rest."""
_ALL_ONLINE = 120.0
_MANY = 10_000


def memory(settings: Settings) -> list[Row]:
    """What an idle listener adds to the gateway's resident memory, buffers in the kernel not counted."""
    table = Table("memory")
    kinds = [(False, "WebSocket"), *([(True, "WebSocket in TLS")] if settings.tls else [])]
    for number in range(settings.rounds):
        for tls, kind in kinds:
            progress(f"memory: round {number + 1} of {settings.rounds}, {kind}")
            with Lab() as lab:
                node = gateway(lab, _config(settings.listeners))
                _crowd(lab, node, _FIRST, "first", tls)
                time.sleep(_REST)
                before = node.child.resident_bytes()
                _crowd(lab, node, settings.listeners, "idle", tls)
                time.sleep(_REST)
                after = node.child.resident_bytes()
            table.add(f"gateway with {_FIRST} listeners", kind, "MB", before / 1e6)
            table.add(f"gateway with {settings.listeners + _FIRST} listeners", kind, "MB", after / 1e6)
            table.add("an idle listener", kind, "KB", (after - before) / settings.listeners / 1e3)
    goals = {("WebSocket", "KB"): Goal(8.0, at_most=True), ("WebSocket in TLS", "KB"): Goal(36.0, at_most=True)}
    return table.rows({}, goals)


def storm(settings: Settings) -> list[Row]:
    """How long listeners take to come back when the gateway is restarted. Their pauses between tries count: a gateway
    that is back before the second try, a second after the loss, waits for it."""
    table = Table("storm")
    count = settings.listeners
    for number in range(settings.rounds):
        progress(f"storm: round {number + 1} of {settings.rounds}")
        with Lab() as lab:
            node = gateway(lab, _config(count))
            crowd = _crowd(lab, node, count, "storm", tls=False)
            stopped = time.monotonic()
            lab.stop(node.child)
            gateway(lab, again=node)
            ready = time.monotonic()
            back = crowd.wait_for(r"^online (\S+) (\S+) (\S*)\n", _ALL_ONLINE, count=2)
        all_back = float(back[1])
        failed = [float(at) for at in back[3].split(",") if at]
        what = f"{count} listeners, gateway restarted"
        table.add(what, "gateway ready → all online", "s", max(all_back - ready, 0.0))
        table.add(what, "gateway told to stop → all online", "s", all_back - stopped)
        table.add(what, "connects that failed at a ready gateway", "count", sum(at > ready for at in failed))
    goals = {
        ("gateway ready → all online", "s"): Goal(15.0, at_most=True),
        ("connects that failed at a ready gateway", "count"): Goal(0.0, at_most=True),
    }
    # The goals are for so many listeners; fewer prove nothing.
    return table.rows({}, goals if count >= _MANY else {})


def _config(listeners: int) -> str:
    return f"[gateway.limits]\nconnections = {listeners + 1000}\n"


def _crowd(lab: Lab, node: Gateway, count: int, path: str, tls: bool) -> Child:
    """``count`` listeners that are online."""
    address = f"sb://localhost:{node.https_port}/" if tls else f"http://127.0.0.1:{node.http_port}/"
    child = lab.start_python(
        f"listeners-{path}",
        "bench.listeners",
        str(count),
        path,
        address,
        *([str(node.ca_file)] if tls else []),
        env={"BENCH_TOKEN": node.token("")},
    )
    child.wait_for("^online ", _ALL_ONLINE)
    return child
