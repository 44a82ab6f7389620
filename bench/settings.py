"""What a run is asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass

__all__ = ["Settings", "progress"]


@dataclass(frozen=True, slots=True)
class Settings:
    """``seconds`` is the length of one measurement, ``bulk_bytes`` the size of a bulk transfer."""

    rounds: int = 5
    seconds: int = 3
    connections: tuple[int, ...] = (1, 32, 128)
    tls: bool = False
    bulk_bytes: int = 1 << 30
    listeners: int = 1000


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
