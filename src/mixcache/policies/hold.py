"""hold: repeats the last output while it is near, in short runs, which are then corrected through a parabola.

Source: ours. Reuse does not run away as an extrapolation does, and it is what the corrector helps most. At every
computed step the error of repeating the output before it is seen, and what it grew by for each unit of noise level; as
much again, or more where it has been growing, is expected of the next. A cached step is one that keeps to three limits:

    error   of the repeated output, relative                          at most `error`
    span    of the run, in the log of signal over noise               at most SPAN `error`
    harm    of the run: sum of error x age x weight of the step       at most BUDGET `error`^2 / number of steps

Early steps go a short way and settle what is carried on, so each weighs an even share at least; a step longer than
that weighs by its square, since a long step is hardly put right by interpolation. The three go together: a run that may
be twice as long has errors twice as large, and four times the harm. What single steps do to a clip, and what else was
tried, is in docs/experiments/2026-11-hard-default.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.policies.base import Needs, Policy, is_number
from mixcache.predictors import REUSE

SPAN = 1.25
BUDGET = 9.0
GROWTH = 3.0
"""Most that an error is expected to have grown by, for one unit of noise level, since the last computed step."""
CLEAR = 1e-4
"""Shares of signal and noise are taken as at least this."""


@dataclass
class Held:
    """What a trajectory has shown so far."""

    sigma: float = math.nan
    """Of the last computed step."""
    rates: tuple[float, ...] = ()
    """Errors seen at the last two computed steps, for each unit of noise level."""
    began: float = 0.0
    """Log of signal over noise where the run under way began."""
    spent: float = 0.0
    """Harm of it."""


@dataclass(frozen=True, kw_only=True)
class Hold(Policy):
    """Caches whole steps within limits that its one setting draws."""

    name: ClassVar[str] = "hold"
    # its own limits bound age and run; the last step is never cached
    default_bounds: ClassVar[dict[str, int]] = {
        "num_warmup_steps": 2,
        "num_cooldown_steps": 1,
        "max_age": 10**9,
        "max_cached_run": 10**9,
    }

    error: float = 0.4
    """Relative error, as expected, up to which an output is repeated. More is faster."""
    corrector: bool = True
    """Takes cached steps again with what the next computed one shows, where the scheduler allows it."""

    def __post_init__(self) -> None:
        if not is_number(self.error) or self.error <= 0:
            raise ValueError(f"error={self.error!r} must be a finite number over 0, such as 0.4; more is faster")

    @property
    def needs(self) -> Needs:
        return Needs(
            granularities=(Granularity.STEP,),
            predictors=(REUSE,),
            trials=True,
            correction=self.corrector,
            correction_degree=2,
        )

    def init(self) -> Held:
        return Held()

    def decide(self, step: Step, state: Held) -> Decision:
        if Granularity.STEP not in step.ages or not state.rates:
            return Decision(granularity=Granularity.COMPUTE, reason="nothing seen yet")
        if step.num_cached == 0:
            state.spent, state.began = 0.0, log_signal_over_noise(step.sigma)
        rate = state.rates[-1]
        growth = min(GROWTH, max(1.0, rate / state.rates[0])) if state.rates[0] else 1.0
        error = growth * rate * abs(state.sigma - step.sigma)
        if error > self.error:
            return Decision(granularity=Granularity.COMPUTE, reason=f"an error of {error:.2g} is expected")
        span = log_signal_over_noise(step.sigma - step.distance) - state.began
        if step.num_cached and span > SPAN * self.error:
            return Decision(granularity=Granularity.COMPUTE, reason=f"the run would span {span:.2g}")
        spent = state.spent + error * (step.num_cached + 1) * weight(step)
        if spent > BUDGET * self.error**2 / step.num_steps:
            return Decision(granularity=Granularity.COMPUTE, reason=f"harm {spent:.2g} is over the budget")
        state.spent = spent
        return Decision(granularity=Granularity.STEP, predictor=REUSE, reason=f"error {error:.2g}, harm {spent:.2g}")

    def observe(self, measurement: Measurement, state: Held) -> None:
        distance = abs(state.sigma - measurement.sigma)
        state.sigma = measurement.sigma
        trial = measurement.trials.get((Granularity.STEP, REUSE))
        if trial is not None and distance > 0 and math.isfinite(trial.error()):
            state.rates = (*state.rates, trial.error() / distance)[-2:]


def weight(step: Step) -> float:
    """What an error at this step counts for."""
    even = 1 / step.num_steps
    return max(even, step.distance**2 / even)


def log_signal_over_noise(sigma: float) -> float:
    """Half the log of the signal-to-noise ratio on the straight path."""
    noise = min(max(sigma, CLEAR), 1 - CLEAR)
    return math.log((1 - noise) / noise)
