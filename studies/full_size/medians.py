"""What the runs of a mode come to: medians, ratios, memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median
from typing import Any

from studies.full_size.runs import Run

PLAIN_STEP = "plain"
AFTER_COMPUTED = " after a computed one"
"""The cached step after a computed one also bears what the cache did with the computed one."""


def told(runs: dict[str, list[Run]], plain: str) -> dict[str, dict[str, Any]]:
    """What the runs of each way come to: medians of loops and of steps, the speed-up, the memory added to the plain.

    The first step also warms up; it is left out of the steps.
    """
    plain_ms = median(run.loop_ms for run in runs[plain])
    plain_peak = _peak(runs[plain])
    result = {}
    for name, of_way in runs.items():
        account = {key: value for key, value in of_way[-1].account.items() if key != "steps"}
        peak = _peak(of_way)
        added = peak - plain_peak if peak is not None and plain_peak is not None else account.get("cache_bytes")
        loop_ms = median(run.loop_ms for run in of_way)
        result[name] = {
            "loop_ms": loop_ms,
            "loops_ms": [run.loop_ms for run in of_way],
            "speedup": plain_ms / loop_ms,
            "step_ms": step_medians(of_way),
            "peak_bytes": peak,
            "num_graphs": sum(run.num_graphs for run in of_way),
            "added_bytes": 0 if name == plain else added,
            **account,
        }
    return result


def step_medians(runs: Sequence[Run]) -> dict[str, float]:
    """Median milliseconds of the steps of each name."""
    times: dict[str, list[float]] = {}
    for run in runs:
        for name, step_ms in list(zip(run.account["steps"], run.step_ms, strict=True))[1:]:
            times.setdefault(name, []).append(step_ms)
    return {name: median(values) for name, values in times.items()}


def step_names(kinds: Sequence[str]) -> list[str]:
    """The names under which steps are timed: what a step did, and whether it follows a computed one."""
    names = list(kinds[:1])
    for before, kind in itertools.pairwise(kinds):
        names.append(kind + AFTER_COMPUTED if before == "compute" != kind else kind)
    return names


def _peak(runs: Sequence[Run]) -> int | None:
    peaks = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return max(peaks) if peaks else None
