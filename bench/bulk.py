"""``bulk`` and ``mixed``: 1 GiB through an HTTP exchange, alone and beside small calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from bench.lab import BenchError, Lab
from bench.load import load
from bench.peers import Target, backend, expose, gateway, proxy, warm
from bench.report import Goal, Row, Table
from bench.settings import Settings, progress
from bench.stream import Transfer

__all__ = ["bulk", "mixed"]

_FILE = "bulk"
_CONNECTIONS = 8
"""Of the small calls in :func:`mixed`: as many as keep the machine awake without filling it."""
_PEERS = {"relay": "nginx proxy"}


def bulk(settings: Settings) -> list[Row]:
    """Transfer rate, and CPU time of the processes between the two ends, download and upload."""
    size = settings.bulk_bytes
    with Lab() as lab:
        node = gateway(lab)
        file_service = _file_service(lab, size)
        downloads = [file_service, proxy(lab, file_service), expose(lab, node, file_service)]
        sink = _sink(lab)
        uploads = [sink, proxy(lab, sink, uploads=True), expose(lab, node, sink, "bench-upload")]
        table = Table("bulk")
        for number in range(settings.rounds):
            for what, targets in (("download", downloads), ("upload", uploads)):
                progress(f"bulk: round {number + 1} of {settings.rounds}, {what}")
                for target in targets:
                    cpu, began = target.cpu_seconds(), time.monotonic()
                    if what == "download":
                        Transfer(target, _FILE).download(size)
                    else:
                        Transfer(target).upload(size)
                    took = time.monotonic() - began
                    what_size = f"{what} of {size >> 20} MiB"
                    table.add(what_size, target.name, "MB/s", size / took / 1e6)
                    if target is not targets[0]:
                        table.add(what_size, target.name, "CPU s/GB", (target.cpu_seconds() - cpu) / (size / 1e9))
    return table.rows(_PEERS, {("relay", "MB/s"): Goal(0.8)})


def mixed(settings: Settings) -> list[Row]:
    """The latency of small calls alone and beside one download after another over the same processes."""
    size = settings.bulk_bytes
    table = Table("mixed")
    with Lab() as lab:
        service = _file_service(lab, size)
        targets = [service, proxy(lab, service), expose(lab, gateway(lab), service)]
        for target in targets:
            warm(target)
        for number in range(settings.rounds):
            progress(f"mixed: round {number + 1} of {settings.rounds}")
            for target in targets:
                alone = load(lab, target, _CONNECTIONS, settings.seconds)
                with _downloading(target, size) as moved:
                    before, began = moved(), time.monotonic()
                    beside = load(lab, target, _CONNECTIONS, settings.seconds)
                    rate = (moved() - before) / (time.monotonic() - began) / 1e6
                what = f"{target.name}, {_CONNECTIONS} connections"
                table.add(what, "idle", "p50 ms", alone.p50)
                table.add(what, "beside bulk", "p50 ms", beside.p50)
                table.add(what, "the bulk", "MB/s", rate)
                lab.trim_logs()
    rows = table.rows({"beside bulk": "idle"}, {("beside bulk", "p50 ms"): Goal(4.0, at_most=True)})
    return [row if row.what.startswith("relay") else replace(row, goal=None) for row in rows]


def _file_service(lab: Lab, size: int) -> Target:
    """The backend of the calls, with a file of zeros."""
    path = lab.folder / _FILE
    with path.open("wb") as file:
        file.truncate(size)
    service = backend(lab, f"location = /{_FILE} {{ alias {path}; sendfile on; }}\n")
    Transfer(service, _FILE).download(size)  # the first reader would fill the page cache for the others
    return service


def _sink(lab: Lab) -> Target:
    child = lab.start_python("sink", "bench.stream")
    return Target("direct", f"http://127.0.0.1:{child.wait_for(r'^port ([0-9]+)$')[1]}/", (child,))


@contextmanager
def _downloading(target: Target, size: int) -> Iterator[Callable[[], int]]:
    """One download after another as long as the block runs, which gets a look at the bytes that came so far.

    :raises BenchError: one of them failed.
    """
    state: tuple[int, Transfer | None] = (0, None)
    """Bytes of finished downloads, and the one that runs; replaced as a whole, since two threads look at it."""
    stopping = threading.Event()
    problems: list[BenchError] = []

    def work() -> None:
        nonlocal state
        try:
            while not stopping.is_set():
                transfer = Transfer(target, _FILE)
                state = state[0], transfer
                transfer.download(size)
                state = state[0] + size, None
        except BenchError as error:
            problems.append(error)

    def moved() -> int:
        finished, transfer = state
        return finished + (transfer.message.body if transfer is not None else 0)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield moved
    finally:
        failed = list(problems)  # what comes after this is our own doing
        stopping.set()
        while thread.is_alive():
            if state[1] is not None:
                state[1].stop()
            thread.join(0.1)
    if failed:
        raise failed[0]
