"""Plans made from what was measured, tried with several dampings in extrapolation: which, and what their clips tell.

A cached step moves the latents, the model answers, and an extrapolation carries the answer on, which no plain
trajectory shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from mixcache.calibration.assemble import for_each_expert
from mixcache.planning.experts import planner_for
from mixcache.planning.profiles import Profile
from mixcache.planning.search import Plan

DAMPINGS = (1.0, 0.75, 0.5, 0.25, 0.0)
PLANNED_SPEEDUPS = (1.5, 2.2)
"""Plans of every damping are run at these."""
PLANNED_GRANULARITIES = ("step", "cfg")
WORK = {"compute": 1.0, "step": 0.01, "cfg": 0.5}
"""Costs of the plans that are tried: of the work alone, so that they are the same on every machine."""
IDENTICAL_DB = 120.0
"""Counts as the PSNR of equal clips."""


class Plans:
    """The plans that are tried: of the profile that `assembled` gives, which is asked for when all else is measured."""

    def __init__(self, assembled: Callable[[], Profile], *, corrects: bool) -> None:
        self._assembled, self._corrects = assembled, corrects
        self._frontiers: dict[float, list[Plan]] = {}

    @cached_property
    def profile(self) -> Profile:
        """With a damping and a PSNR that say nothing yet."""
        return self._assembled()

    def plan(self, damping: float, speedup: float) -> Plan:
        """The plan of one damping that comes nearest to a speed-up in work, which is the same on any machine."""
        if damping not in self._frontiers:
            profile = with_shares_of_work(for_each_expert(self.profile, damping=damping, costs=WORK))
            planner = planner_for(profile, speedup=1.0, granularities=PLANNED_GRANULARITIES, corrects=self._corrects)
            self._frontiers[damping] = planner.frontier(profile.loop_sigmas, None)
        return min(self._frontiers[damping], key=lambda plan: abs(plan.speedup - speedup))


def task_name(index: int, damping: float, speedup: float) -> str:
    """Of the run of a prompt with a plan."""
    return f"{index} plan {damping:g} {speedup:g}"


def best_damping(done: Mapping[str, Any], num_prompts: int) -> tuple[float, float]:
    """The damping whose plans gave the best clips, and the PSNR at a cost of 1 that they tell."""
    runs = {
        damping: [done[task_name(i, damping, speedup)] for speedup in PLANNED_SPEEDUPS for i in range(num_prompts)]
        for damping in DAMPINGS
    }
    best = max(DAMPINGS, key=lambda damping: psnr_of(runs[damping]))
    offs = [run["psnr_db"] - run["foretold_db"] for run in runs[best]]
    finite = [off for off in offs if math.isfinite(off)]
    return best, fmean(finite) if finite else 0.0


def psnr_of(runs: Sequence[dict[str, float]]) -> float:
    """Mean PSNR (dB) of the runs of plans, at the mean of `PLANNED_SPEEDUPS`: on a line through what was seen at the
    speed-ups that the plans have."""
    speedups = np.asarray([run["speedup"] for run in runs])
    psnrs = np.asarray([min(run["psnr_db"], IDENTICAL_DB) for run in runs])
    if np.ptp(speedups) < 1e-6:
        return float(psnrs.mean())
    return float(np.polyval(np.polyfit(speedups, psnrs, 1), fmean(PLANNED_SPEEDUPS)))


def with_shares_of_work(profile: Profile) -> Profile:
    """The profile with shares of the loop that are those of the calls, the same on every machine."""
    if profile.second is None:
        return profile
    calls = [(len(p.sigmas) - 1) * (1 if p.guidance is None else 2) for p in (profile, profile.second)]
    second = replace(profile.second, share=calls[1] / sum(calls))
    return replace(profile, share=calls[0] / sum(calls), second=second)
