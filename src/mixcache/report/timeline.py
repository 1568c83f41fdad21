"""A trace as a picture: one coloured cell per step, and under it the measured deviation."""

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


def curve(trace: Sequence[Mapping[str, Any]]) -> Any:
    """The measured deviation over the step, as wide as the cells: a matplotlib figure. Where none was measured the
    numbers of the steps alone."""
    from matplotlib.figure import Figure

    measured = [(entry["step"], entry["deviation"]) for entry in trace if is_measured(entry)]
    figure = Figure(figsize=(8, 1.8 if measured else 0.25))
    axes = figure.add_axes((0, 0.14, 1, 0.82) if measured else (0, 0.95, 1, 0.05), frameon=False)
    axes.set_xlim(trace[0]["step"] - 0.5, trace[-1]["step"] + 0.5)
    axes.tick_params(colors="grey", labelsize=8, length=0)
    axes.yaxis.set_visible(bool(measured))
    if measured:
        axes.plot(*zip(*measured, strict=True), marker="o", markersize=4, linewidth=1.2)
        values = [value for _, value in measured]
        smallest = min((value for value in values if value > 0), default=0.0)
        if smallest and max(values) / smallest > LOGARITHMIC_FROM:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0.0)
        axes.grid(axis="y", alpha=0.3)
        axes.tick_params(axis="y", pad=-4)
        for label in axes.get_yticklabels():  # inside, so that the steps stand under their cells
            label.set(horizontalalignment="left", verticalalignment="bottom")
    return figure


def is_measured(entry: Mapping[str, Any]) -> bool:
    """True where the step of an entry has a deviation."""
    value = entry.get("deviation")
    return isinstance(value, (int, float)) and math.isfinite(value)


def _number(value: Any) -> str:
    if value is None:
        return ABSENT
    return significant(value) if isinstance(value, float) else str(value)
