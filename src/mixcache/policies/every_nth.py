"""every_nth: steps cached on a fixed cadence; one step in `period` is computed.

Source: ours, the baseline that a mixture has to beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mixcache.decision import Decision, Granularity, Step
from mixcache.policies.base import Needs, Policy, granularities_of, is_number
from mixcache.predictors import Predictor, predictor_of


@dataclass
class Cadence:
    """Steps seen since the first one the cadence was asked about, and those of them that were cached."""

    num_steps: int = 0
    num_cached: int = 0


@dataclass(frozen=True, kw_only=True)
class EveryNth(Policy):
    """Computes the steps where `k / period` passes a whole number, caches the others."""

    name: ClassVar[str] = "every_nth"
    # a cadence bounds age and run by its period
    default_bounds: ClassVar[dict[str, int]] = {"max_age": 10**9, "max_cached_run": 10**9}

    granularities: str | Sequence[str] = "step"
    """step, cfg or block, or a list of them that are cached in turn."""
    period: float = 2.0
    """Steps from one computed step to the next; may be a fraction (2.5: every second and third in turn)."""
    predictor: str | Predictor = "reuse"
    """A name of `mixcache.PREDICTORS`, or an object; falls back to what the history allows."""
    corrector: bool = False
    """Takes cached steps again with what the next computed one shows, where the scheduler allows it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularities", tuple(map(str, granularities_of(self.granularities))))
        predictor_of(self.predictor)
        if not is_number(self.period) or self.period < 1:
            raise ValueError(f"period={self.period!r} must be a number of at least 1 (1 computes every step)")

    @property
    def needs(self) -> Needs:
        return Needs(
            granularities=granularities_of(self.granularities),
            predictors=(predictor_of(self.predictor),),
            correction=self.corrector,
        )

    def init(self) -> Cadence:
        return Cadence()

    def decide(self, step: Step, state: Cadence) -> Decision:
        k, allowed = state.num_steps, granularities_of(self.granularities)
        chosen = allowed[state.num_cached % len(allowed)]
        state.num_steps += 1
        if k == 0 or math.floor(k / self.period) != math.floor((k - 1) / self.period):
            return Decision(granularity=Granularity.COMPUTE, reason="cadence")
        if chosen not in step.ages:
            return Decision(granularity=Granularity.COMPUTE, reason="no history")
        state.num_cached += 1
        predictor = predictor_of(self.predictor).for_length(step.history_lengths[chosen])
        return Decision(granularity=chosen, predictor=predictor, reason="cadence")
