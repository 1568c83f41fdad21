"""planned: a schedule worked out beforehand from a profile, for a wanted speed-up or quality, with a guard.

Source: ours. The planner (`planning/search.py`) gives the schedule for the noise levels of this generation. At every
computed step the error that reuse would have made is held against the one that the profile expects: where it is over
`guard` times the calibrated band, steps that were to be cached are computed until a computed step is within it again.
Where the extrapolation that is planned would have been much worse than reuse at the last computed step, it is followed
only as far as would have been best there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from mixcache.decision import CACHED, Choice, Decision, Granularity, Measurement, Step, Trial
from mixcache.policies.base import Needs, Policy, granularities_of, is_number
from mixcache.predictors import REUSE, Predictor, damped, predictors_of, undamped

SAME_GUIDANCE = 0.01
"""Relative change of the guidance scale that a plan does not notice."""
WORSE = 1.5
"""Error over that of reuse from which an extrapolation is not followed as planned."""


class Schedule(Protocol):
    """A plan: what to do at each step."""

    def decision(self, index: int) -> Decision: ...


class Expectation(Protocol):
    """What a profile expects of these noise levels."""

    profile: Any

    def relative_error(self, predictor: Predictor, sigma: float, nodes: list[float]) -> float | None: ...


class SchedulePlanner(Protocol):
    """Makes schedules; `mixcache.planning.search.Planner` is the one."""

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[Schedule, Expectation]: ...


@dataclass
class Progress:
    """The plan in force and how the run keeps to what was expected."""

    plan: Schedule | None = None
    expectation: Expectation | None = None
    computed: list[float] = field(default_factory=list)
    """Noise level of the last computed step, if there was one."""
    excess: float = 0.0
    """Seen error of reuse over the expected one: the geometric mean of the last two, since one says little."""
    last_excess: float = 1.0
    trials: Mapping[Choice, Trial] = field(default_factory=dict)
    """Of the last computed step."""
    guidance: float | None = None
    """Scale that the plan was made for; None where there is none."""
    other_guidance: float | None = None
    """Another scale that a later step was guided with: what was foretold does not hold then."""


@dataclass(frozen=True, kw_only=True)
class Planned(Policy):
    """Follows a plan as long as the run is as it was in calibration."""

    name: ClassVar[str] = "planned"
    # the plan itself is bounded
    default_bounds: ClassVar[dict[str, int]] = {
        "num_warmup_steps": 1,
        "num_cooldown_steps": 0,
        "max_age": 10**9,
        "max_cached_run": 10**9,
    }

    speedup: float | None = None
    """Wanted speed-up of the denoising loop, wall-clock, 1 or more; text encoder and VAE are left out. The plan nearest
    to it is taken, a little faster or slower."""
    quality: float | None = None
    """Wanted PSNR in dB against the plain clip, as the profile predicts it; instead of `speedup`."""
    profile: Any = None
    """A `Profile` or its path; the shipped one of the model unless given."""
    force_profile: bool = False
    """Takes a profile of another model too."""
    granularities: str | Sequence[str] = ("step", "cfg")
    """Granularities that may be chosen. "block" may be added: it keeps token-sized tensors."""
    predictors: str | Predictor | Sequence[str | Predictor] = ("reuse", "line")
    """Those that may be planned with, beside reuse."""
    guard: float = 2.0
    """How far over the band of the calibration an error may be before the plan is left. Errors of `step` are watched:
    there is no guard where `granularities` lacks it."""
    corrector: bool = True
    """Takes cached steps again with what the next computed one shows, where the scheduler allows it."""
    planner: SchedulePlanner | None = None
    """Makes the plan; `enable` puts in the one of the profile."""

    def __post_init__(self) -> None:
        predictors_of(self.predictors)
        if (self.speedup is None) == (self.quality is None):
            what = "both given" if self.speedup is not None else "missing"
            raise ValueError(f"speedup= and quality= are {what}; give one of them, such as speedup=2.0")
        if self.speedup is not None and not (is_number(self.speedup) and self.speedup >= 1):
            raise ValueError(f"speedup={self.speedup!r} must be a finite number of at least 1, such as 2.0")
        if self.quality is not None and not is_number(self.quality):
            raise ValueError(f"quality={self.quality!r} must be a finite number of decibels, such as 40")
        if not is_number(self.guard) or self.guard <= 0:
            raise ValueError(f"guard={self.guard!r} must be a finite number over 0, such as 2.0")
        object.__setattr__(self, "granularities", tuple(map(str, granularities_of(self.granularities))))

    @property
    def needs(self) -> Needs:
        return Needs(
            granularities=tuple(g for g in CACHED if g.value in self.granularities),
            predictors=predictors_of(self.predictors, REUSE),
            trials=True,
            correction=self.corrector,
        )

    def init(self) -> Progress:
        return Progress()

    def decide(self, step: Step, state: Progress) -> Decision:
        if self.planner is None or not step.sigmas:
            what = "no planner" if self.planner is None else "the scheduler tells no noise levels"
            return Decision(granularity=Granularity.COMPUTE, reason=f"no plan: {what}")
        if state.plan is None:
            state.plan, state.expectation = self.planner.plan(step.sigmas, step.guidance)
            state.guidance = step.guidance
        if _differ(step.guidance, state.guidance):
            state.other_guidance = step.guidance
        decision = state.plan.decision(step.index)
        if decision.granularity is Granularity.COMPUTE:
            return decision
        if state.expectation is not None and state.excess > state.expectation.profile.band * self.guard:
            return Decision(
                granularity=Granularity.COMPUTE, reason=f"guard: an error {state.excess:.1f} times the expected one"
            )
        predictor, damping = undamped(decision.predictor)
        if decision.granularity not in step.ages or predictor.num_values > step.history_lengths[decision.granularity]:
            return Decision(granularity=Granularity.COMPUTE, reason="no history for what was planned")
        trial = state.trials.get((decision.granularity, predictor))
        if trial is not None and trial.error(damping) > WORSE * trial.error(0.0):
            return replace(decision, predictor=damped(predictor, trial.best_damping), reason="planned, damped")
        return decision

    def observe(self, measurement: Measurement, state: Progress) -> None:
        trial = measurement.trials.get((Granularity.STEP, REUSE))
        if trial is not None and state.expectation is not None and state.computed:
            expected = state.expectation.relative_error(REUSE, measurement.sigma, state.computed)
            if expected is not None:
                excess = trial.error() / max(expected, 1e-6)
                state.excess, state.last_excess = math.sqrt(excess * state.last_excess), excess
        state.computed, state.trials = [measurement.sigma], measurement.trials


def _differ(scale: float | None, planned: float | None) -> bool:
    return scale is not None and planned is not None and not math.isclose(scale, planned, rel_tol=SAME_GUIDANCE)
