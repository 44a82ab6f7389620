"""What was measured: rows with their spread, their ratio to a peer in the same round, and the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = ["Goal", "Row", "Table", "as_json", "as_text"]


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal of the project, for the ratio to the peer, or for the median where there is no peer."""

    bound: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of one target, with a value for each round. ``ratios`` are to ``peer``, round by round."""

    benchmark: str
    what: str
    target: str
    unit: str
    values: Sequence[float]
    peer: str = ""
    ratios: Sequence[float] = ()
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.goal.met(median(self.ratios if self.peer else self.values))


class Table:
    """Collects values round by round, then makes rows of them."""

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._values: dict[tuple[str, str, str], list[float]] = {}

    def add(self, what: str, target: str, unit: str, value: float) -> None:
        self._values.setdefault((what, unit, target), []).append(value)

    def rows(self, peers: Mapping[str, str], goals: Mapping[tuple[str, str], Goal]) -> list[Row]:
        """One row a target, those of one quantity together. ``peers`` are target → the one it is compared with,
        ``goals`` (target, unit) → goal."""
        rows = []
        for what, unit in dict.fromkeys((what, unit) for what, unit, _ in self._values):
            for (each_what, each_unit, target), values in self._values.items():
                if (each_what, each_unit) != (what, unit):
                    continue
                peer = peers.get(target, "")
                against = self._values.get((what, unit, peer), ())
                ratios = tuple(value / other for value, other in zip(values, against, strict=False) if other > 0)
                goal = goals.get((target, unit))
                rows.append(
                    Row(self._benchmark, what, target, unit, tuple(values), peer if ratios else "", ratios, goal)
                )
        return rows


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(min(values))}…{_number(max(values))}" if len(values) > 1 else ""


def as_text(rows: Sequence[Row]) -> str:
    """An aligned table; a goal that is not met is said so."""
    lines = [("what", "of", "median", "min…max", "unit", "ratio", "min…max", "to", "goal", "")]
    for row in rows:
        lines.append(
            (
                f"{row.benchmark}: {row.what}",
                row.target,
                _number(median(row.values)),
                _spread(row.values),
                row.unit,
                f"{median(row.ratios):.2f}" if row.ratios else "",
                f"{min(row.ratios):.2f}…{max(row.ratios):.2f}" if len(row.ratios) > 1 else "",
                row.peer,
                str(row.goal or ""),
                {None: "", True: "met", False: "NOT MET"}[row.met],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    numbers = {2, 3, 5, 6}
    out = []
    for line in lines:
        cells = (
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        out.append("  ".join(cells).rstrip())
    out.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(out)


def as_json(row: Row) -> dict[str, Any]:
    return {
        "benchmark": row.benchmark,
        "what": row.what,
        "target": row.target,
        "unit": row.unit,
        "median": median(row.values),
        "min": min(row.values),
        "max": max(row.values),
        "values": list(row.values),
        "peer": row.peer or None,
        "ratio": median(row.ratios) if row.ratios else None,
        "ratios": list(row.ratios),
        "goal": str(row.goal) if row.goal is not None else None,
        "met": row.met,
    }
