"""hold: repeats the last output while it is near, in short runs, which are then corrected through a parabola.

Source: ours. Reuse does not run away as an extrapolation does, and it is what the corrector helps most. At every
computed step the error of repeating the output before it is seen, and what it grew by for each unit of noise level; as
much again, or more where it has been growing, is expected of the next. A cached step is one that keeps to three limits:

    error   of the repeated output, relative                          at most `error`
    span    of the run, in the log of signal over noise               at most SPAN `error`
    cost    of the run: sum of error x age x weight of the step       at most BUDGET `error`^2 / number of steps

Early steps go a short way and settle what is carried on, so each weighs an even share at least; a step longer than
that weighs by its square, since a long step is hardly put right by interpolation. The three go together: a run that may
be twice as long has errors twice as large, and four times the cost. What single steps do to a clip, and what else was
tried, is in docs/experiments/2026-11-hard-default.md.

Where a `speedup` is wished, `error` follows from it: it is the one at which the rest of the way, as far as it is known
(`way.py`), needs just the computed steps that the wish leaves (`budget.py`); it is looked at anew when some computed
steps have shown more. But it stays near the one that is usual for the wish: a clip whose outputs change much faster
comes out slower rather than broken. What the first generations came to says which limit that is on this model, and
the more of them there were the less a single clip may move it: one limit for all clips is worth more, at the same mean
speed-up, than one for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.names import unknown_name
from mixcache.policies.base import Needs, Policy, is_number
from mixcache.policies.budget import check_reach, num_computed_for, solved
from mixcache.policies.way import Learnt, is_on, log_snr
from mixcache.predictors import REUSE

SPAN = 1.25
BUDGET = 9.0
GROWTH = 3.0
"""Most that an error is expected to have grown by, for one unit of noise level, since the last computed step."""
LOOK_ANEW = 3
"""Computed steps after which it is looked anew how far the rest of the wish reaches."""
PART_ENDS_OVER = 0.1
"""Noise level at which the first of two experts arrives at least."""
NUM_RATIOS = 4
"""Rates by which what is foretold of the rest is scaled."""
BAND = 1.5
"""Factor by which a wish may move the limit from the one that is usual for it, in the first generation."""
LIMIT_POWER = 2.5
"""A model whose limit is larger by this power of a factor is faster by the factor, about."""
FEW_LEFT = 5
"""Computed steps left from which on it is looked anew after each."""
LONGEST = 3.0
"""Times the mean run that a run may have under a wish."""
DEFAULT_ERROR = 0.4
QUALITIES = {"high": 0.25, "balanced": DEFAULT_ERROR, "fast": 0.6}
"""`error` by the word for it."""


NO_END = 10**9


@dataclass
class Run:
    """The cached steps since the last computed one, and what was expected of them."""

    sigma: float
    """Of the last computed step."""
    rate: float
    """Error for each unit of noise level, as seen there."""
    growth: float
    max_steps: int = NO_END
    began: float = 0.0
    """Log of signal over noise where its first step began."""
    spent: float = 0.0
    """Cost."""
    num_steps: int = 0

    def exceeded(self, limit: float, sigma: float, distance: float, num_steps: int) -> str:
        """Why a step of the loop's `num_steps` may not be cached, from `sigma` on for a `distance`; "" where it may,
        and is then counted as cached."""
        error = self.growth * self.rate * abs(self.sigma - sigma)
        if self.num_steps >= self.max_steps:
            return f"{self.num_steps} cached steps in a row"
        if error > limit:
            return f"an error of {error:.2g} is expected"
        if not self.num_steps:
            self.began = log_snr(sigma)
        elif (span := log_snr(sigma - distance) - self.began) > SPAN * limit:
            return f"the run would span {span:.2g}"
        spent = self.spent + error * (self.num_steps + 1) * weight(distance, num_steps)
        if spent > BUDGET * limit**2 / num_steps:
            return f"cost {spent:.2g} is over the budget"
        self.spent, self.num_steps = spent, self.num_steps + 1
        return ""


def weight(distance: float, num_steps: int) -> float:
    """What an error at a step of this length counts for."""
    return max(1 / num_steps, distance**2 * num_steps)


@dataclass
class Held:
    """What a trajectory has shown so far."""

    sigma: float = math.nan
    """Of the last computed step."""
    rates: tuple[float, ...] = ()
    """Errors seen at the last two computed steps, for each unit of noise level."""
    log_ratios: tuple[float, ...] = ()
    """Logs of the last rates over those that were foretold there."""
    run: Run | None = None
    num_cached: int = 0
    """Steps so far."""
    limit: float | None = None
    """`error` in force under a wish; None until it is looked for anew."""
    last_limit: float = DEFAULT_ERROR
    num_left: int = 0
    """Computed steps that the wish leaves, as of the last step."""
    num_seen: int = 0
    """Computed steps since it was looked for."""
    log_limits: tuple[float, ...] = ()
    """Logs of the limits that were in force under a wish."""
    last_cached: int = -1
    """Index of the last step that was cached."""
    num_steps: int = 0
    offset: int = 0
    sigmas: tuple[float, ...] = ()
    wish: str = ""
    """What the limit that is learnt is filed under."""
    is_within_reach: bool = False
    """True once the wish was held against what so many steps allow."""


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
    """In place of a speed-up: "high", "balanced" or "fast"; or a PSNR in dB against the plain clip, as a profile
    estimates it."""
    error: float | None = None
    """In place of both: relative error, as expected, up to which an output is repeated. More is faster; 0.4 where
    nothing is asked for."""
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
        if isinstance(self.quality, str) and self.quality not in QUALITIES:
            raise ValueError(unknown_name("quality", self.quality, QUALITIES))
        if self.quality is not None and not isinstance(self.quality, str) and not is_number(self.quality):
            raise ValueError(f"quality={self.quality!r} must be high, balanced or fast, or a number of decibels")
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
        return Held()

    def decide(self, step: Step, state: Held) -> Decision:
        state.num_cached += step.num_cached > 0
        self.learnt.see_times(step.seconds)
        if self.speedup is not None and not state.is_within_reach:
            is_part = step.offset > 0 or (len(step.sigmas) > 1 and step.sigmas[-1] > PART_ENDS_OVER)
            check_reach(self.speedup, step.num_steps, is_part=is_part)
            state.is_within_reach = True  # a loop is not broken off later, for a time that was measured in it
        if Granularity.STEP not in step.ages or not state.rates:
            return Decision(granularity=Granularity.COMPUTE, reason="nothing seen yet")
        if self.speedup is None:
            limit, longest = self._limit(step.num_steps), NO_END
        else:
            num_computed = self._num_computed(self.speedup, step.num_steps, step.offset)
            longest = longest_run(num_computed, step.num_steps)
            state.num_steps, state.offset, state.sigmas = step.num_steps, step.offset, step.sigmas
            state.wish = f"{self.speedup:g} of {step.num_steps} from {step.offset}"
            usual, count = self.learnt.limits.get(state.wish, (math.log(DEFAULT_ERROR * (self.speedup - 1) or 1e-9), 0))
            num_left = num_computed - (step.index - state.num_cached)
            if not count and num_left >= step.num_steps - step.index:
                return Decision(granularity=Granularity.COMPUTE, reason="all that is left may be computed")
            if not count and num_left <= 0 and step.num_cached < longest:
                state.last_cached = step.index
                return Decision(granularity=Granularity.STEP, reason=f"the rest of {self.speedup:g}x")
            state.num_left = num_left
            if state.limit is None:
                found = math.log(self._limit_for(max(1, num_left), longest, step, state))
                band = math.log(BAND) / (1 + count)
                state.limit = state.last_limit = math.exp(min(max(found, usual - band), usual + band))
            limit = state.limit
            state.log_limits += (math.log(limit),)
        if state.run is None:
            state.run = Run(state.sigma, state.rates[-1], grown(*state.rates), longest)
        reason = state.run.exceeded(limit, step.sigma, step.distance, step.num_steps)
        if reason:
            return Decision(granularity=Granularity.COMPUTE, reason=reason)
        state.last_cached = step.index
        return Decision(granularity=Granularity.STEP, reason=f"cost {state.run.spent:.2g}, error up to {limit:.2g}")

    def observe(self, measurement: Measurement, state: Held) -> None:
        if self.speedup is not None and state.log_limits:
            num_computed = measurement.step + 1 - state.num_cached - (state.last_cached == measurement.step - 1)
            if not state.offset:
                self.learnt.num_computed_before = num_computed
            if measurement.step == state.num_steps - 1:
                self._learn_limit(num_computed, self._num_computed(self.speedup, state.num_steps, state.offset), state)
        before, state.sigma = state.sigma, measurement.sigma
        distance = abs(before - state.sigma)
        trial = measurement.trials.get((Granularity.STEP, REUSE))
        if trial is not None and distance > 0 and math.isfinite(trial.error()):
            rate = trial.error() / distance
            state.rates = (*state.rates, rate)[-2:]
            middle = (before + state.sigma) / 2
            if rate > 0 and is_on(middle):
                ratio = math.log(rate) - self.learnt.way.log_rate(middle)
                state.log_ratios = (*state.log_ratios, ratio)[-NUM_RATIOS:]
                self.learnt.see(middle, rate)
        state.run = None
        state.num_seen += 1
        if state.num_seen >= LOOK_ANEW or state.num_left <= FEW_LEFT:
            state.limit, state.num_seen = None, 0

    def _learn_limit(self, num_computed: int, wanted: int, state: Held) -> None:
        """What a whole loop says of the limit. In the first generation steps were computed or cached to keep the wish,
        whatever the limit said: there it is what all that was seen would give."""
        if state.wish in self.learnt.limits or len(state.sigmas) != state.num_steps + 1:
            log_limit = fmean(state.log_limits) + LIMIT_POWER * math.log(num_computed / wanted)
        else:
            log_limit = math.log(self._limit_of_all(wanted, state))
        self.learnt.see_limit(state.wish, log_limit)

    def _num_computed(self, speedup: float, num_steps: int, offset: int) -> int:
        """What the wish leaves to compute of a denoiser's steps: of those of a second expert, what the first one left
        of both."""
        share = self.learnt.cached_share
        if not offset:
            return num_computed_for(speedup, num_steps, share)
        of_both = num_computed_for(speedup, offset + num_steps, share)
        return min(max(of_both - self.learnt.num_computed_before, 1), num_steps)

    def _limit(self, num_steps: int) -> float:
        """The `error` in force where no speed-up is wished."""
        if isinstance(self.quality, str):
            return QUALITIES[self.quality]
        if self.quality is not None:
            return float(self.profile.error_for(self.quality, num_steps))
        return DEFAULT_ERROR if self.error is None else self.error

    def _limit_for(self, num_left: int, longest: int, step: Step, state: Held) -> float:
        """The `error` with which so many of the steps from here on would be computed."""
        way = self.learnt.way
        scale = math.exp(fmean(state.log_ratios)) if state.log_ratios else 1.0
        sigmas = step.sigmas[step.index :] if step.sigmas else [step.sigma - k * step.distance for k in range(99)]
        sigmas = sigmas[: step.num_steps - step.index + 1]
        rates = [scale * math.exp(way.log_rate(sigma)) for sigma in sigmas]
        run = partial(Run, state.sigma, state.rates[-1], grown(*state.rates), longest)

        def num_computed(limit: float) -> int:
            return computed_on(sigmas, rates, limit, run(), step.num_steps)

        return solved(num_computed, num_left, state.last_limit)

    def _limit_of_all(self, num_computed: int, state: Held) -> float:
        """The `error` with which so many steps of the whole loop would be computed, as it is known at its end."""
        way, num_steps = self.learnt.way, len(state.sigmas) - 1
        rates = [math.exp(way.log_rate(sigma)) for sigma in state.sigmas]
        run = partial(Run, state.sigmas[1], rates[1], grown(*rates[:2]), longest_run(num_computed, num_steps))

        def found(limit: float) -> int:
            return 2 + computed_on(state.sigmas[2:], rates[2:], limit, run(), num_steps)

        return solved(found, num_computed, state.last_limit)


def computed_on(sigmas: Sequence[float], rates: Sequence[float], limit: float, run: Run, num_steps: int) -> int:
    """Steps that would be computed of those at the noise levels `sigmas`, but for the last one of these, at which the
    last step arrives; errors grow at the `rates`, and `run` is the one that is under way."""
    count, last, longest = 1, run.rate, run.max_steps  # the last step is computed
    for k in range(len(sigmas) - 2):
        if run.exceeded(limit, sigmas[k], sigmas[k] - sigmas[k + 1], num_steps):
            count += 1
            run = Run(sigmas[k], rates[k], grown(last, rates[k]), longest)
            last = rates[k]
    return count


def longest_run(num_computed: int, num_steps: int) -> int:
    """Cached steps that a run may have under a wish that leaves so many to compute."""
    return max(1, math.ceil(LONGEST * (num_steps - num_computed) / num_computed))


def grown(before: float, rate: float | None = None) -> float:
    """What a rate is expected to grow by on, as it did between two computed steps."""
    return 1.0 if rate is None or not before else min(GROWTH, max(1.0, rate / before))
