"""Schedules from a profile: which granularity and order at which step, for the least harm at a wanted speed-up.

The error of a cached step is a vector: what would have been predicted there minus the truth, both as points of the
profile (`Profile.outputs`). It moves the final latents by

    m_i = carry(sigma_i) (sigma_i - sigma_{i+1}) (predicted - true)_i

and a schedule does harm |sum of m_i|^2 + DOUBT^2 sum of |m_i|^2: errors of different steps add up as vectors, and some
cancel; but how much of each arrives differs from prompt to prompt, so each also counts alone. Span residuals live in
a space of their own and only count alone, with 1 + DOUBT^2.

The search walks through the steps and keeps, for each set of computed steps that later predictions stand on and each
level of cost, the least harmful schedules so far: dynamic programming but for the sum of vectors, which makes it a
beam.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mixcache.decision import Choice, Decision, Granularity
from mixcache.history import lagrange_weights
from mixcache.profiles import Profile

logger = logging.getLogger("mixcache")
DOUBT = 1.0
"""Weight of the part of the harm in which no error cancels another (docs/method.md, what was tried)."""
SHOWN = 1.0
"""Share of a drift of the latents, over sigma, that shows in an output."""
COST_LEVELS_PER_STEP = 4
KEPT_PER_LEVEL = 4
NUM_REMEMBERED = 64
FAR = 1.5
"""Numbers of steps that differ by more than this factor walk trajectories that are too different."""
MAX_AGE = 8
COMPUTE: Choice = (Granularity.COMPUTE, 0)
Nodes = tuple[int, ...]
Segment = tuple[Choice, ...]
"""Cached steps, all by one choice, and the computed one after them, unless the loop is then over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A schedule and what it is expected to give."""

    choices: tuple[Choice, ...]
    speedup: float
    """Of the denoising loop: text encoder and VAE are left out."""
    psnr_db: float
    """Against the plain clip; infinite where nothing is cached."""
    trust: float = 1.0
    """How far extrapolations are followed."""

    def decision(self, index: int) -> Decision:
        granularity, order = self.choices[index]
        return Decision(granularity=granularity, order=order, trust=self.trust, reason="planned")


class Trajectory:
    """A profile read at the noise levels and the guidance scale of one generation."""

    def __init__(
        self, profile: Profile, sigmas: Sequence[float], guidance: float | None, *, corrects: bool = False
    ) -> None:
        self.profile, self.sigmas, self.corrects = profile, [float(sigma) for sigma in sigmas], corrects
        self.num_steps = len(self.sigmas) - 1
        known, levels = np.asarray(profile.sigmas[:-1]), np.asarray(self.sigmas[:-1])
        outputs, differences, residuals = (
            _interpolated(levels, known, np.asarray(points, dtype=np.float64))
            for points in (profile.outputs, profile.differences, profile.residuals)
        )
        scale = profile.guidance if guidance is None else guidance
        self._weight = 0.0 if scale is None else 1.0 - scale
        """Of d in the guided output: v = c + (1 - g) d."""
        self.guided = outputs + self._weight * differences
        self._differences, self._residuals = differences, residuals
        self._ways = way = np.asarray(self.sigmas[:-1]) - np.asarray(self.sigmas[1:])
        self._moves = {name: way * _carry(profile, name, levels) for name in ("step", "block")}
        self._harms: dict[Hashable, tuple[np.ndarray, float]] = {}

    @property
    def has_residuals(self) -> bool:
        return bool(self._residuals.size)

    def error(self, granularity: Granularity, order: int, index: int, nodes: Nodes) -> np.ndarray:
        """Predicted minus true at step `index`, from the computed steps `nodes`: of the guided output, or of the guided
        residual over its rms."""
        nodes = nodes[-order - 1 :]
        weights = np.asarray(lagrange_weights([self.sigmas[n] for n in nodes], self.sigmas[index], self.profile.trust))
        points = {Granularity.STEP: self.guided, Granularity.CFG: self._differences, Granularity.BLOCK: self._residuals}
        of = points[granularity]
        error = weights @ of[list(nodes)] - of[index]
        return self._weight * error if granularity is Granularity.CFG else error

    def move(self, granularity: Granularity, order: int, index: int, nodes: Nodes) -> np.ndarray:
        """By how much the cached step moves the final latents, in units of their rms."""
        kind = "block" if granularity is Granularity.BLOCK else "step"
        return self._moves[kind][index] * self.error(granularity, order, index, nodes)

    def harm_of(self, segment: Segment, nodes: Nodes) -> tuple[np.ndarray, float]:
        """What a segment after the computed steps `nodes` adds to the sum of moves, and what counts alone."""
        key = (segment, nodes[-segment[0][1] - 1 :])
        if key not in self._harms:
            self._harms[key] = self._harm_of(segment, nodes)
        return self._harms[key]

    def _harm_of(self, segment: Segment, nodes: Nodes) -> tuple[np.ndarray, float]:
        (granularity, order), first = segment[0], nodes[-1] + 1
        is_open = segment[-1] != COMPUTE
        steps = range(first, first + len(segment) - (not is_open))
        moves = [self.move(granularity, order, index, nodes) for index in steps]
        if granularity is Granularity.BLOCK:
            return np.zeros(self.guided.shape[1]), (1 + DOUBT**2) * sum(float(move @ move) for move in moves)
        if granularity is Granularity.STEP and self.corrects and not is_open:
            moves = self._corrected(order, steps, nodes, np.sum(moves, axis=0))
        return np.sum(moves, axis=0), DOUBT**2 * sum(float(move @ move) for move in moves)

    def _corrected(self, order: int, steps: range, nodes: Nodes, drift: np.ndarray) -> list[np.ndarray]:
        """Moves of a run of cached steps that is taken again with the computed step after it.

        That one was computed for latents that had moved by `drift`, which shows in its output by up to drift / sigma,
        and through it in the interpolated ones.
        """
        later = steps.stop
        nodes = (*nodes[-order - 1 :], later)
        levels = [self.sigmas[node] for node in nodes]
        moves, seen = [], self._ways[later]
        for index in steps:
            weights = np.asarray(lagrange_weights(levels, self.sigmas[index]))
            moves.append(self._moves["step"][index] * (weights @ self.guided[list(nodes)] - self.guided[index]))
            seen += self._ways[index] * weights[-1]
        moves.append(-min(1.0, SHOWN * seen / self.sigmas[later]) * drift)
        return moves

    def relative_error(self, order: int, sigma: float, nodes: Sequence[float]) -> float | None:
        """rms(error) / rms(v) that the profile expects of the step granularity at a noise level, from computed noise
        levels; None where one of them is no step of this trajectory."""
        try:
            index, places = self.sigmas.index(sigma), tuple(self.sigmas.index(node) for node in nodes)
        except ValueError:
            return None
        error = self.error(Granularity.STEP, order, index, places)
        return float(np.linalg.norm(error) / max(1e-12, float(np.linalg.norm(self.guided[index]))))


def _interpolated(levels: np.ndarray, known: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points at `levels`, on lines between those at `known`, which falls."""
    if not points.size:
        return points
    return np.stack([np.interp(-levels, -known, column) for column in points.T], axis=1)


def _carry(profile: Profile, kind: str, levels: np.ndarray) -> np.ndarray:
    pairs = np.asarray(profile.carry.get(kind) or profile.carry["step"])
    return np.exp(np.interp(-levels, -pairs[:, 0], np.log(np.maximum(pairs[:, 1], 1e-6))))


def noise_levels(profile: Profile, scheduler: Any, num_steps: int | None) -> tuple[float, ...]:
    """Noise levels of `num_steps` steps of this scheduler, which stays as it is, and of its end; those of the profile
    where the number is not given. ValueError where the scheduler needs to know more."""
    nearest = profile if num_steps is None else profile.nearest(num_steps)
    if num_steps in (None, nearest.num_steps):
        return tuple(nearest.sigmas)
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(num_steps)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(scheduler).__name__} does not tell the noise levels of {num_steps} steps: {error}"
        ) from error
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) < num_steps:
        raise ValueError(f"{type(scheduler).__name__} has no sigmas; leave the number of steps as in the profile")
    return (*(float(sigma) for sigma in sigmas[:num_steps]), float(profile.sigmas[-1]))


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
        """The least harmful of each level of cost that are not worse than a cheaper one, with their last segment put
        into the paths."""
        harm = np.einsum("ij,ij->i", self.moved, self.moved) + self.alone
        levels = np.round(self.cost * COST_LEVELS_PER_STEP)
        order = np.lexsort((harm, levels))
        levels, harm = levels[order], harm[order]
        starts = np.flatnonzero(np.r_[True, levels[1:] != levels[:-1]])
        least_before = np.r_[np.inf, np.minimum.accumulate(harm[starts])[:-1]]
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        is_better = np.repeat(harm[starts] < least_before, np.diff(np.r_[starts, len(order)]))
        kept = order[(rank < KEPT_PER_LEVEL) & is_better]
        paths = np.empty(len(kept), dtype=object)
        for place, k in enumerate(kept):
            paths[place] = (self.paths[k], segments[self.last[k]])
        return _Batch(self.cost[kept], self.moved[kept], self.alone[kept], paths, np.zeros(len(kept), dtype=int))


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Finds the plan for a wanted speed-up or quality.

    `speedup` or `quality` (PSNR in dB) is given. `choices` and `order` limit what may be chosen.
    """

    profile: Profile
    speedup: float | None = None
    quality: float | None = None
    choices: tuple[str, ...] = ("step", "cfg", "block")
    order: int = 1
    corrects: bool = True
    """Cached steps are taken again (`mixcache.corrector`)."""

    def __post_init__(self) -> None:
        sigmas, guidance = tuple(self.profile.sigmas), self.profile.guidance
        if self._key(sigmas, guidance) not in _PLANS:
            self._remember(sigmas, guidance, self.chosen(self.frontier(sigmas, guidance)))
        for other in self.profile.others:  # now, and not in the middle of the first generation
            self.plan(tuple(other.sigmas), other.guidance)

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[Plan, Trajectory]:
        """The plan for these noise levels and the profile read there.

        Where these steps do not allow what was asked, it is the nearest plan. The newest `NUM_REMEMBERED` plans of all
        planners are remembered: a search takes about a second.
        """
        known = _PLANS.get(self._key(sigmas, guidance))
        if known is not None:
            return known
        plans = self.frontier(sigmas, guidance)
        try:
            plan = self.chosen(plans)
        except ValueError:
            plan = plans[-1] if self.speedup is not None else plans[0]
        return self._remember(sigmas, guidance, plan)

    def _key(self, sigmas: tuple[float, ...], guidance: float | None) -> Hashable:
        limits = (self.choices, self.order, self.corrects)
        return (self.profile.digest, self.speedup, self.quality, *limits, sigmas, guidance)

    def _remember(self, sigmas: tuple[float, ...], guidance: float | None, plan: Plan) -> tuple[Plan, Trajectory]:
        found = _PLANS[self._key(sigmas, guidance)] = (plan, self._trajectory(sigmas, guidance))
        while len(_PLANS) > NUM_REMEMBERED:
            del _PLANS[next(iter(_PLANS))]
        return found

    def chosen(self, plans: Sequence[Plan]) -> Plan:
        """Of a frontier, the plan nearest to what was asked for, which for a quality is the fastest that is not under
        it; ValueError with the reachable range where there is none."""
        if self.speedup is not None:
            wanted = self.speedup
            if wanted > plans[-1].speedup + 1e-9:
                raise ValueError(
                    f"speedup={wanted:g} cannot be reached; this model and machine allow 1 to "
                    f"{_floored(plans[-1].speedup, 2)}"
                )
            return min(plans, key=lambda plan: abs(math.log(plan.speedup / wanted)))
        if len(plans) == 1:
            raise ValueError(f"the profile knows nothing that choices={self.choices!r} could cache")
        found = [plan for plan in plans if plan.psnr_db >= (self.quality or 0.0)]
        if len(found) < 2:
            raise ValueError(
                f"quality={self.quality:g} dB leaves nothing to cache; this model allows {plans[-1].psnr_db:.1f} to "
                f"{_floored(max(p.psnr_db for p in plans if math.isfinite(p.psnr_db)), 1)}"
            )
        return max(found, key=lambda plan: plan.speedup)

    def frontier(self, sigmas: Sequence[float], guidance: float | None) -> list[Plan]:
        """The least harmful plans from slowest to fastest; the first computes everything.

        Warns where the profile was made with far more or fewer steps.
        """
        wanted = len(sigmas) - 1
        calibrated = self.profile.nearest(wanted).num_steps
        if not 1 / FAR < wanted / calibrated < FAR:
            logger.warning(
                "the profile was made with %d steps and foretells %d badly; calibrate with about as many",
                calibrated,
                wanted,
            )
        trajectory = self._trajectory(sigmas, guidance)
        options = list(self._options(trajectory))
        found = self._search(trajectory, options)
        steps_alone = [choice for choice in options if choice[0] is Granularity.STEP]
        if len(steps_alone) < len(options):  # a beam may lose among many options what it finds among few
            found += self._search(trajectory, steps_alone)
        best, frontier = -math.inf, []
        for plan in sorted(found, key=lambda plan: (-plan.speedup, -plan.psnr_db)):  # a slower one must be better
            if plan.psnr_db > best and plan.speedup >= 1:
                best = plan.psnr_db
                frontier.append(plan)
        return frontier[::-1]

    def _trajectory(self, sigmas: Sequence[float], guidance: float | None) -> Trajectory:
        return Trajectory(self.profile.nearest(len(sigmas) - 1), sigmas, guidance, corrects=self.corrects)

    def _search(self, trajectory: Trajectory, options: Sequence[Choice]) -> list[Plan]:
        num_steps, costs = trajectory.num_steps, trajectory.profile.costs
        segments: list[Segment] = [(COMPUTE,)]
        for choice in options:
            for length in range(1, MAX_AGE + 1):
                segments += [(choice,) * length, (*(choice,) * length, COMPUTE)]
        spent = [sum(costs[granularity.value] for granularity, _ in segment) for segment in segments]
        none = np.empty(1, dtype=object)
        width = trajectory.guided.shape[1]
        first = _Batch(np.full(1, spent[0]), np.zeros((1, width)), np.zeros(1), none, np.zeros(1, dtype=int))

        def longer(batch: _Batch, nodes: Nodes, number: int) -> _Batch:
            segment = segments[number]
            moved, alone = trajectory.harm_of(segment, nodes) if segment != (COMPUTE,) else (0.0, 0.0)
            last = np.full(len(batch.cost), number)
            return _Batch(batch.cost + spent[number], batch.moved + moved, batch.alone + alone, batch.paths, last)

        # made longer only when their turn has come: most of them are then pruned
        arrived: list[dict[Nodes, list[tuple[_Batch, Nodes, int]]]] = [{} for _ in range(num_steps)]
        arrived[0][(0,)] = []
        ended = [first] if num_steps == 1 else list[_Batch]()
        for index in range(num_steps):
            for nodes, parents in arrived[index].items():
                batch = (_joined([longer(*parent) for parent in parents]) if parents else first).pruned(segments)
                for number, segment in enumerate(segments):
                    end = index + len(segment)  # of the steps that it is of, the last one
                    is_computed = segment[-1] == COMPUTE
                    if end >= num_steps or not (is_computed or end == num_steps - 1) or segment[0][1] >= len(nodes):
                        continue
                    if end == num_steps - 1:
                        ended.append(longer(batch, nodes, number))
                    else:
                        arrived[end].setdefault((*nodes, end)[-self.order - 1 :], []).append((batch, nodes, number))
            arrived[index].clear()
        return self._plans(_joined(ended).pruned(segments), trajectory)

    def _options(self, trajectory: Trajectory) -> Iterator[Choice]:
        for name in self.choices:
            granularity = Granularity(name)
            is_possible = {
                Granularity.STEP: True,
                Granularity.CFG: trajectory._weight != 0.0 and "cfg" in trajectory.profile.costs,
                Granularity.BLOCK: trajectory.has_residuals and "block" in trajectory.profile.costs,
            }[granularity]
            if is_possible:
                # without trust an extrapolation is reuse by another name, and would crowd the beam
                highest = self.order if trajectory.profile.trust > 0 else 0
                yield from ((granularity, order) for order in range(highest + 1))

    def _plans(self, batch: _Batch, trajectory: Trajectory) -> list[Plan]:
        profile, num_steps = trajectory.profile, trajectory.num_steps
        plans, harm = [], np.square(batch.moved).sum(1) + batch.alone
        for place in range(len(harm)):
            choices, path = list[Choice](), batch.paths[place]
            while path is not None:
                path, segment = path
                choices += reversed(segment)
            psnr = profile.psnr_at_one - 10 * math.log10(harm[place]) if harm[place] > 0 else math.inf
            caches = any(choice != COMPUTE for choice in choices)
            speedup = float(num_steps / batch.cost[place]) if caches else 1.0
            plans.append(Plan(choices=tuple(reversed(choices)), speedup=speedup, psnr_db=psnr, trust=profile.trust))
        return plans


def _floored(value: float, num_digits: int) -> str:
    """With so many digits behind the point, and never over `value`: what a message promises can be asked for."""
    scale = 10**num_digits
    return f"{math.floor(value * scale + 1e-6) / scale:.{num_digits}f}"


_PLANS: dict[Hashable, tuple[Plan, Trajectory]] = {}


def _joined(batches: Sequence[_Batch]) -> _Batch:
    if len(batches) == 1:
        return batches[0]
    return _Batch(*(np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(_Batch)))
