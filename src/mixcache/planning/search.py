"""Schedules from a profile: which granularity and predictor at which step, for a wanted speed-up or quality.

The search walks through the steps and keeps, for each set of computed steps that later predictions stand on and each
level of time, the best schedules so far: dynamic programming but for the sum of vectors
(`mixcache.planning.trajectory`), which makes it a beam.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from mixcache.decision import Choice, Decision, Granularity
from mixcache.planning.profiles import Profile
from mixcache.planning.trajectory import COMPUTE, Nodes, Segment, Trajectory
from mixcache.predictors import LINE, REUSE, Predictor, damped

logger = logging.getLogger("mixcache")
TIME_LEVELS_PER_STEP = 4
KEPT_PER_LEVEL = 4
NUM_REMEMBERED = 64
FAR = 1.5
"""Numbers of steps that differ by more than this factor walk trajectories that are too different."""
MAX_AGE = 8
LEAST_PSNR_DB = 20.0
"""A plan that foretells less is another video, and is not followed, whatever was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A schedule and what it is expected to give."""

    choices: tuple[Choice, ...]
    speedup: float
    """Of the denoising loop: text encoder and VAE are left out."""
    psnr_db: float
    """Against the plain clip; infinite where nothing is cached."""
    damping: float = 1.0
    """Share of an extrapolation that is followed."""
    instead_of: Plan | None = None
    """The plan that was asked for, where this one is followed because that one is under `LEAST_PSNR_DB`."""
    parts: tuple[Plan, ...] = ()
    """The plan of each of two experts; empty where there is one transformer."""

    def decision(self, index: int) -> Decision:
        granularity, predictor = self.choices[index]
        return Decision(granularity=granularity, predictor=damped(predictor, self.damping), reason="planned")


_Path = tuple["_Path", Segment] | None
"""A schedule as a chain: all but the last segment, and that."""


@dataclass(slots=True)
class _Batch:
    """Partial schedules whose next predictions stand on the same computed steps."""

    cost: np.ndarray
    moved: np.ndarray
    """Sum of moves, one row per schedule."""
    alone: np.ndarray
    """Sum of what counts alone."""
    paths: np.ndarray
    """Of objects, `_Path`; without the last segment, which is in `last`."""
    last: np.ndarray
    """The last segment, as an index into what there is."""

    def pruned(self, segments: Sequence[Segment]) -> _Batch:
        """The best of each level of time that are not worse than a cheaper one, with their last segment put
        into the paths."""
        damage = np.einsum("ij,ij->i", self.moved, self.moved) + self.alone
        levels = np.round(self.cost * TIME_LEVELS_PER_STEP)
        order = np.lexsort((damage, levels))
        levels, damage = levels[order], damage[order]
        starts = np.flatnonzero(np.r_[True, levels[1:] != levels[:-1]])
        least_before = np.r_[np.inf, np.minimum.accumulate(damage[starts])[:-1]]
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        is_better = np.repeat(damage[starts] < least_before, np.diff(np.r_[starts, len(order)]))
        kept = order[(rank < KEPT_PER_LEVEL) & is_better]
        paths = np.empty(len(kept), dtype=object)
        for place, k in enumerate(kept):
            paths[place] = (self.paths[k], segments[self.last[k]])
        return _Batch(self.cost[kept], self.moved[kept], self.alone[kept], paths, np.zeros(len(kept), dtype=int))


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Finds the plan for a wanted speed-up or quality.

    `speedup` or `quality` (PSNR in dB) is given. `granularities` and `predictors` limit what may be chosen.
    """

    profile: Profile
    speedup: float | None = None
    quality: float | None = None
    granularities: tuple[str, ...] = ("step", "cfg", "block")
    predictors: tuple[Predictor, ...] = (REUSE, LINE)
    corrects: bool = True
    """Cached steps are taken again (`mixcache.core.corrector`)."""
    _warned: set[Hashable] = field(default_factory=set, init=False, repr=False, compare=False)
    """Schedules in which the wish was told to be out of reach."""

    def __post_init__(self) -> None:
        sigmas, guidance = tuple(self.profile.sigmas), self.profile.guidance
        if self._key(sigmas, guidance) not in _PLANS:
            self._remember(sigmas, guidance, self._chosen(self.frontier(sigmas, guidance)))
        for other in self.profile.others:  # now, and not in the middle of the first generation
            self._planned(tuple(other.sigmas), other.guidance)

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[Plan, Trajectory]:
        """The plan for these noise levels and the profile read there.

        Where these steps do not allow what was asked, it is the nearest plan, and never one under `LEAST_PSNR_DB`, of
        which is warned once. The newest `NUM_REMEMBERED` plans of all planners are remembered: a search takes about a
        second.
        """
        plan, trajectory = self._planned(sigmas, guidance)
        if (key := (sigmas, guidance)) not in self._warned:
            self._warned.add(key)
            self._warn(plan)
        return plan, trajectory

    def _planned(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[Plan, Trajectory]:
        known = _PLANS.get(self._key(sigmas, guidance))
        if known is not None:
            return known
        return self._remember(sigmas, guidance, self.nearest_plan(self.frontier(sigmas, guidance)))

    def _key(self, sigmas: tuple[float, ...], guidance: float | None) -> Hashable:
        limits = (self.granularities, self.predictors, self.corrects)
        return (self.profile.digest, self.speedup, self.quality, *limits, sigmas, guidance)

    def _remember(self, sigmas: tuple[float, ...], guidance: float | None, plan: Plan) -> tuple[Plan, Trajectory]:
        found = _PLANS[self._key(sigmas, guidance)] = (plan, self._trajectory(sigmas, guidance))
        while len(_PLANS) > NUM_REMEMBERED:
            del _PLANS[next(iter(_PLANS))]
        return found

    def nearest_plan(self, plans: Sequence[Plan]) -> Plan:
        """As `chosen`; where there is none, the fastest plan for a speed-up and the best one for a quality."""
        try:
            return self._chosen(plans)
        except ValueError:
            return _watchable(plans, plans[-1] if self.speedup is not None else plans[0])

    def chosen(self, plans: Sequence[Plan]) -> Plan:
        """Of a frontier, the plan nearest to what was asked for, which for a quality is the fastest that is not under
        it, or with a warning the fastest that is not under `LEAST_PSNR_DB`; ValueError with the reachable range where
        there is none."""
        plan = self._chosen(plans)
        self._warn(plan)
        return plan

    def _chosen(self, plans: Sequence[Plan]) -> Plan:
        if self.speedup is not None:
            wanted = self.speedup
            if wanted > plans[-1].speedup + 1e-9:
                raise ValueError(
                    f"speedup={wanted:g} cannot be reached; this model and machine allow 1 to "
                    f"{_floored(plans[-1].speedup, 2)}"
                )
            return _watchable(plans, min(plans, key=lambda plan: abs(math.log(plan.speedup / wanted))))
        if len(plans) == 1:
            raise ValueError(f"the profile knows nothing that granularities={self.granularities!r} could cache")
        found = [plan for plan in plans if plan.psnr_db >= (self.quality or 0.0)]
        if len(found) < 2:
            raise ValueError(
                f"quality={self.quality:g} dB leaves nothing to cache; this model allows {plans[-1].psnr_db:.1f} to "
                f"{_floored(max(p.psnr_db for p in plans if math.isfinite(p.psnr_db)), 1)}"
            )
        return _watchable(plans, max(found, key=lambda plan: plan.speedup))

    def _warn(self, plan: Plan) -> None:
        if (notice := self.notice(plan)) is not None:
            logger.warning("%s", notice)

    def notice(self, plan: Plan) -> str | None:
        """One line where another plan than the one that was asked for is followed."""
        if (asked := plan.instead_of) is None:
            return None
        wish = f"speedup={self.speedup:g}" if self.speedup is not None else f"quality={self.quality:g}"
        instead = (
            f"a plan of {plan.speedup:.2f}x and {plan.psnr_db:.1f} dB is followed instead"
            if math.isfinite(plan.psnr_db)
            else "everything is computed instead"
        )
        return (
            f"{wish} at {len(plan.choices)} steps would give {asked.psnr_db:.1f} dB, which is another video: {instead}"
        )

    def frontier(self, sigmas: Sequence[float], guidance: float | None) -> list[Plan]:
        """The best plans from slowest to fastest; the first computes everything.

        Warns where the profile was made with far more or fewer steps. What was searched for last is remembered.
        """
        wanted = len(sigmas) - 1
        profile = self.profile.nearest(wanted)
        calibrated = profile.num_steps
        if not 1 / FAR < wanted / calibrated < FAR:
            logger.warning(
                "the profile was made with %d steps and foretells %d badly; calibrate with about as many",
                calibrated,
                wanted,
            )
        scale = profile.guidance if guidance is None else guidance
        key = (profile.alone.digest, self.granularities, self.predictors, self.corrects, tuple(sigmas), scale)
        if key not in _FRONTIERS:
            _FRONTIERS[key] = self._searched(self._trajectory(sigmas, guidance))
            while len(_FRONTIERS) > NUM_REMEMBERED:
                del _FRONTIERS[next(iter(_FRONTIERS))]
        return list(_FRONTIERS[key])

    def _searched(self, trajectory: Trajectory) -> list[Plan]:
        options = list(self._options(trajectory))
        found = self._search(trajectory, options)
        steps_alone = [choice for choice in options if choice[0] is Granularity.STEP]
        if len(steps_alone) < len(options):  # a beam may lose among many options what it finds among few
            found += self._search(trajectory, steps_alone)
        return frontier_of(found)

    def together(self, plans: Sequence[Plan]) -> Plan:
        """What the plans of a loop's transformers give; here there is one."""
        return plans[0]

    def _trajectory(self, sigmas: Sequence[float], guidance: float | None) -> Trajectory:
        return Trajectory(self.profile.nearest(len(sigmas) - 1), sigmas, guidance, corrects=self.corrects)

    def _search(self, trajectory: Trajectory, options: Sequence[Choice]) -> list[Plan]:
        num_steps, costs = trajectory.num_steps, trajectory.profile.costs
        segments: list[Segment] = [(COMPUTE,)]
        for choice in options:
            for length in range(1, MAX_AGE + 1):
                segments += [(choice,) * length, (*(choice,) * length, COMPUTE)]
        needed = [segment[0][1].num_values for segment in segments]
        spent = [sum(costs[granularity.value] for granularity, _ in segment) for segment in segments]
        none = np.empty(1, dtype=object)
        width = trajectory.guided.shape[1]
        first = _Batch(np.full(1, spent[0]), np.zeros((1, width)), np.zeros(1), none, np.zeros(1, dtype=int))

        def longer(batch: _Batch, nodes: Nodes, number: int) -> _Batch:
            segment = segments[number]
            moved, alone = trajectory.cost_of(segment, nodes) if segment != (COMPUTE,) else (0.0, 0.0)
            last = np.full(len(batch.cost), number)
            return _Batch(batch.cost + spent[number], batch.moved + moved, batch.alone + alone, batch.paths, last)

        # made longer only when their turn has come: most of them are then pruned
        arrived: list[dict[Nodes, list[tuple[_Batch, Nodes, int]]]] = [{} for _ in range(num_steps)]
        arrived[0][(0,)] = []
        num_values = max(predictor.num_values for predictor in self.predictors)
        ended = [first] if num_steps == 1 else list[_Batch]()
        for index in range(num_steps):
            for nodes, parents in arrived[index].items():
                batch = (_joined([longer(*parent) for parent in parents]) if parents else first).pruned(segments)
                for number, segment in enumerate(segments):
                    end = index + len(segment)  # of the steps that it is of, the last one
                    is_computed = segment[-1] == COMPUTE
                    if end >= num_steps or not (is_computed or end == num_steps - 1) or needed[number] > len(nodes):
                        continue
                    if end == num_steps - 1:
                        ended.append(longer(batch, nodes, number))
                    else:
                        arrived[end].setdefault((*nodes, end)[-num_values:], []).append((batch, nodes, number))
            arrived[index].clear()
        return self._plans(_joined(ended).pruned(segments), trajectory)

    def _options(self, trajectory: Trajectory) -> Iterator[Choice]:
        for name in self.granularities:
            granularity = Granularity(name)
            is_possible = {
                Granularity.STEP: True,
                Granularity.CFG: trajectory.is_guided and "cfg" in trajectory.profile.costs,
                Granularity.BLOCK: trajectory.has_residuals and "block" in trajectory.profile.costs,
            }[granularity]
            if is_possible:
                # damped to nothing an extrapolation is reuse by another name, and would crowd the beam
                is_followed = trajectory.profile.damping > 0
                yield from ((granularity, p) for p in self.predictors if is_followed or p == REUSE)

    def _plans(self, batch: _Batch, trajectory: Trajectory) -> list[Plan]:
        profile, num_steps = trajectory.profile, trajectory.num_steps
        plans, damage = [], np.square(batch.moved).sum(1) + batch.alone
        for place in range(len(damage)):
            choices, path = list[Choice](), batch.paths[place]
            while path is not None:
                path, segment = path
                choices += reversed(segment)
            psnr = profile.psnr_at_one - 10 * math.log10(damage[place]) if damage[place] > 0 else math.inf
            caches = any(choice != COMPUTE for choice in choices)
            speedup = float(num_steps / batch.cost[place]) if caches else 1.0
            plans.append(Plan(choices=tuple(reversed(choices)), speedup=speedup, psnr_db=psnr, damping=profile.damping))
        return plans


def _watchable(plans: Sequence[Plan], asked: Plan) -> Plan:
    """The plan asked for, or the fastest of at least `LEAST_PSNR_DB` where it foretells less."""
    if asked.psnr_db >= LEAST_PSNR_DB:
        return asked
    fastest = max((plan for plan in plans if plan.psnr_db >= LEAST_PSNR_DB), key=lambda plan: plan.speedup)
    return replace(fastest, instead_of=asked)


def frontier_of(plans: Iterable[Plan]) -> list[Plan]:
    """The plans than which none is as fast and better, from slowest to fastest."""
    best, frontier = -math.inf, []
    for plan in sorted(plans, key=lambda plan: (-plan.speedup, -plan.psnr_db)):  # a slower one must be better
        if plan.psnr_db > best and plan.speedup >= 1:
            best = plan.psnr_db
            frontier.append(plan)
    return frontier[::-1]


def _floored(value: float, num_digits: int) -> str:
    """With so many digits behind the point, and never over `value`: what a message promises can be asked for."""
    scale = 10**num_digits
    return f"{math.floor(value * scale + 1e-6) / scale:.{num_digits}f}"


_PLANS: dict[Hashable, tuple[Plan, Trajectory]] = {}
_FRONTIERS: dict[Hashable, list[Plan]] = {}


def _joined(batches: Sequence[_Batch]) -> _Batch:
    if len(batches) == 1:
        return batches[0]
    return _Batch(*(np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(_Batch)))
