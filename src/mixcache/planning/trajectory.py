"""A profile read at the noise levels of one generation: the error, the move and the cost of every cached step.

The error of a cached step is a vector: what would have been predicted there minus the truth, both as points of the
profile (`Profile.outputs`). It moves the final latents by

    m_i = sensitivity(sigma_i) (sigma_i - sigma_{i+1}) (predicted - true)_i

and a schedule costs |sum of m_i|^2 + DOUBT^2 sum of |m_i|^2: errors of different steps add up as vectors, and some
cancel; but how much of each arrives differs from prompt to prompt, so each also counts alone. Span residuals live in
a space of their own and only count alone, with 1 + DOUBT^2.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from mixcache.decision import Choice, Granularity
from mixcache.planning.profiles import Profile
from mixcache.predictors import REUSE, Lagrange, Predictor, damped

DOUBT = 1.0
"""Weight of the part of the cost in which no error cancels another (docs/experiments/2026-11-plan-cost.md)."""
SHOWN = 1.0
"""Share of a drift of the latents, over sigma, that shows in an output."""
COMPUTE: Choice = (Granularity.COMPUTE, REUSE)
Nodes = tuple[int, ...]
Segment = tuple[Choice, ...]
"""Cached steps, all by one choice, and the computed one after them, unless the loop is then over."""


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
        self._step_sizes = step_sizes = np.asarray(self.sigmas[:-1]) - np.asarray(self.sigmas[1:])
        self._moves = {name: step_sizes * _sensitivity(profile, name, levels) for name in ("step", "block")}
        self._costs: dict[Hashable, tuple[np.ndarray, float]] = {}

    @property
    def is_guided(self) -> bool:
        """True where the unconditional branch has a weight."""
        return self._weight != 0.0

    @property
    def has_residuals(self) -> bool:
        return bool(self._residuals.size)

    def error(self, granularity: Granularity, predictor: Predictor, index: int, nodes: Nodes) -> np.ndarray:
        """Predicted minus true at step `index`, from the computed steps `nodes`: of the guided output, or of the guided
        residual over its rms."""
        nodes = nodes[-predictor.num_values :]
        levels, followed = [self.sigmas[node] for node in nodes], damped(predictor, self.profile.damping)
        weights = np.asarray(followed.weights(levels, self.sigmas[index]))
        points = {Granularity.STEP: self.guided, Granularity.CFG: self._differences, Granularity.BLOCK: self._residuals}
        of = points[granularity]
        error = weights @ of[list(nodes)] - of[index]
        return self._weight * error if granularity is Granularity.CFG else error

    def move(self, granularity: Granularity, predictor: Predictor, index: int, nodes: Nodes) -> np.ndarray:
        """By how much the cached step moves the final latents, in units of their rms."""
        kind = "block" if granularity is Granularity.BLOCK else "step"
        return self._moves[kind][index] * self.error(granularity, predictor, index, nodes)

    def cost_of(self, segment: Segment, nodes: Nodes) -> tuple[np.ndarray, float]:
        """What a segment after the computed steps `nodes` adds to the sum of moves, and what counts alone."""
        key = (segment, nodes[-segment[0][1].num_values :])
        if key not in self._costs:
            self._costs[key] = self._cost_of(segment, nodes)
        return self._costs[key]

    def _cost_of(self, segment: Segment, nodes: Nodes) -> tuple[np.ndarray, float]:
        (granularity, predictor), first = segment[0], nodes[-1] + 1
        is_open = segment[-1] != COMPUTE
        steps = range(first, first + len(segment) - (not is_open))
        moves = [self.move(granularity, predictor, index, nodes) for index in steps]
        if granularity is Granularity.BLOCK:
            return np.zeros(self.guided.shape[1]), (1 + DOUBT**2) * sum(float(move @ move) for move in moves)
        if granularity is Granularity.STEP and self.corrects and not is_open:
            moves = self._corrected(predictor, steps, nodes, np.sum(moves, axis=0))
        return np.sum(moves, axis=0), DOUBT**2 * sum(float(move @ move) for move in moves)

    def _corrected(self, predictor: Predictor, steps: range, nodes: Nodes, drift: np.ndarray) -> list[np.ndarray]:
        """Moves of a run of cached steps that is taken again with the computed step after it.

        That one was computed for latents that had moved by `drift`, which shows in its output by up to drift / sigma,
        and through it in the interpolated ones.
        """
        later = steps.stop
        nodes = (*nodes[-predictor.num_values :], later)
        levels = [self.sigmas[node] for node in nodes]
        through = Lagrange(degree=len(nodes) - 1)
        moves, seen = [], self._step_sizes[later]
        for index in steps:
            weights = np.asarray(through.weights(levels, self.sigmas[index]))
            moves.append(self._moves["step"][index] * (weights @ self.guided[list(nodes)] - self.guided[index]))
            seen += self._step_sizes[index] * weights[-1]
        moves.append(-min(1.0, SHOWN * seen / self.sigmas[later]) * drift)
        return moves

    def relative_error(self, predictor: Predictor, sigma: float, nodes: Sequence[float]) -> float | None:
        """rms(error) / rms(v) that the profile expects of the step granularity at a noise level, from computed noise
        levels; None where one of them is no step of this trajectory."""
        try:
            index, places = self.sigmas.index(sigma), tuple(self.sigmas.index(node) for node in nodes)
        except ValueError:
            return None
        error = self.error(Granularity.STEP, predictor, index, places)
        return float(np.linalg.norm(error) / max(1e-12, float(np.linalg.norm(self.guided[index]))))


def _interpolated(levels: np.ndarray, known: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points at `levels`, on lines between those at `known`, which falls."""
    if not points.size:
        return points
    return np.stack([np.interp(-levels, -known, column) for column in points.T], axis=1)


def _sensitivity(profile: Profile, kind: str, levels: np.ndarray) -> np.ndarray:
    pairs = np.asarray(profile.sensitivity.get(kind) or profile.sensitivity["step"])
    return np.exp(np.interp(-levels, -pairs[:, 0], np.log(np.maximum(pairs[:, 1], 1e-6))))
