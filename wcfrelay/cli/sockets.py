"""Which TCP sockets a process has, as Linux tells under ``/proc``."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sockets", "sockets"]

_ESTABLISHED, _LISTEN = "01", "0A"


@dataclass(frozen=True, slots=True)
class Sockets:
    """The ports a process listens on, and (own port, peer's port) of its connections."""

    listening: frozenset[int]
    connected: tuple[tuple[int, int], ...]

    def dialled(self) -> list[int]:
        """The ports that the process connected to."""
        return [peer for own, peer in self.connected if own not in self.listening]


def sockets(pid: int) -> Sockets | None:
    """The sockets of a process of this user; None where the system does not tell."""
    process = Path("/proc") / str(pid)
    own: set[str] = set()
    try:
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                own.add(os.readlink(entry))
        lines = [line for family in ("tcp", "tcp6") for line in (process / "net" / family).read_text().splitlines()[1:]]
    except OSError:
        return None
    listening: set[int] = set()
    connected: list[tuple[int, int]] = []
    for line in lines:
        _, local, remote, state, *_, inode = line.split()[:10]
        if f"socket:[{inode}]" in own:
            ports = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
            if state == _LISTEN:
                listening.add(ports[0])
            elif state == _ESTABLISHED:
                connected.append(ports)
    return Sockets(frozenset(listening), tuple(connected))
