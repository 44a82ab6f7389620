"""``calls`` and ``lone``: SOAP calls of 1 KiB on keep-alive connections, against nginx as reverse proxy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.lab import Lab
from bench.load import Load, load
from bench.peers import Target, backend, expose, front, gateway, proxy, warm
from bench.report import Goal, Row, Table
from bench.settings import Settings, progress

__all__ = ["calls", "lone"]

_CALLS, _P50, _P99, _CPU = "calls/s", "p50 ms", "p99 ms", "CPU µs/call"
_FRONT, _CONTROL, _HTTPS = "HTTPS front alone", "relay, TLS control", "relay, HTTPS"
_HTTPS_NGINX, _HTTPS_PROXY = "nginx HTTPS alone", "nginx HTTPS proxy"
_PEERS = {"relay": "nginx proxy", _CONTROL: "nginx proxy", _HTTPS: _HTTPS_PROXY, _FRONT: _HTTPS_NGINX}
_GOALS = {
    ("relay", _CALLS): Goal(0.45),
    ("relay", _CPU): Goal(2.5, at_most=True),
    (_FRONT, _CPU): Goal(2.0, at_most=True),
}


def calls(settings: Settings) -> list[Row]:
    """Calls per second, latency, and CPU time of the processes between sender and backend (of the backend itself where
    the calls go there directly), at several numbers of connections."""
    with Lab() as lab:
        targets = _targets(lab)
        if settings.tls:
            targets += _tls_targets(lab, targets)
        table = Table("calls")

        def seen(target: Target, connections: int, run: Load) -> None:
            what = f"{connections} connection{'s' if connections > 1 else ''}"
            for unit, value in (
                (_CALLS, run.calls_per_second),
                (_P50, run.p50),
                (_P99, run.p99),
                (_CPU, run.cpu_per_call),
            ):
                table.add(what, target.name, unit, value)

        _rounds(lab, "calls", targets, settings.connections, settings, seen)
    # One connection says little about throughput: lone() has its goal.
    return [replace(row, goal=None) if row.what == "1 connection" else row for row in table.rows(_PEERS, _GOALS)]


def lone(settings: Settings) -> list[Row]:
    """What a hop adds to the latency of a lone call, on one connection."""
    with Lab() as lab:
        targets = _targets(lab)
        table = Table("lone")
        direct = 0.0

        def seen(target: Target, connections: int, run: Load) -> None:
            nonlocal direct
            if target is targets[0]:
                direct = run.p50
                table.add("p50", target.name, "ms", run.p50)
            else:
                table.add("added p50", target.name, "ms", max(run.p50 - direct, 0.0))

        _rounds(lab, "lone", targets, (1,), settings, seen)
    return table.rows(_PEERS, {("relay", "ms"): Goal(2.0, at_most=True)})


def _targets(lab: Lab) -> list[Target]:
    service = backend(lab)
    targets = [service, proxy(lab, service), expose(lab, gateway(lab), service)]
    for target in targets:
        warm(target)
    return targets


def _tls_targets(lab: Lab, plain: Sequence[Target]) -> list[Target]:
    service = plain[0]
    node = gateway(lab, name="gateway-tls")
    control = expose(lab, node, service, "bench-tls", tls=True)
    targets = [
        control,
        proxy(lab, service, _HTTPS_PROXY, certificate=node.certificate),
        replace(control, name=_HTTPS, url=f"https://127.0.0.1:{node.https_port}/bench-tls/"),
        replace(backend(lab, certificate=node.certificate), name=_HTTPS_NGINX),
        front(lab, node.certificate, _FRONT),
    ]
    for target in targets:
        warm(target)
    return targets


def _rounds(
    lab: Lab,
    name: str,
    targets: Sequence[Target],
    connections: Sequence[int],
    settings: Settings,
    seen: Callable[[Target, int, Load], None],
) -> None:
    """All targets at one number of connections, one after the other, again and again."""
    for number in range(settings.rounds):
        for count in connections:
            progress(f"{name}: round {number + 1} of {settings.rounds}, {count} connections")
            for target in targets:
                seen(target, count, load(lab, target, count, settings.seconds))
                lab.trim_logs()
