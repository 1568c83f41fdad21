"""A wished speed-up in one trajectory of policy `hold`: what is left to compute, and the limit with which it will do.

In the first generation the limit is looked for anew after some computed steps: the one at which the rest of the way, as
far as it is known (`way.py`), needs just the computed steps that the wish leaves (`budget.py`). It stays near the one
that is usual for the wish, or under that of the default, and no step is cached for want of computed ones: a clip whose
outputs change much faster comes out slower rather than broken. At first it may go over that by little, since the first
steps say not much of the rest, and the clip carries on what is cached there with too large an error. What a whole loop
came to says which limit that is on this model, up to `MOST_LEARNT`; the more generations have said so, the less a
single clip may move it: with one limit for all clips the wish is kept in the mean, and they are about as good. Pure
Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from mixcache.decision import Decision, Granularity, Step
from mixcache.policies.budget import check_reach, num_computed_for, solved
from mixcache.policies.runs import DEFAULT_ERROR, Run, computed_on, grown
from mixcache.policies.way import Learnt

USUAL_AT_2X = 0.5
"""Limit that is usual for a wish of 2, on all built-in models; it goes with what is over 1."""
BAND = 1.5
"""Factor by which a clip may move the limit, in the first generation; up to the one that is in force where nothing is
wished it may in any case."""
ALL_OF_IT_AFTER = 0.25
"""Share of the loop after which it may go over the usual one by all of that: at first by nothing, then by more from
step to step."""
MOST_LEARNT = 2.0
"""Largest limit that is learnt: an output so far off tells nothing of the one that it stands for, and where steps are
computed for other reasons than the limit, no limit would ever give the wish."""
LIMIT_POWER = 2.5
"""A model whose limit is larger by this power of a factor is faster by the factor, about."""
LONGEST = 3.0
"""Times the mean run that a run may have."""
LOOK_ANEW = 3
"""Computed steps after which it is looked anew how far the rest of the wish reaches."""
FEW_LEFT = 5
"""Computed steps left from which on it is looked anew after each."""
PART_ENDS_OVER = 0.1
"""Noise level at which the first of two experts arrives at least."""
PART_BEGINS_UNDER = 0.9
"""Noise level at which the second one begins at most, or a loop that begins with a clip in place of noise: its steps
are as short as those of a longer loop."""


@dataclass(kw_only=True)
class Wish:
    """What a trajectory has done for its wish."""

    speedup: float
    learnt: Learnt
    name: str = ""
    """What the limit that is learnt is filed under; empty until a step was decided."""
    num_steps: int = 0
    offset: int = 0
    num_computed_before: int = 0
    """Steps that the first of two experts has computed."""
    sigmas: tuple[float, ...] = ()
    """Noise levels of all steps, and of the end; empty where the host does not say."""
    num_cached: int = 0
    """Steps so far."""
    last_cached: int | None = None
    """Index of the last step that was cached."""
    num_computed: int = 0
    """Steps that the wish leaves to compute, of all."""
    num_left: int = 0
    """Of these, as of the last decision."""
    limit: float | None = None
    """In force; None until it is looked for anew."""
    last_limit: float = USUAL_AT_2X
    log_limits: tuple[float, ...] = ()
    """Logs of those that were in force."""
    num_seen: int = 0
    """Computed steps since it was looked for."""

    def see(self, step: Step) -> None:
        """A step is to be decided. ValueError where so many steps do not allow the wish."""
        if not self.name:
            ends = step.sigmas or (1.0, 0.0)
            is_part = step.offset > 0 or ends[0] < PART_BEGINS_UNDER or ends[-1] > PART_ENDS_OVER
            check_reach(self.speedup, step.num_steps, is_part=is_part)
            self.num_steps, self.offset, self.sigmas = step.num_steps, step.offset, step.sigmas
            self.num_computed_before = step.num_computed_before
            self.name = self._name_of(step.num_steps, step.offset)
        self.num_cached += step.num_cached > 0
        self.num_computed = self._num_computed()
        self.num_left = self.num_computed - (step.index - self.num_cached)

    def _num_computed(self) -> int:
        """Of the steps of a second expert, what the first one left of both."""
        share = self.learnt.cached_share
        if not self.offset:
            return num_computed_for(self.speedup, self.num_steps, share)
        of_both = num_computed_for(self.speedup, self.offset + self.num_steps, share)
        return min(max(of_both - self.num_computed_before, 1), self.num_steps)

    @property
    def longest(self) -> int:
        """Cached steps that a run may have."""
        return max(1, math.ceil(LONGEST * (self.num_steps - self.num_computed) / self.num_computed))

    @property
    def _known(self) -> tuple[float, int]:
        """Log of the limit that gave the wish before, and in how many generations; of the usual one where in none."""
        return self._known_of(self.name)

    def _known_of(self, name: str) -> tuple[float, int]:
        return self.learnt.limits.get(name, (self._usual, 0))

    def _name_of(self, num_steps: int, offset: int) -> str:
        return f"{self.speedup:g} of {num_steps} from {offset}"

    def limit_known(self, num_steps: int) -> float:
        """With which a loop of so many steps begins."""
        return math.exp(self._known_of(self._name_of(num_steps, 0))[0])

    @property
    def _usual(self) -> float:
        """Log of the limit that is usual for the wish where nothing was learnt."""
        usual = USUAL_AT_2X * (self.speedup - 1)
        return math.log(usual) if usual else -math.inf

    def settled(self, step: Step) -> Decision | None:
        """What the count of steps alone decides, in the first generation. It never caches: the steps of the end are
        often long, and a clip whose steps are used up too early would be broken there."""
        if not self._known[1] and self.num_left >= self.num_steps - step.index:
            return Decision(granularity=Granularity.COMPUTE, reason="all that is left may be computed")
        return None

    def limit_at(self, step: Step, sigma: float, rates: Sequence[float], scale: float) -> float:
        """In force at a step; the last computed one was at `sigma`, errors there grew at the last of `rates`, and those
        ahead are taken to be `scale` times what is known of them."""
        if self.limit is None:
            usual, count = self._known
            band = math.log(BAND) / (1 + count)
            most = usual + band * self._share_of_band(step)
            if not count:
                most = max(most, math.log(DEFAULT_ERROR))
            found = math.log(self._limit_of_rest(step, sigma, rates, scale))
            self.limit = self.last_limit = math.exp(min(max(found, usual - band), most))
        self.log_limits += (math.log(self.limit),)
        return self.limit

    def _share_of_band(self, step: Step) -> float:
        """That a clip may use to go over the usual limit; all of it where the loop begins with a clip for noise."""
        if not self.offset and self.sigmas and self.sigmas[0] < PART_BEGINS_UNDER:
            return 1.0
        done = (self.offset + step.index) / (self.offset + self.num_steps)
        return min(1.0, done / ALL_OF_IT_AFTER)

    def _limit_of_rest(self, step: Step, sigma: float, rates: Sequence[float], scale: float) -> float:
        """With which so many of the steps from here on would be computed as are left."""
        way = self.learnt.way
        sigmas = step.sigmas[step.index :] if step.sigmas else [step.sigma - k * step.distance for k in range(99)]
        sigmas = sigmas[: self.num_steps - step.index + 1]
        ahead = [scale * math.exp(way.log_rate(level)) for level in sigmas]
        run = partial(Run, sigma, rates[-1], grown(*rates), self.longest)

        def num_computed(limit: float) -> int:
            return computed_on(sigmas, ahead, limit, run(), self.num_steps)

        return solved(num_computed, max(1, self.num_left), self.last_limit)

    def computed(self, index: int) -> None:
        """A step was computed."""
        self.num_seen += 1
        if self.num_seen >= LOOK_ANEW or self.num_left <= FEW_LEFT:
            self.limit, self.num_seen = None, 0
        if not self.name:
            return
        num_computed = index + 1 - self.num_cached - (self.last_cached == index - 1)
        if self.log_limits and index == self.num_steps - 1:
            most = max(math.log(MOST_LEARNT), self._usual)
            self.learnt.see_limit(self.name, min(self._log_limit_taught(num_computed), most))

    def _log_limit_taught(self, num_computed: int) -> float:
        """What a whole loop says of the limit. In the first generation steps were computed to keep the wish, whatever
        the limit said: there it is the one that all that was seen would take."""
        if self._known[1] or len(self.sigmas) != self.num_steps + 1:
            return fmean(self.log_limits) + LIMIT_POWER * math.log(num_computed / self.num_computed)
        rates = [math.exp(self.learnt.way.log_rate(sigma)) for sigma in self.sigmas]
        run = partial(Run, self.sigmas[1], rates[1], grown(*rates[:2]), self.longest)

        def found(limit: float) -> int:
            return 2 + computed_on(self.sigmas[2:], rates[2:], limit, run(), self.num_steps)

        return math.log(solved(found, self.num_computed, self.last_limit))
