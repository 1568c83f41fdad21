"""What a policy is: settings that never change, a state that is passed in, two questions. Pure Python.

`init()` makes a state, `decide(step, state)` answers before a step, `observe(measurement, state)` learns after a
computed one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from mixcache.decision import CACHED, Decision, Granularity, Measurement, Step
from mixcache.names import unknown_name
from mixcache.predictors import REUSE, Predictor


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What a policy needs of the engine."""

    granularities: tuple[Granularity, ...] = ()
    """What it may choose besides `compute`: only these keep histories."""
    predictors: tuple[Predictor, ...] = (REUSE,)
    """Those it may choose, the one that stands on most values last."""
    distances: bool = False
    """A Measurement after each computed step with deviation and distances (one device sync)."""
    trials: bool = False
    """A Measurement after each computed step in which every granularity and predictor was tried (one device sync)."""
    correction: bool = False
    """Cached steps are to be taken again with what the next computed one shows (`core/corrector.py`)."""
    correction_degree: int | None = None
    """Of the polynomial that they are corrected through, 1 or 2; None for one over that of each step's predictor."""

    @property
    def num_values(self) -> int:
        """Computed values that a history keeps."""
        return max(predictor.num_values for predictor in self.predictors)

    @property
    def measures(self) -> bool:
        return self.distances or self.trials


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Base of all policies. Settings are checked in `__post_init__` by a ValueError that names field, value and way
    out."""

    name: ClassVar[str]
    default_bounds: ClassVar[dict[str, int]] = {}
    """Settings of `Bounded` that suit this policy better than its own defaults."""

    @property
    def needs(self) -> Needs:
        """What the engine is to keep, to measure and to correct for it."""
        return Needs()

    def init(self) -> Any:
        """A fresh state for a new trajectory."""
        return None

    def decide(self, step: Step, state: Any) -> Decision:
        raise NotImplementedError

    def observe(self, measurement: Measurement, state: Any) -> None:
        """Updates `state`; by default nothing is learnt."""


def check_count(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}")


def granularities_of(names: Any) -> tuple[Granularity, ...]:
    """The cached granularities of a name, or of several, each once; ValueError unless there is one at least."""
    several = [names] if isinstance(names, str) else names
    if not isinstance(several, (list, tuple)) or not several:
        raise ValueError(f"granularities={names!r} must be one or a list of step, cfg and block")
    return tuple(dict.fromkeys(granularity_of(name) for name in several))


def is_number(value: Any) -> bool:
    """A finite int or float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def granularity_of(name: str | Granularity) -> Granularity:
    """The cached granularity of that name; ValueError lists them."""
    if name in ("step", "cfg", "block"):
        return Granularity(name)
    raise ValueError(unknown_name("granularity", str(name), map(str, CACHED)))


RISE = 4 / 3
"""What an error may grow by from one computed step of the warm-up to the next."""


def is_rising(error: float, before: float | None) -> bool:
    """True where an error has grown much, or nothing was seen before it.

    Next to pure noise all is calm, and the steps that change most come then.
    """
    return before is None or error > RISE * before
