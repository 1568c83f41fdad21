"""From records to rows, curves and distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, cast

from mixcache.bench.methods import Method
from mixcache.bench.records import Record, margin, summarise
from mixcache.bench.results import FEWER
from studies.study.methods import WITH_CFG

HINDSIGHT, MIXCACHE = "hindsight", "mixcache, cool-down 3"
CADENCES = ("every_nth step, order 0", "every_nth step, order 1")
CURVES = (FEWER, "planned", HINDSIGHT, WITH_CFG, MIXCACHE, "mixcache, cool-down 8", *CADENCES)
Points = list[tuple[float, float]]
Row = dict[str, Any]


def row_of(part: str, num_steps: int, method: Method, records: Sequence[Record], reason: str | None = None) -> Row:
    """A row of the results; without records it says why."""
    row: Row = {"part": part, "num_steps": num_steps, "curve": method.family, "method": method.name}
    if not records:
        return row | {"ideal": None, "psnr_db": None, "note": reason}
    found = summarise(records)[0]
    row |= {name: found[name] for name in ("ideal", "psnr_db", "psnr_spread", "ssim", "adherence", "steps")}
    return row | {
        "wall_clock": found["speedup"],
        "num_prompts": len(records),
        "ideal_by_prompt": [record.ideal_speedup for record in records],
        "psnr_by_prompt": [record.psnr_db for record in records],
    }


def points(rows: Sequence[Row], curve: str, num_steps: int, prompts: Sequence[int] | None = None) -> Points:
    """(ideal speed-up, PSNR) of a curve, means over some of the prompts (by default all); one point per speed-up."""
    found: dict[float, float] = {}
    for row in rows:
        if row["curve"] != curve or row["num_steps"] != num_steps or row["psnr_db"] is None:
            continue
        chosen = range(row["num_prompts"]) if prompts is None else prompts
        values = [
            (row["ideal_by_prompt"][i], row["psnr_by_prompt"][i])
            for i in chosen
            if i < row["num_prompts"] and row["psnr_by_prompt"][i] is not None
        ]
        if values and (prompts is None or len(values) == len(prompts)):
            found[fmean(ideal for ideal, _ in values)] = fmean(psnr for _, psnr in values)
    return sorted(found.items())


def level(curve: Points, speedup: float) -> float | None:
    """PSNR of a curve at a speed-up, on the line between its neighbours; None outside."""
    gap = margin(speedup, 0.0, curve)
    return None if gap is None else -gap


def with_margins(rows: list[Row]) -> list[Row]:
    """Each row with what it is above fewer plain steps of the same work, on the same prompts."""
    for row in rows:
        row["margin_db"] = None
        if row["psnr_db"] is not None and "ideal_by_prompt" in row and row["curve"] != FEWER:
            fewer = points(rows, FEWER, row["num_steps"], range(row["num_prompts"]))
            row["margin_db"] = margin(fmean(row["ideal_by_prompt"]), row["psnr_db"], fewer)
    return rows


def lines(rows: Sequence[Row], num_steps: int) -> dict[str, Points]:
    """The curves of the figure that have points."""
    found = {curve: points(rows, curve, num_steps) for curve in CURVES}
    return {curve: line for curve, line in found.items() if line}


def mean_deviations(runs: Sequence[Sequence[Mapping[str, float | None]]]) -> dict[str, Points]:
    """(sigma, mean over prompts) by what was measured."""
    found: dict[str, Points] = {"step, order 1": [], "step": [], "cfg": [], "block": []}
    for steps in zip(*runs, strict=True):
        for name, line in found.items():
            values = [step.get("deviation" if name == "step, order 1" else name) for step in steps]
            known = [value for value in values if value is not None]
            if len(known) == len(steps):
                line.append((cast(float, steps[0]["sigma"]), fmean(known)))
    return {name: line for name, line in found.items() if line}


def oracle_rows(rows: Sequence[Row], searched: Row, num_steps: int) -> list[Row]:
    """What the policies reach at the cost of the searched schedules, prompt by prompt, on the lines of their curves."""
    found = []
    for curve in (HINDSIGHT, MIXCACHE, FEWER):
        pairs = []
        for index, (ideal, psnr) in enumerate(
            zip(searched["ideal_by_prompt"], searched["psnr_by_prompt"], strict=True)
        ):
            value = level(points(rows, curve, num_steps, [index]), ideal)
            if value is not None and psnr is not None:
                pairs.append((ideal, value, psnr))
        row: Row = {"part": "e", "num_steps": num_steps, "curve": "", "method": f"{curve}, interpolated"}
        if not pairs:
            found.append(row | {"ideal": None, "psnr_db": None, "note": "its curve does not reach this speed-up"})
            continue
        ideals, psnrs, best = zip(*pairs, strict=True)
        found.append(
            row
            | {"ideal": fmean(ideals), "psnr_db": fmean(psnrs), "num_prompts": len(pairs)}
            | {"below_searched_db": fmean(b - p for b, p in zip(best, psnrs, strict=True))}
        )
    return found
