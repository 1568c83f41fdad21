"""How fast the guided output changes on the way from noise to the clip: the rate of reuse's error, by noise level.

    rate(level) = rms(v_i - v_j) / rms(v_i) / |level_i - level_j|        of two computed steps i and j in a row

As a function of the log of signal over noise it is much the same for the three built-in models, at 20 and at 50 steps
(docs/experiments/2026-11-rates.md): `PRIOR` is its mean over them. What a run shows itself moves it. Pure Python.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

from mixcache.decision import Granularity

CLEAR = 1e-4
"""Shares of signal and noise are taken as at least this."""
MEMORY = 0.5
"""Share of what was known of a place that stays when it is seen again."""

MOST_WISHES = 16
LEAST_SHARE = 0.1
"""Of the last generation in what is learnt of a wish."""


@lru_cache(maxsize=4096)
def log_snr(level: float) -> float:
    """Log of signal over noise at a noise level, 0 to 1, on the straight path."""
    noise = min(max(level, CLEAR), 1 - CLEAR)
    return math.log((1 - noise) / noise)


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """Rates at places along the way, and on lines between them, in the logs of both."""

    places: tuple[float, ...]
    """Logs of signal over noise, rising."""
    log_rates: tuple[float, ...]

    def log_rate(self, level: float) -> float:
        """At a noise level; beyond the places that of the nearest."""
        place, places = log_snr(level), self.places
        right = bisect_left(places, place)
        if right == 0:
            return self.log_rates[0]
        if right == len(places):
            return self.log_rates[-1]
        share = (place - places[right - 1]) / (places[right] - places[right - 1])
        return self.log_rates[right - 1] + share * (self.log_rates[right] - self.log_rates[right - 1])


def _prior() -> Way:
    data = json.loads(resources.files("mixcache.policies").joinpath("prior.json").read_text())
    return Way(places=tuple(data["places"]), log_rates=tuple(math.log(rate) for rate in data["rates"]))


PRIOR = _prior()
"""Of a model that nothing is known of."""
PRIOR_LEVELS = tuple(1 / (1 + math.exp(place)) for place in PRIOR.places)
"""Noise levels at its places."""


def is_on(level: float) -> bool:
    """True where the prior says something of a noise level, and does not only go on as at its end."""
    return PRIOR.places[0] <= log_snr(level) <= PRIOR.places[-1]


@dataclass
class Learnt:
    """What the generations of one model have shown: rates where they were measured, and times of steps. It does not
    grow: there is one value for each place of `PRIOR`, and one for each kind of step."""

    log_rates: dict[int, float] = field(default_factory=dict)
    """By the index of the place."""
    cached_share: float | None = None
    """Time of a cached step over that of a computed one."""
    limits: dict[str, tuple[float, int]] = field(default_factory=dict)
    """For each wish the log of the limit that gave it, and of how many generations; the last `MOST_WISHES`."""
    num_generations: int = 0
    _way: Way | None = field(default=None, init=False, repr=False, compare=False)

    def see(self, level: float, rate: float) -> None:
        """A rate was measured around a noise level."""
        if not rate > 0 or not math.isfinite(rate):
            return
        place = log_snr(level)
        index = min(range(len(PRIOR.places)), key=lambda k: abs(PRIOR.places[k] - place))
        # told of the place itself, in the shape that the prior has around it
        seen = math.log(rate) + PRIOR.log_rates[index] - PRIOR.log_rate(level)
        known = self.log_rates.get(index)
        self.log_rates[index] = seen if known is None else MEMORY * known + (1 - MEMORY) * seen
        self._way = None

    def see_times(self, seconds: Mapping[Granularity, float]) -> None:
        """Median seconds of steps."""
        if seconds.get(Granularity.COMPUTE) and seconds.get(Granularity.STEP):
            self.cached_share = seconds[Granularity.STEP] / seconds[Granularity.COMPUTE]

    def see_limit(self, wish: str, log_limit: float) -> None:
        """A generation says that this limit would have given the wish."""
        mean, count = self.limits.pop(wish, (0.0, 0))
        share = max(1 / (count + 1), LEAST_SHARE)
        self.limits[wish] = ((1 - share) * mean + share * log_limit, count + 1)
        while len(self.limits) > MOST_WISHES:
            del self.limits[next(iter(self.limits))]

    @property
    def way(self) -> Way:
        """The prior, moved to what was measured: by how much is on lines between the places that were seen."""
        if self._way is None:
            self._way = moved(self.log_rates) if self.log_rates else PRIOR
        return self._way


def moved(log_rates: Mapping[int, float]) -> Way:
    """The prior with these rates at some of its places, at least one, by their index."""
    seen = sorted(log_rates)
    moves = Way(
        places=tuple(PRIOR.places[k] for k in seen),
        log_rates=tuple(log_rates[k] - PRIOR.log_rates[k] for k in seen),
    )
    at = zip(PRIOR.log_rates, PRIOR_LEVELS, strict=True)
    return Way(places=PRIOR.places, log_rates=tuple(rate + moves.log_rate(level) for rate, level in at))
