"""The frontier of plans: what each speed-up is expected to cost, as rows of text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mixcache.decision import Choice, Granularity
from mixcache.planning.search import Plan
from mixcache.report.plot import image
from mixcache.store import write_whole

SPEEDUPS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
LETTERS = {Granularity.COMPUTE: "#", Granularity.STEP: "s", Granularity.CFG: "g", Granularity.BLOCK: "b"}
BAR_DB = 2.0
"""Decibels for one character of a bar."""


def letters(choices: Sequence[Choice]) -> str:
    """One letter a step; a capital where the predictor extrapolates."""
    return "".join(LETTERS[g].upper() if predictor.num_values > 1 else LETTERS[g] for g, predictor in choices)


def frontier_rows(plans: Sequence[Plan], chosen: Plan) -> list[str]:
    """A row for each round speed-up that can be reached, and for the chosen plan, with a bar for its PSNR."""
    shown = {chosen.speedup: chosen}
    for speedup in SPEEDUPS:
        found = [plan for plan in plans if plan.speedup >= speedup]
        if found:
            best = max(found, key=lambda plan: plan.psnr_db)
            shown.setdefault(best.speedup, best)
    rows = []
    for plan in sorted(shown.values(), key=lambda plan: plan.speedup):
        bar = "▇" * max(1, round(plan.psnr_db / BAR_DB)) if math.isfinite(plan.psnr_db) else ""
        rows.append(f"{plan.speedup:5.2f}x  {plan.psnr_db:5.1f} dB  {bar}{'  <-' if plan is chosen else ''}")
    return rows


def draw_frontier(plans: Sequence[Plan], chosen: Plan, path: Path) -> None:
    """PSNR against speed-up of all plans, the chosen one marked, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    finite = [plan for plan in plans if math.isfinite(plan.psnr_db)]
    axes.plot([p.speedup for p in finite], [p.psnr_db for p in finite], marker=".", label="plans")
    if math.isfinite(chosen.psnr_db):
        axes.plot([chosen.speedup], [chosen.psnr_db], marker="o", markersize=9, linestyle="", label="chosen")
    axes.set_xlabel("speed-up of the denoising loop, predicted")
    axes.set_ylabel("PSNR against the plain clip (dB), predicted")
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, image(figure, dpi=120))
