"""hold: repeats the last output while it is near, in short runs, which are then corrected through a parabola.

Source: ours. Reuse does not run away as an extrapolation does, and it is what the corrector helps most. At every
computed step the error of repeating the output before it is seen, and what it grew by for each unit of noise level; as
much again, or more where it has been growing, is expected of the next. A cached step is one that keeps to three limits:

    error   of the repeated output, relative                          at most `error`
    span    of the run, in the log of signal over noise               at most SPAN `error`
    cost    of the run: sum of error x age x weight of the step       at most BUDGET `error`^2 / number of steps

Nor is a step cached where one of the last two computed outputs changed by more than its own size in a step: what the
clip is to show is being settled there, and a calm step between two wild ones says nothing.

Early steps go a short way and settle what is carried on, so each weighs an even share at least; a step longer than
that weighs by its square, since a long step is hardly put right by interpolation; and where a clip is settled an error
weighs SENSITIVITY times as much, since some clips multiply it there by a hundred. The three go together: a run that may
be twice as long has errors twice as large, and four times the cost. What single steps do to a clip, and what else was
tried, is in docs/experiments/2026-11-hard-default.md.

Where a `speedup` is wished, `error` follows from it (`wish.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar

from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.names import unknown_name
from mixcache.policies.base import Needs, Policy, is_number
from mixcache.policies.runs import DEFAULT_ERROR, NO_END, Run, grown
from mixcache.policies.way import Learnt, is_on
from mixcache.policies.wish import Wish
from mixcache.predictors import REUSE

NUM_RATIOS = 4
"""Rates by which what is foretold of the rest is scaled."""
ANOTHER_OUTPUT = 1.0
"""Relative change in one step from which on an output is another one altogether."""
QUALITIES = {"high": 0.25, "balanced": DEFAULT_ERROR, "fast": 0.6}
"""`error` by the word for it."""


@dataclass
class Held:
    """What a trajectory has shown so far."""

    wish: Wish | None = None
    limit: float = math.nan
    """`error` in force where no speed-up is wished, from the first decision on."""
    sigma: float = math.nan
    """Of the last computed step."""
    rates: tuple[float, ...] = ()
    """Errors seen at the last two computed steps, for each unit of noise level."""
    changes: tuple[float, ...] = ()
    """The same errors for each step."""
    last: int | None = None
    """Index of the last computed step."""
    log_ratios: tuple[float, ...] = ()
    """Logs of the last rates over those that were foretold there."""
    run: Run | None = None


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

    speedup: float | None = None
    """Wished speed-up of the denoising loop, wall-clock, 1 or more; text encoder and VAE are left out."""
    quality: str | float | None = None
    """In place of a speed-up: "high", "balanced" or "fast"; or the PSNR in dB against the plain clip that nine of ten
    clips are to have at least, as a profile estimates it."""
    error: float | None = None
    """In place of both: relative error, as expected, up to which an output is repeated. More is faster; 0.4 where
    nothing is asked for. However large it is, a step beside one that changed the output by more than its own size is
    computed."""
    profile: Any = None
    """A `Profile` or its path; the shipped one of the model unless given."""
    corrector: bool = True
    """Takes cached steps again with what the next computed one shows, where the scheduler allows it."""
    learnt: Learnt = field(default_factory=Learnt, repr=False, compare=False, metadata={"is_setting": False})
    """What the generations so far have shown; `enable` begins with what the profile knows."""

    def __post_init__(self) -> None:
        given = [name for name in ("speedup", "quality", "error") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{'= and '.join(given)}= are both given; give one of them, such as speedup=2.0")
        if self.speedup is not None and not (is_number(self.speedup) and self.speedup >= 1):
            raise ValueError(f"speedup={self.speedup!r} must be a finite number of at least 1, such as 2.0")
        if isinstance(self.quality, str):
            if self.quality not in QUALITIES:
                raise ValueError(unknown_name("quality", self.quality, QUALITIES))
        elif self.quality is not None and (not is_number(self.quality) or self.quality <= 0):
            raise ValueError(f"quality={self.quality!r} must be high, balanced or fast, or a number of decibels over 0")
        if self.error is not None and (not is_number(self.error) or self.error <= 0):
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
        return Held(wish=None if self.speedup is None else Wish(speedup=self.speedup, learnt=self.learnt))

    def decide(self, step: Step, state: Held) -> Decision:
        self.learnt.see_times(step.seconds)
        wish = state.wish
        if wish:
            wish.see(step)
        elif math.isnan(state.limit):
            state.limit = self._limit(step.num_steps)
        if Granularity.STEP not in step.ages or not state.rates:
            return Decision(granularity=Granularity.COMPUTE, reason="nothing seen yet")
        decision = (wish and wish.settled(step)) or self._within_limits(step, state)
        if wish and decision.granularity is Granularity.STEP:
            wish.last_cached = step.index
        return decision

    def _within_limits(self, step: Step, state: Held) -> Decision:
        if max(state.changes, default=0.0) > ANOTHER_OUTPUT:
            return Decision(
                granularity=Granularity.COMPUTE, reason=f"a step changed the output by {max(state.changes):.2g}"
            )
        if state.wish:
            scale = math.exp(fmean(state.log_ratios)) if state.log_ratios else 1.0
            limit, longest = state.wish.limit_at(step, state.sigma, state.rates, scale), state.wish.longest
        else:
            limit, longest = state.limit, NO_END
        if state.run is None:
            state.run = Run(state.sigma, state.rates[-1], grown(*state.rates), longest)
        reason = state.run.exceeded(limit, step.sigma, step.distance, step.num_steps)
        if reason:
            return Decision(granularity=Granularity.COMPUTE, reason=reason)
        return Decision(granularity=Granularity.STEP, reason=f"cost {state.run.spent:.2g}, error up to {limit:.2g}")

    def observe(self, measurement: Measurement, state: Held) -> None:
        before, state.sigma = state.sigma, measurement.sigma
        distance = abs(before - state.sigma)
        trial = measurement.trials.get((Granularity.STEP, REUSE))
        if trial is not None and state.last is not None and distance > 0 and math.isfinite(trial.error()):
            rate = trial.error() / distance
            state.rates = (*state.rates, rate)[-2:]
            state.changes = (*state.changes, trial.error() / (measurement.step - state.last))[-2:]
            middle = (before + state.sigma) / 2
            if rate > 0 and is_on(middle):
                ratio = math.log(rate) - self.learnt.way.log_rate(middle)
                state.log_ratios = (*state.log_ratios, ratio)[-NUM_RATIOS:]
                self.learnt.see(middle, rate)
        state.run, state.last = None, measurement.step
        if state.wish:
            state.wish.computed(measurement.step)

    def limit_expected(self, num_steps: int) -> float:
        """The `error` with which a loop of so many steps, all of one denoiser, begins."""
        if self.speedup is None:
            return self._limit(num_steps)
        return Wish(speedup=self.speedup, learnt=self.learnt).limit_known(num_steps)

    def _limit(self, num_steps: int) -> float:
        """The `error` in force where no speed-up is wished."""
        if isinstance(self.quality, str):
            return QUALITIES[self.quality]
        if self.quality is not None:
            if not hasattr(self.profile, "estimate"):
                raise ValueError(
                    f"quality={self.quality:g} is a PSNR, which a profile estimates: give profile=Profile.load(path), "
                    'or a word, such as quality="balanced"'
                )
            return float(self.profile.estimate(self.quality, num_steps).error)
        return DEFAULT_ERROR if self.error is None else self.error
