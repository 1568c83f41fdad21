"""every_nth: one granularity, cached on a fixed cadence; one step in `period` is computed.

Source: ours, the baseline that a mixture has to beat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mixcache.decision import Decision, Granularity, Step
from mixcache.policies.base import Policy, check_order, granularity_of, is_number


@dataclass
class Cadence:
    """Steps seen since the first one the cadence was asked about."""

    num_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class EveryNth(Policy):
    """Computes the steps where `k / period` passes a whole number, caches the others."""

    name: ClassVar[str] = "every_nth"
    # a cadence bounds age and run by its period
    default_bounds: ClassVar[dict[str, int]] = {"max_age": 10**9, "max_cached_run": 10**9}

    granularity: str = "step"
    """step, cfg or block."""
    period: float = 2.0
    """Steps from one computed step to the next; may be a fraction (2.5: every second and third in turn)."""
    order: int = 0
    """Order of the predictor, 0 to 2; falls back to what the history allows."""
    corrector: bool = False
    """Takes cached steps again with what the next computed one shows, where the scheduler allows it."""

    def __post_init__(self) -> None:
        granularity_of(self.granularity)
        check_order(self.order)
        if not is_number(self.period) or self.period < 1:
            raise ValueError(f"period={self.period!r} must be a number of at least 1 (1 computes every step)")

    @property
    def granularities(self) -> tuple[Granularity, ...]:
        return (granularity_of(self.granularity),)

    @property
    def max_order(self) -> int:
        return self.order

    @property
    def corrects(self) -> bool:
        return self.corrector

    def init(self) -> Cadence:
        return Cadence()

    def decide(self, step: Step, state: Cadence) -> Decision:
        k, chosen = state.num_steps, granularity_of(self.granularity)
        state.num_steps += 1
        if k == 0 or math.floor(k / self.period) != math.floor((k - 1) / self.period):
            return Decision(granularity=Granularity.COMPUTE, reason="cadence")
        if chosen not in step.ages:
            return Decision(granularity=Granularity.COMPUTE, reason="no history")
        order = min(self.order, step.history_lengths[chosen] - 1)
        return Decision(granularity=chosen, order=order, reason="cadence")
