"""A trace as a picture: one coloured cell per step, and under it the curve of the measured deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixcache.report.figures import ABSENT, significant

GRANULARITIES: dict[str, str] = {
    "compute": "everything runs",
    "cfg": "the unconditional branch is predicted",
    "block": "the middle blocks are predicted",
    "step": "the transformer is not entered",
}
LOGARITHMIC_FROM = 20.0
"""Deviations that span more than this ratio are drawn on a logarithmic axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One step of the timeline."""

    granularity: str
    title: str
    num_non_finite: int
    """Calls of the step whose output held a NaN or an infinity."""
    row: tuple[str, ...]
    """step, sigma, granularity, predictor, reason, deviation: as text, for the table of all steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A position in the curve's square of 100 by 100, (0, 0) top left, with its text."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The measured deviation over the step; x agrees with the middle of the step's cell."""

    points: tuple[Mark, ...]
    ticks: tuple[Mark, ...]
    logarithmic: bool

    @property
    def path(self) -> str:
        """The SVG path through all points."""
        return "M" + " L".join(f"{point.x:g} {point.y:g}" for point in self.points)


def cells(trace: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    """One cell per entry. ValueError for a granularity that has no colour."""
    return tuple(_cell(entry) for entry in trace)


def _cell(entry: Mapping[str, Any]) -> Cell:
    granularity = entry["granularity"]
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"unknown granularity {granularity!r} at step {entry['step']}; there are {', '.join(GRANULARITIES)}"
        )
    row = (
        str(entry["step"]),
        _number(entry.get("sigma")),
        granularity,
        entry.get("predictor", ""),
        str(entry.get("reason") or ABSENT),
        _number(entry.get("deviation")),
    )
    num_non_finite = int(entry.get("non_finite") or 0)
    parts = [f"step {row[0]}", f"sigma {row[1]}", row[2], row[3], row[4], f"deviation {row[5]}"]
    if num_non_finite:
        parts.append(f"{num_non_finite} calls with non-finite values")
    return Cell(granularity=granularity, title=" · ".join(parts), num_non_finite=num_non_finite, row=row)


def curve(trace: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The curve through all finite deviations; None where none was measured."""
    measured = [(index, entry["deviation"]) for index, entry in enumerate(trace) if _is_finite(entry.get("deviation"))]
    if not measured:
        return None
    values = [value for _, value in measured]
    smallest = min((value for value in values if value > 0), default=0.0)
    logarithmic = smallest > 0 and max(values) / smallest > LOGARITHMIC_FROM
    tick_values = _decades(smallest, max(values)) if logarithmic else _halves(max(values))

    def height(value: float) -> float:
        low, high = tick_values[0], tick_values[-1]
        if logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, smallest))
        return round(100 * (high - value) / (high - low), 3)

    points = []
    for index, value in measured:
        x = round(100 * (index + 0.5) / len(trace), 3)
        points.append(Mark(x=x, y=height(value), text=f"step {trace[index]['step']} · deviation {significant(value)}"))
    ticks = tuple(Mark(x=0.0, y=height(value), text=f"{value:g}") for value in tick_values)
    return Curve(points=tuple(points), ticks=ticks, logarithmic=logarithmic)


def step_marks(trace: Sequence[Mapping[str, Any]], num_marks: int = 6) -> tuple[Mark, ...]:
    """Up to `num_marks` step numbers at round distances, under the middle of their cells."""
    stride = _round_up(max(1.0, len(trace) / num_marks), whole=True)
    return tuple(
        Mark(x=round(100 * (index + 0.5) / len(trace), 3), y=0.0, text=str(trace[index]["step"]))
        for index in range(0, len(trace), int(stride))
    )


def _halves(largest: float) -> list[float]:
    top = _round_up(largest) if largest > 0 else 1.0
    return [0.0, top / 2, top]


def _decades(smallest: float, largest: float) -> list[float]:
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest))
    stride = max(1, math.ceil((high - low) / 4))
    return [10.0**exponent for exponent in (*range(low, high, stride), high)]


def _round_up(value: float, *, whole: bool = False) -> float:
    """The next round number, as an axis or a stride of whole steps wants it."""
    decade = 10.0 ** math.floor(math.log10(value))
    leads = (1, 2, 5, 10) if whole else (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return next(lead * decade for lead in leads if lead * decade >= value * (1 - 1e-9))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _number(value: Any) -> str:
    if value is None:
        return ABSENT
    return significant(value) if isinstance(value, float) else str(value)
