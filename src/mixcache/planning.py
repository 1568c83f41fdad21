"""Schedules from a profile: which granularity and order at which step, for the least harm at a wanted speed-up.

The error of a cached step is a vector: what would have been predicted there minus the truth, both as points of the
profile (`Profile.outputs`). It moves the final latents by

    m_i = carry(sigma_i) (sigma_i - sigma_{i+1}) (predicted - true)_i

and a schedule does harm |sum of m_i|^2 + DOUBT^2 sum of |m_i|^2: errors of different steps add up as vectors, and some
cancel; but how much of each arrives differs from prompt to prompt, so a part of each counts alone. Span residuals live
in a space of their own and only count alone.

The search walks through the steps and keeps, for each set of computed steps that later predictions stand on and each
level of cost, the least harmful schedules so far: dynamic programming but for the sum of vectors, which makes it a
beam.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mixcache.decision import Decision, Granularity
from mixcache.history import lagrange_weights
from mixcache.profiles import Profile

DOUBT = 0.5
"""How much of an error is taken not to cancel; `carry` differs between prompts by about this factor."""
COST_LEVELS_PER_STEP = 4
KEPT_PER_LEVEL = 2
MAX_AGE = 8
Choice = tuple[Granularity, int]
COMPUTE: Choice = (Granularity.COMPUTE, 0)
Nodes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A schedule and what it is expected to give."""

    choices: tuple[Choice, ...]
    speedup: float
    """Of the denoising loop: text encoder and VAE are left out."""
    psnr_db: float
    """Against the plain clip; infinite where nothing is cached."""

    def decision(self, index: int) -> Decision:
        granularity, order = self.choices[index]
        return Decision(granularity=granularity, order=order, reason="planned")


class Trajectory:
    """A profile read at the noise levels and the guidance scale of one generation."""

    def __init__(self, profile: Profile, sigmas: Sequence[float], guidance: float | None) -> None:
        self.profile, self.sigmas = profile, [float(sigma) for sigma in sigmas]
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
        way = np.asarray(self.sigmas[:-1]) - np.asarray(self.sigmas[1:])
        self._moves = {name: way * _carry(profile, name, levels) for name in ("step", "block")}

    @property
    def has_residuals(self) -> bool:
        return bool(self._residuals.size)

    def error(self, granularity: Granularity, order: int, index: int, nodes: Nodes) -> np.ndarray:
        """Predicted minus true at step `index`, from the computed steps `nodes`: of the guided output, or of the guided
        residual over its rms."""
        nodes = nodes[-order - 1 :]
        weights = np.asarray(lagrange_weights([self.sigmas[n] for n in nodes], self.sigmas[index]))
        points = {Granularity.STEP: self.guided, Granularity.CFG: self._differences, Granularity.BLOCK: self._residuals}
        of = points[granularity]
        error = weights @ of[list(nodes)] - of[index]
        return self._weight * error if granularity is Granularity.CFG else error

    def move(self, granularity: Granularity, order: int, index: int, nodes: Nodes) -> np.ndarray:
        """By how much the cached step moves the final latents, in units of their rms."""
        kind = "block" if granularity is Granularity.BLOCK else "step"
        return self._moves[kind][index] * self.error(granularity, order, index, nodes)

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


@dataclass(slots=True)
class _Batch:
    """Partial schedules whose next predictions stand on the same computed steps."""

    cost: np.ndarray
    moved: np.ndarray
    """Sum of moves, one row per schedule."""
    alone: np.ndarray
    """Sum of what counts alone."""
    paths: list[_Path]

    @property
    def harm(self) -> np.ndarray:
        return np.square(self.moved).sum(1) + self.alone

    def pruned(self) -> _Batch:
        """The least harmful of each level of cost that are not worse than a cheaper one."""
        harm = self.harm
        best = np.lexsort((harm, np.round(self.cost * COST_LEVELS_PER_STEP)))
        levels = np.round(self.cost[best] * COST_LEVELS_PER_STEP)
        kept, least = [], math.inf
        for level in np.unique(levels):
            of_level = best[levels == level][:KEPT_PER_LEVEL]
            if harm[of_level[0]] < least:
                least = float(harm[of_level[0]])
                kept += of_level.tolist()
        return _Batch(self.cost[kept], self.moved[kept], self.alone[kept], [self.paths[k] for k in kept])


_Path = tuple["_Path", Choice] | None
"""A schedule as a chain: all but the last step, and the choice there."""


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
    _known: dict[tuple[tuple[float, ...], float | None], tuple[Plan, Trajectory]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        self.chosen(self.frontier(tuple(self.profile.sigmas), self.profile.guidance))

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[Plan, Trajectory]:
        """The plan for these noise levels and the profile read there; worked out once.

        Where these steps do not allow what was asked, it is the nearest plan.
        """
        key = (sigmas, guidance)
        if key not in self._known:
            plans = self.frontier(sigmas, guidance)
            try:
                plan = self.chosen(plans)
            except ValueError:
                plan = plans[-1] if self.speedup is not None else plans[0]
            self._known[key] = (plan, Trajectory(self.profile, sigmas, guidance))
        return self._known[key]

    def chosen(self, plans: Sequence[Plan]) -> Plan:
        """Of a frontier, the plan that was asked for; ValueError with the reachable range where there is none."""
        if self.speedup is not None:
            found = [plan for plan in plans if plan.speedup >= self.speedup]
            if not found:
                raise ValueError(
                    f"speedup={self.speedup:g} cannot be reached; this model and machine allow 1 to "
                    f"{plans[-1].speedup:.2f}"
                )
            return max(found, key=lambda plan: plan.psnr_db)
        found = [plan for plan in plans if plan.psnr_db >= (self.quality or 0.0)]
        if len(found) < 2:
            raise ValueError(
                f"quality={self.quality:g} dB leaves nothing to cache; this model allows {plans[-1].psnr_db:.1f} to "
                f"{max(p.psnr_db for p in plans if math.isfinite(p.psnr_db)):.1f}"
            )
        return max(found, key=lambda plan: plan.speedup)

    def frontier(self, sigmas: Sequence[float], guidance: float | None) -> list[Plan]:
        """The least harmful plans from slowest to fastest; the first computes everything."""
        trajectory = Trajectory(self.profile, sigmas, guidance)
        costs = self.profile.costs
        batches: dict[Nodes, _Batch] = {
            (): _Batch(np.zeros(1), np.zeros((1, trajectory.guided.shape[1])), np.zeros(1), [None])
        }
        options = list(self._options(trajectory))
        for index in range(trajectory.num_steps):
            parts: dict[Nodes, list[_Batch]] = {}
            for nodes, batch in batches.items():
                computed = (*nodes, index)[-self.order - 1 :]
                paths: list[_Path] = [(path, COMPUTE) for path in batch.paths]
                parts.setdefault(computed, []).append(
                    _Batch(batch.cost + costs["compute"], batch.moved, batch.alone, paths)
                )
                if not nodes or index - nodes[-1] > MAX_AGE:
                    continue
                for choice in options:
                    if choice[1] >= len(nodes):
                        continue
                    parts.setdefault(nodes, []).append(_with(batch, trajectory, choice, index, nodes, costs))
            batches = {nodes: _joined(batch).pruned() for nodes, batch in parts.items()}
        return self._plans(_joined(list(batches.values())), trajectory.num_steps)

    def _options(self, trajectory: Trajectory) -> Iterator[Choice]:
        for name in self.choices:
            granularity = Granularity(name)
            is_possible = {
                Granularity.STEP: True,
                Granularity.CFG: trajectory._weight != 0.0 and "cfg" in self.profile.costs,
                Granularity.BLOCK: trajectory.has_residuals and "block" in self.profile.costs,
            }[granularity]
            if is_possible:
                yield from ((granularity, order) for order in range(self.order + 1))

    def _plans(self, batch: _Batch, num_steps: int) -> list[Plan]:
        plans, harm = [], batch.harm
        for place in np.argsort(batch.cost)[::-1]:
            choices, path = [], batch.paths[place]
            while path is not None:
                path, choice = path
                choices.append(choice)
            psnr = self.profile.psnr_at_one - 10 * math.log10(harm[place]) if harm[place] > 0 else math.inf
            caches = any(choice != COMPUTE for choice in choices)
            speedup = float(num_steps / batch.cost[place]) if caches else 1.0
            plans.append(Plan(choices=tuple(reversed(choices)), speedup=speedup, psnr_db=psnr))
        best, frontier = -math.inf, []
        for plan in reversed(plans):  # from fastest to slowest: a slower one must be better
            if plan.psnr_db > best:
                best = plan.psnr_db
                frontier.append(plan)
        return frontier[::-1]


def _with(
    batch: _Batch, trajectory: Trajectory, choice: Choice, index: int, nodes: Nodes, costs: Mapping[str, float]
) -> _Batch:
    """The schedules of `batch` with one cached step more."""
    move = trajectory.move(*choice, index, nodes)
    alone = float(move @ move)
    if choice[0] is Granularity.BLOCK:
        moved, alone = batch.moved, (1 + DOUBT**2) * alone
    else:
        moved, alone = batch.moved + move, DOUBT**2 * alone
    paths: list[_Path] = [(path, choice) for path in batch.paths]
    return _Batch(batch.cost + costs[choice[0].value], moved, batch.alone + alone, paths)


def _joined(batches: Sequence[_Batch]) -> _Batch:
    if len(batches) == 1:
        return batches[0]
    return _Batch(
        np.concatenate([batch.cost for batch in batches]),
        np.concatenate([batch.moved for batch in batches]),
        np.concatenate([batch.alone for batch in batches]),
        [path for batch in batches for path in batch.paths],
    )
