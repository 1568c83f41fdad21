"""The words a decision is made of: what is known of a step, what is chosen, what was measured. Pure Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from mixcache.predictors import REUSE, Predictor


class Granularity(str, Enum):
    """What is left out of one denoising step; all calls of the step follow it."""

    COMPUTE = "compute"
    """Everything runs and every history is refreshed."""
    BLOCK = "block"
    """A span of transformer blocks is replaced by its predicted residual, in every branch."""
    CFG = "cfg"
    """The unconditional branch is replaced by the conditional output plus the predicted guidance difference."""
    STEP = "step"
    """The transformer is not entered; every branch's output is predicted."""

    def __str__(self) -> str:
        return self.value


Choice = tuple[Granularity, Predictor]
"""A granularity and its predictor."""

CACHED = (Granularity.STEP, Granularity.CFG, Granularity.BLOCK)
"""The granularities that leave something out, the largest saving first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a policy is told before the first call of a step."""

    index: int
    """Position in the denoising loop, from 0."""
    num_steps: int
    """Steps that this denoiser does."""
    sigma: float
    """Noise level, 0 to 1 (`mixcache.hosts.diffusers.levels`)."""
    offset: int = 0
    """Steps of the loop that another denoiser does before; `index` and `num_steps` count this one's own."""
    num_computed_before: int = 0
    """Of these, how many were computed."""
    ages: Mapping[Granularity, int] = field(default_factory=dict)
    """Steps since the last computed value of what a granularity would predict from; a granularity that cannot be used
    is absent."""
    history_lengths: Mapping[Granularity, int] = field(default_factory=dict)
    """Computed values at hand for each usable granularity: a predictor needs its
    `num_values`."""
    num_cached: int = 0
    """Cached steps since the last computed one, as they were done."""
    sigmas: tuple[float, ...] = ()
    """Noise levels of all steps, and last the one at which the last step arrives; empty where the host does not say."""
    guidance: float | None = None
    """Guidance scale in force; None where there is none or it cannot be read."""
    costs: Mapping[Granularity, float] = field(default_factory=dict)
    """Share of a computed step's block work that is still done by each granularity."""
    seconds: Mapping[Granularity, float] = field(default_factory=dict)
    """Median times of the steps that this run has done so far, by granularity."""
    corrects: bool = False
    """True where a step cached by `step` will most likely be taken again once the next computed one is known
    (`mixcache.core.corrector`)."""

    @property
    def distance(self) -> float:
        """How far this step goes, as a share of the way from noise alone, 1, or from further out where a host's levels
        begin there; an even share where the host does not say."""
        if len(self.sigmas) <= self.index + 1:
            return 1 / self.num_steps
        return (self.sigmas[self.index] - self.sigmas[self.index + 1]) / max(1.0, self.sigmas[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What a policy answers."""

    granularity: Granularity
    predictor: Predictor = REUSE
    """Of no meaning for `compute`."""
    reason: str = ""
    """Why, in a few words for the trace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one granularity and predictor would have given at a computed step, however damped.

    With t = true - last computed, x = predicted - last computed, both as changes of the guided output v; inner
    products over that of v with itself.
    """

    missed: float
    """<t, t>"""
    overlap: float = 0.0
    """<t, x>"""
    reach: float = 0.0
    """<x, x>"""

    def error(self, damping: float = 1.0) -> float:
        """rms(predicted - v) / rms(v), where the prediction is followed for a share."""
        square = self.missed - 2 * damping * self.overlap + damping**2 * self.reach
        return math.sqrt(max(0.0, square)) if math.isfinite(square) else square


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What a computed step taught."""

    step: int
    """Index of the computed step."""
    sigma: float
    deviation: float | None
    """Relative error that a `step` by the policy's predictor would have made here: L1, mean|predicted - v| / mean|v|,
    or the rms of its trial for policies that want trials. Absent without a history, and where those may not choose
    `step`."""
    distances: Mapping[Granularity, float] = field(default_factory=dict)
    """Relative L1 change, between the last two computed values, of what each granularity would reuse; not for policies
    that want trials."""
    trials: Mapping[Choice, Trial] = field(default_factory=dict)
    """What each granularity and predictor that the histories allowed would have given; for policies that want them."""
