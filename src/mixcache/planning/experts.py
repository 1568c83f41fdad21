"""Plans of two experts: what was asked of the loop is divided between them where that does the least damage.

Each expert has histories of its own, so each follows a plan of its own, for its range of noise levels. A loop with the
plans a and b takes the time

    share_a / speedup_a + share_b / speedup_b

of the plain one, and does the damage of both. The errors of the two are taken to be at right angles: how they add up as
vectors is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mixcache.planning.profiles import Profile
from mixcache.planning.search import Plan, Planner, frontier_of
from mixcache.planning.trajectory import Trajectory


def planner_for(profile: Profile, **asked: Any) -> Planner:
    """The planner of a profile of one transformer, or of two experts; `asked` are the fields of `Planner`."""
    return (Planner if profile.second is None else ExpertsPlanner)(profile=profile, **asked)


@dataclass(frozen=True, kw_only=True)
class ExpertsPlanner(Planner):
    """Finds the plans of two experts that together give the wanted speed-up or quality.

    The division is made at the numbers of steps of the calibration; at another one, each expert is asked for what fell
    to it at the nearest.
    """

    def __post_init__(self) -> None:
        self.chosen(self.frontier(self.profile.loop_sigmas, None))  # ValueError where it cannot be reached
        _ = self._divided  # now, and not in the middle of the first generation

    @cached_property
    def _free(self) -> tuple[Planner, ...]:
        """A planner for each expert, of which nothing is asked."""
        return tuple(
            limited_planner(self, profile=profile, speedup=1.0, quality=None) for profile in self.profile.experts
        )

    @cached_property
    def _divided(self) -> list[tuple[Planner, ...]]:
        """For each number of steps of the calibration, a planner for each expert, asked for its part."""
        found = []
        for profile in (self.profile, *self.profile.others):
            parts = self.nearest_plan(self.frontier(profile.loop_sigmas, None)).parts
            pairs = zip(profile.alone.experts, parts, strict=True)
            found.append(tuple(limited_planner(self, profile=expert, **self._wish(part)) for expert, part in pairs))
        return found

    def _wish(self, part: Plan) -> dict[str, float | None]:
        """What an expert is asked for to get this plan; one that computes everything has no quality to ask for."""
        if self.speedup is not None or not math.isfinite(part.psnr_db):
            return {"speedup": part.speedup, "quality": None}
        return {"speedup": None, "quality": part.psnr_db - 1e-6}

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[Plan, Trajectory]:
        """The plan of the expert whose noise levels these are, and its profile read there."""
        # the two arrive at different ends, whatever the number of steps and wherever the first of them begins
        ends = [expert.sigmas[-1] for expert in self.profile.experts]
        index = min(range(len(ends)), key=lambda k: abs(ends[k] - sigmas[-1]))
        nearest = self.profile.experts[index].nearest(len(sigmas) - 1)
        planner = next(p[index] for p in self._divided if len(p[index].profile.sigmas) == len(nearest.sigmas))
        return planner.plan(sigmas, guidance)

    def frontier(self, sigmas: Sequence[float], guidance: float | None) -> list[Plan]:
        """The best pairs of plans for the noise levels of a whole loop, from slowest to fastest."""
        profile = self.profile.nearest(len(sigmas) - 1)
        border = (profile.sigmas[-2] + profile.sigmas[-1]) / 2  # to half a step: where it is depends on the timesteps
        num_first = sum(sigma > border for sigma in sigmas[:-1])
        ranges = sigmas[: num_first + 1], sigmas[num_first:]
        parts = [p.frontier(r, guidance) for p, r in zip(self._free, ranges, strict=True) if len(r) > 1]
        return frontier_of(self.together(pair) for pair in itertools.product(*parts))

    def together(self, plans: Sequence[Plan]) -> Plan:
        """What one plan for each expert gives."""
        profile = self.profile.nearest(sum(len(plan.choices) for plan in plans))
        paces = [expert.share / expert.num_steps for expert in profile.experts]
        if len(plans) < len(paces):
            return plans[0]
        times = [pace * len(plan.choices) for pace, plan in zip(paces, plans, strict=True)]
        damage = sum(10 ** (-plan.psnr_db / 10) for plan in plans)
        return Plan(
            choices=tuple(itertools.chain.from_iterable(plan.choices for plan in plans)),
            speedup=sum(times) / sum(time / plan.speedup for time, plan in zip(times, plans, strict=True)),
            psnr_db=-10 * math.log10(damage) if damage > 0 else math.inf,
            damping=plans[0].damping,
            parts=tuple(plans),
        )


def limited_planner(planner: Planner, **asked: Any) -> Planner:
    """A planner of one transformer with the limits of another planner."""
    return Planner(
        granularities=planner.granularities, predictors=planner.predictors, corrects=planner.corrects, **asked
    )
